"""Listens to the store and counts: the only bridge between store events and the recorder."""

from __future__ import annotations

from cachesrv.observe.recorder import Recorder
from cachesrv.store.events import BytesSaved, EntriesRemoved, Listener, StoreEvent


def counting(recorder: Recorder) -> Listener:
    """A listener for ``store`` objects that counts removals and saved bytes. Never raises."""

    def heard(event: StoreEvent) -> None:
        match event:
            case EntriesRemoved(reason, tenant, entries, size):
                recorder.removed(reason, tenant, entries, size)
            case BytesSaved(how, size):
                recorder.saved(how, size)
            case _:
                return

    return heard

"""The one table of statuses: complete, and inside what the clients can bear."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesrv.observe.recorder import OUTCOMES
from cachesrv.protocols.actions.errors import SICK, TABLE, Reason, Refusal, blob_body, from_store, v1_body
from cachesrv.store import errors as store

TWIRP = {
    "invalid_argument": {400, 413},
    "malformed": {400, 411, 413},
    "unauthenticated": {401},
    "permission_denied": {403},
    "not_found": {404},
    "bad_route": {404, 405},
    "already_exists": {409},
    "failed_precondition": {412},
    "internal": {500},
    "unavailable": {503},
}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_row_that_clients_understand(reason: Reason) -> None:
    row = TABLE[reason]
    status, code = row.twirp
    assert status in TWIRP[code]
    assert row.outcome in OUTCOMES
    for answered in (status, row.v1, row.blob[0]):
        assert 400 <= answered < 600
        assert answered not in (408, 429, 502, 504)
        if answered >= 500:
            assert reason in SICK or reason is Reason.UPSTREAM


def test_every_store_error_is_mapped_on_purpose() -> None:
    kinds = [kind for kind in vars(store).values() if isinstance(kind, type) and issubclass(kind, store.StoreError)]
    assert len(kinds) > 10
    at_start_only = {store.StoreError, store.FormatError, store.StoreLocked}
    for kind in kinds:
        error = kind(7, 8) if kind is store.SizeMismatch else kind("text")
        assert (from_store(error).reason is Reason.INTERNAL) == (kind in at_start_only)


@given(st.text())
def test_bodies_are_well_formed_for_any_text(text: str) -> None:
    element = ElementTree.fromstring(blob_body("InvalidInput", text))
    assert element.findtext("Code") == "InvalidInput"
    for reason in (Reason.INVALID, Reason.EXISTS):
        assert json.loads(v1_body(Refusal(reason, text)))["message"] == text

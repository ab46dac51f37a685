"""A report as a person reads it: text of at most the console's width, sound from 80 columns on.

Sizes are decimal (kB, MB, GB), as in the settings. What has no value yet shows as "-".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachesrv.observe.report import Activity, Report, Window

WINDOWS: Final = {"start": "since start", "hour": "last hour", "day": "last day", "all": "all time"}
ROWS: Final = 15
"""Repositories shown; ``--json`` has more."""
NONE: Final = "-"


def size_text(size: float) -> str:
    """1234567 -> "1.2 MB": three digits at most before the unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} PB"


def time_text(seconds: float | None) -> str:
    """0.00034 -> "0.34 ms"."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s"


def age_text(seconds: float) -> str:
    """How long ago, in the two largest units: "3 d 4 h"."""
    left = max(int(seconds), 0)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= length or (unit == "s" and not parts):
            parts.append(f"{left // length} {unit}")
            left %= length
    return " ".join(parts[:2])


def rate_text(rate: float | None) -> str:
    if rate is None:
        return NONE
    return "100 %" if rate == 1 else f"{min(rate * 100, 99.9):.1f} %"


def _count(number: int) -> str:
    """Whole up to 9,999,999, then in millions: a column stays narrow."""
    return f"{number:,}" if number < 10_000_000 else f"{number / 1e6:,.1f} M"


def _short(number: float) -> str:
    """1234567 -> "1.2 M"."""
    unit = "k"
    number /= 1000
    if number >= 999.5:
        unit, number = "M", number / 1000
    return f"{number:.0f} {unit}" if number >= 99.95 else f"{number:.1f} {unit}"


def _name(name: str) -> Text:
    """A name that a client chose, without what would move the cursor or hide text; cut where the column ends."""
    shown = "".join(sign if sign.isprintable() else "?" for sign in name)
    return Text(shown, no_wrap=True, overflow="ellipsis")


def render(report: Report, console: Console, *, source: str) -> None:
    """Print ``report``; ``source`` says where it was read (a URL or a folder)."""
    up = f"started {age_text((report.taken - report.started) / 1000)} ago" if report.started else "never started"
    console.print(Text(f"cachesrv {report.cachesrv}, {up}", style="bold"))
    console.print(Text(source, style="dim"), no_wrap=True, overflow="ellipsis")
    console.print()
    store = report.store
    _line(
        console,
        "Store",
        f"{store.entries:,} {'entry' if store.entries == 1 else 'entries'}, {size_text(store.logical)} of content",
    )
    share = (
        f", {store.on_disk / store.budget * 100:.0f} % of the budget of {size_text(store.budget)}"
        if store.budget
        else ""
    )
    _line(console, "On disk", f"{size_text(store.on_disk)}{share}")
    _line(console, "Free", NONE if store.free is None else size_text(store.free))
    _line(console, "Saved", f"{size_text(store.saved['zstd'])} by zstd, {size_text(store.saved['dedup'])} by dedup")
    _line(console, "Uploads", f"{store.uploads_in_flight:,} in flight")
    if report.loop_lag >= 0.1:
        _line(console, "Late", f"an event loop stood still for {time_text(report.loop_lag)}")
    console.print()
    if not report.windows["all"].total.requests:
        console.print("Nothing has been asked of this cache yet.")
        start = "Start it with `cachesrv serve`: it prints" if report.started is None else "`cachesrv serve` printed"
        console.print(f"{start} the lines that point a runner at it.")
        return
    for table in (_windows(report), _protocols(report), _repositories(report)):
        console.print(table)
        console.print()
    listed = len(_names(report))
    if listed > ROWS:
        console.print(Text(f"... and {listed - ROWS:,} more repositories: see --json", style="dim"))


def _line(console: Console, label: str, text: str) -> None:
    console.print(Text.assemble((f"{label:<9}", "bold"), text))


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0),
    )
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _windows(report: Report) -> Table:
    windows = [report.windows[name] for name in WINDOWS]
    table = _table("Activity", "", *WINDOWS.values())

    def row(label: str, value: Callable[[Window], str]) -> None:
        table.add_row(label, *(value(window) for window in windows))

    row("hits", lambda w: _count(w.total.hits))
    row("misses", lambda w: _count(w.total.misses))
    row("hit rate", lambda w: rate_text(w.total.hit_rate))
    row("saves", lambda w: _count(w.total.saves))
    row("bytes in", lambda w: size_text(w.total.bytes_in))
    row("bytes out", lambda w: size_text(w.total.bytes_out))
    row("lookup p50", lambda w: time_text(w.total.lookups.p50))
    row("lookup p99", lambda w: time_text(w.total.lookups.p99))
    for reason in report.windows["all"].removed:
        row(f"gone: {reason}", lambda w, reason=reason: _removed(w, reason))  # type: ignore[misc]
    if report.windows["all"].restarts:
        row("restarts", lambda w: _count(sum(w.restarts.values())))
    return table


def _removed(window: Window, reason: str) -> str:
    removed = window.removed.get(reason)
    if removed is None:
        return NONE
    entries = f"{removed.entries:,}" if removed.entries < 10_000 else _short(removed.entries)
    return f"{entries}, {size_text(removed.bytes)}"


def _protocols(report: Report) -> Table:
    table = _table("Protocols, since start", "", "hits", "misses", "rate", "saves", "in", "out", "p99")
    found = report.windows["start"].protocols
    for name, activity in found.items():
        table.add_row(_name(name), *_activity(activity), time_text(activity.lookups.p99))
    if not found:
        table.add_row("none yet", *[NONE] * 7)
    return table


def _activity(activity: Activity) -> tuple[str, ...]:
    return (
        _count(activity.hits),
        _count(activity.misses),
        rate_text(activity.hit_rate),
        _count(activity.saves),
        size_text(activity.bytes_in),
        size_text(activity.bytes_out),
    )


def _names(report: Report) -> list[str]:
    """Repositories to show: the busiest of the last day, then the largest of the others."""
    busy = [one.repository for one in report.windows["day"].repositories]
    return list(dict.fromkeys([*busy, *(holding.repository for holding in report.store.repositories)]))


def _repositories(report: Report) -> Table:
    table = _table("Repositories, last day", "", "entries", "size", "hits", "misses", "rate", "in", "out")
    day = {one.repository: one for one in report.windows["day"].repositories}
    for name in _names(report)[:ROWS]:
        holdings = [holding for holding in report.store.repositories if holding.repository == name]
        held = (
            _count(sum(holding.entries for holding in holdings)),
            size_text(sum(holding.bytes for holding in holdings)),
        )
        one = day.get(name)
        counted = (
            (
                _count(one.hits),
                _count(one.misses),
                rate_text(one.hit_rate),
                size_text(one.bytes_in),
                size_text(one.bytes_out),
            )
            if one
            else (NONE,) * 5
        )
        table.add_row(_name(name), *held, *counted)
    return table

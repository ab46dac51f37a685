"""docs/stats.md says exactly what the report and the exposition hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cachesrv.observe import layout
from cachesrv.observe.counters import SharedRecorder, counters_path, mark_started, open_counters
from cachesrv.observe.metrics import exposition
from cachesrv.observe.recorder import OPERATIONS, OUTCOMES
from cachesrv.observe.report import Activity, Report, Sums, collect
from cachesrv.store.api import Usage
from cachesrv.store.model import RemovalReason
from tests.unit.observe.fake_view import FakeView

PAGE = (Path(__file__).parents[3] / "docs" / "stats.md").read_text()
KINDS: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "integer or null": (int, type(None)),
    "number": (float, int),
    "number or null": (float, int, type(None)),
    "string": (str,),
    "object": (dict,),
    "array": (list,),
}


def section(name: str) -> str:
    return PAGE.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0]


def fields(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|", text, re.MULTILINE))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    open_counters(counters_path(tmp_path), layout.slots_for(1))
    mark_started(tmp_path)
    recorder = SharedRecorder(counters_path(tmp_path), layout.worker_slot(0))
    recorder.request("actions", "lookup", "hit", tenant="a/b", seconds=0.1)
    recorder.removed(RemovalReason.BUDGET, "a/b", 1, 1)
    recorder.restarted("worker")
    return tmp_path


VIEW = FakeView([Usage("actions", "a/b", 1, 2)], Sums(1, 2, 3, 4, 5, 6))


def follow(value: Any, path: str) -> list[Any]:
    """Everything that a documented field means in a report."""
    found = [value]
    for step in re.findall(r"[^.\[\]]+|\[\]", path):
        if step == "*":
            found = [inner for one in found for inner in one.values()]
        elif step == "[]":
            found = [inner for one in found for inner in one]
        else:
            found = [one[step] for one in found]
    return found


def test_every_documented_field_is_there_with_its_type(root: Path) -> None:
    report = msgspec.to_builtins(collect(root, VIEW, budget=7))
    head, activity = section("schema").split("An activity:")
    for path, kind in fields(head).items():
        values = follow(report, path.removesuffix("[]"))
        assert values, path
        assert all(isinstance(value, KINDS[kind]) for value in values), path
    for path, kind in fields(activity).items():
        for value in follow(report, f"windows.*.total.{path}") + follow(report, f"windows.*.protocols.*.{path}"):
            assert isinstance(value, KINDS[kind]), path


def test_every_field_of_the_report_is_documented(root: Path) -> None:
    report = msgspec.to_builtins(collect(root, VIEW, budget=7))
    head, activity = map(fields, section("schema").split("An activity:"))

    def named(value: dict[str, Any], prefix: str) -> set[str]:
        return {f"{prefix}{name}" for name in value}

    window = report["windows"]["all"]
    expected = named(report, "") - {"store"} | named(report["store"], "store.") | named(window, "windows.*.")
    expected |= named(report["store"]["repositories"][0], "store.repositories[].")
    expected |= named(window["repositories"][0], "windows.*.repositories[].")
    assert {
        path if path.count("[]") and not path.endswith("[]") else path.removesuffix("[]") for path in head
    } == expected
    assert set(activity) == {field.name for field in msgspec.structs.fields(Activity)}
    assert set(report["windows"]) == {"start", "hour", "day", "all"}
    assert set(window["total"]["lookups"]) == {"count", "mean", "p50", "p99"}
    for name in (*OPERATIONS, *OUTCOMES, *layout.REASONS, *window["total"]["lookups"]):
        assert f"`{name}`" in PAGE
    assert msgspec.convert(report, Report)


def test_every_metric_is_documented_and_there(root: Path) -> None:
    documented = {
        (name.removesuffix("_total").removesuffix("_info"), frozenset(filter(None, labels.strip().split(", "))))
        for name, labels in re.findall(r"^\| `([^`]+)` \|([^|]*)\|", section("metrics"), re.MULTILINE)
    }
    text = exposition(root, VIEW, budget=7, now=0).decode()
    found = {
        (family.name.removesuffix("_info"), frozenset(family.samples[0].labels) - {"le"})
        for family in text_string_to_metric_families(text)
    }
    assert found == documented

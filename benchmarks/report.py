"""Collects figures, compares them with their bars, prints a table and keeps it as Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """One line about where this runs."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{os.cpu_count()} cores of {model}, Linux {platform.release()}, Python {platform.python_version()}"


def stolen() -> float:
    """Seconds of processor time that the hypervisor gave to others since boot, all cores together: latencies of a run
    during which this grew are its, not ours."""
    return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")


@dataclass
class Row:
    """One question. ``bar``: what was promised, e.g. ">= 1.00"; ``met`` None where nothing is promised."""

    question: str
    ours: str
    peer: str
    ratio: float | None
    bar: str
    met: bool | None


@dataclass
class Report:
    name: str
    quick: bool = False
    results: Path = RESULTS
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def missed(self) -> int:
        return sum(row.met is False for row in self.rows)

    def say(self, text: str) -> None:
        """Progress, so that nobody waits in the dark."""
        print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.say(text)

    def compare(
        self,
        question: str,
        ours: list[float],
        peer: list[float],
        *,
        unit: str,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Rounds measured in turn: the ratio is the median of the pairwise ratios ours / peer."""
        ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
        met = None
        bar = ""
        if at_least is not None:
            bar, met = f">= {at_least:.2f}", ratio >= at_least
        if at_most is not None:
            bar, met = f"<= {at_most:.2f}", ratio <= at_most
        self.rows.append(Row(question, _spread(ours, unit), _spread(peer, unit), round(ratio, 3), bar, met))
        self.say(f"{question}: {_spread(ours, unit)} against {_spread(peer, unit)}: {ratio:.2f} ({bar})")

    def figure(self, question: str, value: float, *, unit: str, at_most: float | None = None) -> None:
        """One number against an absolute bar."""
        met = None if at_most is None else value <= at_most
        bar = "" if at_most is None else f"<= {at_most:g} {unit}"
        self.rows.append(Row(question, f"{value:.3g} {unit}", "", None, bar, met))
        self.say(f"{question}: {value:.3g} {unit} ({bar})")

    def finish(self) -> None:
        """Print the table and write both files."""
        table = Table(title=f"{self.name}{' (quick: proves nothing)' if self.quick else ''}")
        for column in ("question", "cachesrv", "peer", "ratio", "bar", ""):
            table.add_column(column)
        lines = [
            f"# {self.name}",
            "",
            machine(),
            "",
            "| question | cachesrv | peer | ratio | bar | met |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            met = "" if row.met is None else ("yes" if row.met else "NO")
            cells = [row.question, row.ours, row.peer, "" if row.ratio is None else f"{row.ratio:.2f}", row.bar, met]
            table.add_row(*cells)
            lines.append("| " + " | ".join(cells) + " |")
        Console(width=150).print(table)
        lines += ["", *(f"* {note}" for note in self.notes)]
        self.results.mkdir(exist_ok=True)
        (self.results / f"{self.name}.md").write_text("\n".join(lines) + "\n")
        whole = {
            "name": self.name,
            "quick": self.quick,
            "machine": machine(),
            "rows": [asdict(row) for row in self.rows],
        }
        (self.results / f"{self.name}.json").write_text(json.dumps({**whole, "notes": self.notes}, indent=1) + "\n")


def _spread(values: list[float], unit: str) -> str:
    middle = statistics.median(values)
    return f"{middle:.3g} {unit} ({min(values):.3g}..{max(values):.3g})"

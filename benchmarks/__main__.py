"""Runs benchmarks by name and writes ``<name>.json`` and ``.md`` to ``benchmarks/results`` or ``--results``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.report import RESULTS, Report, machine

NAMES = ("get", "put", "lookups", "eviction", "memory", "client")


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("name", choices=[*NAMES, "all"])
    parser.add_argument(
        "--quick", action="store_true", help="smaller and fewer rounds: shows that it works, proves nothing"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder that gets the tables")
    chosen = parser.parse_args()
    missed = 0
    print(machine())
    for name in NAMES if chosen.name == "all" else [chosen.name]:
        report = Report(name, quick=chosen.quick, results=chosen.results)
        importlib.import_module(f"benchmarks.{name}").run(report)
        report.finish()
        missed += report.missed
    return 1 if missed and not chosen.quick else 0


if __name__ == "__main__":
    sys.exit(main())

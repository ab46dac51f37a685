"""Save and restore with the real npm client: what does a user wait for beyond what the client costs by itself?

The same @actions/cache saves a folder to and restores it from cachesrv (durable, two workers) and the null server, in
turn, the first of a round changing each round. Timed is the call of ``saveCache`` or ``restoreCache`` in the node
process, tar and zstd included. Each round has a new cachesrv and a new data folder, so that no content is known from
the round before; before each timed call the disk is left with nothing to write. The round before the first is not
counted: there every restored byte is compared with what was saved, and the null server gets its archive.

A disk that makes files slowly (13,000 of them in a node_modules) would hide the server behind tar, so that folder is
measured with the client's own files on tmpfs too. Rows "transfer alone" leave tar and zstd out (a save from its first
request on, a restore until tar begins); nothing was promised of them, they show a difference sooner.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import tempfile
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.null_server import null_server
from benchmarks.processes import Served, cachesrv
from benchmarks.report import Report
from benchmarks.wire import Api, put_blob, token
from tests.clients import npm_clients
from tests.clients.file_tree import fingerprint
from tests.clients.npm_clients import NODE_MODULES, ActionsCache, Answer

MIB = 1 << 20
RELEASE = "ac630"
BAR = 1.25
MEMORY = Path("/dev/shm")
NEEDED_MEMORY = 512 * MIB
"""Twice a node_modules and its archive."""


def run(report: Report) -> None:
    if not npm_clients.installed() or shutil.which("zstd") is None:
        raise SystemExit("this benchmark needs node, zstd and the npm clients (scripts/install-npm-clients)")
    rounds = 3 if report.quick else 5
    size = 64 if report.quick else 1024
    with tempfile.TemporaryDirectory(prefix="cachesrv-bench-", dir="/var/tmp") as name:
        random = Path(name, "random", "data")
        random.mkdir(parents=True)
        with (random / "bytes").open("wb") as file:
            for _ in range(size):
                file.write(os.urandom(MIB))
        label = "1 GiB" if size == 1024 else f"{size} MiB"
        measure(report, f"{label} of random data", random, Path(name, "1"), rounds)
        measure(report, "a real node_modules", NODE_MODULES, Path(name, "2"), rounds)
        if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > NEEDED_MEMORY:
            with tempfile.TemporaryDirectory(prefix="cachesrv-bench-", dir=MEMORY) as memory:
                label = "node_modules, client on tmpfs"
                measure(report, label, NODE_MODULES, Path(name, "3"), rounds, client_folder=Path(memory))
        else:
            report.note(f"{MEMORY} has no {NEEDED_MEMORY // MIB} MiB free: nothing measured with the client on tmpfs")


@dataclass(frozen=True)
class _Step:
    """Seconds of one save or restore: the call, the part of it that is no tar and zstd, CPU of the server meanwhile."""

    whole: float
    transfer: float
    cpu: float


def measure(
    report: Report, label: str, source: Path, scratch: Path, rounds: int, *, client_folder: Path | None = None
) -> None:
    """Adds four rows about saving and restoring the folder ``source``. ``scratch`` is made and grows to three times its
    size; what the client writes (RUNNER_TEMP and what it restores) goes to ``client_folder``, or there too."""
    scratch.mkdir(parents=True)
    client_folder = client_folder or scratch
    steps: dict[tuple[str, str], list[_Step]] = defaultdict(list)
    archive = scratch / "archive"
    _warm(report, label, source, scratch, archive)
    with null_server(archive) as null:
        for round_ in range(rounds):
            for server in ("ours", "null") if round_ % 2 else ("null", "ours"):
                if server == "null":
                    taken = _save_and_restore(null, str(round_), source, client_folder)
                else:
                    with cachesrv(scratch / "server" / "data", workers=2) as ours:
                        _first_requests(ours)
                        taken = _save_and_restore(ours, str(round_), source, client_folder)
                    shutil.rmtree(scratch / "server")
                for operation, step in zip(("save", "restore"), taken, strict=True):
                    steps[server, operation].append(step)
            report.say(f"{label}: round {round_ + 1} of {rounds}")
    for operation in ("save", "restore"):
        question = f"{operation} {label}, real client"
        _rows(report, question, steps["ours", operation], steps["null", operation])


def _rows(report: Report, question: str, ours: list[_Step], null: list[_Step]) -> None:
    whole = [step.whole for step in null]
    report.compare(f"{question}, against a null server", [step.whole for step in ours], whole, unit="s", at_most=BAR)
    transfer = [step.transfer for step in null]
    report.compare("- of which the transfer alone", [step.transfer for step in ours], transfer, unit="s")
    alone = statistics.median(step.whole - step.transfer for step in null)
    ours_cpu, null_cpu = (statistics.median(step.cpu for step in steps) for steps in (ours, null))
    report.note(
        f"{question}: of {statistics.median(whole):.2f} s with the null server {alone:.2f} s are before the first "
        f"request or after the last byte (tar, zstd); CPU of the servers {ours_cpu:.2f} s against {null_cpu:.2f} s"
    )


def _warm(report: Report, label: str, source: Path, scratch: Path, archive: Path) -> None:
    """One round with cachesrv that keeps the archive and compares every byte."""
    with cachesrv(scratch / "server" / "data", workers=2) as ours:
        _save_and_restore(ours, "warm", source, scratch, compare=True)
        with urllib.request.urlopen(_download_url(ours, "warm", source.name)) as answer, archive.open("wb") as file:
            shutil.copyfileobj(answer, file, MIB)
    shutil.rmtree(scratch / "server")
    report.note(f"{label}: the archive has {archive.stat().st_size / MIB:.1f} MiB")


def _save_and_restore(
    server: Served, key: str, source: Path, client_folder: Path, *, compare: bool = False
) -> tuple[_Step, _Step]:
    client = ActionsCache(RELEASE, "v2", server.base.rstrip("/"), token(), client_folder)
    os.sync()
    before = _cpu_seconds(server)
    answer = client.save(source.parent, [source.name], key)
    if answer.error or answer.value == -1:
        raise RuntimeError(f"not saved: {answer}")
    saved = _step(answer, answer.ms["end"], _cpu_seconds(server) - before)
    workspace = client_folder / "workspace"
    workspace.mkdir()
    os.sync()
    before = _cpu_seconds(server)
    answer = client.restore(workspace, [source.name], key)
    if answer.value != key:
        raise RuntimeError(f"not restored: {answer}")
    restored = _step(answer, answer.ms["process"], _cpu_seconds(server) - before)
    if compare and fingerprint(workspace / source.name) != fingerprint(source):
        raise RuntimeError("what was restored is not what was saved")
    shutil.rmtree(workspace)
    return saved, restored


def _step(answer: Answer, transfer_end: float, cpu: float) -> _Step:
    return _Step(answer.ms["end"] / 1000, (transfer_end - answer.ms["request"]) / 1000, cpu)


def _cpu_seconds(server: Served) -> float:
    """User and system time of the server's processes so far (proc(5), stat)."""
    ticks = 0
    for pid in server.workers():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _first_requests(server: Served) -> None:
    """A server that runs has answered before: a small save and restore over several connections."""
    for number in range(4):
        with Api(server.base) as api:
            put_blob(api.create(f"first-{number}"), os.urandom(1000))
            api.finalize(f"first-{number}", 1000)
            urllib.request.urlopen(api.url(f"first-{number}")).close()


def _download_url(server: Served, key: str, path: str) -> str:
    """As the client asks for it: a version is the hash of the paths and how they were packed."""
    parts = (path, "zstd-without-long", "1.0")
    message = {"key": key, "version": hashlib.sha256("|".join(parts).encode()).hexdigest()}
    with Api(server.base) as api:
        return api.call("GetCacheEntryDownloadURL", message)["signed_download_url"]

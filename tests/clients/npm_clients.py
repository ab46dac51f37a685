"""The npm clients that package.json pins, each run in a node process of its own as an action would run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NPM_FOLDER = Path(__file__).parent / "npm"
NODE_MODULES = NPM_FOLDER / "node_modules"

ALL_RELEASES = ("ac324", "ac400", "ac410", "ac530", "ac630")
"""Names under which package.json installs @actions/cache 3.2.4, 4.0.0, 4.1.0, 5.3.0 and 6.3.0."""
DIALECTS = [(release, "v1") for release in ALL_RELEASES] + [(release, "v2") for release in ALL_RELEASES[1:]]


def installed() -> bool:
    """Whether scripts/install-npm-clients has run and node is there."""
    return shutil.which("node") is not None and (NODE_MODULES / ".package-lock.json").exists()


def cache_environment(url: str, token: str, dialect: str) -> dict[str, str]:
    """What a runner exports to a step for the cache service of ``dialect`` ("v1" or "v2") at ``url``."""
    if dialect == "v1":
        return {"ACTIONS_CACHE_URL": f"{url}/", "ACTIONS_RUNTIME_TOKEN": token}
    return {
        "ACTIONS_CACHE_SERVICE_V2": "True",
        "ACTIONS_CACHE_URL": f"{url}/",
        "ACTIONS_RESULTS_URL": f"{url}/",
        "ACTIONS_RUNTIME_TOKEN": token,
    }


@dataclass(frozen=True)
class Answer:
    """What the client returned, or the name and message of what it threw, what it printed for the user, and when it got
    how far (see drive.mjs), in ms."""

    value: Any
    error: dict[str, str] | None
    output: str
    ms: dict[str, float]


class NodeRun:
    """One client operation in a node process of its own; RUNNER_TEMP is a new folder, in ``scratch`` if given."""

    def __init__(
        self, job: dict[str, object], environment: dict[str, str], workspace: Path, scratch: Path | None = None
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="runner-temp-", dir=scratch)
        self._process = subprocess.Popen(
            ["node", str(NPM_FOLDER / "drive.mjs"), json.dumps(job)],
            cwd=workspace,
            env={
                "PATH": os.environ["PATH"],
                "HOME": self._scratch.name,
                "RUNNER_TEMP": self._scratch.name,
                "GITHUB_WORKSPACE": str(workspace),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def answer(self, *, patience: float = 180.0) -> Answer:
        """Wait for the end. Raises AssertionError with its output when node itself failed."""
        try:
            output, _ = self._process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, _ = self._process.communicate()
            raise AssertionError(f"the client did not end within {patience:g} s:\n{output}") from None
        finally:
            self._scratch.cleanup()
        assert self._process.returncode == 0, output
        told, _, result = output.rstrip("\n").rpartition("\n")
        parsed = json.loads(result)
        return Answer(parsed.get("value"), parsed.get("error"), told, parsed["ms"])


@dataclass(frozen=True)
class ActionsCache:
    """@actions/cache of one release speaking one dialect to one server."""

    release: str
    dialect: str
    url: str
    token: str
    scratch: Path | None = None

    def begin(self, operation: str, workspace: Path, paths: list[str], key: str, restore_keys: list[str]) -> NodeRun:
        job: dict[str, object] = {
            "package": self.release,
            "operation": operation,
            "paths": paths,
            "key": key,
            "restoreKeys": restore_keys,
        }
        return NodeRun(job, cache_environment(self.url, self.token, self.dialect), workspace, self.scratch)

    def save(self, workspace: Path, paths: list[str], key: str) -> Answer:
        return self.begin("save", workspace, paths, key, []).answer()

    def restore(self, workspace: Path, paths: list[str], key: str, restore_keys: list[str] | None = None) -> Answer:
        return self.begin("restore", workspace, paths, key, restore_keys or []).answer()

    def lookup(self, workspace: Path, paths: list[str], key: str, restore_keys: list[str] | None = None) -> Answer:
        return self.begin("lookup", workspace, paths, key, restore_keys or []).answer()

"""What deploy/ hands out is accepted by the tools that will read it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import RequireClient

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_systemd_accepts_the_unit(tmp_path: Path, require_client: RequireClient) -> None:
    require_client("systemd-analyze", shutil.which("systemd-analyze") is not None)
    unit = tmp_path / "cachesrv.service"
    text = (DEPLOY / "cachesrv.service").read_text()
    unit.write_text(text.replace("/opt/cachesrv/bin/cachesrv", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if "cachesrv.service" in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_example_settings_are_valid() -> None:
    command = [sys.executable, "-m", "cachesrv", "config", "check", str(DEPLOY / "cachesrv.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_settings_in_the_compose_file_are_valid(tmp_path: Path) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    named = re.findall(r"^ +(CACHESRV_\w+__\w+): (.*)$", text, re.MULTILINE)
    assert named
    environment = {name: re.sub(r"\$\{\w+(?::-(.*)|:\?.*)\}", r"\1", value) or "given" for name, value in named}
    settings = tmp_path / "listen.toml"
    settings.write_text('[server]\nlisten = ["0.0.0.0:8700"]\n')
    command = [sys.executable, "-m", "cachesrv", "config", "check", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_container_runs_as_an_ordinary_user() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert all(user not in ("0", "root", "0:0") for user in users)

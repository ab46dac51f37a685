"""The command line: what it prints and with which status it ends. Nothing is served here."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cachesrv.cli import main
from cachesrv.config import Settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    return tmp_path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_help_lists_the_commands() -> None:
    shown = call("--help").output
    assert all(name in shown for name in ("serve", "config", "stats"))


def test_init_writes_a_file_that_check_calls_good(home: Path) -> None:
    assert call("config", "init").exit_code == 0
    file = home / "cachesrv" / "config.toml"
    assert file.stat().st_mode & 0o777 == 0o600
    assert set(tomllib.loads(file.read_text())) == set(Settings.model_fields)
    assert (call("config", "check").exit_code, call("config", "check", file).exit_code) == (0, 0)


def test_init_does_not_overwrite_unless_forced(home: Path) -> None:
    file = home / "mine.toml"
    file.write_text("# mine")
    refused = call("config", "init", file)
    assert refused.exit_code == 1
    assert "--force" in refused.output
    assert file.read_text() == "# mine"
    assert call("config", "init", file, "--force").exit_code == 0
    assert "[server]" in file.read_text()


def test_check_names_file_line_and_key(home: Path) -> None:
    file = home / "bad.toml"
    file.write_text('[store]\n\nmax_sze = "1GB"\n')
    found = call("config", "check", file)
    assert found.exit_code == 1
    assert found.output == f"{file}:3: store.max_sze: unknown key; did you mean 'max_size'?\n"


def test_check_knows_which_choice_of_auth_is_missing(home: Path) -> None:
    file = home / "open.toml"
    file.write_text('[server]\nlisten = ["0.0.0.0:8700"]\n[auth]\nmode = "jwks"\n')
    found = call("config", "check", file)
    assert found.exit_code == 1
    assert found.output.startswith(f"{file}:3: auth.allow_owners: ")


def test_check_of_a_missing_file_is_another_status(home: Path) -> None:
    found = call("config", "check", home / "none.toml")
    assert found.exit_code == 2
    assert "none.toml: No such file" in found.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "0.0.0.0:0"], "auth.mode: must be chosen"),
        (["--listen", "nonsense"], "--listen: server.listen[0]: not an address"),
        (["--max-size", "lots"], "--max-size: store.max_size: not a size: 'lots'"),
        (["--config", "/nowhere.toml"], "/nowhere.toml: No such file"),
    ],
)
def test_serve_says_in_one_line_why_it_does_not_start(home: Path, arguments: list[str], said: str) -> None:
    found = call("serve", *arguments)
    assert found.exit_code == 1
    assert said in found.output
    assert "Traceback" not in found.output

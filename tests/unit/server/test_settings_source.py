"""Settings: who wins, and what a person is told when something in them is wrong."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesrv.config import Settings, format_duration, format_size, parse_duration, parse_size
from cachesrv.settings_source import (
    SettingsInvalid,
    SettingsUnreadable,
    data_folder,
    default_path,
    lines_of_keys,
    load,
    located,
)
from cachesrv.settings_template import template

HOME = {"HOME": "/nowhere"}


@pytest.mark.parametrize(
    ("text", "size"),
    [("50GB", 50 * 10**9), ("512 MiB", 512 * 2**20), ("1.5k", 1500), ("7", 7), ("2tib", 2 * 2**40), (1024, 1024)],
)
def test_sizes_in_human_units(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("15m", 900.0), ("7d", 604800.0), ("500ms", 0.5), ("2", 2.0), ("1.5h", 5400.0), (3, 3)]
)
def test_durations_in_human_units(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "GB", "12Q", "-1GB", "1 GB 2", "1e3", "0x10", True])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@given(st.integers(0, 2**62))
def test_a_size_survives_its_own_text(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.floats(0.001, 1e6).map(lambda seconds: round(seconds, 3)) | st.integers(0, 10**7).map(float))
def test_a_duration_survives_its_own_text(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)


def test_flags_win_over_the_environment_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[server]\nworkers = 3\ndrain = "5s"\n[store]\nmax_size = "1GB"\nmin_free = "1MB"\n')
    environ = {
        "CACHESRV_STORE__MAX_SIZE": "2GB",
        "CACHESRV_SERVER__WORKERS": "4",
        "CACHESRV_SERVER__LISTEN": "a:1, b:2",
    }

    settings = load(file, environ=environ, flags={"server": {"workers": 5}})

    assert settings.server.workers == 5
    assert settings.store.max_size == 2 * 10**9
    assert settings.store.min_free == 10**6
    assert settings.server.drain == 5.0
    assert settings.server.listen == ["a:1", "b:2"]
    assert settings.store.zstd_level == Settings().store.zstd_level


def test_the_default_file_is_read_only_if_it_is_there(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert load(None, environ=environ) == Settings()
    default_path(environ).parent.mkdir()
    default_path(environ).write_text("[server]\nworkers = 7\n")
    assert load(None, environ=environ).server.workers == 7


def test_the_data_folder_follows_xdg() -> None:
    assert data_folder(Settings(), {"HOME": "/h"}) == Path("/h/.local/share/cachesrv")
    assert data_folder(Settings(), {"XDG_DATA_HOME": "/x"}) == Path("/x/cachesrv")


BAD = """\
[server]
listen = [
  "127.0.0.1:1",
  "nope",
]
[store]
max_sze = "1GB"
zstd_level = 99
[[auth.issuers]]
issuer = "a"
[[auth.issuers]]
jwks = "b"
[lgo]
"""


def test_every_problem_is_told_with_file_line_and_key(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(BAD)

    with pytest.raises(SettingsInvalid) as caught:
        load(file, environ=HOME)

    lines = set(str(caught.value).splitlines())
    assert f"{file}:7: store.max_sze: unknown key; did you mean 'max_size'?" in lines
    assert f"{file}:8: store.zstd_level: input should be less than or equal to 19" in lines
    assert f"{file}:11: auth.issuers[1].issuer: must be set" in lines
    assert f"{file}:13: lgo: unknown section; did you mean 'log'?" in lines
    assert any(line.startswith(f"{file}:2: server.listen[1]: not an address: 'nope'") for line in lines)
    assert len(lines) == 5


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[server]\nworkers = 3\ndrain = = 4\n")
    with pytest.raises(SettingsInvalid, match=f"^{re.escape(str(file))}:3: "):
        load(file, environ=HOME)


def test_a_bad_variable_and_a_bad_flag_are_named() -> None:
    environ = {**HOME, "CACHESRV_STORE__MAX_SIZE": "12Q", "CACHESRV_STOR__MAX_SIZE": "1GB"}
    with pytest.raises(SettingsInvalid) as caught:
        load(None, environ=environ, flags={"server": {"workers": -1}})
    text = str(caught.value)
    assert "CACHESRV_STORE__MAX_SIZE: store.max_size: not a size: '12Q'" in text
    assert "CACHESRV_STOR__MAX_SIZE: unknown section; did you mean 'store'?" in text
    assert "--workers: server.workers: " in text


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(SettingsUnreadable, match="No such file"):
        load(tmp_path / "none.toml", environ=HOME)


def test_a_problem_found_later_is_located(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[auth]\nmode = "jwks"\n')
    error = SettingsInvalid(*located([_problem("auth.mode"), _problem("auth.static_key")], file, HOME))
    assert [problem.where for problem in error.problems] == [f"{file}:2", f"{file}:1"]


def _problem(key: str):  # type: ignore[no-untyped-def]
    from cachesrv.settings_source import Problem

    return Problem("", key, "wrong")


def test_secrets_stay_out_of_repr_and_of_errors(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[auth]\nshared_secret = "hush-hush"\nadmin_token = "tell-nobody"\n')
    assert not re.search("hush|nobody", repr(load(file, environ=HOME)))
    file.write_text("[auth]\nshared_secret = 12345678\n")
    with pytest.raises(SettingsInvalid) as caught:
        load(file, environ=HOME)
    assert "12345678" not in str(caught.value)


def test_the_template_is_the_defaults() -> None:
    text = template()
    assert tomllib.loads(text) == {name: {} for name in Settings.model_fields}
    uncommented = re.sub(r"(?m)^#(?=\S)", "", text)
    assert Settings.model_validate(tomllib.loads(uncommented)) == Settings()
    for section, field in Settings.model_fields.items():
        assert field.annotation is not None
        for key, inner in field.annotation.model_fields.items():
            assert re.search(rf"(?m)^# \S.*\n#{key} = ", text), f"{section}.{key} has no reason or no default"
            assert inner.description


NAMES = st.text("abcdefg_", min_size=1, max_size=6)
VALUES = st.recursive(
    st.integers(0, 99) | st.booleans() | st.just('"a # b"') | st.just('"""x\n[no]\ny = 1"""'),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[\n" + ",\n".join(map(_toml, value)) + "\n]"
    return str(value)


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=4), max_size=4))
def test_lines_of_keys_are_where_the_keys_stand(tables: dict[str, dict[str, object]]) -> None:
    text = ""
    expected: dict[tuple[str | int, ...], int] = {}
    for name, table in tables.items():
        expected[(name,)] = text.count("\n") + 1
        text += f"[{name}]\n"
        for key, value in table.items():
            expected[(name, key)] = text.count("\n") + 1
            text += f"{key} = {_toml(value)}\n# comment\n"
    found = lines_of_keys(text)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CACHESRV_MAX_SIZE", "1GB", "sets nothing; did you mean CACHESRV_STORE__MAX_SIZE?"),
        ("CACHESRV_STORE", "1GB", "names a section: set CACHESRV_STORE__<KEY>, or"),
    ],
)
def test_a_variable_that_would_set_nothing_is_an_error(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsInvalid, match=re.escape(f"{name}: {said}")):
        load(None, environ={**HOME, name: value})


def test_variables_of_other_programs_and_whole_sections_are_fine() -> None:
    environ = {**HOME, "CACHESRV_NO_SKIPS": "1", "CACHESRV_STORE": '{"max_size": "7GB"}'}
    assert load(None, environ=environ).store.max_size == 7 * 1000**3


@pytest.mark.parametrize(
    "line",
    [
        "store.max_size = 0",
        "store.stale_upload = 0",
        "store.index_limit = 1",
        "actions.url_ttl = 0",
        'actions.url_ttl = "52w"',
        "limits.max_json = 0",
        "limits.max_blocks = 0",
        "limits.idle_send = 0",
        "limits.idle_receive = 0",
    ],
)
def test_values_with_which_nothing_could_be_cached_are_errors(tmp_path: Path, line: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(line)
    with pytest.raises(SettingsInvalid, match=re.escape(f"{file}:1: {line.split(' ')[0]}: input should be")):
        load(file, environ=HOME)

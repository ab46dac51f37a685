"""Reads the settings: defaults < TOML file < environment (``CACHESRV_<SECTION>__<KEY>``) < flags.

Whatever is wrong becomes one :class:`SettingsInvalid` that names for each problem where it stands (file and line,
variable, or flag), the key, and what is accepted. Values are never repeated for keys that hold secrets.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from cachesrv.config import Settings

PREFIX = "CACHESRV_"
DELIMITER = "__"
FLAGS = {
    ("server", "listen"): "--listen",
    ("server", "workers"): "--workers",
    ("store", "data"): "--data",
    ("store", "max_size"): "--max-size",
}
"""The keys that have a flag of their own."""

Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: ``where`` is "file:line", a variable or a flag, "" when it is the whole."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class SettingsInvalid(Exception):
    """The settings cannot be used. One line a problem, fit to be printed."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class SettingsUnreadable(Exception):
    """The file itself cannot be read (missing, no permission)."""


def default_path(environ: Mapping[str, str]) -> Path:
    """``$XDG_CONFIG_HOME/cachesrv/config.toml``."""
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or Path.home()) / ".config")
    return Path(base) / "cachesrv" / "config.toml"


def data_folder(settings: Settings, environ: Mapping[str, str]) -> Path:
    """``store.data``, or ``$XDG_DATA_HOME/cachesrv``; absolute."""
    if settings.store.data is not None:
        return settings.store.data.expanduser().absolute()
    base = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME") or Path.home()) / ".local" / "share")
    return (Path(base) / "cachesrv").absolute()


def load(
    path: Path | None, *, environ: Mapping[str, str], flags: Mapping[str, Mapping[str, object]] | None = None
) -> Settings:
    """The settings in force. ``path`` None: the default file if there is one.

    ``flags``: section -> key -> value, only what was given. Raises SettingsInvalid, SettingsUnreadable.
    """
    given = {section: dict(values) for section, values in (flags or {}).items() if values}
    if path is None:
        path = default_path(environ) if default_path(environ).is_file() else None
    text = _read(path) if path else ""
    table = _parse(path, text)
    problems = list(_unknown_variables(environ))

    class Layered(Settings, BaseSettings):
        model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=DELIMITER)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, _Environment(settings_cls, environ), InitSettingsSource(settings_cls, table)

    try:
        layered = Layered(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = lines_of_keys(text)
        for detail in error.errors(include_url=False, include_input=False):
            key = detail["loc"]
            problems.append(
                Problem(
                    _origin(key, given, environ, path, lines),
                    _dotted(key),
                    _message(detail["type"], detail["msg"], key),
                )
            )
        raise SettingsInvalid(*problems) from None
    if problems:
        raise SettingsInvalid(*problems)
    return Settings(**{name: getattr(layered, name) for name in Settings.model_fields})


def located(
    problems: Sequence[Problem],
    path: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, Mapping[str, object]] | None = None,
) -> list[Problem]:
    """The same problems, found after loading, with the place where their key was set (none if it was not)."""
    if path is None and default_path(environ).is_file():
        path = default_path(environ)
    lines = lines_of_keys(_read(path)) if path else {}
    return [
        replace(problem, where=_origin(tuple(problem.key.split(".")), flags or {}, environ, path, lines))
        for problem in problems
    ]


def lines_of_keys(text: str) -> dict[Key, int]:
    """Line (from 1) on which each table and key of a valid TOML document stands.

    A statement is the fewest lines that parse alone; the TOML parser itself says which keys it sets.
    """
    found: dict[Key, int] = {}
    arrays: dict[Key, int] = {}
    table: Key = ()
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        start = number
        statement = ""
        parsed: dict[str, Any] | None = None
        while number < len(lines) and parsed is None:
            statement += lines[number] + "\n"
            number += 1
            try:
                parsed = tomllib.loads(statement)
            except tomllib.TOMLDecodeError:
                continue
        if not parsed:
            continue
        keys = list(_keys_in(parsed))
        if statement.lstrip().startswith("[["):
            name = keys[-2]
            arrays[name] = arrays.get(name, -1) + 1
            table = (*name, arrays[name])
            keys = [*keys[:-1], table]
        elif statement.lstrip().startswith("["):
            table = keys[-1]
        else:
            keys = [(*table, *key) for key in keys]
        for key in keys:
            found.setdefault(key, start + 1)
    return found


def _keys_in(value: object, prefix: Key = ()) -> Iterator[Key]:
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    for name, item in inner:
        yield (*prefix, name)
        yield from _keys_in(item, (*prefix, name))


class _Environment(EnvSettingsSource):
    """The environment, where a list may also be written with commas instead of as JSON."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._environ.items() if name.upper().startswith(PREFIX)}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return json.loads(value)
        except ValueError:
            return [part.strip() for part in value.split(",") if part.strip()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsUnreadable(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SettingsUnreadable(f"{path}: not UTF-8 text") from None


def _parse(path: Path | None, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at (?:line (\d+), column \d+|end of document)\)", str(error))
        line = place[1] if place and place[1] else max(1, len(text.splitlines()))
        message = re.sub(r" \(at .*\)$", "", str(error))
        raise SettingsInvalid(Problem(f"{path}:{line}", "", message)) from None


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[Problem]:
    """Variables that look like ours but set nothing: the library would ignore them in silence."""
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    for name in sorted(environ):
        section, delimiter, _ = name.removeprefix(PREFIX).partition(DELIMITER)
        if not name.startswith(PREFIX):
            continue
        if not delimiter:
            key = section.lower()
            home = next((n for n, kind in sections.items() if key in getattr(kind, "model_fields", ())), None)
            if home is not None:
                yield Problem(
                    name, "", f"sets nothing; did you mean {PREFIX}{home.upper()}{DELIMITER}{section.upper()}?"
                )
            elif key in sections and not environ[name].lstrip().startswith("{"):
                yield Problem(
                    name, "", f"names a section: set {name}{DELIMITER}<KEY>, or give all of it as a JSON object"
                )
        elif section.lower() not in sections:
            yield Problem(name, "", _unknown("section", section.lower(), list(Settings.model_fields)))


def _message(kind: str, text: str, key: Key) -> str:
    if kind == "extra_forbidden":
        parent = _model_at(key[:-1])
        return _unknown("key" if len(key) > 1 else "section", str(key[-1]), list(parent.model_fields) if parent else [])
    if kind == "missing":
        return "must be set"
    text = text.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _unknown(what: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown {what}" + (f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})")


def _model_at(key: Key) -> type[BaseModel] | None:
    model: type[BaseModel] = Settings
    for name in key:
        if isinstance(name, int):
            continue
        field = model.model_fields.get(name)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            return None
        model = inner
    return model


def _origin(
    key: Key,
    flags: Mapping[str, Mapping[str, object]],
    environ: Mapping[str, str],
    path: Path | None,
    lines: Mapping[Key, int],
) -> str:
    section, name = str(key[0]) if key else "", str(key[1]) if len(key) > 1 else ""
    if name in flags.get(section, {}):
        return FLAGS.get((section, name), f"--{name}")
    exact = f"{PREFIX}{section}{DELIMITER}{name}".upper()
    for variable in environ:
        if variable.upper() in (exact, f"{PREFIX}{section}".upper()) or variable.upper().startswith(exact + DELIMITER):
            return variable
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return f"{path}:{lines[key[:length]]}"
    return ""


def _dotted(key: Key) -> str:
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part)
            text += f".{name}" if text else name
    return text

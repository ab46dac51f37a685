"""The commented settings file that ``cachesrv config init`` writes.

Every key stands there with its default, commented out, under the reason that its field gives; a key that stays
commented follows the default of the version that runs. Removing every ``#`` in front of a key yields the defaults.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cachesrv.config import Seconds, Settings, Size, format_duration, format_size

WIDTH = 100
_HEAD = """\
# Settings of cachesrv. What is commented out shows the default.
# Order: default < this file < environment (CACHESRV_<SECTION>__<KEY>, e.g. CACHESRV_STORE__MAX_SIZE=200GB) < flags.
# Sizes: 50GB (10^9), 512MiB (2^20), or bytes. Durations: 500ms, 30s, 15m, 6h, 7d, or seconds.
# `cachesrv config check` validates this file; SIGHUP makes a running server read it again.
"""


def template() -> str:
    """The text of the file. Pure."""
    return _HEAD + "".join(_section(name, field) for name, field in Settings.model_fields.items())


def _section(name: str, field: FieldInfo) -> str:
    model = field.annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    lines = ["", f"# {model.__doc__}", f"[{name}]"]
    for key, inner in model.model_fields.items():
        lines += [f"# {line}" for line in textwrap.wrap(inner.description or "", WIDTH)]
        lines += [f"#{line}" for line in _assignment(key, inner)]
    return "\n".join(lines) + "\n"


def _assignment(key: str, field: FieldInfo) -> Iterator[str]:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None:
        yield f'{key} = ""'
    elif field.metadata and _is(field, Size):
        yield f"{key} = {json.dumps(format_size(default)) if default else 0}"
    elif field.metadata and _is(field, Seconds):
        yield f"{key} = {json.dumps(format_duration(default))}"
    else:
        yield f"{key} = {_toml(default)}"


def _is(field: FieldInfo, annotated: object) -> bool:
    """Whether a field was declared as this Annotated type: they share the parsing validator."""
    return any(part in field.metadata for part in getattr(annotated, "__metadata__", ())[:1])


def _toml(value: object) -> str:
    if isinstance(value, BaseModel):
        return "{ " + ", ".join(f"{name} = {_toml(getattr(value, name))}" for name in type(value).model_fields) + " }"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, Path):
        return json.dumps(str(value))
    return json.dumps(value)

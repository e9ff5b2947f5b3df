"""Conversion of specs to and from plain mappings and TOML."""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from plusx.errors import UserError, did_you_mean
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.validate import validate


def to_dict(net: Net) -> dict[str, Any]:
    """Return a plain mapping with the fields that differ from their defaults; tuples become
    lists."""
    plain: dict[str, Any] = _plain(net)
    return plain


def from_dict(mapping: Mapping[str, Any]) -> Net:
    """Return the net of a mapping. Raises UserError for an unknown or missing field."""
    values = _fields(Net, mapping, "a net")
    stages = values.get("stages")
    if not isinstance(stages, list | tuple) or not all(isinstance(s, Mapping) for s in stages):
        raise UserError("stages of a net are a list of tables")
    values["stages"] = tuple(_stage(stage, i) for i, stage in enumerate(stages, 1))
    return Net(**values)


def to_toml(net: Net) -> str:
    """Return a net as a TOML document: its own fields first, then one table per stage."""
    plain = to_dict(net)
    stages = plain.pop("stages")
    lines = [f"{key} = {toml_value(value)}" for key, value in plain.items()]
    for stage in stages:
        lines += ["", "[[stages]]"]
        lines += [f"{key} = {toml_value(value)}" for key, value in stage.items()]
    return "\n".join(lines) + "\n"


def from_toml(text: str) -> Net:
    """Return the net of a TOML document. Raises UserError if it is invalid."""
    return from_dict(tomllib.loads(text))


def read_net(path: Path) -> Net:
    """Return the validated net of a TOML file. Raises UserError, with the path, if there is no such
    file or it is invalid."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        net = from_toml(path.read_text(encoding="utf-8"))
        validate(net)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return net


def toml_value(value: object) -> str:
    """Return text, a number, a boolean, a list or a mapping as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        items = ", ".join(f"{_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {items} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _key(key: str) -> str:
    """Return a key as TOML, in quotes if it is not a bare key."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def _plain(value: Any) -> Any:
    if isinstance(value, Net | Stage | Block):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in fields(value)
            if getattr(value, field.name) != field.default
        }
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _stage(mapping: Mapping[str, Any], number: int) -> Stage:
    values = _fields(Stage, mapping, f"stage {number}")
    block = values["block"]
    if isinstance(block, list | tuple):
        values["block"] = tuple(_block(item, number) for item in block)
    else:
        values["block"] = _block(block, number)
    if values.get("first") is not None:
        values["first"] = _block(values["first"], number)
    return Stage(**values)


def _block(mapping: Any, number: int) -> Block:
    if isinstance(mapping, str):
        return Block(body=mapping)
    if not isinstance(mapping, Mapping):
        raise UserError(f"a block of stage {number} is a table or a sentence, not {mapping!r}")
    return Block(**_fields(Block, mapping, f"a block of stage {number}"))


def _fields(cls: type, mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of a mapping after checking names and types, with the location in
    errors."""
    allowed: dict[str, Field[Any]] = {field.name: field for field in fields(cls)}
    values = {}
    for key, value in mapping.items():
        if key not in allowed:
            hint = did_you_mean(key, allowed) or f"; fields are {', '.join(allowed)}"
            raise UserError(f"{where} has no field {key!r}{hint}")
        if key in ("stages", "block", "first"):
            values[key] = value
            continue
        options = get_args(allowed[key].type)
        if get_origin(allowed[key].type) is Literal and value not in options:
            allowed_values = ", ".join(map(str, options))
            raise UserError(f"{key} of {where} is {value!r}; allowed are {allowed_values}")
        kind = allowed[key].default
        values[key] = _typed(where, key, value, kind if kind is not MISSING else None)
    for key, field in allowed.items():
        if field.default is MISSING and key not in values:
            raise UserError(f"{where} lacks the field {key!r}")
    return values


def _typed(where: str, key: str, value: Any, default: Any) -> Any:
    if key in ("size", "stride"):
        if isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
            return tuple(value)
        expected: type = int
    elif default is None:
        expected = int if key in ("depth", "width") else str
    else:
        expected = type(default)
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise UserError(f"{key} of {where} is {value!r}; it must be of type {expected.__name__}")
    return value

"""Errors of a recipe in one line: the key, the given value, the allowed values."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from plusx.errors import did_you_mean
from plusx.grammar.spec import Net
from plusx.grammar.toml import toml_value
from plusx.recipe.tables import Recipe, fits


# names of these keys in other libraries
_SYNONYMS = {
    "learning_rate": "optim.lr",
    "optimizer": "optim.kind",
    "scheduler": "schedule.kind",
    "lr_scheduler": "schedule.kind",
    "warmup_epochs": "schedule.warmup",
    "warmup_steps": "schedule.warmup",
    "wd": "optim.weight_decay",
    "ema_decay": "optim.ema",
    "model": "net.base",
    "arch": "net.base",
    "pretrained": "net.weights",
    "dataset": "data.kind",
    "batch": "batch_size",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "iterations": "steps",
    "max_steps": "steps",
    "num_workers": "data.workers",
    "image_size": "data.size",
    "fp16": "device.precision",
    "amp": "device.precision",
    "early_stopping": "evaluate.patience",
}


def key_path(loc: tuple[str, ...], raw: object) -> tuple[str, ...]:
    """Return pydantic's location of an error without the kinds that it inserts between the keys."""
    path: list[str] = []
    for key in loc:
        if isinstance(raw, Mapping):
            if key not in raw and key != loc[-1] and key in (raw.get("kind"), "named"):
                continue
            if key not in raw and key == loc[-1] and key == raw.get("kind"):
                continue
            raw = raw.get(key)
        elif not (isinstance(raw, list) and key.isdigit()):
            break
        else:
            raw = raw[int(key)] if int(key) < len(raw) else None
        path.append(key)
    return tuple(path)


def explain(error: Any, path: tuple[str, ...], raw: Mapping[str, Any]) -> str:
    """Return an error of pydantic as one line."""
    kind, context = error["type"], error.get("ctx", {})
    item = ""
    if path and path[-1].isdigit():
        path, item = path[:-1], f", item {int(path[-1]) + 1}"
    section = ".".join(path[:-1])
    key = f"[{section}] {path[-1]}" if section else (path[-1] if path else "the recipe")
    if kind == "unexpected_keyword_argument":
        return f"{key} is not a key{_suggest(path, raw)}"
    if kind == "missing":
        setting = f"{key} = {toml_value(error['input'])}" if item else key
        return f"{setting}{item} is missing"
    if kind in ("dataclass_type", "union_tag_not_found", "model_attributes_type"):
        table = ".".join(path)
        if isinstance(error["input"], Mapping):
            return f"[{table}] needs kind: {_listed(_kinds(path, raw))}"
        names = ", ".join(f"{table}.{field.name}" for field in fields_at(path, {}))
        return f"{table} is a table: write its fields, {names}"
    if kind == "union_tag_invalid":
        tag = context["tag"]
        return f"{key} = {toml_value(tag)}: {_allowed(tag, _kinds(path[:-1], raw))}"
    setting = f"{key}{item} = {toml_value(error['input'])}"
    if kind == "literal_error":
        options = re.findall("'(.*?)'|\\b(\\d+)\\b", context["expected"])
        options = [text or number for text, number in options]
        if options == ["0"]:  # other keys have the number of samples of this set
            counts = _keys_like(path, raw)
            return f"{setting}: must be 0{f'; their number is {counts}' if counts else ''}"
        return f"{setting}: {_allowed(error['input'], options)}"
    requirement = {
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "bool_type": "must be true or false",
        "string_type": "must be text in double quotes",
        "tuple_type": _list_of(error["input"]),
        "finite_number": "must be finite",
        "greater_than": f"must be above {context.get('gt')}",
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "less_than": f"must be below {context.get('lt')}",
        "less_than_equal": f"must be at most {context.get('le')}",
        "string_too_short": "must not be empty",
        "too_short": _min_length(int(context.get("min_length", 1))),
        "too_long": f"must have at most {context.get('max_length')} items",
    }.get(kind)
    if requirement is None:
        message = str(error["msg"]).removeprefix("Value error, ")
        if path and isinstance(error["input"], Mapping):
            return f"[{'.'.join(path)}] {message}"
        return f"{setting}: {message}" if path else message
    quoted = isinstance(error["input"], str) and re.fullmatch(
        r"[-+\d.eE_]+|true|false", error["input"]
    )
    return (
        f"{setting}: {requirement}{', without quotes' if quoted and kind.endswith('_type') else ''}"
    )


def _keys_like(path: tuple[str, ...], raw: Mapping[str, Any]) -> str:
    """Return the other keys of a table that begin with a key, such as validation_phrases."""
    names = [name for name in _names_beside(path, raw) if name.startswith(f"{path[-1]}_")]
    return _listed([".".join([*path[:-1], name]) for name in names])


def _names_beside(path: tuple[str, ...], raw: Mapping[str, Any]) -> list[str]:
    """Return the keys of the table that a key is in."""
    table: Any = raw
    for key in path[:-1]:
        table = table.get(key, {})
    return [field.name for field in fields_at(path[:-1], table)]


def _min_length(items: int) -> str:
    return "must not be empty" if items == 1 else f"must have at least {items} items"


def _list_of(value: object) -> str:
    """Return how to write a list, for an error about a single value."""
    example = "..." if isinstance(value, str) else toml_value(value)
    return f"must be a list: [{example}, {example}]"


def _suggest(path: tuple[str, ...], raw: Mapping[str, Any]) -> str:
    """Return the key that was probably meant, and the allowed keys."""
    key = path[-1].replace("-", "_").lower()
    keys = _names_beside(path, raw)
    all_keys = {
        f"{section.name}.{field.name}": field.name
        for section in dataclasses.fields(Recipe)
        for field in fields_at((section.name,), raw.get(section.name))
    } | {field.name: field.name for field in dataclasses.fields(Recipe)}
    prefix = ".".join(path[:-1])
    same_name = [dotted for dotted, name in all_keys.items() if name == key]
    synonym = difflib.get_close_matches(key, _SYNONYMS, n=1, cutoff=0.8)
    close = difflib.get_close_matches(key, keys, n=1)
    close_anywhere = difflib.get_close_matches(key, list(all_keys.values()), n=1, cutoff=0.75)
    other_kinds = [
        kind
        for cls in _classes(path[:-1])
        for kind in _kinds_of(cls)
        if key in [field.name for field in dataclasses.fields(cls)]
    ]
    if other_kinds and key not in keys:
        return f" here; it belongs to kind = {_listed(other_kinds)}"
    if key in keys:
        suggestion = f"{prefix}.{key}" if prefix else key
    elif same_name:
        suggestion = same_name[0]
    elif synonym:
        suggestion = _SYNONYMS[synonym[0]]
    elif close:
        suggestion = f"{prefix}.{close[0]}" if prefix else close[0]
    elif close_anywhere:
        suggestion = next(dotted for dotted, name in all_keys.items() if name == close_anywhere[0])
    else:
        suggestion = ""
    if suggestion == key:  # a key of the recipe itself, written within a table
        suggestion = f"{key}, outside the tables"
    hint = f"; did you mean {suggestion}?" if suggestion else ""
    return f"{hint} (allowed: {', '.join(keys)})" if keys else hint


def _allowed(value: object, options: Sequence[str]) -> str:
    hint = did_you_mean(str(value).lower(), options, cutoff=0.5)
    return f"must be {_listed(options)}{hint}"


def _listed(words: Sequence[str]) -> str:
    """Return "a, b or c"."""
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _classes(path: tuple[str, ...]) -> list[Any]:
    """Return the dataclasses that are allowed at this location of a recipe."""
    classes: list[Any] = [Recipe]
    for key in path:
        annotations = [
            field.type for cls in classes for field in dataclasses.fields(cls) if field.name == key
        ]
        inner_classes = [cls for annotation in annotations for cls in _dataclasses_in(annotation)]
        classes = list(dict.fromkeys(inner_classes))
    return classes


def _dataclasses_in(annotation: Any) -> list[Any]:
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return [annotation] if annotation is not Net else []
    if get_origin(annotation) is Annotated:
        return _dataclasses_in(get_args(annotation)[0])
    return [cls for inner in get_args(annotation) for cls in _dataclasses_in(inner)]


def _kinds(path: tuple[str, ...], raw: Mapping[str, Any]) -> list[str]:
    """Return the kinds that a table can have in the recipe `raw`."""
    return [kind for cls in _classes(path) if fits(cls, raw) for kind in _kinds_of(cls)]


def _kinds_of(cls: Any) -> tuple[str, ...]:
    fields = [field for field in dataclasses.fields(cls) if field.name == "kind"]
    return get_args(fields[0].type) if fields else ()


def takes_text(path: tuple[str, ...]) -> bool:
    """Whether the field at this location of a recipe can only be text."""
    types = [
        field.type
        for cls in _classes(path[:-1])
        for field in dataclasses.fields(cls)
        if field.name == path[-1]
    ]
    return bool(types) and all(_is_text(annotation) for annotation in types)


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_text(get_args(annotation)[0])
    return annotation is str or set(get_args(annotation)) == {str, type(None)}


def fields_at(path: tuple[str, ...], table: object) -> "tuple[dataclasses.Field[Any], ...]":
    """Return the fields of the table at `path`: of its kind if it has one, else of the first kind;
    () if there is no table."""
    classes = _classes(path)
    kind = table.get("kind") if isinstance(table, Mapping) else None
    matching = [cls for cls in classes if kind in _kinds_of(cls)] or classes[:1]
    return dataclasses.fields(matching[0]) if matching else ()

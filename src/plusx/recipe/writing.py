"""Recipes as TOML, and the differences between two recipes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from plusx.grammar.spec import Net
from plusx.grammar.toml import to_dict as net_to_dict
from plusx.grammar.toml import toml_value
from plusx.recipe.tables import Recipe


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain tables with every field that is not None."""
    return {name: _plain(value) for name, value in _fields(recipe) if value is not None}


def to_toml(recipe: Recipe) -> str:
    """Return the complete recipe as TOML: every field, defaults included, except None."""
    tables = to_dict(recipe)
    sections = [
        "".join(f"{k} = {toml_value(v)}\n" for k, v in tables.items() if not isinstance(v, dict))
    ]
    for name, table in tables.items():
        if isinstance(table, dict):
            sections.append(
                f"[{name}]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in table.items())
            )
    return "\n".join(sections)


def differences(old: Recipe, new: Recipe) -> dict[str, str]:
    """Return the differences between two recipes: the dotted key and `old -> new` in TOML."""
    before, after = _flat(to_dict(old)), _flat(to_dict(new))
    return {
        key: f"{before.get(key, 'not given')} -> {after.get(key, 'not given')}"
        for key in before | after
        if before.get(key) != after.get(key)
    }


def _fields(value: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]


def _plain(value: Any) -> Any:
    if isinstance(value, Net):
        return net_to_dict(value)
    if dataclasses.is_dataclass(value):
        return {name: _plain(inner) for name, inner in _fields(value) if inner is not None}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = toml_value(value)
    return flat

"""Read a recipe from a file or a shipped name, with overrides."""

import re
import stat
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from plusx.errors import UserError, did_you_mean
from plusx.grammar.toml import from_dict
from plusx.overrides import split_key, split_override
from plusx.recipe.errors import explain, fields_at, key_path, takes_text
from plusx.recipe.sets import NoMix
from plusx.recipe.tables import Classify, Constant, Recipe
from plusx.recipe.tuning import NoPruner
from plusx.shipped import recipe_text, shipped_recipes


_ADAPTER: TypeAdapter[Recipe] = TypeAdapter(Recipe)
# default kinds of tables
_DEFAULT_KINDS = {
    ("schedule",): Constant().kind,
    ("task",): Classify().kind,
    ("data", "mix"): NoMix().kind,
    ("tune", "pruner"): NoPruner().kind,
}
# annotations that a task needs
_ANNOTATIONS: dict[str, list[Any]] = {
    "classify": ["classes"],
    "segment": ["masks"],
    "detect": ["boxes"],
    "embed": ["people", "classes"],
    "represent": ["classes"],
    "translate": ["translations"],
    "caption": ["captions"],
}
# recipes for the user's own data, by the kinds of data that are not names of recipes
_RECIPES_OF_KINDS = {
    **dict.fromkeys(("folder", "csv", "packed", "shards"), "images"),
    **dict.fromkeys(("voc", "coco", "yolo"), "boxes"),
}
# the keys of [data] that name the columns of a table
_COLUMNS = {
    "texts": ("text", "label"),
    "parallel": ("source", "target"),
    "captions": ("caption",),
}
RESET = "default"  # the value of an override that resets a field to its default
_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of this name or path, with overrides.

    An override is `key=value` with a dotted key; the value is TOML, or plain text if it is not
    valid TOML. `key=default` resets a field to its default.
    Raises UserError with file, line, key and the allowed values.
    """
    where, text = _read(name_or_path)
    return parse_recipe(text, overrides, where=where)


def parse_recipe(text: str, overrides: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    """Return the recipe of a TOML text; `where` names it in errors."""
    if text.startswith("\ufeff"):
        raise UserError(f"{where}:1: begins with a byte order mark; save it as UTF-8 without one")
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        match = re.search(r" \(at line (\d+), column \d+\)", str(error))
        line, message = (f":{match[1]}", str(error).replace(match[0], "")) if match else ("", error)
        raise UserError(f"{where}{line}: not TOML: {message}{_toml_advice(text, match)}") from None
    lines = _lines(text)
    if _depth(raw) > _MAX_DEPTH:
        raise UserError(f"{where}: tables are nested more than {_MAX_DEPTH} deep")
    overridden: dict[tuple[str, ...], str] = {}
    for override in overrides:
        _change(raw, override, overridden)
    _choose_kind(raw, overridden)

    def location(path: tuple[str, ...]) -> str:
        for end in range(len(path), 0, -1):
            for key, override in overridden.items():
                if key[:end] == path[:end]:
                    return f"override {override}"
            if path[:end] in lines:
                return f"{where}:{lines[path[:end]]}"
        return where

    return _build(raw, location)


def _read(name_or_path: str) -> tuple[str, str]:
    """Return the name of the recipe for errors, and its text."""
    path = Path(name_or_path)
    if name_or_path in shipped_recipes():
        return name_or_path, recipe_text(name_or_path)
    try:
        status = path.stat()
    except (OSError, ValueError):
        recipes = shipped_recipes()
        if (recipe := _RECIPES_OF_KINDS.get(name_or_path)) is not None:
            raise UserError(
                f"{name_or_path!r} is a kind of data, not a recipe: `plusx train {recipe} "
                f"data.path=PATH` trains on it"
            ) from None
        hint = did_you_mean(path.stem, recipes, 3, cutoff=0.4)
        raise UserError(
            f"no recipe {name_or_path!r}, as a name or a file{hint} (`plusx recipes` lists them)"
        ) from None
    if stat.S_ISDIR(status.st_mode):
        recipe_file = path / "recipe.toml"
        hint = f"; did you mean {recipe_file}?" if recipe_file.is_file() else ""
        raise UserError(f"{name_or_path}: is a folder, not a recipe{hint}")
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        raise UserError(f"{name_or_path}: a recipe is a regular file of at most 1 MB")
    try:
        return name_or_path, path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name_or_path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{name_or_path}: cannot be read: {error.strerror}") from None


def _toml_advice(text: str, match: "re.Match[str] | None") -> str:
    line = text.splitlines()[int(match[1]) - 1] if match else ""
    if re.search(r"=\s*(yes|no|on|off|True|False)\b", line):
        return "; a boolean is true or false"
    if re.search(r"=\s*[A-Za-z]", line) and not re.search(r"=\s*(true|false|inf|nan)\b", line):
        return "; text must be in double quotes"
    return ""


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the first line of each table and key."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    quoted = False
    for number, line in enumerate(text.splitlines(), 1):
        inside, quoted = quoted, quoted ^ bool((line.count('"""') + line.count("'''")) % 2)
        if inside:
            continue
        if header := re.match(r"\s*\[\[?([^\[\]=]+)\]", line):
            table = split_key(header[1])
            lines.setdefault(table, number)
        elif key := re.match(r"\s*([^=#\[\]{}]+?)\s*=", line):
            lines.setdefault(table + split_key(key[1]), number)
    return lines


def _change(raw: dict[str, Any], override: str, overridden: dict[tuple[str, ...], str]) -> None:
    """Set the field that `override` names, and record it in `overridden`."""
    path, value = split_override(override)
    if not isinstance(value, str) and takes_text(path):
        value = override.partition("=")[2].strip()  # a folder may be called 2024
    table = raw
    for key in path[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UserError(f"override {override!r}: {key} is one value, not a table")
    if override.partition("=")[2].strip() == RESET:
        table.pop(path[-1], None)
        return
    if path in (("epochs",), ("steps",)):
        for other in {"epochs", "steps"} - set(path):
            if (other,) not in overridden:
                raw.pop(other, None)
    # another kind has other fields: remove those of the kind in the file
    if path[-1] in ("kind", "base") and table.get(path[-1]) != value:
        names = [field.name for field in fields_at(path[:-1], {path[-1]: value})]
        for name in [name for name in table if names and name not in names]:
            if (*path[:-1], name) not in overridden:
                del table[name]
    table[path[-1]] = value
    overridden[path] = repr(override)


def _choose_kind(raw: dict[str, Any], overridden: Mapping[tuple[str, ...], str]) -> None:
    """Set the kind of the data from its path, if it is not stated for that path."""
    data, task = raw.get("data"), raw.get("task")
    if not isinstance(data, dict) or not isinstance(data.get("path"), str):
        return
    stated = data.get("kind")
    if ("data", "kind") in overridden:
        return
    if stated is not None and ("data", "path") not in overridden:
        return
    from plusx.data.readers.layouts import LAYOUTS, choose_kind  # imports torch

    # a synthetic set is made from files, which can have the layout of another kind
    is_synthetic = stated is not None and stated not in LAYOUTS
    if is_synthetic and "path" in [field.name for field in fields_at(("data",), data)]:
        return
    if any(("data", key) in overridden for key in _COLUMNS.get(str(stated), ())):
        return  # the reader reports which of the columns are missing
    task_kind = task.get("kind", Classify().kind) if isinstance(task, dict) else Classify().kind
    usable = _ANNOTATIONS.get(task_kind, [layout.annotation for layout in LAYOUTS.values()])
    if stated in LAYOUTS and LAYOUTS[stated].annotation not in usable:
        usable = [LAYOUTS[stated].annotation]  # such as texts with classes
    if task_kind == "detect" and "components" in data:
        usable = [*usable, "masks"]
    kind = choose_kind(data["path"], stated, usable, f", which is not for {task_kind}")
    if stated is None:
        data["kind"] = kind
    elif kind != stated:
        _change(raw, f"data.kind={kind}", dict(overridden))


def _build(raw: dict[str, Any], location: Callable[[tuple[str, ...]], str]) -> Recipe:
    net = raw.get("net")
    if isinstance(net, dict) and "base" not in net and "stages" in net:
        try:
            raw = {**raw, "net": from_dict(net)}
        except ValueError as error:
            raise UserError(f"{location(('net',))}: [net] {error}") from None
    for path, kind in _DEFAULT_KINDS.items():
        table: Any = raw
        for key in path:
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table.setdefault("kind", kind)
    try:
        return _ADAPTER.validate_python(raw)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    messages = []
    # a misspelt key is also a missing one: report the misspelling first
    for invalid_value in sorted(errors, key=lambda error: error["type"] == "missing"):
        path = key_path(tuple(str(key) for key in invalid_value["loc"]), raw)
        if invalid_value["type"] == "union_tag_invalid":
            path = (*path, "kind")
        messages.append(f"{location(path)}: {explain(invalid_value, path, raw)}")
    others = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
    raise UserError(messages[0] + others)


def _depth(value: object) -> int:
    inner = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    )
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)

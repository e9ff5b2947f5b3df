"""Canonical JSON: equal values give equal bytes, and reading returns what was written."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plusx.errors import UserError
from plusx.store.files import read_bytes, read_part, write_bytes


MAX_JSON_BYTES = 64 << 20


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file with sorted keys in ASCII; equal values give equal bytes.

    Raises UserError for values that JSON cannot represent: numbers that are not finite, keys that
    are not text, objects.
    """
    write_bytes(path, json_bytes(value, str(path)))


def read_json(path: str | Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file. Raises UserError if it is too long, not JSON, or has a key twice."""
    return parse_json(read_bytes(path, limit), str(path))


def read_json_part(path: str | Path) -> Any:
    """Read a JSON file that plusx wrote into a folder. Raises UserError as `read_json`, and if the
    file is missing."""
    return parse_json(read_part(path, MAX_JSON_BYTES), str(path))


def json_bytes(value: Any, where: str) -> bytes:
    """Return a value as canonical JSON; `where` names it in errors."""
    check_json(value, where, "")
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, indent=2, sort_keys=True)
    return text.encode("ascii") + b"\n"


def check_json(value: Any, where: str, key: str) -> None:
    """Raise UserError for values that JSON would change or cannot represent."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise UserError(f"{where}: key {name!r} in {key or 'the table'} is not text")
            check_json(inner, where, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            check_json(inner, where, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {key or 'the value'} is {value}, which JSON cannot represent")
    elif not isinstance(value, str | int | float | bool | None):
        raise UserError(f"{where}: {key or 'the value'} is a {type(value).__name__}, not data")


def parse_json(data: bytes, where: str) -> Any:
    """Return the value of a JSON text; `where` names it in errors."""
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_constant=refuse_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not a valid JSON file: {error}") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of an object as a dictionary. Raises UserError if a key occurs twice."""
    table = dict(pairs)
    if len(table) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise UserError(f"the key {max(counts, key=counts.__getitem__)!r} occurs twice")
    return table


def refuse_constant(text: str) -> Any:
    """Raise UserError for NaN and Infinity, which JSON does not have."""
    raise UserError(f"{text} is not a JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise UserError(f"{text} is too large for a number")
    return number

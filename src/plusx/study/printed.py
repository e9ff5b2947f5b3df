"""Printed tables, read from TOML: numbers as intervals, with their units."""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from plusx.errors import UserError, did_you_mean
from plusx.grammar.toml import toml_value


SHARES = {"": Fraction(1), "%": Fraction(1, 100)}
COUNTS = {"": Fraction(1), "K": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9)}
TIMES = {"s": Fraction(1), "min": Fraction(60), "h": Fraction(3600)}
# quantities of columns: their units
QUANTITIES: dict[str, Mapping[str, Fraction]] = {
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "error"), SHARES),
    **dict.fromkeys(("parameters", "multiply_adds"), COUNTS),
    "epochs": {"": Fraction(1)},
    **dict.fromkeys(("epoch_time", "total_time"), TIMES),
}
AVERAGES = ("macro", "weighted", "micro", "")
# groups of three digits with commas, or up to 30 digits without
_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,30})(?:\.([0-9]{1,30}))?")

Average = Literal["macro", "weighted", "micro", ""]


@dataclass(frozen=True)
class Interval:
    """All values from low to high, inclusive."""

    low: Fraction
    high: Fraction

    def __mul__(self, other: "Interval") -> "Interval":
        """Return the products of two non-negative intervals."""
        return Interval(self.low * other.low, self.high * other.high)

    def scaled(self, factor: Fraction) -> "Interval":
        return Interval(self.low * factor, self.high * factor)

    def meets(self, other: "Interval") -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Table:
    """One printed table. `columns` maps quantities of QUANTITIES to their units, `rows` maps
    networks to the texts of their quantities; a quantity without a text is unknown."""

    name: str
    columns: Mapping[str, str]
    rows: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Tables:
    """Tables that are checked together, with facts about them.

    `networks`: the zoo's network of each row; "plain(NAME)" is NAME without its skips. `named`:
    networks mentioned in the text. `most`: for a quantity the row that is claimed to have the
    largest value. `balanced`: all classes have the same number of images. `averaging` of precision,
    recall and F1, "" if not stated. `classes`, `channels` and `size` are those of the images; None:
    as in the zoo. `images`: training images of an epoch, and `teraflops`: the peak of the machine
    by its data sheet, in 10^12 FLOP per second; None: not stated, and times are not checked against
    it. `machine`: its name.
    """

    tables: tuple[Table, ...]
    networks: Mapping[str, str]
    named: tuple[str, ...] = ()
    most: Mapping[str, str] | None = None
    balanced: bool = False
    averaging: Average = ""
    classes: int | None = None
    channels: int | None = None
    size: int | None = None
    images: int | None = None
    teraflops: float | None = None
    machine: str = ""


def read_tables(path: str | Path) -> Tables:
    """Read tables from a TOML file; docs/studies.md describes the format. Raises UserError, with
    the location, if the file is not valid."""
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not TOML, see docs/studies.md: {error}") from error
    try:
        return _tables(content)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def interval(text: str, unit: Fraction = Fraction(1), *, is_count: bool = False) -> Interval:
    """Return the values that this text denotes, times the unit; a spread after ± is ignored.

    `is_count`: a number without decimals is exact. Raises UserError if the text is not a number.
    """
    number, _, spread = (part.strip() for part in text.partition("±"))
    if spread and _NUMBER.fullmatch(spread) is None:
        raise UserError(f"{text!r}: the spread is not a number")
    match = _NUMBER.fullmatch(number)
    if match is None:
        raise UserError(f"{text!r} is not a number such as 71.3 or 269,434 (thousands)")
    value = Fraction(number.replace(",", ""))
    decimals = len(match[1] or "")
    half = Fraction(0) if is_count and not decimals else Fraction(1, 2 * 10**decimals)
    low = value - half if value < 0 else max(Fraction(0), value - half)
    return Interval(low * unit, (value + half) * unit)


def _tables(content: Mapping[str, Any]) -> Tables:
    shapes: dict[str, type | tuple[type, ...]] = {
        "title": str, "tables": list, "networks": dict, "named": list, "most": dict,
        "balanced": bool, "averaging": str, "classes": int, "channels": int, "size": int,
        "images": int, "teraflops": (int, float), "machine": str,
    }  # fmt: skip
    refuse_unknown(content, set(shapes), "")
    for key, value in content.items():
        is_bool = isinstance(value, bool)  # which is an int too
        if not isinstance(value, shapes[key]) or is_bool != (shapes[key] is bool):
            words: dict[Any, str] = {dict: "table", list: "list", str: "string", bool: "boolean"}
            raise UserError(f"{key}: {value!r} is not a {words.get(shapes[key], 'number')}")
    for key in ("classes", "channels", "size", "images", "teraflops"):
        if key in content and not 0 < content[key] < math.inf:
            raise UserError(f"{key}: {content[key]!r} is not a number above 0")
    averaging = content.get("averaging", "")
    if averaging not in AVERAGES:
        raise UserError(f"averaging: one of {', '.join(AVERAGES[:-1])}, not {averaging!r}")
    if not content.get("tables"):
        raise UserError("there are no [[tables]]")
    for name in content.get("named", ()):
        if not isinstance(name, str):
            raise UserError(f"named: {name!r} is not the name of a row")
    tables = tuple(_table(table, number) for number, table in enumerate(content["tables"], 1))
    for name, count in Counter(table.name for table in tables).items():
        if count > 1:
            raise UserError(f"{count} tables have the name {name!r}")
    return Tables(
        tables=tables,
        networks={str(key): str(value) for key, value in content.get("networks", {}).items()},
        named=tuple(map(str, content.get("named", ()))),
        most={str(key): str(value) for key, value in content.get("most", {}).items()},
        balanced=content.get("balanced", False),
        averaging=averaging,
        classes=content.get("classes"),
        channels=content.get("channels"),
        size=content.get("size"),
        images=content.get("images"),
        teraflops=None if "teraflops" not in content else float(content["teraflops"]),
        machine=content.get("machine", ""),
    )


def check_columns(table: str, columns: Mapping[str, str]) -> None:
    """Raise UserError, with the place, for a column that is not a quantity, or an unknown unit."""
    for column, unit in columns.items():
        refuse_unknown({column: unit}, set(QUANTITIES), f"{table}, columns: ")
        if unit not in QUANTITIES[column]:
            allowed = ", ".join(repr(allowed_unit) for allowed_unit in QUANTITIES[column])
            raise UserError(f"{table}, {column}: the unit is one of {allowed}, not {unit!r}")


def _table(content: Any, number: int) -> Table:
    if not isinstance(content, dict):
        raise UserError(f"[[tables]] {number} is not a table")
    name = str(content.get("name", f"table {number}"))
    refuse_unknown(content, {"name", "columns", "rows"}, f"{name}: ")
    rows, columns = content.get("rows", {}), content.get("columns", {})
    for key, value in (("columns", columns), ("rows", rows)):
        if not isinstance(value, dict):
            raise UserError(f"{name}: {key} is a table, not {value!r}")
    if not columns:
        raise UserError(f'{name}: has no columns, such as columns = {{ accuracy = "%" }}')
    columns = {str(column): str(unit) for column, unit in columns.items()}
    check_columns(name, columns)
    if not rows:
        raise UserError(f"{name}: has no rows")
    for row, texts in rows.items():
        if not isinstance(texts, dict):
            raise UserError(f"{name}, {row}: {texts!r} is not a table of columns")
        for column, text in texts.items():
            if column not in columns:
                raise UserError(
                    f"{name}, {row}: the table has no column {column!r} "
                    f"(it has {', '.join(columns)})"
                )
            if isinstance(text, float):
                raise UserError(
                    f'{name}, {row}, {column}: write {text} in quotes as printed, "{text}": '
                    "its decimals show how it was rounded"
                )
    for column in columns:
        if not any(column in texts for texts in rows.values()):
            raise UserError(f"{name}, {column}: no row has this column")
    return Table(
        name,
        columns,
        {row: {c: str(text) for c, text in texts.items()} for row, texts in rows.items()},
    )


def refuse_unknown(content: Mapping[str, Any], allowed: set[str], where: str) -> None:
    for key in content:
        if key not in allowed:
            hint = did_you_mean(str(key), allowed) or f"; known are {', '.join(sorted(allowed))}"
            raise UserError(f"{where}unknown key {key!r}{hint}")


def to_toml(tables: Tables, *, title: str = "") -> str:
    """Return the tables as TOML that `read_tables` reads."""
    keys = ("named", "balanced", "averaging", "classes", "channels", "size", "images", "teraflops",
            "machine")  # fmt: skip
    lines = [f"title = {toml_value(title)}"] if title else []
    for key in keys:
        value = getattr(tables, key)
        if value not in (None, "", ()):
            lines.append(f"{key} = {toml_value(value)}")
    for name, pairs in (("networks", tables.networks), ("most", tables.most or {})):
        if pairs:
            lines += [
                "",
                f"[{name}]",
                *(f"{toml_value(k)} = {toml_value(v)}" for k, v in pairs.items()),
            ]
    for table in tables.tables:
        lines += ["", "[[tables]]", f"name = {toml_value(table.name)}"]
        lines += [f"columns = {toml_value(table.columns)}", "", "[tables.rows]"]
        lines += [f"{toml_value(row)} = {toml_value(texts)}" for row, texts in table.rows.items()]
    return "\n".join(lines) + "\n"

"""Formatting of values for tables: fractions as percentages, counts, and significant digits.

A value is None, a text, a number, or a spread: {"mean", "std", "seeds"}. The values of a column
have the same number of decimals.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


ABSENT = "–"
# numbers outside of these have a power of ten
SMALLEST, LARGEST = 1e-3, 1e7
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MINUS = "−"


@dataclass(frozen=True)
class Formatted:
    """A formatted value: text, a note in smaller print, and the sort key."""

    text: str
    note: str = ""
    order: float | str | None = None  # None: unknown

    def __str__(self) -> str:
        return f"{self.text} {self.note}".strip()


def format_column(column: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Formatted]:
    """Format the values of a column, whose "absent" and "places" are optional."""
    cells = [row.get(column["key"]) for row in rows]
    absent = str(column.get("absent") or ABSENT)
    return format_values(column["kind"], cells, absent=absent, decimals=column.get("places"))


def format_values(
    kind: str, values: Sequence[Any], *, absent: str = ABSENT, decimals: int | None = None
) -> list[Formatted]:
    """Format the values of a column of this kind (text, count, number or share).

    absent: the text for None
    decimals: None chooses them by the values
    """
    factor = 100.0 if kind == "share" else 1.0
    parsed = [_parsed(value, factor) for value in values]
    means = [mean for mean, _, _ in parsed if isinstance(mean, float)]
    spreads = [std for _, std, _ in parsed if std is not None]
    if decimals is None:
        decimals = _decimals(kind, means, spreads)
    return [_formatted(mean, std, note, decimals, absent) for mean, std, note in parsed]


def heading(column: Mapping[str, Any]) -> tuple[str, str]:
    """Return title and unit of a column; shares are in per cent."""
    unit = str(column.get("unit") or "")
    return str(column["title"]), "%" if column["kind"] == "share" and not unit else unit


def number(value: float | int) -> str:
    """Format a number with three significant digits, and a power of ten if necessary."""
    return _significant(float(value), 3)


def percent(share: float | int) -> str:
    """Format a fraction as a percentage with at most one decimal."""
    return f"{100 * share:.1f}".removesuffix(".0").replace("-", _MINUS)


def power(exponent: int) -> str:
    """Format a power of ten."""
    return f"10{str(exponent).translate(_RAISED)}"


def _parsed(value: Any, factor: float) -> tuple[float | str | None, float | None, str]:
    """Return a value as (mean or text, standard deviation, remark)."""
    if isinstance(value, Mapping):
        seeds = list(value.get("seeds") or ())
        count = sum(seed is not None for seed in seeds)
        remark = f"in {count} of {len(seeds)}" if 0 < count < len(seeds) else ""
        mean, std = value.get("mean"), value.get("std")
        return _number(mean, factor), _float(std, factor), remark
    if isinstance(value, bool):
        return "yes" if value else "no", None, ""
    return _number(value, factor), None, ""


def _number(value: Any, factor: float) -> float | str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return factor * value if math.isfinite(value) else str(value)
    return str(value)


def _float(value: Any, factor: float) -> float | None:
    return factor * value if isinstance(value, int | float) and math.isfinite(value) else None


def _decimals(kind: str, means: Sequence[float], spreads: Sequence[float]) -> int | None:
    """Return the decimals for a column; None: three significant digits for each value."""
    sizes = [abs(mean) for mean in means if mean]
    if kind == "count" and all(mean == int(mean) for mean in means):
        return 0
    if kind in ("count", "share"):
        fine = [size for size in (*sizes, *spreads) if 0 < size < 0.095]
        return 2 if fine and kind == "share" else 1
    if not sizes:
        return 0
    if min(sizes) < SMALLEST or max(sizes) >= LARGEST or max(sizes) / min(sizes) > 1e4:
        return None
    if all(mean == int(mean) for mean in means) and not any(spreads):
        return 0
    # three significant digits for the median, and at least one for the smallest
    middle = sorted(sizes)[len(sizes) // 2]
    return max(0, 2 - _exponent(middle), -_exponent(min(sizes)))


def _formatted(
    mean: float | str | None, std: float | None, remark: str, decimals: int | None, absent: str
) -> Formatted:
    if mean is None:
        return Formatted(absent)
    if isinstance(mean, str):
        return Formatted(mean, "", mean)
    note = remark
    if std is not None:
        note = f"± {_fixed(std, decimals, 2)} {remark}".strip()
    return Formatted(_fixed(mean, decimals, 3), note, mean)


def _fixed(value: float, decimals: int | None, digits: int) -> str:
    if decimals is None:
        return _significant(value, digits)
    text = f"{value:,.{decimals}f}"
    return text.replace("-", _MINUS) if float(text.replace(",", "")) else text.replace("-", "")


def _significant(value: float, digits: int) -> str:
    if not value:
        return "0"
    if SMALLEST <= abs(value) < LARGEST:
        rounded = float(f"{value:.{digits}g}")
        decimals = max(0, digits - 1 - _exponent(rounded))
        text = f"{rounded:,.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        # by scientific notation, so that 9.996 does not become 10.0
        factor, exponent = f"{value:.{digits - 1}e}".split("e")
        factor = factor.rstrip("0").rstrip(".") if "." in factor else factor
        text = f"{factor} × {power(int(exponent))}" if factor != "1" else power(int(exponent))
    return text.replace("-", _MINUS)


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))

"""Values as text: shares as percentages, counts whole, numbers to as many figures as they carry.

A value is None, a text, a number, or a spread: {"mean", "std", "seeds"}. The values of a column are
written alike, so that they can be read down it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


ABSENT = "–"
# A number outside of these is written with a power of ten.
SMALLEST, LARGEST = 1e-3, 1e7
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MINUS = "−"


@dataclass(frozen=True)
class Formatted:
    """A value as it stands in a table: the text, what stands smaller beside it, and its order."""

    text: str
    note: str = ""
    order: float | str | None = None  # None: not known

    def __str__(self) -> str:
        return f"{self.text} {self.note}".strip()


def format_column(column: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Formatted]:
    """The values of a column as they are written; its "absent" and "places" are optional."""
    several = [row.get(column["key"]) for row in rows]
    absent = str(column.get("absent") or ABSENT)
    return format_values(column["kind"], several, absent=absent, decimals=column.get("places"))


def format_values(
    kind: str, values: Sequence[Any], *, absent: str = ABSENT, decimals: int | None = None
) -> list[Formatted]:
    """The values of a column of this kind (text, count, number or share), one under another.

    `absent` is written for a value that is not known; `decimals`: None is as many as needed.
    """
    factor = 100.0 if kind == "share" else 1.0
    parsed = [_parsed(value, factor) for value in values]
    means = [mean for mean, _, _ in parsed if isinstance(mean, float)]
    spreads = [std for _, std, _ in parsed if std is not None]
    if decimals is None:
        decimals = _decimals(kind, means, spreads)
    return [_formatted(mean, std, note, decimals, absent) for mean, std, note in parsed]


def heading(column: Mapping[str, Any]) -> tuple[str, str]:
    """Title and unit of a column; shares are written in per cent."""
    unit = str(column.get("unit") or "")
    return str(column["title"]), "%" if column["kind"] == "share" and not unit else unit


def number(value: float | int) -> str:
    """A number to three figures, with a power of ten where it is very small or large."""
    return _significant(float(value), 3)


def percent(share: float | int) -> str:
    """A share as a percentage, without a decimal where none is needed."""
    return f"{100 * share:.1f}".removesuffix(".0").replace("-", _MINUS)


def power(exponent: int) -> str:
    """Ten to this power, as it is printed."""
    return f"10{str(exponent).translate(_RAISED)}"


def _parsed(value: Any, factor: float) -> tuple[float | str | None, float | None, str]:
    """A value as (mean, standard deviation, remark); a text stays one."""
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
    """Decimals that all values of a column have; None: each to three figures of its own."""
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
    # Three figures for the value in the middle, and at least one for the smallest.
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
        note = f"± {_written(std, decimals, 2)} {remark}".strip()
    return Formatted(_written(mean, decimals, 3), note, mean)


def _written(value: float, decimals: int | None, figures: int) -> str:
    if decimals is None:
        return _significant(value, figures)
    text = f"{value:,.{decimals}f}"
    return text.replace("-", _MINUS) if float(text.replace(",", "")) else text.replace("-", "")


def _significant(value: float, figures: int) -> str:
    if not value:
        return "0"
    if SMALLEST <= abs(value) < LARGEST:
        rounded = float(f"{value:.{figures}g}")
        decimals = max(0, figures - 1 - _exponent(rounded))
        text = f"{rounded:,.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        # Written by its shortest form, so that 9.996 does not become 10.0.
        factor, exponent = f"{value:.{figures - 1}e}".split("e")
        factor = factor.rstrip("0").rstrip(".") if "." in factor else factor
        text = f"{factor} × {power(int(exponent))}" if factor != "1" else power(int(exponent))
    return text.replace("-", _MINUS)


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))

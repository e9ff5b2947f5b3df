"""Axes: where a value is placed, how far an axis reaches, and what is written along it.

A place is what is drawn: the value itself, or its logarithm. A logarithmic axis has no place for
zero; where there is one, it stands at the foot, below everything else, with a tick of its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from matplotlib.ticker import MaxNLocator

from plusx.errors import UserError
from plusx.report import values


Kind = Literal["linear", "log", "share"]


@dataclass(frozen=True)
class Axis:
    """What an axis shows, and how."""

    title: str
    kind: Kind = "linear"

    @staticmethod
    def read(told: Mapping[str, Any]) -> "Axis":
        """The axis of a result's figure. UserError: it has a scale that there is not."""
        kind = told["scale"]
        if kind not in get_args(Kind):
            allowed = ", ".join(get_args(Kind))
            raise UserError(f"the scale of an axis is one of {allowed}, not {kind!r}")
        return Axis(str(told["title"]), kind)

    def said(self, value: float | int) -> str:
        """A value of this axis with its unit, as a sentence has it."""
        return f"{values.percent(value)} %" if self.kind == "share" else values.number(value)


@dataclass(frozen=True)
class Scale:
    """An axis with its range and ticks, as places."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False
    foot: float | None = None  # the place of zero on a logarithmic axis, if there is a zero

    def place(self, value: float | int | None) -> float:
        """Where a value is drawn; not a number where it cannot be."""
        if value is None or not math.isfinite(value):
            return math.nan
        if not self.logarithmic:
            return float(value)
        if value > 0:
            return math.log10(value)
        return self.foot if value == 0 and self.foot is not None else math.nan

    def places(self, several: Sequence[float | int | None]) -> list[float]:
        return [self.place(value) for value in several]


def scale(
    axis: Axis,
    shown: Sequence[float | int | None],
    *,
    tight: bool = False,
    from_zero: bool = False,
    most: int = 5,
) -> Scale:
    """The scale for values. `tight`: it ends where they do; `from_zero`: zero is on it."""
    known = [float(value) for value in shown if value is not None and math.isfinite(value)]
    if axis.kind == "log":
        return _logarithmic(known, tight, most)
    low, high = min(known, default=0.0), max(known, default=1.0)
    whole = all(value == int(value) for value in known) and axis.kind == "linear"
    if axis.kind == "share":
        low, high = _share(low, high, from_zero)
    else:
        if from_zero or (not tight and 0 < low < 0.4 * high):
            low = min(low, 0.0)
        if from_zero or (not tight and 0.4 * low < high < 0):
            high = max(high, 0.0)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            step = 1.0 if whole else abs(low) / 10 or 1.0
            low, high = low - step * (not from_zero), high + step
    locator = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=1)
    places = [float(place) for place in locator.tick_values(low, high)]
    if not tight and axis.kind == "linear":
        low, high = _reach(places, low, high)
    edge = 1e-9 * (high - low)
    ticks = [float(f"{place:.12g}") for place in places if low - edge <= place <= high + edge]
    found: dict[str, float] = {}
    for place, text in zip(ticks, _exact(axis, ticks), strict=True):
        found.setdefault(text, place)
    return Scale(low, high, tuple((place, text) for text, place in found.items()))


def ticks_at(axis: Axis, drawn: Scale, wanted: Sequence[float]) -> Scale:
    """The scale with ticks at these values: where an axis has few, they are what is read."""
    texts = _exact(axis, wanted)
    ticks = tuple((drawn.place(value), text) for value, text in zip(wanted, texts, strict=True))
    return Scale(drawn.low, drawn.high, ticks, drawn.logarithmic, drawn.foot)


def _share(low: float, high: float, from_zero: bool) -> tuple[float, float]:
    """Shares are drawn against 0 or 100 %, whichever they are near, and both where they are far
    apart."""
    if low < 0 or high > 1:  # a difference between shares
        reach = _above(max(abs(low), abs(high)))
        return (-reach if low < 0 else 0.0), (reach if high > 0 else 0.0)
    if high <= 0.8 or from_zero:
        return 0.0, _above(high)
    if low >= 0.5:
        return 1.0 - _above(1.0 - low), 1.0
    return 0.0, 1.0


def _above(value: float) -> float:
    """The next round number that is at least the value: 1, 2, 2.5, 4, 5 times a power of ten."""
    if value <= 0.0005:
        return 0.001
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * n for n in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if unit * n >= value - 1e-12)


def _reach(places: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """The range, carried on to the next tick on either side."""
    below = [place for place in places if place <= low]
    above = [place for place in places if place >= high]
    return (max(below) if below else low), (min(above) if above else high)


def _logarithmic(known: Sequence[float], tight: bool, most: int) -> Scale:
    positive = [value for value in known if value > 0]
    first = math.log10(min(positive, default=0.1))
    last = math.log10(max(positive, default=1.0))
    if not tight or last - first < 1e-9:
        margin = max(0.04 * (last - first), 0.05)
        first, last = first - margin, last + margin
    ticks = _marks(first, last, most)
    foot = None
    if any(value == 0 for value in known):
        # Far enough below to be seen as another thing than the smallest value.
        foot = first - max(0.14 * (last - first), 0.3)
        ticks = [(foot, "0"), *ticks]
        first = foot - 0.03 * (last - foot)
    return Scale(first, last, tuple(ticks), logarithmic=True, foot=foot)


def _marks(first: float, last: float, most: int) -> list[tuple[float, str]]:
    """The finest of the usual steps that gives no more than `most` ticks (one more for tens)."""
    if last - first < 0.5:
        found = MaxNLocator(min(most, 4)).tick_values(10.0**first, 10.0**last)
        near = [float(f"{mark:.12g}") for mark in found if 10.0**first <= mark <= 10.0**last]
        return [(math.log10(m), text) for m, text in zip(near, _numbers(near), strict=True)]
    exponents = range(math.floor(first), math.ceil(last) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3)):
        marks = [factor * 10.0**n for n in exponents for factor in factors]
        within = [mark for mark in marks if mark > 0 and first <= math.log10(mark) <= last]
        if len(within) <= most:
            texts = _numbers(within)
            return [(math.log10(mark), text) for mark, text in zip(within, texts, strict=True)]
    tens = [n for n in exponents if first <= n <= last]
    # In steps from one: 1 is a tick and not 10 where every third is.
    step = math.ceil(len(tens) / (most + 1))
    plain = all(-3 <= n <= 4 for n in tens if n % step == 0)
    return [
        (float(n), values.number(10.0**n) if plain else values.power(n))
        for n in tens
        if n % step == 0
    ]


def _exact(axis: Axis, ticks: Sequence[float]) -> list[str]:
    """Numbers in full, large ones in millions and so on."""
    if axis.kind == "share":
        return [f"{round(100 * tick, 6):g} %".replace("-", "−") for tick in ticks]
    return _numbers(ticks)


def _numbers(ticks: Sequence[float]) -> list[str]:
    largest = max(map(abs, ticks), default=0.0)
    for factor, sign in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if largest >= factor:
            return [_plain(tick / factor) + (sign if tick else "") for tick in ticks]
    if 0 < largest < values.SMALLEST:
        return [values.number(tick) for tick in ticks]
    return [_plain(tick) for tick in ticks]


def _plain(value: float) -> str:
    text = f"{round(value, 9):,.9f}".rstrip("0").rstrip(".")
    return text.replace("-", "−")

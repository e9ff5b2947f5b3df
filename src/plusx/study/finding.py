"""What a comparison found, said in one sentence that its numbers carry.

A difference is called one only where the intervals of the two networks lie apart. An interval has
two sources of doubt, added in quadrature: which seed the training had (Student's t over the seeds)
and which images the network was tested on (the binomial spread with two successes and two failures
added, Agresti and Coull 1998). Networks are tested on the same images, so for a comparison the
second part is too wide rather than too narrow.
"""

import math
import re
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from plusx.report.metrics import better, metric


_FIGURE, _KEY = "the figure", "its key"  # of a row, beside what result.json has


class Interval(NamedTuple):
    """An interval of 95 % for a share; `low` and `high` lie in 0..1."""

    low: float
    high: float

    def below(self, other: "Interval") -> bool:
        """Whether all of this interval lies below all of the other."""
        return self.high < other.low


# Student's t at 97.5 % for 1, 2, ... degrees of freedom; beyond them the normal's is near enough.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
            2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip
_NORMAL = 1.96


def interval(shares: Sequence[float], count: int) -> Interval | None:
    """The interval for the mean of a share, one value a seed, each over `count` images.

    None for one seed: nothing is known then about how seeds differ.
    """
    if len(shares) < 2:
        return None
    seeds = student(len(shares) - 1) * stdev(shares) / math.sqrt(len(shares))
    middle = mean(shares)
    adjusted = (middle * count + 2) / (count + 4)
    images = _NORMAL * math.sqrt(adjusted * (1 - adjusted) / (count + 4))
    half = math.hypot(seeds, images)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def score_interval(key: str, values: Sequence[float], count: int) -> Interval | None:
    """The interval for the mean of a figure: what is no share of images knows the seeds alone."""
    if metric(key).of_images:
        return interval(values, count)
    if len(values) < 2:
        return None
    half = student(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(max(0.0, mean(values) - half), min(1.0, mean(values) + half))


def student(freedom: int) -> float:
    """Student's t at 97.5 % for so many degrees of freedom (1 and more)."""
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL


class Difference(NamedTuple):
    """How much larger one mean is than another, with its interval of 95 %."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """In percentage points, the interval behind the mean."""
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.mean:+.1f} points, {low:+.1f} to {high:+.1f}"


def difference(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """The mean of the first less that of the second, by Welch's t interval (1947).

    Degrees of freedom are rounded down. None where one of them has fewer than two values. Where
    nothing varies the interval is a point.
    """
    if min(len(first), len(second)) < 2:
        return None
    middle = mean(first) - mean(second)
    parts = [stdev(values) ** 2 / len(values) for values in (first, second)]
    variance = sum(parts)
    if not variance:
        return Difference(middle, middle, middle)
    sizes = (len(first), len(second))
    freedom = variance**2 / sum(
        part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True)
    )
    half = student(max(1, int(freedom))) * math.sqrt(variance)
    return Difference(middle, middle - half, middle + half)


def finding(
    rows: Sequence[Mapping[str, Any]], *, count: int, split: str, key: str = "accuracy"
) -> str:
    """One sentence about rows of a comparison: a plain network and its residual twin if it has
    them, else the best network and what is known to be worse. `count` is the number of images, and
    `key` that of the figure that is compared."""
    rows = [{**row, _FIGURE: row[key], _KEY: key} for row in rows]
    by_name = {row["name"]: row for row in rows}
    twins = sorted(
        (int(found[1]), name, f"resnet{found[1]}")
        for name in by_name
        if (found := re.fullmatch(r"plain(\d+)", name)) and f"resnet{found[1]}" in by_name
    )
    scored = f"{split} {metric(key).title}"
    if min(len(row[_FIGURE]["seeds"]) for row in rows) < 2:
        said = _listed([f"{row['name']} {_percent(row)}" for row in rows])
        return f"One seed, {scored}: {said}; how far seeds differ is not known."
    if not twins:
        return _ranking(rows, count, scored)
    depth, plain, residual = twins[-1]
    said, differ = _about_twins(by_name[plain], by_name[residual], count, scored)
    if not differ:
        return f"{said}."
    shallow = twins[0][0]
    if shallow == depth or not _harder(by_name[plain], by_name[f"plain{shallow}"], count):
        return f"{said}: at this depth the skips make the difference."
    if _below(by_name[residual], by_name[f"resnet{shallow}"], count):
        return f"{said}: depth hurts without skips, and less with them."
    return f"{said}: depth hurts without skips."


def _about_twins(
    plain: Mapping[str, Any], residual: Mapping[str, Any], count: int, scored: str
) -> tuple[str, bool]:
    """What is said of a plain network and its twin, and whether the twin is better."""
    if _below(residual, plain, count):
        said = f"{residual['name']} reaches {_percent(residual)} {scored} where {plain['name']} "
        return f"{said}reaches {_percent(plain)}: here the skips did not help", False
    if not _below(plain, residual, count):
        said = f"{_with_percent(plain)} and {_with_percent(residual)} do not differ in {scored}"
        return f"{said} by more than chance allows", False
    said = f"{plain['name']} reaches {_percent(plain)} {scored} where {residual['name']} reaches "
    return said + _percent(residual), True


def _harder(deep: Mapping[str, Any], shallow: Mapping[str, Any], count: int) -> bool:
    """Whether the deeper network is worse and already on its training images: not overfitting."""
    if "train_error" not in deep:
        return False
    harder = deep["train_error"]["mean"] > shallow["train_error"]["mean"]
    return harder and _below(deep, shallow, count)


def _ranking(rows: Sequence[Mapping[str, Any]], count: int, scored: str) -> str:
    best, *others = sorted(rows, key=lambda row: -better(row[_KEY], row[_FIGURE]["mean"]))
    worse = [_with_percent(row) for row in others if _below(row, best, count)]
    alike = [_with_percent(row) for row in others if not _below(row, best, count)]
    parts = [f"{best['name']} reaches {_percent(best)} {scored}"]
    if worse:
        parts.append(f"{_listed(worse)} {'is' if len(worse) == 1 else 'are'} behind")
    if alike:
        verb = "does" if len(alike) == 1 else "do"
        parts.append(f"{_listed(alike)} {verb} not differ from it by more than chance allows")
    return "; ".join(parts) + "."


def _below(row: Mapping[str, Any], other: Mapping[str, Any], count: int) -> bool:
    """Whether a network is known to be worse than another."""
    first, second = (score_interval(r[_KEY], r[_FIGURE]["seeds"], count) for r in (row, other))
    if metric(row[_KEY]).less:
        first, second = second, first
    return first is not None and second is not None and first.below(second)


def _percent(row: Mapping[str, Any]) -> str:
    """A mean as a percentage, with a decimal only where it is needed near 100 %."""
    value = 100 * row[_FIGURE]["mean"]
    return f"{value:.1f} %" if value >= 90 else f"{value:.0f} %"


def _with_percent(row: Mapping[str, Any]) -> str:
    return f"{row['name']} ({_percent(row)})"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))

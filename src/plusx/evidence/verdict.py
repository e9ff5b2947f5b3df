"""The outcome of a check, and the verdict on its claim.

A count is exact: the claim allows it or not. Several seeds have an interval of 95 % of their mean
(Student's t over the seeds; the images are those of the paper): entirely inside the allowed range
is PASS, entirely outside MISS, and across a limit INCONCLUSIVE. One seed alone never decides; seeds
with equal values have no interval, and the value decides.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from plusx.errors import UserError
from plusx.evidence.claim import Claim, Side
from plusx.statistics import Interval, mean_interval


Verdict = Literal["PASS", "MISS", "INCONCLUSIVE"]
Number = int | float

# Of sums such as 0.0875 + 0.003, which are not exact in binary.
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a claim is run."""

    quick: bool
    work: Path  # the folder of the runs that training needs
    progress: Callable[[str], None]  # takes a line of progress


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a check: one value a seed, or one exact value.

    `shown` are lines of evidence. `smaller` describes what --quick made smaller. `unsettled` is a
    reason why the values cannot decide the claim.
    """

    values: tuple[float, ...]
    exact: bool = True
    seeds: tuple[int, ...] = ()
    shown: tuple[str, ...] = ()
    recipe: str | None = None
    smaller: str = ""
    unsettled: str = ""
    environment: dict[str, Any] = field(default_factory=dict)


Check = Callable[[Claim, Options], Outcome]


@dataclass(frozen=True)
class Judgement:
    """A verdict and its grounds.

    `value` is the mean, `spread` the sample's standard deviation (None for one value), `interval`
    the interval of 95 % of the mean or None. `distance` is the value less the claim in standard
    deviations of our runs, else of the paper's; None where neither is known.
    """

    verdict: Verdict
    value: float
    spread: float | None
    interval: Interval | None
    distance: float | None


def allowed(claimed: Number, tolerance: Number, side: Side) -> Interval:
    """The lowest and the highest value that a claim allows."""
    slack = _ROUNDING * max(abs(claimed), tolerance) if tolerance else 0.0
    low = claimed - tolerance - slack if side != "most" else -math.inf
    high = claimed + tolerance + slack if side != "least" else math.inf
    return Interval(low, high)


def judge(
    values: Sequence[Number],
    claimed: Number,
    tolerance: Number = 0.0,
    side: Side = "equal",
    *,
    exact: bool,
    spread: float | None = None,
) -> Judgement:
    """Judge one value a seed, or an exact one. `spread` is the one that was published.

    NaN is a MISS. UserError: there is no value.
    """
    if not values:
        raise UserError("there is no value to evaluate")
    limits = allowed(claimed, tolerance, side)
    value = float(mean(values))
    own_spread = stdev(values) if len(values) > 1 and math.isfinite(value) else None
    interval = None if exact else mean_interval(values)
    decided = exact or (len(values) > 1 and min(values) == max(values))
    between = Interval(value, value) if decided else interval
    if math.isnan(value):
        verdict: Verdict = "MISS"
    elif between is None:
        verdict = "INCONCLUSIVE"
    elif limits.low <= between.low and between.high <= limits.high:
        verdict = "PASS"
    elif between.below(limits) or limits.below(between):
        verdict = "MISS"
    else:
        verdict = "INCONCLUSIVE"
    return Judgement(
        verdict, value, own_spread, interval, _distance(value, claimed, own_spread or spread)
    )


def _distance(value: Number, claimed: Number, spread: Number | None) -> float | None:
    if value == claimed:
        return 0.0
    if not spread or not math.isfinite(value):
        return None
    return (value - claimed) / spread

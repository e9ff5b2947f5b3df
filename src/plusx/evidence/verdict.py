"""The outcome of a check, and the decision on its claim.

An exact value is allowed by the claim or not. Several seeds have a 95 % interval of their mean
(Student's t over the seeds, Welch's for the difference between two groups): entirely inside the
allowed range is PASS, entirely outside MISS, and across a limit INCONCLUSIVE. A single seed is
always INCONCLUSIVE; seeds with equal values are decided by the value. If seeds are added until a
decision, the interval is that of a confidence sequence, which contains the mean with 95 % however
often it is looked at. A claim of several members is IN PART if some of them hold and some do not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from plusx.errors import UserError
from plusx.evidence.claim import Claim, Side, Verdict
from plusx.statistics import (
    UNBOUNDED,
    Interval,
    confidence_sequence,
    difference,
    mean_interval,
    sequence_factor,
)


Number = int | float

# tolerance for sums such as 0.0875 + 0.003, which are not exact in binary
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a check."""

    quick: bool
    work: Path  # folder for training runs
    progress: Callable[[str], None]  # called with a line of text
    seeds: int | None = None  # None: the default of the claim
    decide: bool = False  # add seeds until the claim is decided
    budget: float = math.inf  # hours, of `decide`
    results: Path = Path("results")  # folder of results of earlier commands


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a check: one value per seed, or one exact value.

    `compared`: two groups of values whose differences are `values`. Networks of one seed have only
    the order of images in common, so the interval does not pair them.
    `shown` are lines of evidence. `smaller` describes what --quick reduced. `unsettled` is a reason
    why the values cannot decide the claim. `verdict`: that of the members, if they decide it;
    `members` are their records.
    """

    values: tuple[float, ...]
    exact: bool = True
    seeds: tuple[int, ...] = ()
    compared: tuple[Sequence[float], Sequence[float]] | None = None
    shown: tuple[str, ...] = ()
    recipe: str | None = None
    smaller: str = ""
    unsettled: str = ""
    verdict: Verdict | None = None
    members: tuple[dict[str, Any], ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)


Check = Callable[[Claim, Options], Outcome]


@dataclass(frozen=True)
class Decision:
    """A verdict and its basis.

    `value` is the mean, `spread` the sample standard deviation (None for one value), `interval` the
    95 % interval of the mean or None. `distance` is the value minus the claimed value in standard
    deviations of our runs, else of the paper's; None if neither is known.
    """

    verdict: Verdict
    value: float
    spread: float | None
    interval: Interval | None
    distance: float | None


def verdict_of_members(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on a statement from those on its parts: theirs if they agree, IN PART if
    some hold and some do not, else INCONCLUSIVE."""
    different = set(verdicts)
    if len(different) == 1:
        return verdicts[0]
    return "IN PART" if "IN PART" in different or {"PASS", "MISS"} <= different else "INCONCLUSIVE"


def allowed(claimed: Number, tolerance: Number, side: Side) -> Interval:
    """Return the lowest and the highest value that a claim allows."""
    slack = _ROUNDING * max(abs(claimed), tolerance) if tolerance else 0.0
    low = claimed - tolerance - slack if side != "most" else -math.inf
    high = claimed + tolerance + slack if side != "least" else math.inf
    return Interval(low, high)


def decide(
    values: Sequence[Number],
    claimed: Number,
    tolerance: Number = 0.0,
    side: Side = "equal",
    *,
    exact: bool,
    sequential: bool = False,
    spread: float | None = None,
    bounds: tuple[float, float] = UNBOUNDED,
    comparisons: int = 1,
    compared: tuple[Sequence[Number], Sequence[Number]] | None = None,
) -> Decision:
    """Decide on one value per seed, or an exact value.

    sequential: whether seeds are added until a decision
    spread: the published one
    bounds: the range of possible values, which the interval does not leave
    comparisons: the number of intervals that contain their means together with 95 %; those of
        seeds that are added are for one
    compared: the values of two groups, if `values` are their differences; the interval is then
        Welch's
    NaN is a MISS. Raises UserError if there are no values.
    """
    if not values:
        raise UserError("there are no values to evaluate")
    limits = allowed(claimed, tolerance, side)
    value = float(mean(values))
    our_spread = stdev(values) if len(values) > 1 and math.isfinite(value) else None
    if exact:
        interval = None
    elif sequential:
        interval = confidence_sequence(values, bounds=bounds)
    elif compared is not None:
        gap = difference(*compared, bounds=bounds, comparisons=comparisons)
        interval = gap and Interval(gap.low, gap.high)
    else:
        interval = mean_interval(values, bounds=bounds, comparisons=comparisons)
    enough = len(values) > 1 and not (sequential and sequence_factor(len(values)) == math.inf)
    is_exact = exact or (enough and min(values) == max(values))
    range_of_values = Interval(value, value) if is_exact else interval
    if math.isnan(value):
        verdict: Verdict = "MISS"
    elif range_of_values is None:
        verdict = "INCONCLUSIVE"
    elif limits.low <= range_of_values.low and range_of_values.high <= limits.high:
        verdict = "PASS"
    elif range_of_values.below(limits) or limits.below(range_of_values):
        verdict = "MISS"
    else:
        verdict = "INCONCLUSIVE"
    return Decision(
        verdict, value, our_spread, interval, _distance(value, claimed, our_spread or spread)
    )


def _distance(value: Number, claimed: Number, spread: Number | None) -> float | None:
    if value == claimed:
        return 0.0
    if not spread or not math.isfinite(value):
        return None
    return (value - claimed) / spread

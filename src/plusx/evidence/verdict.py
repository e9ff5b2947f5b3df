"""Whether what was measured is what was claimed.

A count is exact: it lies in what the claim allows or it does not. What was measured with several
seeds has an interval of 95 % for its mean (Student's t over the seeds; the images are those of the
paper, so they are no source of doubt): all of it inside is PASS, all of it outside MISS, and where
it straddles a limit the seeds do not say, INCONCLUSIVE. One seed alone never says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from plusx.errors import UserError
from plusx.study.finding import student


Verdict = Literal["PASS", "MISS", "INCONCLUSIVE"]
Side = Literal["equal", "most", "least"]
Number = int | float

# Of sums such as 0.0875 + 0.003, which are not exact in binary.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Judged:
    """A verdict and what it rests on.

    `value` is the mean, `spread` the sample's deviation (None for one value), `interval` what the
    mean lies in with 95 % (None where that is not known). `distance` is how many spreads the value
    lies above what was claimed: of our own runs, else of the paper's; None where neither is known.
    """

    verdict: Verdict
    value: float
    spread: float | None
    interval: tuple[float, float] | None
    distance: float | None


def allowed(claimed: Number, tolerance: Number, side: Side) -> tuple[float, float]:
    """The lowest and the highest value that a claim allows."""
    slack = _ROUNDING * max(abs(claimed), tolerance) if tolerance else 0.0
    low = claimed - tolerance - slack if side != "most" else -math.inf
    high = claimed + tolerance + slack if side != "least" else math.inf
    return low, high


def judge(
    values: Sequence[Number],
    claimed: Number,
    tolerance: Number = 0.0,
    side: Side = "equal",
    *,
    exact: bool,
    spread: float | None = None,
) -> Judged:
    """Judge one value a seed, or an exact one. `spread` is the one that was published.

    Not a number is never what was claimed. UserError: there is no value.
    """
    if not values:
        raise UserError("there is no value to judge")
    low, high = allowed(claimed, tolerance, side)
    value = float(mean(values))
    own = stdev(values) if len(values) > 1 and math.isfinite(value) else None
    between = (value, value) if exact else interval(values)
    if math.isnan(value):
        verdict: Verdict = "MISS"
    elif between is None:
        verdict = "INCONCLUSIVE"
    elif low <= between[0] and between[1] <= high:
        verdict = "PASS"
    elif between[1] < low or between[0] > high:
        verdict = "MISS"
    else:
        verdict = "INCONCLUSIVE"
    shown = None if exact and len(values) == 1 else between
    return Judged(verdict, value, own, shown, _distance(value, claimed, own or spread))


def interval(values: Sequence[Number]) -> tuple[float, float] | None:
    """Where the mean lies with 95 %, by Student's t. None for one value, which says nothing of it,
    and for values that are not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    half = student(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def _distance(value: Number, claimed: Number, spread: Number | None) -> float | None:
    if value == claimed:
        return 0.0
    if not spread or not math.isfinite(value):
        return None
    return (value - claimed) / spread

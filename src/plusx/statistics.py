"""Confidence intervals of 95 % for repeated measurements, by scipy.

An interval never has width zero and never leaves the range of its quantity. For a single value, or
values that are all equal, the spread is unknown and there is no interval (None). Intervals of
several comparisons have simultaneous coverage of 95 %: by Bonferroni's correction for the number of
`comparisons`, or by Holm's, see `differences`.

`confidence_sequence` is valid at every number of values, so that values may be added until it
decides; the other intervals are valid for a number of values that is chosen in advance.

Quantiles come from scipy.special, which takes 0.4 s less to import than scipy.stats.
"""

import math
from collections.abc import Sequence
from statistics import mean, median, stdev
from typing import Any, NamedTuple

from scipy.special import ndtri, stdtr, stdtrit


LEVEL = 0.95
Number = int | float
UNBOUNDED = (-math.inf, math.inf)
_UNIT_INTERVAL = (0.0, 1.0)
# Variance of the Gaussian mixture of confidence sequences, in variances of one value. 4 makes them
# narrow after 4 to 10 values, for limits about 2 standard deviations from the mean.
_MIXTURE = 4.0


class Interval(NamedTuple):
    low: float
    high: float

    def below(self, other: "Interval") -> bool:
        """Whether this interval is entirely below the other."""
        return self.high < other.low


class Difference(NamedTuple):
    """How much larger one mean is than another, with its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """In percentage points, the interval after the mean."""
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.mean:+.1f} points, {low:+.1f} to {high:+.1f}"


class Median(NamedTuple):
    """A median with two ends: a 95 % interval if `interval` is true, else the lowest and the
    highest value."""

    median: float
    low: float
    high: float
    interval: bool


def spread(values: Sequence[Number]) -> dict[str, Any]:
    """Return mean, standard deviation (n - 1; None for one value) and the value of each seed."""
    return {
        "mean": mean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "seeds": list(values),
    }


def mean_interval(
    values: Sequence[Number],
    *,
    bounds: tuple[float, float] = UNBOUNDED,
    comparisons: int = 1,
) -> Interval | None:
    """Return Student's t interval of a mean. None also if a value is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)) or not stdev(values):
        return None
    error, freedom = stdev(values) / math.sqrt(len(values)), len(values) - 1
    return _student(mean(values), error, freedom, comparisons, bounds)


def student_factor(count: int) -> float:
    """Return half the width of `mean_interval` of `count` values, in their standard deviations."""
    return float(stdtrit(count - 1, _upper())) / math.sqrt(count)


def confidence_sequence(
    values: Sequence[Number], *, bounds: tuple[float, float] = UNBOUNDED
) -> Interval | None:
    """Return the interval of a mean after these values, from a sequence of intervals, one for each
    number of values, that all contain the mean of Gaussian values with a probability of 95 %.

    The values may therefore be inspected after each one, and their number need not be planned.
    Intervals of Student's t test with a Gaussian mixture over the mean and a right Haar mixture
    over the unknown standard deviation (Wang and Ramdas 2024, "Anytime-valid t-tests and confidence
    sequences for Gaussian means with unknown variance"; after Lai 1976). None as for
    `mean_interval`, and for fewer than 4 values, which leave it infinite.
    """
    half = sequence_factor(len(values))
    if half == math.inf or not all(map(math.isfinite, values)) or not stdev(values):
        return None
    middle, half = mean(values), half * stdev(values)
    return _within((middle - half, middle + half), bounds)


def sequence_factor(count: int) -> float:
    """Return half the width of `confidence_sequence` after `count` values, in their standard
    deviations; infinite for fewer than 4.

    For values x_i, a mean m, V = sum (x_i - m)^2 and S = sum (x_i - m), the likelihood ratio of the
    mixture is sqrt(c / (n + c)) ((n + c) V / ((n + c) V - S^2))^(n/2) with c = 1/4. It is a
    martingale if m is the true mean, so it exceeds 20 at any n with a probability of at most 5 %
    (Ville's inequality). The interval has the m for which it is below 20.
    """
    if count < 2:
        return math.inf
    scale = 1 + count * _MIXTURE
    limit = (scale / (1 - LEVEL) ** 2) ** (1 / count)
    if limit >= scale:
        return math.inf
    return math.sqrt((count - 1) / count * scale * (limit - 1) / (scale - limit))


def share_interval(
    shares: Sequence[Number], count: int, *, comparisons: int = 1
) -> Interval | None:
    """Return the interval of a mean fraction of images: one value per seed, each over `count`
    images.

    Two uncertainties are added in quadrature: that of the seeds (Student's t) and that of the
    images (the binomial one with two successes and two failures added, Agresti and Coull 1998).
    None for one seed, because the spread of seeds is unknown.
    """
    if len(shares) < 2:
        return None
    centre, upper = mean(shares), _upper(comparisons)
    student = float(stdtrit(len(shares) - 1, upper))
    adjusted = (centre * count + 2) / (count + 4)
    image_error = float(ndtri(upper)) * math.sqrt(adjusted * (1 - adjusted) / (count + 4))
    half_width = math.hypot(student * stdev(shares) / math.sqrt(len(shares)), image_error)
    return _within((centre - half_width, centre + half_width), _UNIT_INTERVAL)


def wilson(share: Number, count: int) -> Interval:
    """Return Wilson's interval (1927) of a fraction of `count` independent trials."""
    z = float(ndtri(_upper()))
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z**2 / count
    low, high = (middle - half) / scale, (middle + half) / scale
    # rounding can exclude fractions of 0 and 1
    return _within((min(low, share), max(high, share)), _UNIT_INTERVAL)


def difference(
    first: Sequence[Number],
    second: Sequence[Number],
    *,
    bounds: tuple[float, float] = (-1.0, 1.0),
    comparisons: int = 1,
) -> Difference | None:
    """Return the mean of the first minus that of the second, with Welch's t interval (1947).

    The default `bounds` are those of a difference of fractions.
    """
    welch = _welch(first, second)
    if welch is None:
        return None
    centre = mean(first) - mean(second)
    return Difference(centre, *_student(centre, *welch, comparisons, bounds))


def chance_of_order(first: int, second: int) -> float:
    """Return the probability that all of `first` values are on one side of `second` others if both
    are from one distribution: the p-value of a two-sided permutation test (Fisher 1935). It needs
    no spread, so it is also defined for equal values."""
    return min(1.0, 2 / math.comb(first + second, first))


def paired_difference(first: Sequence[Number], second: Sequence[Number]) -> Difference:
    """Return the first fraction of successes minus the second, of the same trials (1: success, 0:
    failure), with Wald's interval for matched pairs after half a trial is added to each of the four
    cells (Agresti and Min 2005)."""
    pairs = list(zip(first, second, strict=True))
    count = len(pairs)
    gains = sum(a > b for a, b in pairs) + 0.5
    losses = sum(a < b for a, b in pairs) + 0.5
    middle = (gains - losses) / (count + 2)
    variance = (gains + losses) / (count + 2) - middle**2
    half = float(ndtri(_upper())) * math.sqrt(variance / (count + 2))
    centre = mean(first) - mean(second)
    low, high = _within((middle - half, middle + half), (-1.0, 1.0))
    return Difference(centre, min(low, centre), max(high, centre))


def difference_of_intervals(
    first: tuple[Number, Number, Number], second: tuple[Number, Number, Number]
) -> Difference:
    """Return the first value minus the second, each with its interval as (value, low, high).

    The interval is built from the two (MOVER, Zou and Donner 2008, equation 7), which are assumed
    to be independent; for values of the same images, which are correlated, it is too wide.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    below = math.hypot(a - a_low, b_high - b)
    above = math.hypot(a_high - a, b - b_low)
    return Difference(a - b, a - b - below, a - b + above)


def differences(
    pairs: Sequence[tuple[Sequence[Number], Sequence[Number]]],
    *,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> list[Difference | None]:
    """Return the difference of each pair, corrected for their number by Holm's method (1979).

    The difference with the smallest p-value is tested first, among all m pairs, the next among
    m - 1, until an interval contains 0: it and all later ones have the level of that test. Every
    interval without 0 is then a significant difference.
    """
    tests = {}
    for index, (first, second) in enumerate(pairs):
        if (welch := _welch(first, second)) is not None:
            error, freedom = welch
            distance = abs(mean(first) - mean(second)) / error
            tests[index] = 2 * float(stdtr(freedom, -distance))
    result: list[Difference | None] = [None] * len(pairs)
    remaining, stopped = len(tests), False
    for index in sorted(tests, key=lambda index: tests[index]):
        result[index] = difference(*pairs[index], bounds=bounds, comparisons=remaining)
        stopped = stopped or tests[index] >= (1 - LEVEL) / remaining
        remaining -= not stopped
    return result


def median_interval(values: Sequence[Number]) -> Median:
    """Return the median with a distribution-free interval.

    The ends are order statistics, whose coverage of 95 % follows from the binomial distribution
    (Conover 1999, section 3.2). Fewer than six values have no such interval: then the ends are the
    lowest and the highest.
    """
    from scipy import stats  # slow to import

    centre = median(values)
    ends = stats.quantile_test(values, q=centre, p=0.5).confidence_interval(LEVEL)
    if math.isnan(ends.low) or math.isnan(ends.high):
        return Median(centre, min(values), max(values), interval=False)
    return Median(centre, float(ends.low), float(ends.high), interval=True)


def _welch(first: Sequence[Number], second: Sequence[Number]) -> tuple[float, float] | None:
    """Return the standard error of a difference of means, and its degrees of freedom."""
    if min(len(first), len(second)) < 2:
        return None
    squared_errors = [(stdev(values) ** 2 / len(values), len(values)) for values in (first, second)]
    variance = sum(squared_error for squared_error, _ in squared_errors)
    if not variance:
        return None
    freedom = variance**2 / sum(
        squared_error**2 / (size - 1) for squared_error, size in squared_errors
    )
    return math.sqrt(variance), freedom


def _upper(comparisons: int = 1) -> float:
    """Return the probability below the upper end of an interval, by Bonferroni's correction."""
    return 1 - (1 - LEVEL) / (2 * comparisons)


def _student(
    middle: Number, error: Number, freedom: Number, comparisons: int, bounds: tuple[float, float]
) -> Interval:
    """Return Student's t interval of a value with this standard error and degrees of freedom."""
    half = error * float(stdtrit(freedom, _upper(comparisons)))
    return _within((middle - half, middle + half), bounds)


def _within(ends: tuple[float, float], bounds: tuple[float, float]) -> Interval:
    low, high = map(float, ends)
    return Interval(max(low, bounds[0]), min(high, bounds[1]))

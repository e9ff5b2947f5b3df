"""The area under the ROC curve, with its interval.

The area is the Mann-Whitney statistic: the fraction of pairs of a positive and a negative in which
the positive has the higher score; ties count half, as in scikit-learn. Its variance is that of
DeLong, DeLong and Clarke-Pearson 1988, computed by ranks (Sun and Xu 2014). The interval is the
normal one of the logit of the area, so that it stays within 0 and 1 (Qin and Hotilovac 2008).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri


Scores = Float[np.ndarray, "n k"]
Labels = Bool[np.ndarray, "n k"]

_TAIL = 0.025  # probability on each side of a 95 % interval


class Area(NamedTuple):
    """An area and its 95 % interval; all None without positives or without negatives."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def interval(self) -> list[float] | None:
        """The interval as [low, high], or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]


def areas(scores: Scores, labels: Labels) -> tuple[list[Area], Area]:
    """Return the area of every class, and the mean over the classes with positives and negatives.

    The classes are evaluated on the same inputs, so their areas are correlated: the contributions
    of an input to several areas are summed before the variance of the mean is computed.
    """
    n, smallest = len(scores), len(scores)
    contributions, per_class, values = np.zeros(n), [], []
    for column, positive in zip(scores.T, labels.T):
        placements = _placements(column, positive)
        if placements is None:
            per_class.append(Area(None, None, None))
            continue
        value, of_positives, of_negatives = placements
        size = min(len(of_positives), len(of_negatives))
        variance = _variance(of_positives) + _variance(of_negatives)
        per_class.append(_area(value, variance, size))
        values.append(value)
        smallest = min(smallest, size)
        contributions[positive] += (of_positives - value) / len(of_positives)
        contributions[~positive] += (of_negatives - value) / len(of_negatives)
    if not values:
        return per_class, Area(None, None, None)
    variance = float((contributions**2).sum()) / len(values) ** 2
    return per_class, _area(float(np.mean(values)), variance, smallest)


def _area(value: float, variance: float, size: int) -> Area:
    """Return an area with its interval. `size` is the smaller number of positives and negatives.

    There is no interval if `size` is 1, or if all scores are equal, where the variance is 0.
    """
    if size < 2 or (variance == 0 and 0 < value < 1):
        return Area(value, None, None)
    return Area(value, *_interval(value, variance, size))


def _variance(placements: Float[np.ndarray, "p"]) -> float:
    """Return the variance of the mean."""
    return float(placements.var(ddof=1)) / len(placements) if len(placements) > 1 else 0.0


def _placements(
    scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]
) -> tuple[float, Float[np.ndarray, "p"], Float[np.ndarray, "m"]] | None:
    """Return the area; for each positive the fraction of negatives with a lower score, and for each
    negative that of positives with a higher score."""
    count = int(positive.sum())
    if not 0 < count < len(positive):
        return None
    from scipy.stats import rankdata  # slow to import

    ranks = rankdata(scores)
    ordered = np.sort(scores[positive])
    below = [np.searchsorted(ordered, scores[~positive], side) for side in ("left", "right")]
    of_positives = (ranks[positive] - rankdata(scores[positive])) / (len(positive) - count)
    of_negatives = 1 - (below[0] + below[1]) / (2 * count)
    # exact, because ranks are multiples of one half, unlike the fractions
    value = (ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count))
    return float(value), of_positives, of_negatives


def _interval(value: float, variance: float, size: int) -> tuple[float, float]:
    """Return the 95 % interval of an area.

    If all pairs are in the right order, or all in the wrong order, the variance is 0. The bound is
    then that of a proportion after `size` trials without a failure, where `size` is the smaller
    number of positives and negatives (Clopper and Pearson 1934).
    """
    bound = _TAIL ** (1 / size)
    if value >= 1:
        return bound, 1.0
    if value <= 0:
        return 0.0, 1 - bound
    logit = np.log(value / (1 - value))
    half_width = ndtri(1 - _TAIL) * np.sqrt(variance) / (value * (1 - value))
    low, high = 1 / (1 + np.exp(-(logit + np.array([-half_width, half_width]))))
    return float(low), float(high)

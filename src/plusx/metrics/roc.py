"""The area under the ROC curve, with its interval.

The area is the Mann-Whitney statistic: the fraction of pairs of a positive and a negative of which
the positive has the higher score, ties counted half, as in scikit-learn. Its variance is that of
DeLong, DeLong and Clarke-Pearson 1988, by ranks (Sun and Xu 2014); the interval is the normal's for
the logit of the area, so that it stays within 0 and 1 (Qin and Hotilovac 2008).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri


Scores = Float[np.ndarray, "n k"]
Labels = Bool[np.ndarray, "n k"]

_LEFT = 0.025  # on either side of an interval of 95 %


class Area(NamedTuple):
    """An area, and its interval of 95 %; all None where there are no positives or no negatives."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def interval(self) -> list[float] | None:
        return None if self.low is None or self.high is None else [self.low, self.high]


def areas(scores: Scores, labels: Labels) -> tuple[list[Area], Area]:
    """The area of every class, and the mean over those that have both labels.

    The classes are evaluated on the same inputs: what an input adds to the areas of several of them
    is added up before the variance of the mean is taken, so their dependence is in its interval.
    """
    n, fewest = len(scores), len(scores)
    added, each, values = np.zeros(n), [], []
    for column, positive in zip(scores.T, labels.T):
        placements = _placed(column, positive)
        if placements is None:
            each.append(Area(None, None, None))
            continue
        value, of_positives, of_negatives = placements
        least = min(len(of_positives), len(of_negatives))
        variance = _variance(of_positives) + _variance(of_negatives)
        each.append(_area(value, variance, least))
        values.append(value)
        fewest = min(fewest, least)
        added[positive] += (of_positives - value) / len(of_positives)
        added[~positive] += (of_negatives - value) / len(of_negatives)
    if not values:
        return each, Area(None, None, None)
    variance = float((added**2).sum()) / len(values) ** 2
    return each, _area(float(np.mean(values)), variance, fewest)


def _area(value: float, variance: float, least: int) -> Area:
    """`least` is the fewer of positives and negatives: of one alone nobody knows how it varies.

    Where all scores are equal the area is a half and its variance none, which says nothing of it.
    """
    if least < 2 or (variance == 0 and 0 < value < 1):
        return Area(value, None, None)
    return Area(value, *_interval(value, variance, least))


def _variance(shares: Float[np.ndarray, "p"]) -> float:
    """Of the mean of the shares."""
    return float(shares.var(ddof=1)) / len(shares) if len(shares) > 1 else 0.0


def _placed(
    scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]
) -> tuple[float, Float[np.ndarray, "p"], Float[np.ndarray, "m"]] | None:
    """The area; for each positive the fraction of negatives below it, and for each negative that of
    positives above.
    """
    count = int(positive.sum())
    if not 0 < count < len(positive):
        return None
    from scipy.stats import rankdata  # slow to import

    ranks = rankdata(scores)
    ordered = np.sort(scores[positive])
    below = [np.searchsorted(ordered, scores[~positive], side) for side in ("left", "right")]
    of_positives = (ranks[positive] - rankdata(scores[positive])) / (len(positive) - count)
    of_negatives = 1 - (below[0] + below[1]) / (2 * count)
    # sums of halves, and exact, where shares are not
    value = (ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count))
    return float(value), of_positives, of_negatives


def _interval(value: float, variance: float, least: int) -> tuple[float, float]:
    """Where nothing is in the wrong order, or everything, the variance knows nothing: the bound is
    then that of a proportion of which `least` trials, the fewer of positives and negatives, saw no
    exception (Clopper and Pearson 1934, with no failure).
    """
    bound = _LEFT ** (1 / least)
    if value >= 1:
        return bound, 1.0
    if value <= 0:
        return 0.0, 1 - bound
    middle = np.log(value / (1 - value))
    half = ndtri(1 - _LEFT) * np.sqrt(variance) / (value * (1 - value))
    low, high = 1 / (1 + np.exp(-(middle + np.array([-half, half]))))
    return float(low), float(high)

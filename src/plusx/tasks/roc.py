"""The area under the ROC curve of questions with yes and no, and how sure it is.

The area is the Mann-Whitney statistic: the share of pairs of a yes and a no of which the yes has
the higher score, ties counted half, as in scikit-learn. Its variance is that of DeLong, DeLong and
Clarke-Pearson 1988, by ranks (Sun and Xu 2014); the interval is the normal's for the logit of the
area, so that it stays within 0 and 1 (Qin and Hotilovac 2008).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


Scores = Float[np.ndarray, "n k"]
Answers = Bool[np.ndarray, "n k"]

_NORMAL = 1.959964  # of the standard normal, at 97.5 %
_LEFT = 0.025  # on either side of an interval of 95 %


class Area(NamedTuple):
    """An area, and its interval of 95 %; all None where there are no yeses or no noes."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def interval(self) -> list[float] | None:
        return None if self.low is None or self.high is None else [self.low, self.high]


def areas(scores: Scores, answers: Answers) -> tuple[list[Area], Area]:
    """The area of every question, and the mean over those that have both answers.

    The questions are asked of the same inputs: what an input adds to the areas of several of them
    is added up before the variance of the mean is taken, so their dependence is in its interval.
    """
    n, fewest = len(scores), len(scores)
    added, each, values = np.zeros(n), [], []
    for column, yes in zip(scores.T, answers.T):
        found = _placed(column, yes)
        if found is None:
            each.append(Area(None, None, None))
            continue
        value, of_yes, of_no = found
        least = min(len(of_yes), len(of_no))
        variance = _variance(of_yes) + _variance(of_no)
        each.append(_area(value, variance, least))
        values.append(value)
        fewest = min(fewest, least)
        added[yes] += (of_yes - value) / len(of_yes)
        added[~yes] += (of_no - value) / len(of_no)
    if not values:
        return each, Area(None, None, None)
    variance = float((added**2).sum()) / len(values) ** 2
    return each, _area(float(np.mean(values)), variance, fewest)


def _area(value: float, variance: float, least: int) -> Area:
    """`least` is the fewer of yeses and noes: of one alone nobody knows how it varies.

    Where all scores are equal the area is a half and its variance none, which says nothing of it.
    """
    if least < 2 or (variance == 0 and 0 < value < 1):
        return Area(value, None, None)
    return Area(value, *_interval(value, variance, least))


def _variance(shares: Float[np.ndarray, "p"]) -> float:
    """Of the mean of the shares."""
    return float(shares.var(ddof=1)) / len(shares) if len(shares) > 1 else 0.0


def _placed(
    scores: Float[np.ndarray, "n"], yes: Bool[np.ndarray, "n"]
) -> tuple[float, Float[np.ndarray, "p"], Float[np.ndarray, "m"]] | None:
    """The area; of every yes the share of noes below it, of every no the share of yeses above."""
    count = int(yes.sum())
    if not 0 < count < len(yes):
        return None
    ranks = _ranks(scores)
    ordered = np.sort(scores[yes])
    below = [np.searchsorted(ordered, scores[~yes], side) for side in ("left", "right")]
    of_yes = (ranks[yes] - _ranks(scores[yes])) / (len(yes) - count)
    of_no = 1 - (below[0] + below[1]) / (2 * count)
    # sums of halves, and exact, where shares are not
    value = (ranks[yes].sum() - count * (count + 1) / 2) / (count * (len(yes) - count))
    return float(value), of_yes, of_no


def _ranks(scores: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Ranks from 1; equal scores have the mean of theirs."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def _interval(value: float, variance: float, least: int) -> tuple[float, float]:
    """Where nothing is in the wrong order, or everything, the variance knows nothing: the bound is
    then that of a share of which `least` trials, the fewer of yeses and noes, saw no exception
    (Clopper and Pearson 1934, with no failure).
    """
    bound = _LEFT ** (1 / least)
    if value >= 1:
        return bound, 1.0
    if value <= 0:
        return 0.0, 1 - bound
    middle = np.log(value / (1 - value))
    half = _NORMAL * np.sqrt(variance) / (value * (1 - value))
    low, high = 1 / (1 + np.exp(-(middle + np.array([-half, half]))))
    return float(low), float(high)

"""Metrics of verification: are two inputs of one class? By the cosine of every pair."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from plusx.data.batch import Batch
from plusx.data.prediction import Embeddings, Prediction
from plusx.errors import UserError
from plusx.metrics.classification import class_numbers, joined
from plusx.metrics.meter import Meter


# the default fraction of pairs of different people that may be taken for one person
FAR = 0.01
# false-accept rates at which every evaluation gives the true-accept rate
REPORTED_FARS = (0.1, 0.01, 0.001)
# pairs that metrics are computed from; of more, so many are drawn
MOST_PAIRS = 2_000_000
# bootstrap: samples of people, and pairs that each is judged by at most
SAMPLES = 400
_SAMPLED_PAIRS = 200_000
_INTERVAL = (2.5, 97.5)  # percentiles

Scores = Float[np.ndarray, "_"]
Numbers = Int64[np.ndarray, "_"]


class Pairs(NamedTuple):
    """The cosines of pairs, and the classes that the two of each are of."""

    scores: Scores
    first: Numbers
    second: Numbers

    def chosen(self, places: np.ndarray) -> "Pairs":
        return Pairs(self.scores[places], self.first[places], self.second[places])


class Rates(NamedTuple):
    """At thresholds, falling, the shares of pairs that score at least as much; none at the first.

    `true` is of pairs of one class, `false` of pairs of two.
    """

    thresholds: Scores
    true: Scores
    false: Scores

    def at(self, false_accepts: float) -> tuple[float, float]:
        """The lowest threshold that accepts so many falsely at most, and its share of right ones.

        It is the lowest score that is accepted; where none may be, just above the highest.
        """
        last = int(np.searchsorted(self.false, false_accepts, side="right")) - 1
        if not last:
            return float(np.nextafter(self.thresholds[1], np.inf)), 0.0
        return float(self.thresholds[last]), float(self.true[last])

    def equal_error(self) -> float:
        """The share at which as many are accepted falsely as are refused falsely.

        Between two thresholds the rates are taken to be straight lines, as is usual.
        """
        missed = 1 - self.true
        after = int(np.argmax(self.false >= missed))
        before = max(after - 1, 0)
        gap, left = self.false[after] - missed[after], missed[before] - self.false[before]
        share = left / (gap + left) if gap + left > 0 else 0.0
        return float(self.false[before] + share * (self.false[after] - self.false[before]))

    def area(self) -> float:
        """The area under the ROC curve; equal scores count half."""
        return float(np.trapezoid(self.true, self.false))


class VerificationMeter(Meter):
    """The metrics of embeddings, over all pairs of inputs; targets are class numbers (n,).

    Vectors may be of any length but 0. `compute` gives

    count; people, how many classes; genuine_pairs (of one class) and impostor_pairs (of two);
    equal_error_rate: where as many pairs of two are accepted as pairs of one are refused, and
        equal_error_rate_interval;
    auroc: the probability that a pair of one class scores higher than a pair of two;
    false_accept_rate: `far`, as given; true_accept_rate, the fraction of pairs of one class that
        are accepted by the lowest threshold that accepts at most that share of pairs of two;
        true_accept_rate_interval; and that threshold, a cosine;
    true_accepts: the same for other false-accept rates, as far as the pairs can show them;
    rank1: the share of inputs whose nearest other input is of their class, among those that have
        another.

    Intervals are of 95 %, by a bootstrap over classes (pairs are not independent, people are): a
    class that is drawn twice counts twice. With two classes or fewer, and where every sample gives
    the same figure, there are none (None). Of more than MOST_PAIRS pairs so many are drawn, always
    the same ones.
    """

    def __init__(self, far: float = FAR) -> None:
        super().__init__()
        if not 0 < far < 1:
            raise UserError(f"far = {far}: a false-accept rate lies above 0 and below 1")
        self.far = far

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        assert isinstance(prediction, Embeddings)
        return {
            "vectors": prediction.vectors.detach().cpu().numpy().astype(np.float64),
            "targets": class_numbers(batch.known_targets, "metrics of verification"),
        }

    def compute(self) -> dict[str, Any]:
        self.refuse_none()
        vectors, classes = joined(self.records, "vectors")
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        genuine, impostor = pairs_of(unit, classes)
        for pairs, what in ((genuine, "of one class"), (impostor, "of two classes")):
            if not len(pairs.scores):
                raise UserError(f"there are no pairs {what} among the {len(unit)} inputs")
        rates = Ranking(genuine.scores, impostor.scores).rates()
        threshold, accepted = rates.at(self.far)
        errors, accepts = _resampled(genuine, impostor, self.far)
        return {
            "count": len(unit),
            "people": len(np.unique(classes)),
            "genuine_pairs": len(genuine.scores),
            "impostor_pairs": len(impostor.scores),
            "equal_error_rate": rates.equal_error(),
            "equal_error_rate_interval": _interval(errors),
            "auroc": rates.area(),
            "false_accept_rate": self.far,
            "true_accept_rate": accepted,
            "true_accept_rate_interval": _interval(accepts),
            "threshold": threshold,
            "true_accepts": [
                {"false_accept_rate": far, "threshold": threshold, "true_accept_rate": accepted}
                for far in REPORTED_FARS
                if far * len(impostor.scores) >= 1
                for threshold, accepted in (rates.at(far),)
            ],
            "rank1": _first_rank(unit, classes),
        }


class Ranking:
    """The scores of pairs of one class and of two, the highest first."""

    def __init__(self, genuine: Scores, impostor: Scores) -> None:
        scores = np.concatenate([genuine, impostor])
        self._count = len(genuine)
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        # of equal scores all are accepted, or none
        self._ends = np.r_[np.flatnonzero(np.diff(ranked)), len(scores) - 1]
        self._thresholds = np.r_[np.inf, ranked[self._ends]]

    def rates(self, genuine: Scores | None = None, impostor: Scores | None = None) -> Rates:
        """The rates at every score, of pairs that count as often as these weights say, or once."""
        others = len(self._order) - self._count
        ours = np.ones(self._count) if genuine is None else genuine
        theirs = np.ones(others) if impostor is None else impostor
        return Rates(
            self._thresholds,
            self._shares(np.r_[ours, np.zeros(others)]),
            self._shares(np.r_[np.zeros(self._count), theirs]),
        )

    def _shares(self, weights: Scores) -> Scores:
        sums = weights[self._order].cumsum()[self._ends]
        return np.r_[0.0, sums / sums[-1]]


def pairs_of(
    unit: Float[np.ndarray, "n width"], classes: Int64[np.ndarray, "n"]
) -> tuple[Pairs, Pairs]:
    """The pairs of one class and those of two: all, or as many as MOST_PAIRS drawn of each."""
    count = len(unit)
    if count * (count - 1) // 2 <= MOST_PAIRS:
        first, second = np.triu_indices(count, 1)
        same = classes[first] == classes[second]
        return (
            _scored(unit, classes, first[same], second[same]),
            _scored(unit, classes, first[~same], second[~same]),
        )
    draw = np.random.default_rng(0)
    order = np.argsort(classes, kind="stable")
    _, begins, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    counts = sizes * (sizes - 1) // 2
    if counts.sum() > MOST_PAIRS:
        # a large class has far more pairs than memory
        number = draw.integers(0, counts.sum(), MOST_PAIRS)
        of = np.searchsorted(counts.cumsum(), number, side="right")
        place = draw.integers(0, sizes[of])
        further = draw.integers(1, sizes[of])
        first = order[begins[of] + place]
        second = order[begins[of] + (place + further) % sizes[of]]
    else:
        own = [begin + np.stack(np.triu_indices(size, 1)) for begin, size in zip(begins, sizes)]
        first, second = order[np.concatenate(own, 1)]
    drawn = draw.integers(0, count, (2, MOST_PAIRS))
    one, other = drawn[:, classes[drawn[0]] != classes[drawn[1]]]
    return _scored(unit, classes, first, second), _scored(unit, classes, one, other)


def _scored(unit: np.ndarray, classes: np.ndarray, first: np.ndarray, second: np.ndarray) -> Pairs:
    at_once = 100_000
    parts = [
        np.einsum("nd,nd->n", unit[first[i : i + at_once]], unit[second[i : i + at_once]])
        for i in range(0, len(first), at_once)
    ]
    scores = np.concatenate(parts) if parts else np.zeros(0)
    return Pairs(scores, classes[first], classes[second])


def _first_rank(unit: np.ndarray, classes: np.ndarray) -> float | None:
    right, evaluated = 0, 0
    for start in range(0, len(unit), 1000):
        rows = np.arange(start, min(start + 1000, len(unit)))
        cosines = unit[rows] @ unit.T
        cosines[np.arange(len(rows)), rows] = -np.inf
        has_positive = (classes[rows, None] == classes).sum(1) > 1
        right += int(((classes[cosines.argmax(1)] == classes[rows]) & has_positive).sum())
        evaluated += int(has_positive.sum())
    return right / evaluated if evaluated else None


def _resampled(
    genuine: Pairs, impostor: Pairs, false_accepts: float
) -> tuple[list[float], list[float]]:
    """Equal error rates and true-accept rates of samples of the people."""
    draw = np.random.default_rng(0)
    genuine, impostor = (
        pairs.chosen(np.sort(draw.choice(len(pairs.scores), _SAMPLED_PAIRS, replace=False)))
        if len(pairs.scores) > _SAMPLED_PAIRS
        else pairs
        for pairs in (genuine, impostor)
    )
    people, numbers = np.unique(
        np.concatenate([genuine.first, impostor.first, impostor.second]), return_inverse=True
    )
    errors: list[float] = []
    accepts: list[float] = []
    if len(people) < 3:
        return errors, accepts
    own, one, other = np.split(
        numbers, [len(genuine.first), len(genuine.first) + len(impostor.first)]
    )
    ranking = Ranking(genuine.scores, impostor.scores)
    for _ in range(SAMPLES):
        times = np.bincount(draw.integers(0, len(people), len(people)), minlength=len(people))
        ours, others = times[own].astype(np.float64), (times[one] * times[other]).astype(np.float64)
        if not ours.any() or not others.any():
            continue  # one person alone was drawn, or none with two pictures
        rates = ranking.rates(ours, others)
        errors.append(rates.equal_error())
        accepts.append(rates.at(false_accepts)[1])
    return errors, accepts


def _interval(values: Sequence[float]) -> list[float] | None:
    """None where no sample differs from another, which says nothing of how sure the figure is."""
    if not values or min(values) == max(values):
        return None
    return [float(each) for each in np.percentile(values, _INTERVAL)]

"""Metrics of verification: whether two inputs are of one class, by the cosine similarity of every
pair."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from plusx.data.batch import Batch
from plusx.data.prediction import Embeddings, Prediction
from plusx.errors import UserError
from plusx.metrics.classification import class_numbers, joined
from plusx.metrics.meter import Meter


# default false-accept rate: the accepted fraction of pairs of different classes
FAR = 0.01
# false-accept rates for which every evaluation reports the true-accept rate
REPORTED_FARS = (0.1, 0.01, 0.001)
# largest number of pairs that metrics are computed from; of more, this many are sampled
MAX_PAIRS = 2_000_000
# bootstrap: number of samples, and the largest number of pairs of each kind
SAMPLES = 400
_SAMPLED_PAIRS = 200_000
_INTERVAL = (2.5, 97.5)  # percentiles

Scores = Float[np.ndarray, "_"]
Numbers = Int64[np.ndarray, "_"]


class Pairs(NamedTuple):
    """The cosine similarities of pairs, and the classes of both members."""

    scores: Scores
    first: Numbers
    second: Numbers

    def subset(self, indices: np.ndarray) -> "Pairs":
        """Return the pairs with these indices."""
        return Pairs(self.scores[indices], self.first[indices], self.second[indices])


class Rates(NamedTuple):
    """The accepted fraction of pairs at decreasing thresholds; 0 at the first. `true` is for pairs
    of one class, `false` for pairs of two classes."""

    thresholds: Scores
    true: Scores
    false: Scores

    def at(self, far: float) -> tuple[float, float]:
        """Return the lowest threshold with at most this false-accept rate, and its accept rate.

        The threshold is the lowest accepted score; if none may be accepted, it is just above the
        highest.
        """
        index = int(np.searchsorted(self.false, far, side="right")) - 1
        if not index:
            return float(np.nextafter(self.thresholds[1], np.inf)), 0.0
        return float(self.thresholds[index]), float(self.true[index])

    def equal_error(self) -> float:
        """Return the equal error rate: where false accepts and false rejects have the same rate.
        Rates are interpolated linearly between thresholds."""
        false_rejects = 1 - self.true
        after = int(np.argmax(self.false >= false_rejects))
        before = max(after - 1, 0)
        gap_after = self.false[after] - false_rejects[after]
        gap_before = false_rejects[before] - self.false[before]
        weight = gap_before / (gap_after + gap_before) if gap_after + gap_before > 0 else 0.0
        return float(self.false[before] + weight * (self.false[after] - self.false[before]))

    def area(self) -> float:
        """Return the area under the ROC curve; equal scores count half."""
        return float(np.trapezoid(self.true, self.false))


class VerificationMeter(Meter):
    """Metrics of embeddings, over all pairs of inputs; targets are class numbers (n,).

    Vectors need not have unit length. `compute` returns

    count; people, the number of classes; genuine_pairs (of one class) and impostor_pairs (of two);
    equal_error_rate: where the false-accept rate equals the false-reject rate, and
        equal_error_rate_interval;
    auroc: the probability that a genuine pair scores higher than an impostor pair;
    false_accept_rate: `far`, as given; true_accept_rate, the fraction of genuine pairs accepted by
        the lowest threshold with at most this false-accept rate; true_accept_rate_interval;
        threshold, a cosine;
    true_accepts: the same for other false-accept rates, as far as the number of pairs allows;
    rank1: the fraction of inputs whose nearest other input is of the same class, among those with
        another input of their class.

    Intervals are of 95 %, by a bootstrap over classes, because pairs are not independent: a class
    that is drawn twice counts twice. They are None for two classes or fewer, and if all samples
    agree. Of more than MAX_PAIRS pairs a fixed random sample is used.
    """

    def __init__(self, far: float = FAR) -> None:
        super().__init__()
        if not 0 < far < 1:
            raise UserError(f"far = {far}: a false-accept rate is above 0 and below 1")
        self.far = far

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        assert isinstance(prediction, Embeddings)
        return {
            "vectors": prediction.vectors.detach().cpu().numpy().astype(np.float64),
            "targets": class_numbers(batch.known_targets, "metrics of verification"),
        }

    def compute(self) -> dict[str, Any]:
        self.require_records()
        vectors, classes = joined(self.records, "vectors")
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        genuine, impostor = pairs_of(unit, classes)
        for pairs, kind in ((genuine, "of one class"), (impostor, "of two classes")):
            if not len(pairs.scores):
                raise UserError(f"there are no pairs {kind} among the {len(unit)} inputs")
        rates = Ranking(genuine.scores, impostor.scores).rates()
        threshold, accepted = rates.at(self.far)
        equal_error_rates, true_accept_rates = bootstrap(genuine, impostor, self.far)
        return {
            "count": len(unit),
            "people": len(np.unique(classes)),
            "genuine_pairs": len(genuine.scores),
            "impostor_pairs": len(impostor.scores),
            "equal_error_rate": rates.equal_error(),
            "equal_error_rate_interval": _interval(equal_error_rates),
            "auroc": rates.area(),
            "false_accept_rate": self.far,
            "true_accept_rate": accepted,
            "true_accept_rate_interval": _interval(true_accept_rates),
            "threshold": threshold,
            "true_accepts": [
                {"false_accept_rate": far, "threshold": threshold, "true_accept_rate": accepted}
                for far in REPORTED_FARS
                if far * len(impostor.scores) >= 1
                for threshold, accepted in (rates.at(far),)
            ],
            "rank1": _rank1(unit, classes),
        }


class Ranking:
    """The scores of genuine and impostor pairs, highest first."""

    def __init__(self, genuine: Scores, impostor: Scores) -> None:
        scores = np.concatenate([genuine, impostor])
        self._count = len(genuine)
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        # equal scores are accepted together
        self._ends = np.r_[np.flatnonzero(np.diff(ranked)), len(scores) - 1]
        self._thresholds = np.r_[np.inf, ranked[self._ends]]

    def rates(self, genuine: Scores | None = None, impostor: Scores | None = None) -> Rates:
        """Return the rates at every score, with these weights of the pairs (None: 1 each)."""
        num_impostor = len(self._order) - self._count
        genuine_weights = np.ones(self._count) if genuine is None else genuine
        impostor_weights = np.ones(num_impostor) if impostor is None else impostor
        return Rates(
            self._thresholds,
            self._fractions(np.r_[genuine_weights, np.zeros(num_impostor)]),
            self._fractions(np.r_[np.zeros(self._count), impostor_weights]),
        )

    def _fractions(self, weights: Scores) -> Scores:
        sums = weights[self._order].cumsum()[self._ends]
        return np.r_[0.0, sums / sums[-1]]


def pairs_of(
    unit: Float[np.ndarray, "n width"], classes: Int64[np.ndarray, "n"]
) -> tuple[Pairs, Pairs]:
    """Return the genuine and the impostor pairs: all, or MAX_PAIRS sampled of each."""
    count = len(unit)
    if count * (count - 1) // 2 <= MAX_PAIRS:
        first, second = np.triu_indices(count, 1)
        same = classes[first] == classes[second]
        return (
            _scored(unit, classes, first[same], second[same]),
            _scored(unit, classes, first[~same], second[~same]),
        )
    rng = np.random.default_rng(0)
    order = np.argsort(classes, kind="stable")
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    counts = sizes * (sizes - 1) // 2
    if counts.sum() > MAX_PAIRS:
        # a large class has more pairs than fit in memory
        pair_index = rng.integers(0, counts.sum(), MAX_PAIRS)
        class_index = np.searchsorted(counts.cumsum(), pair_index, side="right")
        offset = rng.integers(0, sizes[class_index])
        step = rng.integers(1, sizes[class_index])
        first = order[starts[class_index] + offset]
        second = order[starts[class_index] + (offset + step) % sizes[class_index]]
    else:
        pairs_by_class = [
            start + np.stack(np.triu_indices(size, 1)) for start, size in zip(starts, sizes)
        ]
        first, second = order[np.concatenate(pairs_by_class, 1)]
    sample = rng.integers(0, count, (2, MAX_PAIRS))
    left, right = sample[:, classes[sample[0]] != classes[sample[1]]]
    return _scored(unit, classes, first, second), _scored(unit, classes, left, right)


def _scored(unit: np.ndarray, classes: np.ndarray, first: np.ndarray, second: np.ndarray) -> Pairs:
    chunk = 100_000
    chunks = [
        np.einsum("nd,nd->n", unit[first[i : i + chunk]], unit[second[i : i + chunk]])
        for i in range(0, len(first), chunk)
    ]
    scores = np.concatenate(chunks) if chunks else np.zeros(0)
    return Pairs(scores, classes[first], classes[second])


def _rank1(unit: np.ndarray, classes: np.ndarray) -> float | None:
    correct, evaluated = 0, 0
    for start in range(0, len(unit), 1000):
        rows = np.arange(start, min(start + 1000, len(unit)))
        cosines = unit[rows] @ unit.T
        cosines[np.arange(len(rows)), rows] = -np.inf
        has_positive = (classes[rows, None] == classes).sum(1) > 1
        correct += int(((classes[cosines.argmax(1)] == classes[rows]) & has_positive).sum())
        evaluated += int(has_positive.sum())
    return correct / evaluated if evaluated else None


def bootstrap(genuine: Pairs, impostor: Pairs, far: float) -> tuple[list[float], list[float]]:
    """Return equal error rates, and true-accept rates at a false-accept rate of `far`, of bootstrap
    samples of the classes."""
    rng = np.random.default_rng(0)
    genuine, impostor = (
        pairs.subset(np.sort(rng.choice(len(pairs.scores), _SAMPLED_PAIRS, replace=False)))
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
    genuine_class, left, right = np.split(
        numbers, [len(genuine.first), len(genuine.first) + len(impostor.first)]
    )
    ranking = Ranking(genuine.scores, impostor.scores)
    for _ in range(SAMPLES):
        counts = np.bincount(rng.integers(0, len(people), len(people)), minlength=len(people))
        genuine_weights = counts[genuine_class].astype(np.float64)
        impostor_weights = (counts[left] * counts[right]).astype(np.float64)
        if not genuine_weights.any() or not impostor_weights.any():
            continue  # no genuine or no impostor pair in this sample
        rates = ranking.rates(genuine_weights, impostor_weights)
        errors.append(rates.equal_error())
        accepts.append(rates.at(far)[1])
    return errors, accepts


def _interval(values: Sequence[float]) -> list[float] | None:
    """Return the 95 % interval, or None if all samples are equal, since they then do not show
    the uncertainty."""
    if not values or min(values) == max(values):
        return None
    return [float(end) for end in np.percentile(values, _INTERVAL)]

"""Figures from predictions and targets, equal to scikit-learn's where it has them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plusx.errors import UserError
from plusx.tasks.roc import areas


# Probabilities in float32 can be 0; the loss of one sample then ends here, at about 87.3.
SMALLEST = float(np.finfo(np.float32).tiny)
BINS = 15


@runtime_checkable
class Meter(Protocol):
    """Takes in a batch at a time and gives figures at the end, as plain numbers and lists.

    `update(predictions, *batch.truth)` takes what was predicted and what is right: the targets, and
    of tasks whose batches have masks these too.
    """

    @property
    def update(self) -> Callable[..., None]: ...

    def compute(self) -> dict[str, Any]: ...


class Classification:
    """The figures of a classifier with one right class for each input.

    `update` takes probabilities (n, k) and class numbers (n,). `compute` gives

    count; loss, the mean negative log-likelihood in nats; accuracy; top5, where k > 5;
    precision, recall, f1: the means (`averaging` "macro") over the classes that occur among
        targets or predictions, as in scikit-learn; a figure that would divide by zero counts 0;
    auroc: each class against the rest, the mean over the classes that have both sides; None where
        none has;
    calibration_error: of the highest probability, over 15 bins of equal width (Guo et al. 2017,
        equation 3);
    auroc_interval: of 95 % (see plusx.tasks.roc), as [low, high]; None where it is not known;
    per_class: label, precision, recall, f1, count, auroc and auroc_interval of each class;
    confusion: k rows, one for each right class, of k counts, one for each predicted class.
    """

    def __init__(self, classes: Sequence[str] | None = None) -> None:
        self.classes = classes
        self._probabilities: list[Float[np.ndarray, "n k"]] = []
        self._targets: list[Int[np.ndarray, "n"]] = []

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        if targets.ndim != 1 or targets.is_floating_point():
            raise UserError(
                f"targets are {targets.dtype} of shape {tuple(targets.shape)}; figures of a "
                "classifier need class numbers, int64 (n,)"
            )
        self._probabilities.append(predictions.detach().cpu().numpy())
        self._targets.append(targets.detach().cpu().numpy().astype(np.int64))

    def compute(self) -> dict[str, Any]:
        probabilities, right = _joined(self._probabilities, self._targets)
        n, k = probabilities.shape
        if right.min() < 0 or right.max() >= k:
            raise UserError(
                f"targets run from {right.min()} to {right.max()}; the predictions are of {k} "
                f"classes, so 0 to {k - 1} are allowed"
            )
        told = probabilities.argmax(1)
        confusion = np.bincount(right * k + told, minlength=k * k).reshape(k, k)
        hits = confusion.diagonal()
        occurs = (confusion.sum(0) + confusion.sum(1)) > 0
        of_right = probabilities[np.arange(n), right]
        figures: dict[str, Any] = {
            "count": n,
            "loss": _mean_log_loss(of_right),
            "accuracy": float(hits.sum() / n),
        }
        if k > 5:
            # Ties go to the lower class, as they do in argmax.
            best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
            figures["top5"] = float((best == right[:, None]).any(1).mean())
        figures |= _precision_recall(hits, confusion.sum(0), confusion.sum(1), occurs, self.classes)
        figures |= _areas(probabilities, right[:, None] == np.arange(k), figures["per_class"])
        figures["calibration_error"] = calibration_error(probabilities.max(1), told == right)
        figures["confusion"] = confusion.tolist()
        return figures


class MultiLabel:
    """The figures of a classifier whose classes are questions of their own.

    `update` takes probabilities (n, k) and zeros and ones (n, k). An answer is yes from 0.5 on.
    Besides the keys of `Classification` (without top5) there is `label_accuracy`, the share of the
    n k answers that are right; `accuracy` is, as in scikit-learn, the share of inputs with every
    answer right. `loss` and `calibration_error` are over all answers; the latter compares the
    probability of a yes with the share of yeses. `confusion` has [[no right, no wrong as yes],
    [yes wrong as no, yes right]] for each class, as `sklearn.metrics.multilabel_confusion_matrix`.
    """

    def __init__(self, classes: Sequence[str] | None = None) -> None:
        self.classes = classes
        self._probabilities: list[Float[np.ndarray, "n k"]] = []
        self._targets: list[Bool[np.ndarray, "n k"]] = []

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        if targets.shape != predictions.shape:
            raise UserError(
                f"targets of shape {tuple(targets.shape)} for predictions of shape "
                f"{tuple(predictions.shape)}"
            )
        answers = targets.detach().cpu().numpy()
        if not np.isin(answers, (0, 1)).all():
            raise UserError("targets with several labels have to be zeros and ones")
        self._probabilities.append(predictions.detach().cpu().numpy())
        self._targets.append(answers > 0.5)

    def compute(self) -> dict[str, Any]:
        probabilities, right = _joined(self._probabilities, self._targets)
        told = probabilities >= 0.5
        hits = (told & right).sum(0)
        predicted, actual = told.sum(0), right.sum(0)
        rest = len(right) - predicted - actual + hits
        tables = np.stack([rest, predicted - hits, actual - hits, hits], 1).reshape(-1, 2, 2)
        every = np.ones(right.shape[1], bool)
        figures = {
            "count": len(right),
            "loss": _mean_log_loss(np.where(right, probabilities, 1 - probabilities)),
            "accuracy": float((told == right).all(1).mean()),
            "label_accuracy": float((told == right).mean()),
            **_precision_recall(hits, predicted, actual, every, self.classes),
            "calibration_error": calibration_error(probabilities.ravel(), right.ravel()),
            "confusion": tables.tolist(),
        }
        return {**figures, **_areas(probabilities, right, figures["per_class"])}


def calibration_error(
    confidences: Float[np.ndarray, "n"], hits: Bool[np.ndarray, "n"], bins: int = BINS
) -> float:
    """The expected calibration error: the mean over bins, weighted by their counts, of the distance
    between confidence and share of hits. Bin m of M is ((m - 1) / M, m / M] (Guo et al. 2017).
    """
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=confidences - hits.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))


def _joined(probabilities: list[Any], targets: list[Any]) -> tuple[Any, Any]:
    """What all batches gave, in two arrays that can be judged."""
    if not probabilities:
        raise UserError("there are no predictions to judge: not one batch was seen")
    joined = np.concatenate(probabilities)
    broken = int((~np.isfinite(joined)).any(1).sum())
    if broken:
        raise FloatingPointError(
            f"the predictions of {broken} of {len(joined)} inputs are not finite"
        )
    return joined, np.concatenate(targets)


def _mean_log_loss(probabilities: Float[np.ndarray, "..."]) -> float:
    return float(-np.log(np.maximum(probabilities.astype(np.float64), SMALLEST)).mean())


def _precision_recall(
    hits: Int[np.ndarray, "k"],
    predicted: Int[np.ndarray, "k"],
    actual: Int[np.ndarray, "k"],
    counted: Bool[np.ndarray, "k"],
    classes: Sequence[str] | None,
) -> dict[str, Any]:
    """Precision, recall and F1 of every class, and their means over those that are `counted`."""
    names = [str(i) for i in range(len(hits))] if classes is None else list(classes)
    if len(names) != len(hits):
        raise UserError(f"{len(names)} names of classes for predictions of {len(hits)} classes")
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(actual, 1)
    f1 = 2 * hits / np.maximum(predicted + actual, 1)
    rows = zip(names, precision.tolist(), recall.tolist(), f1.tolist(), actual.tolist())
    keys = ("label", "precision", "recall", "f1", "count")
    return {
        "precision": float(precision[counted].mean()),
        "recall": float(recall[counted].mean()),
        "f1": float(f1[counted].mean()),
        "averaging": "macro",
        "per_class": [dict(zip(keys, row)) for row in rows],
    }


def _areas(
    probabilities: Float[np.ndarray, "n k"],
    right: Bool[np.ndarray, "n k"],
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """The mean area under the ROC curves, and its interval; those of each class into its row."""
    each, mean = areas(probabilities, right)
    for row, found in zip(rows, each, strict=True):
        row["auroc"], row["auroc_interval"] = found.value, found.interval
    return {"auroc": mean.value, "auroc_interval": mean.interval}

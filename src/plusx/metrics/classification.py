"""Metrics of classification; those that scikit-learn has are equal to its values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.prediction import ClassProbabilities, Prediction
from plusx.errors import UserError
from plusx.metrics.calibration import calibration_error
from plusx.metrics.meter import Meter
from plusx.metrics.roc import areas


# lower limit of a probability in the log loss, which bounds the loss of a sample at about 87.3
SMALLEST = float(np.finfo(np.float32).tiny)


class ClassificationMeter(Meter):
    """Metrics of classification with one class per input; targets are class numbers (n,).

    `compute` returns

    count; loss, the mean negative log-likelihood in nats; accuracy; top5, if k > 5;
    precision, recall, f1: means over the classes that occur among targets or predictions
        (`averaging` "macro"), as in scikit-learn; a ratio with denominator 0 is 0;
    auroc: one-vs-rest, the mean over the classes that have positives and negatives, or None;
    auroc_interval: its 95 % interval [low, high] (see plusx.metrics.roc), or None;
    calibration_error: of the highest probability, over 15 bins of equal width (Guo et al. 2017,
        equation 3);
    per_class: label, precision, recall, f1, count, auroc and auroc_interval of each class;
    confusion: k rows, one per true class, of k counts, one per predicted class.
    """

    def __init__(self, class_names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.class_names = class_names

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        assert isinstance(prediction, ClassProbabilities)
        return {
            "probabilities": prediction.probabilities.detach().cpu().numpy(),
            "targets": class_numbers(batch.known_targets, "metrics of a classifier"),
        }

    def compute(self) -> dict[str, Any]:
        self.require_records()
        probabilities, targets = joined(self.records)
        n, k = probabilities.shape
        if targets.min() < 0 or targets.max() >= k:
            raise UserError(
                f"targets run from {targets.min()} to {targets.max()}; the predictions are of {k} "
                f"classes, so 0 to {k - 1} are allowed"
            )
        predicted = probabilities.argmax(1)
        confusion = np.bincount(targets * k + predicted, minlength=k * k).reshape(k, k)
        hits = confusion.diagonal()
        occurs = (confusion.sum(0) + confusion.sum(1)) > 0
        metrics: dict[str, Any] = {
            "count": n,
            "loss": _mean_log_loss(probabilities[np.arange(n), targets]),
            "accuracy": float(hits.sum() / n),
        }
        if k > 5:
            # ties are resolved to the lower class, as in argmax
            top5 = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
            metrics["top5"] = float((top5 == targets[:, None]).any(1).mean())
        metrics |= _precision_recall(
            hits, confusion.sum(0), confusion.sum(1), occurs, self.class_names
        )
        metrics |= _areas(probabilities, targets[:, None] == np.arange(k), metrics["per_class"])
        metrics["calibration_error"] = calibration_error(probabilities.max(1), predicted == targets)
        metrics["confusion"] = confusion.tolist()
        return metrics


class MultiLabelMeter(Meter):
    """Metrics of classification with several labels per input; targets are zeros and ones (n, k).

    A label is predicted if its probability is at least 0.5. In addition to the keys of
    `ClassificationMeter` (without top5), `label_accuracy` is the fraction of the n k labels that
    are right; `accuracy` is, as in scikit-learn, the fraction of inputs with all labels right.
    `loss` and `calibration_error` are over all labels; the latter compares the probability of a
    label with its frequency. `confusion` has [[true negatives, false positives], [false negatives,
    true positives]] for each class, as `sklearn.metrics.multilabel_confusion_matrix`.
    """

    def __init__(self, class_names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.class_names = class_names

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        assert isinstance(prediction, ClassProbabilities)
        probabilities, targets = prediction.probabilities, batch.known_targets
        if targets.shape != probabilities.shape:
            raise UserError(
                f"targets of shape {tuple(targets.shape)} for predictions of shape "
                f"{tuple(probabilities.shape)}"
            )
        labels = targets.detach().cpu().numpy()
        if not np.isin(labels, (0, 1)).all():
            raise UserError("targets with several labels must be zeros and ones")
        return {"probabilities": probabilities.detach().cpu().numpy(), "targets": labels > 0.5}

    def compute(self) -> dict[str, Any]:
        self.require_records()
        probabilities, targets = joined(self.records)
        labels = probabilities >= 0.5
        hits = (labels & targets).sum(0)
        predicted, actual = labels.sum(0), targets.sum(0)
        true_negatives = len(targets) - predicted - actual + hits
        tables = np.stack([true_negatives, predicted - hits, actual - hits, hits], 1).reshape(
            -1, 2, 2
        )
        all_classes = np.ones(targets.shape[1], bool)
        metrics = {
            "count": len(targets),
            "loss": _mean_log_loss(np.where(targets, probabilities, 1 - probabilities)),
            "accuracy": float((labels == targets).all(1).mean()),
            "label_accuracy": float((labels == targets).mean()),
            **_precision_recall(hits, predicted, actual, all_classes, self.class_names),
            "calibration_error": calibration_error(probabilities.ravel(), targets.ravel()),
            "confusion": tables.tolist(),
        }
        return {**metrics, **_areas(probabilities, targets, metrics["per_class"])}


def class_numbers(targets: Tensor, purpose: str) -> Int[np.ndarray, "n"]:
    """Return targets as class numbers on the CPU. Raises UserError if they are not class
    numbers."""
    if targets.ndim != 1 or targets.is_floating_point():
        raise UserError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; {purpose} need class "
            "numbers, int64 (n,)"
        )
    return targets.detach().cpu().numpy().astype(np.int64)


def joined(records: Sequence[dict[str, Any]], name: str = "probabilities") -> tuple[Any, Any]:
    """Return the predictions and targets of all batches. Raises FloatingPointError if predictions
    are not finite."""
    predictions = np.concatenate([record[name] for record in records])
    num_not_finite = int((~np.isfinite(predictions)).any(1).sum())
    if num_not_finite:
        raise FloatingPointError(
            f"the predictions of {num_not_finite} of {len(predictions)} inputs are not finite"
        )
    return predictions, np.concatenate([record["targets"] for record in records])


def _mean_log_loss(probabilities: Float[np.ndarray, "..."]) -> float:
    return float(-np.log(np.maximum(probabilities.astype(np.float64), SMALLEST)).mean())


def labels_of(class_names: Sequence[str] | None, count: int) -> list[str]:
    """Return the names of `count` classes, or their numbers if there are no names. Raises UserError
    for another number of names."""
    names = list(map(str, range(count)) if class_names is None else class_names)
    if len(names) != count:
        raise UserError(f"{len(names)} names of classes for predictions of {count} classes")
    return names


def ratios(
    hits: Int[np.ndarray, "k"], predicted: Int[np.ndarray, "k"], actual: Int[np.ndarray, "k"]
) -> dict[str, Float[np.ndarray, "k"]]:
    """Return precision, recall, F1 (equal to Dice) and IoU of each class; 0 if the denominator is
    0."""
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(actual, 1),
        "f1": 2 * hits / np.maximum(predicted + actual, 1),
        "iou": hits / np.maximum(predicted + actual - hits, 1),
    }


def _precision_recall(
    hits: Int[np.ndarray, "k"],
    predicted: Int[np.ndarray, "k"],
    actual: Int[np.ndarray, "k"],
    averaged: Bool[np.ndarray, "k"],
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Return precision, recall and F1 of every class, and their means over the `averaged`
    classes."""
    names = labels_of(class_names, len(hits))
    values, keys = ratios(hits, predicted, actual), ("precision", "recall", "f1")
    rows = zip(names, *(values[key].tolist() for key in keys), actual.tolist())
    return {
        **{key: float(values[key][averaged].mean()) for key in keys},
        "averaging": "macro",
        "per_class": [dict(zip(("label", *keys, "count"), row)) for row in rows],
    }


def _areas(
    probabilities: Float[np.ndarray, "n k"],
    targets: Bool[np.ndarray, "n k"],
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the mean area under the ROC curves with its interval, and add those of each class to
    its row."""
    per_class, mean = areas(probabilities, targets)
    for row, area in zip(rows, per_class, strict=True):
        row["auroc"], row["auroc_interval"] = area.value, area.interval
    return {"auroc": mean.value, "auroc_interval": mean.interval}

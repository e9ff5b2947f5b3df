"""Metrics of classifiers, equal to scikit-learn's where it has them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.prediction import ClassProbabilities, Prediction
from plusx.errors import UserError
from plusx.metrics.meter import Meter
from plusx.metrics.roc import areas


# Probabilities in float32 can be 0; the loss of one sample then ends here, at about 87.3.
SMALLEST = float(np.finfo(np.float32).tiny)
BINS = 15


class ClassificationMeter(Meter):
    """The metrics of a classifier with one class for each input; targets are class numbers (n,).

    `compute` gives

    count; loss, the mean negative log-likelihood in nats; accuracy; top5, where k > 5;
    precision, recall, f1: the means (`averaging` "macro") over the classes that occur among
        targets or predictions, as in scikit-learn; a ratio that would divide by zero counts 0;
    auroc: each class against the rest, the mean over the classes that have both sides; None where
        none has;
    calibration_error: of the highest probability, over 15 bins of equal width (Guo et al. 2017,
        equation 3);
    auroc_interval: of 95 % (see plusx.metrics.roc), as [low, high]; None where it is not known;
    per_class: label, precision, recall, f1, count, auroc and auroc_interval of each class;
    confusion: k rows, one for each true class, of k counts, one for each predicted class.
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
        self.refuse_none()
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
            # ties go to the lower class, as they do in argmax
            best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
            metrics["top5"] = float((best == targets[:, None]).any(1).mean())
        metrics |= _precision_recall(
            hits, confusion.sum(0), confusion.sum(1), occurs, self.class_names
        )
        metrics |= _areas(probabilities, targets[:, None] == np.arange(k), metrics["per_class"])
        metrics["calibration_error"] = calibration_error(probabilities.max(1), predicted == targets)
        metrics["confusion"] = confusion.tolist()
        return metrics


class MultiLabelMeter(Meter):
    """The metrics of a classifier with several labels an input; targets are zeros and ones (n, k).

    A label is predicted from a probability of 0.5 on. Besides the keys of `ClassificationMeter`
    (without top5) there is `label_accuracy`, the fraction of the n k labels that are right;
    `accuracy` is, as in scikit-learn, the fraction of inputs with every label right. `loss` and
    `calibration_error` are over all labels; the latter compares the probability of a label with its
    frequency. `confusion` has [[true negatives, false positives], [false negatives, true
    positives]] for each class, as `sklearn.metrics.multilabel_confusion_matrix`.
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
            raise UserError("targets with several labels have to be zeros and ones")
        return {"probabilities": probabilities.detach().cpu().numpy(), "targets": labels > 0.5}

    def compute(self) -> dict[str, Any]:
        self.refuse_none()
        probabilities, targets = joined(self.records)
        labels = probabilities >= 0.5
        hits = (labels & targets).sum(0)
        predicted, actual = labels.sum(0), targets.sum(0)
        rest = len(targets) - predicted - actual + hits
        tables = np.stack([rest, predicted - hits, actual - hits, hits], 1).reshape(-1, 2, 2)
        every = np.ones(targets.shape[1], bool)
        metrics = {
            "count": len(targets),
            "loss": _mean_log_loss(np.where(targets, probabilities, 1 - probabilities)),
            "accuracy": float((labels == targets).all(1).mean()),
            "label_accuracy": float((labels == targets).mean()),
            **_precision_recall(hits, predicted, actual, every, self.class_names),
            "calibration_error": calibration_error(probabilities.ravel(), targets.ravel()),
            "confusion": tables.tolist(),
        }
        return {**metrics, **_areas(probabilities, targets, metrics["per_class"])}


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


def class_numbers(targets: Tensor, purpose: str) -> Int[np.ndarray, "n"]:
    """Targets as class numbers on the CPU. UserError: they are none."""
    if targets.ndim != 1 or targets.is_floating_point():
        raise UserError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; {purpose} need class "
            "numbers, int64 (n,)"
        )
    return targets.detach().cpu().numpy().astype(np.int64)


def joined(records: Sequence[dict[str, Any]], name: str = "probabilities") -> tuple[Any, Any]:
    """The predictions and the targets of all batches. FloatingPointError: some are not finite."""
    predictions = np.concatenate([record[name] for record in records])
    broken = int((~np.isfinite(predictions)).any(1).sum())
    if broken:
        raise FloatingPointError(
            f"the predictions of {broken} of {len(predictions)} inputs are not finite"
        )
    return predictions, np.concatenate([record["targets"] for record in records])


def _mean_log_loss(probabilities: Float[np.ndarray, "..."]) -> float:
    return float(-np.log(np.maximum(probabilities.astype(np.float64), SMALLEST)).mean())


def ratios(
    hits: Int[np.ndarray, "k"], predicted: Int[np.ndarray, "k"], actual: Int[np.ndarray, "k"]
) -> dict[str, Float[np.ndarray, "k"]]:
    """Precision, recall, F1 (which is Dice) and IoU of each class; 0 where they divide by zero."""
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
    counted: Bool[np.ndarray, "k"],
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Precision, recall and F1 of every class, and their means over those that are `counted`."""
    names = [str(i) for i in range(len(hits))] if class_names is None else list(class_names)
    if len(names) != len(hits):
        raise UserError(f"{len(names)} names of classes for predictions of {len(hits)} classes")
    values, keys = ratios(hits, predicted, actual), ("precision", "recall", "f1")
    rows = zip(names, *(values[key].tolist() for key in keys), actual.tolist())
    return {
        **{key: float(values[key][counted].mean()) for key in keys},
        "averaging": "macro",
        "per_class": [dict(zip(("label", *keys, "count"), row)) for row in rows],
    }


def _areas(
    probabilities: Float[np.ndarray, "n k"],
    targets: Bool[np.ndarray, "n k"],
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """The mean area under the ROC curves, and its interval; those of each class into its row."""
    per_class, mean = areas(probabilities, targets)
    for row, area in zip(rows, per_class, strict=True):
        row["auroc"], row["auroc_interval"] = area.value, area.interval
    return {"auroc": mean.value, "auroc_interval": mean.interval}

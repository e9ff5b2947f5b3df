"""Titles, units and direction (higher or lower is better) of the metrics."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """A metric from 0 to 1, or in a `unit`.

    less: lower is better
    most: the largest possible value
    of_images: it is a fraction of images, so that a binomial interval applies
    """

    title: str
    less: bool = False
    of_images: bool = False
    unit: str = ""
    most: float = 1.0


# by their keys in JSON
METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", of_images=True),
    "precision": Metric("precision"),
    "recall": Metric("recall"),
    "f1": Metric("F1"),
    "auroc": Metric("AUROC"),
    "mean_iou": Metric("mean IoU"),
    "iou": Metric("IoU"),
    "dice": Metric("Dice"),
    "image_dice": Metric("Dice of an image"),
    "hd95": Metric("HD95", less=True, unit="mm", most=inf),
    "pixel_accuracy": Metric("accuracy of positions"),
    "map50": Metric("mAP at 0.5"),
    "map": Metric("mAP at 0.50:0.95"),
    "mask_map50": Metric("mask mAP at 0.5"),
    "mask_map": Metric("mask mAP at 0.50:0.95"),
    "equal_error_rate": Metric("equal error rate", less=True),
    "true_accept_rate": Metric("true accepts"),
    "bleu": Metric("BLEU", unit="points", most=100.0),
    "chrf": Metric("chrF", unit="points", most=100.0),
    "exact_match": Metric("exact match"),
    "wer": Metric("word error rate", less=True),
    "cer": Metric("character error rate", less=True),
    "train_error": Metric("train error", less=True),
    "loss": Metric("loss", less=True),
}
# of classifiers, and of results that do not list their metrics
OF_CLASSES = ("accuracy", "precision", "recall", "f1")


def metric(key: str) -> Metric:
    """The metric of a key; of an unknown key, one where higher is better."""
    return METRICS.get(key, Metric(key.replace("_", " ")))


def better(key: str, value: float) -> float:
    """The value with the sign by which higher is better."""
    return -value if metric(key).less else value


def metrics_line(values: Mapping[str, Any], keys: Sequence[str], *, intervals: bool = False) -> str:
    """The loss, if there is one, and these metrics, separated by commas."""
    parts = [] if values.get("loss") is None else [f"loss {values['loss']:.4f}"]
    for key in keys:
        if values.get(key) is not None:
            ends = values.get(f"{key}_interval") if intervals else None
            sure = f" ({' to '.join(with_unit(key, end) for end in ends)})" if ends else ""
            parts.append(f"{metric(key).title} {with_unit(key, values[key])}{sure}")
    return ", ".join(parts) or "no metric: there is no annotation"


def with_unit(key: str, value: float) -> str:
    """A value with its unit; a fraction in per cent."""
    unit = metric(key).unit
    return f"{value:.2f} {unit}" if unit else f"{value:.1%}"


def with_measures(values: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """These keys, and the keys of `values` whose metric has a unit."""
    others = [key for key in METRICS if METRICS[key].unit and key in values and key not in keys]
    return [*keys, *others]


def class_rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of metrics for each class, with its HD95 if that was measured."""
    far = {row["label"]: row["hd95"] for row in values.get("hd95_per_class", ())}
    rows = values.get("per_class") or ()
    return [{**row, "hd95": far.get(row["label"])} if far else dict(row) for row in rows]


def capital(text: str) -> str:
    """The text with a capital first letter, except for mAP."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]

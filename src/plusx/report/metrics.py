"""Titles, units, formats and direction (higher or lower is better) of the metrics.

Accuracies and error rates are fractions, shown in per cent; BLEU and chrF are points of 100.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

from plusx.report.figures import SHARE


PERCENT, POINTS = "%", "points"


class Metric(NamedTuple):
    """How a metric is shown and compared.

    lower_is_better: else higher is better
    unit: PERCENT, of fractions; POINTS of 100; a unit of measure; "" for a number without one
    maximum: the largest possible value
    of_samples: a fraction of the evaluated samples, so that a binomial interval applies
    decimals: that are shown
    """

    title: str
    lower_is_better: bool = False
    unit: str = PERCENT
    maximum: float = 1.0
    of_samples: bool = False
    decimals: int = 1

    @property
    def kind(self) -> str:
        """Return the kind of its column in a table."""
        return "share" if self.unit == PERCENT else "number"

    @property
    def axis(self) -> dict[str, str]:
        """Return its axis in a figure."""
        return SHARE if self.unit == PERCENT else {"title": self.unit, "scale": "linear"}

    def shown(self, value: float, *, sign: str = "", decimals: int | None = None) -> str:
        """Format a value without its unit; with sign "+", positive values have a sign too."""
        factor = 100 if self.unit == PERCENT else 1
        return f"{factor * value:{sign}.{self.decimals if decimals is None else decimals}f}"

    def text(
        self,
        value: float,
        spread: float | None = None,
        *,
        sign: str = "",
        decimals: int | None = None,
    ) -> str:
        """Format a value with its standard deviation and unit."""
        shown = [self.shown(value, sign=sign, decimals=decimals)]
        if spread is not None:
            shown += ["±", self.shown(spread, decimals=decimals)]
        return " ".join([*shown, self.unit]).strip()


# by their keys in JSON: every metric that a task reports
METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", of_samples=True),
    "robust_accuracy": Metric("accuracy under PGD", of_samples=True),
    "fgsm_accuracy": Metric("accuracy under FGSM", of_samples=True),
    "label_accuracy": Metric("accuracy of labels"),
    "top5": Metric("top-5 accuracy", of_samples=True),
    "precision": Metric("precision"),
    "recall": Metric("recall"),
    "f1": Metric("F1"),
    "auroc": Metric("AUROC"),
    "calibration_error": Metric("calibration error", lower_is_better=True),
    "mean_iou": Metric("mean IoU"),
    "iou": Metric("IoU"),
    "dice": Metric("Dice"),
    "image_dice": Metric("Dice of an image"),
    "hd95": Metric("HD95", lower_is_better=True, unit="mm", maximum=inf, decimals=2),
    "fraction": Metric("fraction"),  # of the positions of a class
    "pixel_accuracy": Metric("accuracy of positions"),
    "map50": Metric("mAP at 0.5"),
    "map75": Metric("mAP at 0.75"),
    "map": Metric("mAP at 0.50:0.95"),
    "mask_map50": Metric("mask mAP at 0.5"),
    "mask_map75": Metric("mask mAP at 0.75"),
    "mask_map": Metric("mask mAP at 0.50:0.95"),
    "equal_error_rate": Metric("equal error rate", lower_is_better=True),
    "true_accept_rate": Metric("true accepts"),
    "false_accept_rate": Metric("false accepts", lower_is_better=True),
    "neighbour_accuracy": Metric("accuracy of nearest neighbours", of_samples=True),
    "projection_std": Metric("deviation of projections", unit="", decimals=4),
    "rank1": Metric("rank-1 accuracy", of_samples=True),
    "bleu": Metric("BLEU", unit=POINTS, maximum=100.0, decimals=2),
    "chrf": Metric("chrF", unit=POINTS, maximum=100.0, decimals=2),
    "exact_match": Metric("exact match", of_samples=True),
    "intent_accuracy": Metric("exact intents"),
    "false_acceptance_rate": Metric("false acceptances", lower_is_better=True),
    "false_rejection_rate": Metric("false rejections", lower_is_better=True),
    # insertions can make more errors than there are words
    "wer": Metric("word error rate", lower_is_better=True, maximum=inf),
    "cer": Metric("character error rate", lower_is_better=True, maximum=inf),
    "train_error": Metric("train error", lower_is_better=True, of_samples=True),
    "loss": Metric("loss", lower_is_better=True, unit="", maximum=inf, decimals=4),
}
# of classifiers, and of results that do not list their metrics
OF_CLASSES = ("accuracy", "precision", "recall", "f1")


def better(key: str, value: float) -> float:
    """Return the value, negated if lower is better."""
    return -value if METRICS[key].lower_is_better else value


def metrics_line(values: Mapping[str, Any], keys: Sequence[str], *, intervals: bool = False) -> str:
    """Return the loss, if there is one, and these metrics, separated by commas."""
    parts = []
    for key in ["loss", *(key for key in keys if key != "loss")]:
        if values.get(key) is not None:
            ends = values.get(f"{key}_interval") if intervals else None
            interval = f" ({' to '.join(map(METRICS[key].text, ends))})" if ends else ""
            parts.append(f"{METRICS[key].title} {METRICS[key].text(values[key])}{interval}")
    return ", ".join(parts) or "no metric: there is no annotation"


def with_measures(values: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Return these keys, and those of `values` whose metric has a unit of measure."""
    measured = [key for key in METRICS if METRICS[key].unit not in (PERCENT, POINTS, "")]
    return [*keys, *(key for key in measured if key in values and key not in keys)]


def class_rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row of metrics for each class, with its HD95 if that was measured."""
    hd95 = {row["label"]: row["hd95"] for row in values.get("hd95_per_class", ())}
    rows = values.get("per_class") or ()
    return [{**row, "hd95": hd95.get(row["label"])} if hd95 else dict(row) for row in rows]


def capital(text: str) -> str:
    """Return the text with a capital first letter, except for mAP."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]

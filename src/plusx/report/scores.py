"""The figures that say how good a trained network is: what they are called, and which way is up."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Score(NamedTuple):
    """A figure from 0 to 1, or one in a `unit`. `less` says that less is better; `of_images` that
    it is the share of images that are right, so that chance among images is known.
    """

    title: str
    less: bool = False
    of_images: bool = False
    unit: str = ""


# by their keys in figures
SCORES: dict[str, Score] = {
    "accuracy": Score("accuracy", of_images=True),
    "precision": Score("precision"),
    "recall": Score("recall"),
    "f1": Score("F1"),
    "auroc": Score("AUROC"),
    "mean_iou": Score("mean IoU"),
    "iou": Score("IoU"),
    "dice": Score("Dice"),
    "image_dice": Score("Dice of an image"),
    "hd95": Score("HD95", less=True, unit="mm"),
    "position_accuracy": Score("accuracy of positions"),
    "map50": Score("mAP at 0.5"),
    "map": Score("mAP at 0.50:0.95"),
    "mask_map50": Score("mask mAP at 0.5"),
    "mask_map": Score("mask mAP at 0.50:0.95"),
    "equal_error_rate": Score("equal error rate", less=True),
    "true_accept_rate": Score("true accepts"),
    "train_error": Score("train error", less=True),
    "loss": Score("loss", less=True),
}
# of classifiers, and of runs from before other tasks were known
OF_CLASSES = ("accuracy", "precision", "recall", "f1")


def score(key: str) -> Score:
    """What is known of a figure; of one that nobody named, that more is better."""
    return SCORES.get(key, Score(key.replace("_", " ")))


def better(key: str, value: float) -> float:
    """The figure so that more is better."""
    return -value if score(key).less else value


def line(figures: Mapping[str, Any], keys: Sequence[str], *, intervals: bool = False) -> str:
    """The loss, where there is one, and these figures as a part of a sentence."""
    said = [] if figures.get("loss") is None else [f"loss {figures['loss']:.4f}"]
    for key in keys:
        if figures.get(key) is not None:
            ends = figures.get(f"{key}_interval") if intervals else None
            sure = f" ({' to '.join(told(key, end) for end in ends)})" if ends else ""
            said.append(f"{score(key).title} {told(key, figures[key])}{sure}")
    return ", ".join(said) or "nothing to judge by"


def told(key: str, value: float) -> str:
    """A figure with its unit: shares are per cent."""
    unit = score(key).unit
    return f"{value:.2f} {unit}" if unit else f"{value:.1%}"


def with_measures(figures: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """These keys, and those of the figures that have a unit and so are no shares."""
    return [*keys, *(key for key in SCORES if SCORES[key].unit and key in figures)]


def class_rows(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of every class, a row each, with the distances where there are some."""
    far = {row["label"]: row["hd95"] for row in figures.get("hd95_per_class", ())}
    rows = figures.get("per_class") or ()
    return [{**row, "hd95": far.get(row["label"])} if far else dict(row) for row in rows]


def capital(text: str) -> str:
    """With a capital letter, as titles begin; mAP has its own."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]

"""How well the classes of positions are told: intersection over union, Dice, precision, recall."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from plusx.errors import UserError
from plusx.tasks.meters import SMALLEST


UNJUDGED = 255


class Overlap:
    """The figures of a task that tells a class for every position.

    `update` takes probabilities (n, k, *s) and classes (n, *s) as uint8, where 255 is not judged.
    `compute` gives, of all positions that are judged together,

    count: images; positions: those that are judged;
    loss: the mean negative log-likelihood, in nats, of each image, and of these the mean;
    position_accuracy: the share of positions that are right;
    mean_iou: intersection over union (the Jaccard index), the mean over the classes that occur
        among targets or predictions;
    dice: 2 |A n B| / (|A| + |B|) (Dice 1945), which is F1, the mean over these classes without
        `background`;
    image_dice: the same of each image, the mean over the images and these classes, where a class
        occurs in the image or in what is told of it. None where there is none;
    precision, recall: the means over these classes (scikit-learn's "macro"); recall is what SegNet
        and its followers call class average accuracy;
    per_class: label, iou, dice, precision, recall, share of the positions and their number of each
        class; where a class occurs in neither, its figures are None;
    confusion: k rows, one for each right class, of k counts, one for each predicted class.

    background: the class that is what is left over: `dice` and `image_dice` leave it out.
    """

    def __init__(self, classes: Sequence[str] | None = None, background: int | None = None) -> None:
        self.classes = classes
        self.background = background
        self._losses: list[float] = []
        self._confusions: list[Int[np.ndarray, "k k"]] = []

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        if targets.dtype != torch.uint8 or (
            (len(predictions), *predictions.shape[2:]) != tuple(targets.shape)
        ):
            raise UserError(
                f"targets are {targets.dtype} of shape {tuple(targets.shape)}; predictions of "
                f"shape {tuple(predictions.shape)} need classes of positions, uint8 "
                f"{(len(predictions), *predictions.shape[2:])}"
            )
        for probabilities, right in zip(predictions.detach(), targets):
            loss, confusion = _judged(probabilities, right)
            self._losses.append(loss)
            self._confusions.append(confusion)

    def compute(self) -> dict[str, Any]:
        if not self._confusions:
            raise UserError("there are no predictions to judge: not one batch was seen")
        images = np.stack(self._confusions)
        confusion = images.sum(0)
        if not confusion.sum():
            raise UserError("there are no predictions to judge: no position has a class")
        losses = np.array(self._losses)
        iou, dice, precision, recall, occurs = _ratios(confusion)
        counted = _without(occurs, self.background)
        figures: dict[str, Any] = {
            "count": len(images),
            "positions": int(confusion.sum()),
            "loss": float(losses[~np.isnan(losses)].mean()),
            "position_accuracy": float(confusion.trace() / confusion.sum()),
            "mean_iou": float(iou[occurs].mean()),
            "dice": float(dice[counted].mean()) if counted.any() else None,
            "image_dice": self._image_dice(images),
            "precision": float(precision[occurs].mean()),
            "recall": float(recall[occurs].mean()),
        }
        names = self.classes or [str(number) for number in range(len(confusion))]
        if len(names) != len(confusion):
            raise UserError(
                f"{len(names)} names of classes for predictions of {len(confusion)} classes"
            )
        actual = confusion.sum(1)
        keys = ("iou", "dice", "precision", "recall")
        figures["per_class"] = [
            {
                "label": name,
                **{
                    key: float(values[place]) if occurs[place] else None
                    for key, values in zip(keys, (iou, dice, precision, recall))
                },
                "share": float(actual[place] / confusion.sum()),
                "positions": int(actual[place]),
            }
            for place, name in enumerate(names)
        ]
        figures["confusion"] = confusion.tolist()
        return figures

    def _image_dice(self, images: Int[np.ndarray, "n k k"]) -> float | None:
        found = []
        for confusion in images:
            _, dice, _, _, occurs = _ratios(confusion)
            found += dice[_without(occurs, self.background)].tolist()
        return float(np.mean(found)) if found else None


def _judged(
    probabilities: Float[Tensor, "k *s"], right: UInt8[Tensor, "*s"]
) -> tuple[float, Int[np.ndarray, "k k"]]:
    """The mean negative log-likelihood (NaN where nothing is judged) and the confusion."""
    k = len(probabilities)
    right = right.flatten().long()
    judged = right != UNJUDGED
    kept = probabilities.flatten(1)
    if not bool(judged.all()):
        right, kept = right[judged], kept[:, judged]
    if not right.numel():
        return float("nan"), np.zeros((k, k), np.int64)
    highest = int(right.max())
    if highest >= k:
        raise UserError(
            f"a position has class {highest}; the predictions are of {k} classes, so 0 to {k - 1} "
            f"are allowed, and {UNJUDGED} for what is not judged"
        )
    of_right = kept.gather(0, right[None])[0]
    if not bool(kept.isfinite().all()):
        raise FloatingPointError("the predictions of an image are not finite")
    loss = -of_right.cpu().double().clamp(min=SMALLEST).log().mean()
    confusion = torch.bincount(right * k + kept.argmax(0), minlength=k * k).reshape(k, k)
    return float(loss), confusion.cpu().numpy()


def _ratios(confusion: Int[np.ndarray, "k k"]) -> tuple[Any, Any, Any, Any, Any]:
    """IoU, Dice, precision and recall of every class, and which of them occur."""
    hits, actual, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    occurs = actual + predicted > 0
    iou = hits / np.maximum(actual + predicted - hits, 1)
    dice = 2 * hits / np.maximum(actual + predicted, 1)
    return iou, dice, hits / np.maximum(predicted, 1), hits / np.maximum(actual, 1), occurs


def _without(occurs: Any, background: int | None) -> Any:
    if background is None:
        return occurs
    return occurs & (np.arange(len(occurs)) != background)

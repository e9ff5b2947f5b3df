"""Metrics of semantic segmentation: IoU, Dice, precision and recall, and surface distances."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.prediction import LabelMaps, PositionProbabilities, Prediction
from plusx.errors import UserError
from plusx.metrics.classification import SMALLEST, labels_of, ratios
from plusx.metrics.meter import Meter


IGNORE_INDEX = 255


class SegmentationMeter(Meter):
    """Metrics of the classes of positions; targets are uint8 (n, *s), where 255 is ignored.

    `compute` returns, over all evaluated positions together,

    count: images; positions: evaluated positions;
    loss: the mean negative log-likelihood, in nats, of each image, averaged over images; None for
        predictions without probabilities;
    pixel_accuracy: the fraction of positions that are right;
    mean_iou: intersection over union (the Jaccard index), the mean over the classes that occur
        among targets or predictions;
    dice: 2 |A n B| / (|A| + |B|) (Dice 1945), equal to F1, the mean over these classes without
        `background`;
    image_dice: the Dice of each image, the mean over images and these classes, for classes that
        occur in the targets or the prediction of the image, or None;
    precision, recall: the means over these classes (scikit-learn's "macro"); recall is what SegNet
        and its successors call class average accuracy;
    per_class: label, iou, dice, precision, recall, and the fraction and number of positions of each
        class; metrics of a class that occurs in neither are None;
    confusion: k rows, one per true class, of k counts, one per predicted class.

    background: the index of the class that `dice` and `image_dice` exclude.
    """

    def __init__(
        self, class_names: Sequence[str] | None = None, background: int | None = None
    ) -> None:
        super().__init__()
        self.class_names = class_names
        self.background = background

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        targets = batch.known_targets
        if isinstance(prediction, LabelMaps):
            k = len(self.class_names or ())
            pairs = zip(prediction.labels, _check_targets(targets, tuple(prediction.labels.shape)))
            counts = [_confusion(labels, target, k) for labels, target in pairs]
            return {"losses": np.full(len(counts), np.nan), "confusions": np.stack(counts)}
        assert isinstance(prediction, PositionProbabilities)
        probabilities = prediction.probabilities.detach()
        shape = (len(probabilities), *probabilities.shape[2:])
        images = [_image(p, t) for p, t in zip(probabilities, _check_targets(targets, shape))]
        return {
            "losses": np.array([loss for loss, _ in images]),
            "confusions": np.stack([confusion for _, confusion in images]),
        }

    def compute(self) -> dict[str, Any]:
        self.require_records()
        images = np.concatenate([record["confusions"] for record in self.records])
        losses = np.concatenate([record["losses"] for record in self.records])
        confusion = images.sum(0)
        if not confusion.sum():
            raise UserError("there are no predictions to evaluate: no position has a class")
        values, occurs = _ratios(confusion)
        foreground = self._without_background(occurs)
        finite = ~np.isnan(losses)
        metrics: dict[str, Any] = {
            "count": len(images),
            "positions": int(confusion.sum()),
            "loss": float(losses[finite].mean()) if finite.any() else None,
            "pixel_accuracy": float(confusion.trace() / confusion.sum()),
            "mean_iou": float(values["iou"][occurs].mean()),
            "dice": float(values["f1"][foreground].mean()) if foreground.any() else None,
            "image_dice": self._image_dice(images),
            "precision": float(values["precision"][occurs].mean()),
            "recall": float(values["recall"][occurs].mean()),
        }
        names = labels_of(self.class_names, len(confusion))
        actual = confusion.sum(1)
        keys = {"iou": "iou", "dice": "f1", "precision": "precision", "recall": "recall"}
        metrics["per_class"] = [
            {
                "label": name,
                **{
                    key: float(values[ratio][index]) if occurs[index] else None
                    for key, ratio in keys.items()
                },
                "fraction": float(actual[index] / confusion.sum()),
                "positions": int(actual[index]),
            }
            for index, name in enumerate(names)
        ]
        metrics["confusion"] = confusion.tolist()
        return metrics

    def _without_background(self, occurs: Bool[np.ndarray, "k"]) -> Bool[np.ndarray, "k"]:
        if self.background is None:
            return occurs
        foreground: np.ndarray = occurs & (np.arange(len(occurs)) != self.background)
        return foreground

    def _image_dice(self, images: Int[np.ndarray, "n k k"]) -> float | None:
        values: list[float] = []
        for confusion in images:
            per_class, occurs = _ratios(confusion)
            values += per_class["f1"][self._without_background(occurs)].tolist()
        return float(np.mean(values)) if values else None


class SurfaceDistanceMeter(Meter):
    """The metric hd95, in mm: of each image and class, averaged over both.

    The surface of a mask consists of its voxels with a face neighbour outside the mask or the
    image. Distances are Euclidean, between centres of voxels. HD95 of two masks is the larger of
    two 95th percentiles: of the distances from the surface voxels of one mask to the nearest
    surface voxel of the other, and vice versa (Huttenlocher et al. 1993 for the maximum; as in
    MONAI). Positions of target 255 belong to no mask. A class in neither mask has no distance. A
    class in only one of them has none either; `hd95_missed` counts these pairs of image and class,
    so read both values. Without any distance hd95 is None.

    spacing: mm per position, along each dimension.
    background: the index of the excluded class.
    """

    def __init__(
        self,
        spacing: Sequence[float],
        class_names: Sequence[str] | None = None,
        background: int | None = None,
    ) -> None:
        super().__init__()
        self.spacing = tuple(spacing)
        self.class_names = class_names
        self.background = background

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        if isinstance(prediction, PositionProbabilities):
            k, prediction = prediction.probabilities.shape[1], prediction.labels()
        else:
            k = len(self.class_names or ())
        assert isinstance(prediction, LabelMaps)
        distances: dict[str, list[float]] = {str(number): [] for number in range(k)}
        missed = [0] * k
        for labels, target in zip(prediction.labels.numpy(), batch.known_targets.cpu().numpy()):
            evaluated = target != IGNORE_INDEX
            for number in range(k):
                predicted, actual = (labels == number) & evaluated, target == number
                if number == self.background or not (predicted.any() or actual.any()):
                    continue
                if not (predicted.any() and actual.any()):
                    missed[number] += 1
                    continue
                distances[str(number)].append(hd95(predicted, actual, self.spacing))
        return {"distances": distances, "missed": missed}

    def compute(self) -> dict[str, Any]:
        self.require_records()
        k = len(self.records[0]["missed"])
        names = labels_of(self.class_names, k)
        distances = [
            [value for record in self.records for value in record["distances"][str(number)]]
            for number in range(k)
        ]
        missed = np.sum([record["missed"] for record in self.records], axis=0)
        all_distances = [value for values in distances for value in values]
        return {
            "hd95": float(np.mean(all_distances)) if all_distances else None,
            "hd95_missed": int(missed.sum()),
            "hd95_per_class": [
                {
                    "label": names[number],
                    "hd95": float(np.mean(values)) if values else None,
                    "count": len(values),
                    "missed": int(missed[number]),
                }
                for number, values in enumerate(distances)
                if number != self.background
            ],
        }


def hd95(
    one: Bool[np.ndarray, "*s"], other: Bool[np.ndarray, "*s"], spacing: Sequence[float]
) -> float:
    """Return HD95 of two masks, neither of them empty, in the unit of the spacing."""
    from scipy.ndimage import distance_transform_edt

    surfaces = surface(one), surface(other)
    # the bounding box of both contains every nearest voxel
    window = tuple(
        slice(int(indices.min()), int(indices.max()) + 1)
        for indices in np.nonzero(surfaces[0] | surfaces[1])
    )
    first, second = surfaces[0][window], surfaces[1][window]
    return max(
        float(np.percentile(distance_transform_edt(~target, sampling=spacing)[source], 95))
        for source, target in ((first, second), (second, first))
    )


def surface(mask: Bool[np.ndarray, "*s"]) -> Bool[np.ndarray, "*s"]:
    """Return the voxels of a mask with a face neighbour outside it."""
    from scipy.ndimage import binary_erosion

    edges: np.ndarray = mask & ~binary_erosion(mask)
    return edges


def _check_targets(targets: Tensor, shape: tuple[int, ...]) -> Tensor:
    if targets.dtype != torch.uint8 or tuple(targets.shape) != shape:
        raise UserError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; the predictions need "
            f"classes of positions, uint8 {shape}"
        )
    return targets


def _image(
    probabilities: Float[Tensor, "k *s"], target: UInt8[Tensor, "*s"]
) -> tuple[float, Int[np.ndarray, "k k"]]:
    """Return the mean negative log-likelihood (NaN if everything is ignored) and the confusion
    matrix."""
    k = len(probabilities)
    classes = target.flatten().long()
    evaluated = classes != IGNORE_INDEX
    flat = probabilities.flatten(1)
    if not bool(evaluated.all()):
        classes, flat = classes[evaluated], flat[:, evaluated]
    if not classes.numel():
        return float("nan"), np.zeros((k, k), np.int64)
    _refuse_class(int(classes.max()), k)
    if not bool(flat.isfinite().all()):
        raise FloatingPointError("the predictions of an image are not finite")
    loss = -flat.gather(0, classes[None])[0].cpu().double().clamp(min=SMALLEST).log().mean()
    confusion = torch.bincount(classes * k + flat.argmax(0), minlength=k * k).reshape(k, k)
    return float(loss), confusion.cpu().numpy()


def _confusion(
    labels: UInt8[Tensor, "*s"], target: UInt8[Tensor, "*s"], k: int
) -> Int[np.ndarray, "k k"]:
    counts = np.zeros(k * k, np.int64)
    # slice by slice: int64 copies of a whole volume would need much memory
    for predicted, actual in zip(labels.numpy(), target.cpu().numpy()):
        evaluated = actual != IGNORE_INDEX
        classes = actual[evaluated].astype(np.int64)
        if classes.size:
            _refuse_class(int(classes.max()), k)
        counts += np.bincount(classes * k + predicted[evaluated], minlength=k * k)
    return counts.reshape(k, k)


def _refuse_class(highest: int, k: int) -> None:
    if highest >= k:
        raise UserError(
            f"a position has class {highest}; the predictions are of {k} classes, so 0 to {k - 1} "
            f"are allowed, and {IGNORE_INDEX} for ignored positions"
        )


def _ratios(
    confusion: Int[np.ndarray, "k k"],
) -> tuple[dict[str, Float[np.ndarray, "k"]], Bool[np.ndarray, "k"]]:
    """Return the ratios of each class, and whether it occurs among targets or predictions."""
    hits, actual, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return ratios(hits, predicted, actual), actual + predicted > 0

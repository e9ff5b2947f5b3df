"""Average precision of boxes and of masks, by faster_coco_eval (the extra `detect`)."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from plusx.errors import UserError


SIDE = 28  # of the grid of probabilities that a predicted box carries for its mask
ROW = 6  # left, top, right, bottom, score, class
SIZES = ("small", "medium", "large")
MOST = 100  # boxes of an image that are judged, the surest first

Found = dict[str, Any]


class AveragePrecision:
    """The figures of a detector, as COCO defines them (Lin et al. 2014; cocodataset.org).

    `update` takes predictions (n, d, 6): left, top, right, bottom, score and class, or with the
    probabilities of a mask behind them (n, d, 6 + 28 * 28), and targets (n, m, 7), as `Batch` says,
    with the masks (n, m, h, w) where there are some. Rows of class -1 stand for nothing. Sizes are
    judged in pixels of the stored image, so that small and large are what they are there.
    `compute` gives

    count: images; boxes: how many there are to be found;
    map50, map75, map: the mean over the classes that occur of the average precision at an overlap
        of 0.5, of 0.75, and of its mean over 0.50, 0.55 .. 0.95; what is a crowd is neither to be
        found nor a mistake where it is;
    map_small, map_medium, map_large: map of boxes up to 32 x 32 pixels, up to 96 x 96, and larger;
        None where there is none;
    recall: the share that is found, the mean over classes and the ten overlaps;
    per_class: label, map50, map and boxes (how many) of each class; None where it does not occur;
    mask_map50, mask_map75, mask_map, mask_map_small ..., and in per_class mask_map50 and mask_map:
        the same with the overlap of masks, where predictions and targets have some.

    RuntimeError: the extra is not installed.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        require_coco_eval()
        self.classes = tuple(classes)
        self._images: list[dict[str, int]] = []
        self._right: list[Found] = []
        self._told: list[Found] = []
        self._masks = True

    def update(self, predictions: Tensor, targets: Tensor, masks: Tensor | None = None) -> None:
        if targets.ndim != 3 or targets.shape[-1] != 7:
            raise UserError(
                f"targets are of shape {tuple(targets.shape)}; figures of a detector need boxes, "
                "float (n, m, 7)"
            )
        told, right = predictions.detach().cpu().float(), targets.detach().cpu().float()
        if not bool(told.isfinite().all()):
            raise FloatingPointError("predicted boxes are not finite")
        for rows, place, whose in ((right, 4, "a target"), (told, 5, "a prediction")):
            if rows.shape[1] and int(rows[..., place].max()) >= len(self.classes):
                raise UserError(
                    f"{whose} is class {int(rows[..., place].max())}; there are "
                    f"{len(self.classes)}, so 0 to {len(self.classes) - 1} are allowed"
                )
        grids = told.shape[-1] > ROW
        self._masks = self._masks and grids and masks is not None
        for number in range(len(right)):
            mask = masks[number].cpu() if grids and masks is not None else None
            self._add(told[number], right[number], mask)

    def _add(self, told: Tensor, right: Tensor, masks: Tensor | None) -> None:
        """One image: rows (d, 6 ...) that were told and (m, 7) that are right."""
        image, scale = len(self._images) + 1, max(float(right[0, 6]), 1e-6)
        there = right[:, 4] >= 0
        rows = right[there]
        high, wide = (1, 1) if masks is None else masks.shape[-2:]
        self._images.append({"id": image, "height": int(high), "width": int(wide)})
        made = _found(image, rows[:, :4] / scale, rows[:, 4])
        for each, crowd in zip(made, rows[:, 5].tolist()):
            each["iscrowd"] = int(crowd > 0.5)
        if masks is not None:
            _add_masks(made, iter(masks[there]), scale)
        self._right += made
        # Of equal scores the first comes first, so that figures do not hang on a sort's habits.
        rows = told[told[:, 5] >= 0]
        rows = rows[rows[:, 4].argsort(descending=True, stable=True)[:MOST]]
        made = _found(image, rows[:, :4] / scale, rows[:, 5])
        for each, score in zip(made, rows[:, 4].tolist()):
            each |= {"score": score, "iscrowd": 0}
        if masks is not None:
            _add_masks(made, (pasted(row, int(high), int(wide)) for row in rows), scale)
        self._told += made

    def compute(self) -> dict[str, Any]:
        if not self._images:
            raise UserError("there are no predictions to judge: not one batch was seen")
        to_find = [each["category_id"] for each in self._right if not each["iscrowd"]]
        counts = np.bincount(np.array(to_find, np.int64), minlength=len(self.classes) + 1)[1:]
        figures: dict[str, Any] = {"count": len(self._images), "boxes": len(to_find)}
        rows: list[dict[str, Any]] = [{"label": label} for label in self.classes]
        for kind, prefix in (("bbox", ""), ("segm", "mask_")):
            if kind == "segm" and not self._masks:
                continue
            precision, recall = self._judged(kind)
            figures |= _summary(precision, prefix)
            if not prefix:
                figures["recall"] = _mean(recall[:, :, 0])
            for number, row in enumerate(rows):
                row[f"{prefix}map50"] = _mean(precision[0, :, number, 0])
                row[f"{prefix}map"] = _mean(precision[:, :, number, 0])
        figures["per_class"] = [row | {"boxes": n} for row, n in zip(rows, counts.tolist())]
        return figures

    def _judged(self, kind: str) -> tuple[Float[np.ndarray, "t r k a"], Float[np.ndarray, "t k a"]]:
        """Precision by overlap, recall, class and size, and the recall reached; -1 for nothing."""
        from faster_coco_eval import COCO, COCOeval_faster

        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes, 1)]
        areas = {"bbox": "area", "segm": "mask_area"}

        def of(found: list[Found]) -> Any:
            kept = [{**each, "id": i, "area": each[areas[kind]]} for i, each in enumerate(found, 1)]
            images = [dict(image) for image in self._images]
            return COCO({"images": images, "annotations": kept, "categories": categories})

        judge = COCOeval_faster(
            of(self._right), of(self._told), kind, print_function=_silent, rle_iou_max_workers=1
        )
        judge.params.maxDets = [MOST]
        judge.evaluate()
        judge.accumulate()
        precision = np.asarray(judge.eval["precision"], np.float64)[..., 0]
        return precision, np.asarray(judge.eval["recall"], np.float64)[..., 0]


def require_coco_eval() -> None:
    """RuntimeError that names the extra, where faster_coco_eval is not installed."""
    if find_spec("faster_coco_eval") is None:
        raise RuntimeError("average precision needs the extra: pip install 'plusx[detect]'")


def pasted(row: Float[Tensor, "_"], height: int, width: int) -> UInt8[Tensor, "h w"]:
    """The mask (height, width) of a predicted row (6 + 28 * 28), 1 from 0.5 on."""
    whole = torch.zeros(height, width, dtype=torch.uint8)
    top, left, part = pasted_window(row, height, width)
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    return whole


def pasted_window(
    row: Float[Tensor, "_"], height: int, width: int
) -> tuple[int, int, UInt8[Tensor, "y x"]]:
    """The same, cut to the window that the box touches: its top, its left, and what is in it.

    A box's grid of probabilities is scaled to the box, as torchvision pastes it (He et al. 2017,
    section 3.1: "resized to the RoI size, and binarized at a threshold of 0.5").
    """
    from torchvision.models.detection.roi_heads import (
        expand_boxes,
        expand_masks,
        paste_mask_in_image,
    )

    grid, ratio = expand_masks(row[ROW:].reshape(1, 1, SIDE, SIDE), 1)
    box = expand_boxes(row[None, :4], ratio)[0].to(torch.int64)
    left, top = (min(max(int(box[i]), 0), side) for i, side in ((0, width), (1, height)))
    right, bottom = (min(int(box[i]) + 1, side) for i, side in ((2, width), (3, height)))
    size = max(bottom - top, 0), max(right - left, 0)
    if not all(size):
        return top, left, torch.zeros(size, dtype=torch.uint8)
    inside: Tensor = paste_mask_in_image(grid[0, 0], box - box.new_tensor([left, top] * 2), *size)
    return top, left, (inside >= 0.5).to(torch.uint8)


def _found(image: int, boxes: Tensor, classes: Tensor) -> list[Found]:
    """Boxes (m, 4) as COCO writes them: classes and numbers are counted from 1."""
    corners = boxes.double()
    sides = (corners[:, 2:] - corners[:, :2]).clamp(min=0)
    return [
        {
            "image_id": image,
            "category_id": int(category) + 1,
            "bbox": [*corner[:2], *side],
            "area": side[0] * side[1],
        }
        for corner, side, category in zip(corners.tolist(), sides.tolist(), classes.tolist())
    ]


def _add_masks(found: list[Found], masks: Iterator[Tensor], scale: float) -> None:
    """A mask (h, w) for each that was found, one after the other: all together may be large."""
    from faster_coco_eval.core import mask

    for each, one in zip(found, masks, strict=True):
        each["segmentation"] = mask.encode(np.asfortranarray(one.numpy()[:, :, None]))[0]
        each["mask_area"] = float(one.sum(dtype=torch.int64)) / scale**2


def _summary(precision: Float[np.ndarray, "t r k a"], prefix: str) -> dict[str, float | None]:
    whole = precision[..., 0]
    figures = {
        "map50": _mean(whole[0]),
        "map75": _mean(whole[5]),
        "map": _mean(whole),
        **{f"map_{size}": _mean(precision[..., i]) for i, size in enumerate(SIZES, 1)},
    }
    return {f"{prefix}{name}": figure for name, figure in figures.items()}


def _mean(values: Float[np.ndarray, "..."]) -> float | None:
    """The mean over what occurs; None where nothing does."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def _silent(*words: object) -> None:
    """In the place of printing."""

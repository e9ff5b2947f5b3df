"""Average precision of boxes and of instance masks, by faster_coco_eval (the extra `detect`)."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.prediction import Detections, Prediction, pasted_mask, stored_boxes
from plusx.errors import UserError
from plusx.metrics.meter import Meter


SIZES = ("small", "medium", "large")
MAX_DETECTIONS = 100  # boxes of an image that are evaluated, the best first

Annotation = dict[str, Any]


class DetectionMeter(Meter):
    """The metrics of a detector, as COCO defines them (Lin et al. 2014; cocodataset.org).

    Targets are boxes (n, m, 6), as `Batch` says, with instance masks where there are some. Boxes
    are compared in pixels of the stored image, cut to it: what `Detections.to_stored` gives, and
    what plusx predict writes. `compute` gives

    count: images; boxes: how many there are to be detected;
    map50, map75, map: the mean over the classes that occur of the average precision at an IoU of
        0.5, of 0.75, and of its mean over 0.50, 0.55 .. 0.95; crowds are neither to be detected nor
        a mistake where they are;
    map_small, map_medium, map_large: map of boxes up to 32 x 32 pixels, up to 96 x 96, and larger;
        None where there is none;
    recall: the fraction that is detected, the mean over classes and the ten thresholds of IoU;
    per_class: label, map50, map and boxes (how many) of each class; None where it does not occur;
    mask_map50, mask_map75, mask_map, mask_map_small ..., and in per_class mask_map50 and mask_map:
        the same with the IoU of masks, where predictions and targets have some.

    RuntimeError: the extra is not installed.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        require_coco_eval()
        self.class_names = tuple(class_names)

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        assert isinstance(prediction, Detections)
        targets = batch.known_targets.detach().cpu().float()
        if targets.ndim != 3 or targets.shape[-1] != 6:
            raise UserError(
                f"targets are of shape {tuple(targets.shape)}; metrics of a detector need boxes, "
                "float (n, m, 6)"
            )
        detections = prediction.map(lambda tensor: tensor.detach().cpu())
        if not bool(detections.boxes.isfinite().all() and detections.scores.isfinite().all()):
            raise FloatingPointError("predicted boxes are not finite")
        for labels, whose in ((targets[..., 4], "a target"), (detections.labels, "a prediction")):
            if labels.numel() and int(labels.max()) >= len(self.class_names):
                raise UserError(
                    f"{whose} is class {int(labels.max())}; there are {len(self.class_names)}, so "
                    f"0 to {len(self.class_names) - 1} are allowed"
                )
        masks = batch.extras.get("masks")
        images = [
            self._image(detections, targets[i], batch, i, None if masks is None else masks[i].cpu())
            for i in range(len(targets))
        ]
        return {"images": images, "has_masks": detections.grids is not None and masks is not None}

    def _image(
        self, detections: Detections, targets: Tensor, batch: Batch, index: int, masks: Any
    ) -> dict[str, Any]:
        """The annotations and the detections of one image, as COCO writes them."""
        height, width = (int(side) for side in batch.inputs.shape[-2:])
        scale, stored, content = 1.0, (height, width), (height, width)
        if "stored_size" in batch.extras:
            scale = float(batch.extras["scale"][index])
            stored = tuple(batch.extras["stored_size"][index].tolist())
            content = tuple(batch.extras["content_size"][index].tolist())
        boxes, present = stored_boxes(targets[:, :4], targets[:, 4].long(), scale, stored)
        annotations = _annotations(boxes, targets[present, 4])
        for annotation, crowd in zip(annotations, targets[present, 5].tolist()):
            annotation["iscrowd"] = int(crowd > 0.5)
        labels, scores = detections.labels[index], detections.scores[index]
        # of equal scores the first comes first, so that metrics do not depend on a sort's habits
        order = scores.argsort(descending=True, stable=True)
        boxes, indices = stored_boxes(detections.boxes[index][order], labels[order], scale, stored)
        boxes, present_detections = boxes[:MAX_DETECTIONS], order[indices][:MAX_DETECTIONS]
        predicted = _annotations(boxes, labels[present_detections])
        for annotation, score in zip(predicted, scores[present_detections].tolist()):
            annotation |= {"score": score, "iscrowd": 0}
        if masks is not None and detections.grids is not None:
            for annotation, number in zip(annotations, present.tolist()):
                _add_mask(annotation, masks[number, : content[0], : content[1]], scale)
            for annotation, number in zip(predicted, present_detections.tolist()):
                plane = torch.zeros(content, dtype=torch.uint8)
                box = detections.boxes[index, number]
                top, left, part = pasted_mask(box, detections.grids[index, number], content)
                plane[top : top + part.shape[0], left : left + part.shape[1]] = part
                _add_mask(annotation, plane, scale)
        return {"size": list(content), "annotations": annotations, "predicted": predicted}

    def compute(self) -> dict[str, Any]:
        self.refuse_none()
        images = [image for record in self.records for image in record["images"]]
        to_detect = [a["category_id"] for i in images for a in i["annotations"] if not a["iscrowd"]]
        counts = np.bincount(np.array(to_detect, np.int64), minlength=len(self.class_names) + 1)
        metrics: dict[str, Any] = {"count": len(images), "boxes": len(to_detect)}
        rows: list[dict[str, Any]] = [{"label": label} for label in self.class_names]
        has_masks = all(record["has_masks"] for record in self.records)
        for kind, prefix in (("bbox", ""), ("segm", "mask_")) if has_masks else (("bbox", ""),):
            precision, recall = self._evaluated(images, kind)
            metrics |= _summary(precision, prefix)
            if not prefix:
                metrics["recall"] = _mean(recall[:, :, 0])
            for number, row in enumerate(rows):
                row[f"{prefix}map50"] = _mean(precision[0, :, number, 0])
                row[f"{prefix}map"] = _mean(precision[:, :, number, 0])
        metrics["per_class"] = [row | {"boxes": n} for row, n in zip(rows, counts[1:].tolist())]
        return metrics

    def _evaluated(
        self, images: list[dict[str, Any]], kind: str
    ) -> tuple[Float[np.ndarray, "t r k a"], Float[np.ndarray, "t k a"]]:
        """Precision by IoU, recall, class and size, and the recall reached; -1 for nothing."""
        from faster_coco_eval import COCO, COCOeval_faster

        categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names, 1)]
        area = {"bbox": "area", "segm": "mask_area"}[kind]

        def coco(which: str) -> Any:
            annotations = [
                {**annotation, "image_id": image_id, "area": annotation[area]}
                for image_id, image in enumerate(images, 1)
                for annotation in image[which]
            ]
            for number, annotation in enumerate(annotations, 1):
                annotation["id"] = number
                if kind == "segm":
                    rle = annotation["segmentation"]
                    annotation["segmentation"] = {**rle, "counts": rle["counts"].encode()}
            sizes = [
                {"id": image_id, "height": image["size"][0], "width": image["size"][1]}
                for image_id, image in enumerate(images, 1)
            ]
            return COCO({"images": sizes, "annotations": annotations, "categories": categories})

        evaluation = COCOeval_faster(
            coco("annotations"),
            coco("predicted"),
            kind,
            print_function=_silent,
            rle_iou_max_workers=1,
        )
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"], np.float64)[..., 0]
        return precision, np.asarray(evaluation.eval["recall"], np.float64)[..., 0]


def require_coco_eval() -> None:
    """RuntimeError that names the extra, where faster_coco_eval is not installed."""
    if find_spec("faster_coco_eval") is None:
        raise RuntimeError("average precision needs the extra: pip install 'plusx[detect]'")


def _annotations(boxes: Tensor, labels: Tensor) -> list[Annotation]:
    """Boxes (m, 4) as COCO writes them: x, y, width, height; classes are counted from 1."""
    corners = boxes.double()
    sides = corners[:, 2:] - corners[:, :2]
    return [
        {"category_id": int(label) + 1, "bbox": [*corner[:2], *side], "area": side[0] * side[1]}
        for corner, side, label in zip(corners.tolist(), sides.tolist(), labels.tolist())
    ]


def _add_mask(annotation: Annotation, plane: Tensor, scale: float) -> None:
    from faster_coco_eval.core import mask

    rle = mask.encode(np.asfortranarray(plane.numpy()[:, :, None]))[0]
    annotation["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    annotation["mask_area"] = float(plane.sum(dtype=torch.int64)) / scale**2


def _summary(precision: Float[np.ndarray, "t r k a"], prefix: str) -> dict[str, float | None]:
    whole = precision[..., 0]
    metrics = {
        "map50": _mean(whole[0]),
        "map75": _mean(whole[5]),
        "map": _mean(whole),
        **{f"map_{size}": _mean(precision[..., i]) for i, size in enumerate(SIZES, 1)},
    }
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def _mean(values: Float[np.ndarray, "..."]) -> float | None:
    """The mean over what occurs; None where nothing does."""
    present = values[values > -1]
    return float(present.mean()) if present.size else None


def _silent(*words: object) -> None:
    """In the place of printing."""

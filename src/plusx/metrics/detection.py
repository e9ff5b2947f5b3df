"""Average precision of boxes and of instance masks, computed by faster_coco_eval (the extra
`detect`)."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.prediction import Detections, Prediction, pasted_mask, stored_boxes
from plusx.errors import MissingLibrary, UserError
from plusx.metrics.meter import Meter


SIZES = ("small", "medium", "large")
MAX_DETECTIONS = 100  # evaluated boxes per image, those of the highest scores

Annotation = dict[str, Any]


class DetectionMeter(Meter):
    """Metrics of detection, as COCO defines them (Lin et al. 2014; cocodataset.org).

    Targets are boxes (n, m, 6) as in `Batch`, with instance masks if there are any. Boxes are
    compared in pixels of the stored image and clipped to it, as `Detections.to_stored` returns and
    plusx predict writes them. `compute` returns

    count: images; boxes: annotated boxes without crowds;
    map50, map75, map: the mean over the classes that occur of the average precision at an IoU of
        0.5, of 0.75, and of its mean over 0.50, 0.55 .. 0.95; crowds count neither as objects nor
        as false positives;
    map_small, map_medium, map_large: map of boxes up to 32 x 32 pixels, up to 96 x 96, and larger,
        or None;
    recall: the detected fraction, the mean over classes and the ten IoU thresholds;
    per_class: label, map50, map and boxes (their number) of each class; None if it does not occur;
    mask_map50, mask_map75, mask_map, mask_map_small ..., and in per_class mask_map50 and mask_map:
        the same with the IoU of masks, if predictions and targets have masks.

    Raises RuntimeError if the extra is not installed.
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
        for labels, kind in ((targets[..., 4], "a target"), (detections.labels, "a prediction")):
            if labels.numel() and int(labels.max()) >= len(self.class_names):
                raise UserError(
                    f"{kind} is class {int(labels.max())}; there are {len(self.class_names)}, so "
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
        """Return the annotations and the detections of one image in COCO's format."""
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
        # a stable sort, so that metrics do not depend on the order of equal scores
        order = scores.argsort(descending=True, stable=True)
        boxes, indices = stored_boxes(detections.boxes[index][order], labels[order], scale, stored)
        boxes, present_detections = boxes[:MAX_DETECTIONS], order[indices][:MAX_DETECTIONS]
        predicted = _annotations(boxes, labels[present_detections])
        for annotation, score in zip(predicted, scores[present_detections].tolist()):
            annotation |= {"score": score, "iscrowd": 0}
        if masks is not None and detections.grids is not None:
            for annotation, row in zip(annotations, present.tolist()):
                _add_mask(annotation, masks[row, : content[0], : content[1]], scale)
            for annotation, row in zip(predicted, present_detections.tolist()):
                mask = torch.zeros(content, dtype=torch.uint8)
                box = detections.boxes[index, row]
                top, left, crop = pasted_mask(box, detections.grids[index, row], content)
                mask[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
                _add_mask(annotation, mask, scale)
        return {"size": list(content), "annotations": annotations, "predicted": predicted}

    def compute(self) -> dict[str, Any]:
        self.require_records()
        images = [image for record in self.records for image in record["images"]]
        to_detect = [a["category_id"] for i in images for a in i["annotations"] if not a["iscrowd"]]
        counts = np.bincount(np.array(to_detect, np.int64), minlength=len(self.class_names) + 1)
        metrics: dict[str, Any] = {"count": len(images), "boxes": len(to_detect)}
        rows: list[dict[str, Any]] = [{"label": label} for label in self.class_names]
        has_masks = all(record["has_masks"] for record in self.records)
        for kind, prefix in (("bbox", ""), ("segm", "mask_")) if has_masks else (("bbox", ""),):
            precision, recall = self._evaluate(images, kind)
            metrics |= _summary(precision, prefix)
            if not prefix:
                metrics["recall"] = _mean(recall[:, :, 0])
            for number, row in enumerate(rows):
                row[f"{prefix}map50"] = _mean(precision[0, :, number, 0])
                row[f"{prefix}map"] = _mean(precision[:, :, number, 0])
        metrics["per_class"] = [row | {"boxes": n} for row, n in zip(rows, counts[1:].tolist())]
        return metrics

    def _evaluate(
        self, images: list[dict[str, Any]], kind: str
    ) -> tuple[Float[np.ndarray, "t r k a"], Float[np.ndarray, "t k a"]]:
        """Return precision by IoU, recall, class and size, and the recall reached; -1 if
        undefined."""
        from faster_coco_eval import COCO, COCOeval_faster

        categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names, 1)]
        area = {"bbox": "area", "segm": "mask_area"}[kind]

        def coco(key: str) -> Any:
            annotations = [
                {**annotation, "image_id": image_id, "area": annotation[area]}
                for image_id, image in enumerate(images, 1)
                for annotation in image[key]
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
    """Raise MissingLibrary if faster_coco_eval is not installed."""
    if find_spec("faster_coco_eval") is None:
        raise MissingLibrary("average precision needs faster-coco-eval", "detect")


def _annotations(boxes: Tensor, labels: Tensor) -> list[Annotation]:
    """Return boxes (m, 4) in COCO's format: x, y, width, height; class ids start at 1."""
    corners = boxes.double()
    sides = corners[:, 2:] - corners[:, :2]
    return [
        {"category_id": int(label) + 1, "bbox": [*corner[:2], *side], "area": side[0] * side[1]}
        for corner, side, label in zip(corners.tolist(), sides.tolist(), labels.tolist())
    ]


def _add_mask(annotation: Annotation, pixels: Tensor, scale: float) -> None:
    from faster_coco_eval.core import mask

    rle = mask.encode(np.asfortranarray(pixels.numpy()[:, :, None]))[0]
    annotation["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    annotation["mask_area"] = float(pixels.sum(dtype=torch.int64)) / scale**2


def _summary(precision: Float[np.ndarray, "t r k a"], prefix: str) -> dict[str, float | None]:
    all_sizes = precision[..., 0]
    metrics = {
        "map50": _mean(all_sizes[0]),
        "map75": _mean(all_sizes[5]),
        "map": _mean(all_sizes),
        **{f"map_{size}": _mean(precision[..., i]) for i, size in enumerate(SIZES, 1)},
    }
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def _mean(values: Float[np.ndarray, "..."]) -> float | None:
    """Return the mean over defined values, or None."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _silent(*words: object) -> None:
    """Print nothing."""

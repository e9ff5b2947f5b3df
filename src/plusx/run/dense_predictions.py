"""Predictions of masks and boxes for images: rows, COCO JSON and overlays."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from plusx import store
from plusx.data.annotations import Boxes, Masks
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.data.image_file import printable
from plusx.data.instance_mask import packed_run_lengths
from plusx.data.prediction import Detections, LabelMaps, Prediction
from plusx.data.readers.verdicts import is_checked
from plusx.data.sets.download import located
from plusx.metrics.segmentation import IGNORE_INDEX
from plusx.report.predictions import MIN_SCORE
from plusx.run import build, drawing
from plusx.run.evaluation import home_of
from plusx.run.file_names import DATA
from plusx.run.folder import Run
from plusx.run.prediction_writer import PredictionWriter
from plusx.run.predictor import Predicted, Predictor
from plusx.run.sources import Failed, Source


class GroundTruth:
    """The annotations of data sets, by the paths (or names) of their images."""

    def __init__(self, sources: Sequence[Dataset]) -> None:
        self.images: dict[str, tuple[Dataset, int]] = {}
        for source in sources:
            for index in range(len(source)):
                self.images[_resolved(name_of(source, index))] = source, index

    def is_test(self, path: str) -> bool:
        """Whether this is an image of a test set."""
        source, _ = self.images.get(_resolved(path), (None, 0))
        return source is not None and source.split == "test"

    def image_id(self, path: str) -> int | str | None:
        """Return the id of an image in its COCO JSON, or None."""
        source, index = self.images.get(_resolved(path), (None, 0))
        boxes = None if source is None else source.annotations
        ids = boxes.image_ids if isinstance(boxes, Boxes) else None
        return None if ids is None else ids[index]

    def of(self, path: str, size: tuple[int, int]) -> Prediction | None:
        """Return the annotations of an image of `size` (height, width) as a prediction, or None."""
        if (entry := self.images.get(_resolved(path))) is None:
            return None
        source, index = entry
        target = source.annotations
        if isinstance(target, Masks):
            labels = target.mask(index)
            return LabelMaps(torch.from_numpy(labels)[None]) if labels.shape == size else None
        if not isinstance(target, Boxes):
            return None
        rows = torch.from_numpy(target.rows[index])
        return Detections(
            boxes=rows[None, :, :4],
            scores=torch.ones(1, len(rows)),
            labels=rows[None, :, 4].long(),
            masks=None if target.masks is None else (tuple(target.masks[index]),),
            image_size=size,
        )


def name_of(source: Dataset, index: int) -> str:
    """Return the path of an image, or its name if it has no file."""
    return source.describe(index) if source.paths is None else source.paths[index]


def _resolved(path: str) -> str:
    return str(Path(path).resolve())


def own_sources(run: Run, files: Sequence[str]) -> list[Dataset]:
    """Open the splits of the run's own data if any of the files is in its folder."""
    path = None if run.recipe is None else getattr(run.recipe.data, "path", None)
    if run.recipe is None or path is None:
        return []
    root = located(path).resolve()
    root = root if root.is_dir() else root.parent
    if not any(Path(path).resolve().is_relative_to(root) for path in files):
        return []
    if not is_checked(root):  # a recipe from elsewhere may name any folder of this machine
        return []
    sources = []
    for split in ("train", "validation", "test"):
        try:
            sources.append(build.open_split(run.recipe, split))
        except (ValueError, OSError):  # predictions need no annotations
            continue
    return [source for source in sources if source.classes == run.classes]


def predict_dense(
    predictor: Predictor,
    sources: Sequence[Source],
    ground_truth: GroundTruth,
    failed: Failed,
    *,
    out: str | Path | None,
    batch_size: int,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return predictions for images; write overlays if `out` is a folder.

    `predictions` has a row for each image: path, size, and for masks class_fractions and label (the
    class of the largest fraction), for boxes [{label, score, box, ...}], best first. An image of a
    COCO JSON has its `image_id`. An annotated image has `ground_truth`: the boxes, or the metrics
    of the mask. If annotated images are of a test set, its use is recorded before the first of
    their annotations is opened. With `out`, a row has the paths `mask`, `overlay` and
    `side_by_side` in that folder, and predictions.html and, for boxes, coco.json and
    coco-results.json are written.
    """
    run = predictor.run
    writer = PredictionWriter(run, out)
    for predicted in predictor.predictions(sources, failed, batch_size=batch_size, names=names):
        height, width = predicted.stored.size
        if writer.test_uses is None and ground_truth.is_test(predicted.name):
            num_test = sum(ground_truth.is_test(str(source)) for source in sources)
            writer.record_test_use(run.path, num_test)
        target = ground_truth.of(predicted.name, (height, width))
        row: dict[str, Any] = {
            "path": printable(predicted.name),
            "size": [height, width],
            **predicted.prediction.rows(run.classes)[0],
        }
        if (image_id := ground_truth.image_id(predicted.name)) is not None:
            row["image_id"] = image_id
        if target is not None:
            row["ground_truth"] = COMPARED[type(target)](run, predicted.prediction, target)
        if out is not None:
            _draw(writer, row, predicted, target)
        writer.rows.append(row)
    result = writer.result()
    if out is not None and writer.rows and "boxes" in writer.rows[0]:
        content = coco(result, category_ids(run))
        store.write_json(Path(out) / "coco.json", content)
        store.write_json(Path(out) / "coco-results.json", coco_results(content))
    return result


def category_ids(run: Run) -> Sequence[int | str]:
    """Return the category ids of the COCO JSON that the run was trained on; default 1, 2, ..."""
    home = home_of(run)
    ids = [] if home is None else store.read_json(home / DATA).get("category_ids", [])
    return ids if len(ids) == len(run.classes) else range(1, len(run.classes) + 1)


def coco(result: Mapping[str, Any], category_ids: Sequence[int | str]) -> dict[str, Any]:
    """Return predicted boxes in COCO's format, with a score in each annotation."""
    id_of_class = dict(zip(result["classes"], category_ids, strict=True))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rows = result["predictions"]
    ids = [row["image_id"] for row in rows if isinstance(row.get("image_id"), int)]
    unused_ids = count(max(ids, default=0) + 1)
    for row in rows:
        image_id = row["image_id"] if "image_id" in row else next(unused_ids)
        height, width = row["size"]
        images.append({"id": image_id, "file_name": row["path"], "width": width, "height": height})
        for detection in row["boxes"]:
            left, top, right, bottom = detection["box"]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": id_of_class[detection["label"]],
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
                "score": detection["score"],
            }
            if "segmentation" in detection:
                annotation["segmentation"] = detection["segmentation"]
            annotations.append(annotation)
    categories = [{"id": category_id, "name": name} for name, category_id in id_of_class.items()]
    return {"images": images, "categories": categories, "annotations": annotations}


def coco_results(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the annotations of `coco` in the results format that COCO's evaluation reads."""
    results = []
    for annotation in content["annotations"]:
        row = {key: annotation[key] for key in ("image_id", "category_id", "bbox", "score")}
        if "segmentation" in annotation:
            mask = annotation["segmentation"]
            row["segmentation"] = {**mask, "counts": packed_run_lengths(mask["counts"])}
        results.append(row)
    return results


def _target_boxes(run: Run, prediction: Prediction, target: Prediction) -> dict[str, Any]:
    boxes = target.rows(run.classes)[0]["boxes"]
    return {"boxes": [{k: v for k, v in box.items() if k != "score"} for box in boxes]}


def _mask_metrics(run: Run, prediction: Prediction, target: Prediction) -> dict[str, Any]:
    """Return the metrics of one image; {} if all of it is ignored."""
    labels = target.tensors()["labels"]
    if bool((labels == IGNORE_INDEX).all()):
        return {}
    (meter,) = run.task.meters()
    meter.update(prediction, Batch(labels, labels))
    metrics = meter.compute()
    return {key: metrics[key] for key in ("mean_iou", "dice", "pixel_accuracy")}


# type of prediction: the function for `ground_truth` of a row
COMPARED: dict[type[Prediction], Callable[[Run, Prediction, Prediction], dict[str, Any]]] = {
    LabelMaps: _mask_metrics,
    Detections: _target_boxes,
}


def _draw(
    writer: PredictionWriter,
    row: dict[str, Any],
    predicted: Predicted,
    target: Prediction | None,
) -> None:
    """Write the overlays of one image, and its mask if it has one."""
    classes, prediction = writer.run.classes, predicted.prediction
    stem = re.sub(r"[^\w-]+", "_", Path(printable(predicted.name)).stem)[:60]
    pixels = drawing.as_rgb(predicted.stored.tensor.permute(1, 2, 0).numpy())
    pixels = drawing.resized(pixels, drawing.shown_size(pixels.shape[:2]))
    overlays = [draw_prediction(classes, pixels, prediction)]
    if target is not None:
        overlays.append(draw_prediction(classes, pixels, target, scores=False))
    mask = None
    if isinstance(prediction, LabelMaps):
        mask = (".png", drawing.mask_png(prediction.labels[0].numpy(), len(classes)))
    writer.draw(row, f"{len(writer.rows) + 1:04}-{stem}", pixels, overlays, mask)


def draw_prediction(
    class_names: Sequence[str],
    pixels: UInt8[np.ndarray, "h w 3"],
    prediction: Prediction,
    scores: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a prediction, or annotations, over an image of any size."""
    size, num_classes = pixels.shape[:2], len(class_names)
    if isinstance(prediction, LabelMaps):
        labels = drawing.resized(prediction.labels[0].numpy(), size)
        return drawing.overlay_mask(pixels, labels, num_classes)
    assert isinstance(prediction, Detections)
    assert prediction.image_size is not None
    height, width = prediction.image_size
    confidence, numbers = prediction.scores[0].numpy(), prediction.labels[0].tolist()
    shown = np.flatnonzero(confidence >= MIN_SCORE)[::-1].tolist()  # the highest scores on top
    if prediction.masks is not None:
        for index in shown:
            plane = np.zeros((height, width), np.uint8)
            prediction.masks[0][index].draw(plane)
            colour = drawing.colours(num_classes)[numbers[index]]
            pixels = drawing.overlay_instance(pixels, drawing.resized(plane, size) > 0, colour)
    captions = [
        class_names[numbers[index]] + (f" {100 * confidence[index]:.0f} %" if scores else "")
        for index in shown
    ]
    y_scale, x_scale = size[0] / height, size[1] / width
    boxes = prediction.boxes[0].numpy()[shown] * (x_scale, y_scale, x_scale, y_scale)
    return drawing.draw_boxes(
        pixels, boxes.tolist(), [numbers[i] for i in shown], captions, num_classes
    )

"""Predictions of masks and boxes for images as rows, COCO JSON and pictures."""

import re
from collections.abc import Callable, Mapping, Sequence
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
from plusx.data.prediction import Detections, LabelMaps, Prediction
from plusx.data.sets.download import located
from plusx.report.predictions import MOST, SHOWN, predictions_page
from plusx.run import drawing, parts
from plusx.run.folder import Run, record_test_use
from plusx.run.predictor import Failed, Predicted, Predictor, Source


FOLDERS = ("masks", "overlays", "side-by-side")


class GroundTruth:
    """The annotations of the images of some data sets, by their paths or, without these, names."""

    def __init__(self, sources: Sequence[Dataset]) -> None:
        self.images: dict[str, tuple[Dataset, int]] = {}
        for source in sources:
            for index in range(len(source)):
                self.images[_resolved(name_of(source, index))] = source, index

    def is_test(self, path: str) -> bool:
        """Whether this is an image of the test set, whose annotations are a use of it."""
        known = self.images.get(_resolved(path))
        return known is not None and known[0].split == "test"

    def of(self, path: str, size: tuple[int, int]) -> Prediction | None:
        """The annotations of an image (height, width) as a prediction; None where unknown."""
        if (known := self.images.get(_resolved(path))) is None:
            return None
        source, index = known
        truth = source.annotations
        if isinstance(truth, Masks):
            labels = truth.mask(index)
            return LabelMaps(torch.from_numpy(labels)[None]) if labels.shape == size else None
        if not isinstance(truth, Boxes):
            return None
        rows = torch.from_numpy(truth.rows[index])
        return Detections(
            boxes=rows[None, :, :4],
            scores=torch.ones(1, len(rows)),
            labels=rows[None, :, 4].long(),
            masks=None if truth.outlines is None else (tuple(truth.outlines[index]),),
            image_size=size,
        )


def name_of(source: Dataset, index: int) -> str:
    """The path of an image, or its name where it lies in no file."""
    return source.describe(index) if source.paths is None else source.paths[index]


def _resolved(path: str) -> str:
    return str(Path(path).resolve())


def own_sources(run: Run, files: Sequence[str]) -> list[Dataset]:
    """The splits of a run's own data, where any of the files can be among them."""
    path = None if run.recipe is None else getattr(run.recipe.data, "path", None)
    if run.recipe is None or path is None:
        return []
    root = located(path).resolve()
    root = root if root.is_dir() else root.parent
    if not any(Path(path).resolve().is_relative_to(root) for path in files):
        return []
    sources = []
    for split in ("train", "validation", "test"):
        try:
            sources.append(parts.open_split(run.recipe, split))
        except (ValueError, OSError):  # images can be looked at all the same
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
    """Predictions for images, and where `out` is a folder their pictures in it.

    Gives `predictions`: path, size, and for masks class_fractions and label (the class of the
    largest fraction), for boxes [{label, score, box, ...}], best first. Where annotations are known
    they stand beside as `ground_truth`: boxes, or the metrics of the mask. A use of the test set is
    recorded before the first annotations of its images are opened, with how many of the images are
    of it. With `out` a row names its `mask`, `overlay` and `side_by_side`, paths in that
    folder, and there are predictions.html and, for boxes, coco.json.
    """
    rows: list[dict[str, Any]] = []
    pictures: list[bytes] = []
    uses = None
    run = predictor.run
    for predicted in predictor.predictions(sources, failed, batch_size=batch_size, names=names):
        height, width = predicted.stored.size
        if uses is None and ground_truth.is_test(predicted.name):
            tested = sum(ground_truth.is_test(str(source)) for source in sources)
            uses = record_look(run.path, tested)
        truth = ground_truth.of(predicted.name, (height, width))
        row: dict[str, Any] = {
            "path": printable(predicted.name),
            "size": [height, width],
            **predicted.prediction.rows(run.classes)[0],
        }
        if truth is not None:
            row["ground_truth"] = COMPARED[type(truth)](run, predicted.prediction, truth)
        if out is not None:
            picture = _draw(Path(out), run, row, predicted, truth, len(rows) + 1)
            pictures += [picture] if len(pictures) < MOST else []
        rows.append(row)
    result: dict[str, Any] = {"classes": list(run.classes), "predictions": rows}
    if uses is not None:
        result["test_uses"] = uses
    if out is not None and rows:
        if "boxes" in rows[0]:
            store.write_json(Path(out) / "coco.json", coco(result))
        page = predictions_page(
            result, pictures, drawing.colours(len(run.classes)), printable(run.path)
        )
        store.write_text(Path(out) / "predictions.html", page)
    return result


def record_look(home: Path, count: int) -> int:
    """Record that predictions are compared with the annotations of so many test images."""
    use = {"data": home.name, "split": "test", "count": count, "by": "predict"}
    return record_test_use(home, use)


def coco(result: Mapping[str, Any]) -> dict[str, Any]:
    """Predicted boxes as COCO has them: x, y, width, height; a score beside each annotation."""
    numbers = {name: place + 1 for place, name in enumerate(result["classes"])}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, row in enumerate(result["predictions"], 1):
        height, width = row["size"]
        images.append({"id": image_id, "file_name": row["path"], "width": width, "height": height})
        for detection in row["boxes"]:
            left, top, right, bottom = detection["box"]
            wide, high = right - left, bottom - top
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": numbers[detection["label"]],
                "bbox": [left, top, wide, high],
                "area": wide * high,
                "iscrowd": 0,
                "score": detection["score"],
            }
            if "segmentation" in detection:
                annotation["segmentation"] = detection["segmentation"]
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "categories": categories, "annotations": annotations}


def _truth_boxes(run: Run, prediction: Prediction, truth: Prediction) -> dict[str, Any]:
    boxes = truth.rows(run.classes)[0]["boxes"]
    return {"boxes": [{k: v for k, v in box.items() if k != "score"} for box in boxes]}


def _mask_metrics(run: Run, prediction: Prediction, truth: Prediction) -> dict[str, Any]:
    """The metrics of one image, where not all of it is ignored."""
    labels = truth.tensors()["labels"]
    if bool((labels == drawing.UNJUDGED).all()):
        return {}
    (meter,) = run.task.meters()
    meter.update(prediction, Batch(labels, labels))
    metrics = meter.compute()
    return {key: metrics[key] for key in ("mean_iou", "dice", "pixel_accuracy")}


# kind of prediction: what of its annotations stands in a row
COMPARED: dict[type[Prediction], Callable[[Run, Prediction, Prediction], dict[str, Any]]] = {
    LabelMaps: _mask_metrics,
    Detections: _truth_boxes,
}


def _draw(
    out: Path,
    run: Run,
    row: dict[str, Any],
    predicted: Predicted,
    truth: Prediction | None,
    number: int,
) -> bytes:
    """Write the pictures of one image and name them in its row; the one for the page."""
    stem = re.sub(r"[^\w-]+", "_", Path(printable(predicted.name)).stem)[:60]
    name = f"{number:04}-{stem}.png"
    prediction = predicted.prediction
    folders = FOLDERS if isinstance(prediction, LabelMaps) else FOLDERS[1:]
    for folder in folders:
        store.make_folder(out / folder)
    pixels = drawing.as_rgb(predicted.stored.tensor.permute(1, 2, 0).numpy())
    shown = drawing.resized(pixels, drawing.shown_size(pixels.shape[:2]))
    overlay = draw_prediction(run.classes, shown, prediction)
    panels = [shown, overlay]
    if truth is not None:
        panels.append(draw_prediction(run.classes, shown, truth, scores=False))
    if isinstance(prediction, LabelMaps):
        row["mask"] = f"masks/{name}"
        mask = drawing.mask_png(prediction.labels[0].numpy(), len(run.classes))
        store.write_bytes(out / row["mask"], mask)
    beside = drawing.png(drawing.abreast(panels))
    row["overlay"], row["side_by_side"] = f"overlays/{name}", f"side-by-side/{name}"
    store.write_bytes(out / row["overlay"], drawing.png(overlay))
    store.write_bytes(out / row["side_by_side"], beside)
    return beside


def draw_prediction(
    class_names: Sequence[str],
    pixels: UInt8[np.ndarray, "h w 3"],
    prediction: Prediction,
    scores: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """A prediction, or annotations, over an image of any size."""
    size, count = pixels.shape[:2], len(class_names)
    if isinstance(prediction, LabelMaps):
        labels = drawing.resized(prediction.labels[0].numpy(), size)
        return drawing.overlaid(pixels, labels, count)
    assert isinstance(prediction, Detections)
    assert prediction.image_size is not None
    height, width = prediction.image_size
    confidence, numbers = prediction.scores[0].numpy(), prediction.labels[0].tolist()
    shown = np.flatnonzero(confidence >= SHOWN)[::-1].tolist()  # the best ones last, on top
    if prediction.masks is not None:
        for index in shown:
            plane = np.zeros((height, width), np.uint8)
            prediction.masks[0][index].draw(plane)
            colour = drawing.colours(count)[numbers[index]]
            pixels = drawing.painted(pixels, drawing.resized(plane, size) > 0, colour)
    captions = [
        class_names[numbers[index]] + (f" {100 * confidence[index]:.0f} %" if scores else "")
        for index in shown
    ]
    down, along = size[0] / height, size[1] / width
    boxes = prediction.boxes[0].numpy()[shown] * (along, down, along, down)
    return drawing.boxed(pixels, boxes.tolist(), [numbers[i] for i in shown], captions, count)

"""What a network told of the places in images: masks and boxes, as rows, JSON and pictures."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num, UInt8
from torch import Tensor
from torch.nn import functional as F

from plusx import store
from plusx.data.download import located
from plusx.data.image import printable
from plusx.data.on_scene import Scene, fitted
from plusx.data.scene_samples import MULTIPLE, blank_outside
from plusx.data.source import Source
from plusx.data.truth import Boxes, Masks
from plusx.recipe.sets import SceneData
from plusx.report.seen import MOST, SHOWN, seen_page
from plusx.run import drawing, parts
from plusx.run.folder import Run, record_test_use
from plusx.tasks.overlap import Overlap
from plusx.tasks.segment import Segment
from plusx.tasks.task import Task
from plusx.train.loop import evaluating


_NO_BOXES = np.zeros((0, 6), np.float32)
FOLDERS = ("masks", "overlays", "side-by-side")


@dataclass(frozen=True, eq=False)
class Answer:
    """What is told of one image, in pixels as it is stored.

    mask: the class of every pixel. boxes: left, top, right, bottom, score and class, and planes
    the masks of what is in them.
    """

    path: str
    image: Num[np.ndarray, "h w c"]
    mask: UInt8[np.ndarray, "h w"] | None = None
    boxes: Float[np.ndarray, "d 6"] | None = None
    planes: UInt8[np.ndarray, "d h w"] | None = None


class Truths:
    """What is known of the images of some sources.

    The truth of test images is a look at the test set: `tested` says how many were asked for.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.tested = 0
        self.places: dict[str, tuple[Source, int]] = {}
        for source in sources:
            for place, path in enumerate(source.paths or []):
                self.places[str(Path(path).resolve())] = source, place

    def of(self, answer: Answer) -> Answer | None:
        """The truth of an image as if it had been told; None where it is not known."""
        if (found := self.places.get(str(Path(answer.path).resolve()))) is None:
            return None
        source, place = found
        truth = source.truth
        self.tested += source.split == "test"
        if isinstance(truth, Masks):
            return replace(answer, mask=truth.mask(place), boxes=None, planes=None)
        if not isinstance(truth, Boxes):
            return None
        rows = truth.rows[place]
        boxes = np.concatenate([rows[:, :4], np.ones((len(rows), 1)), rows[:, 4:5]], axis=1)
        height, width = answer.image.shape[:2]
        planes = None if truth.outlines is None else truth.planes(place, (height, width))
        return replace(answer, mask=None, boxes=boxes.astype(np.float32), planes=planes)


def own_sources(run: Run, files: Sequence[str]) -> list[Source]:
    """The splits of a run's own data, where any of the files can be among them."""
    data = None if run.recipe is None else run.recipe.data
    if run.recipe is None or not isinstance(data, SceneData):
        return []
    root = located(data.path).resolve()
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


def answers(
    run: Run,
    task: Task,
    images: Iterator[tuple[str, Num[Tensor, "c h w"]]],
    batch_size: int,
) -> Iterator[Answer]:
    """What the task tells of images as they are stored, one after the other."""
    waiting: list[tuple[str, Tensor, Scene]] = []
    size: tuple[int, int] | None = None
    with evaluating(task), torch.inference_mode():
        for path, image in images:
            scene = Scene(image, _NO_BOXES)
            if run.sized:
                scene = fitted(scene, run.preprocessing.size)
            wanted = run.preprocessing.size if run.sized else _multiple(scene.size)
            if waiting and (wanted != size or len(waiting) == batch_size):
                yield from _answered(run, task, waiting, size or wanted)
                waiting = []
            size = wanted
            waiting.append((path, image, scene))
        if waiting:
            assert size is not None
            yield from _answered(run, task, waiting, size)


def see(
    run: Run,
    task: Task,
    images: Iterator[tuple[str, Num[Tensor, "c h w"]]],
    truths: Truths,
    *,
    out: str | Path | None,
    batch_size: int,
) -> dict[str, Any]:
    """Predictions for images, and where `out` is a folder their pictures in it.

    Gives `predictions`: of masks path, size, shares (of the classes), label (the class of the
    largest share); of boxes path, size and boxes [{label, score, box, ...}], best first. Where the
    truth is known it stands beside it as `truth`; that of test images is recorded as a use of the
    test set. With `out` a row names its `mask`, `overlay` and
    `side_by_side`, paths in that folder, and there are predictions.html and, of boxes, coco.json.
    """
    rows: list[dict[str, Any]] = []
    pictures: list[bytes] = []
    for answer in answers(run, task, images, batch_size):
        truth = truths.of(answer)
        row = _row(run, answer, truth)
        if out is not None:
            picture = _draw(Path(out), run, row, answer, truth, len(rows) + 1)
            pictures += [picture] if len(pictures) < MOST else []
        rows.append(row)
    result: dict[str, Any] = {"classes": list(run.classes), "predictions": rows}
    if truths.tested:
        use = {"data": run.path.name, "split": "test", "count": truths.tested, "by": "predict"}
        result["test_uses"] = record_test_use(run.path, use)
    if out is not None and rows:
        if answer.boxes is not None:
            store.write_json(Path(out) / "coco.json", coco(result))
        page = seen_page(result, pictures, drawing.colours(len(run.classes)), printable(run.path))
        store.write_text(Path(out) / "predictions.html", page)
    return result


def fitted_image(run: Run, image: Num[Tensor, "c h w"]) -> Num[Tensor, "c y x"]:
    """All of an image at the size that places are told of, what is left over the mean colour."""
    height, width = run.preprocessing.size
    inside = fitted(Scene(image, _NO_BOXES), (height, width)).image
    low, high = run.preprocessing.low, run.preprocessing.high
    mean = low + (high - low) * torch.tensor(run.preprocessing.mean)
    mean = mean if image.is_floating_point() else mean.round()
    made = mean.to(image.dtype)[:, None, None].repeat(1, height, width)
    made[:, : inside.shape[1], : inside.shape[2]] = inside
    return made


def coco(result: Mapping[str, Any]) -> dict[str, Any]:
    """Predicted boxes as COCO has them: x, y, width, height; a score beside each annotation."""
    numbers = {name: place + 1 for place, name in enumerate(result["classes"])}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for place, row in enumerate(result["predictions"], 1):
        height, width = row["size"]
        images.append({"id": place, "file_name": row["path"], "width": width, "height": height})
        for told in row["boxes"]:
            left, top, right, bottom = told["box"]
            wide, high = right - left, bottom - top
            annotation = {
                "id": len(annotations) + 1,
                "image_id": place,
                "category_id": numbers[told["label"]],
                "bbox": [left, top, wide, high],
                "area": wide * high,
                "iscrowd": 0,
                "score": told["score"],
            }
            if "segmentation" in told:
                annotation["segmentation"] = told["segmentation"]
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "categories": categories, "annotations": annotations}


def run_lengths(plane: UInt8[np.ndarray, "h w"]) -> dict[str, Any]:
    """A mask as COCO's uncompressed run lengths: column by column, beginning with zeros."""
    flat = plane.T.ravel() > 0
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = [0, *changes.tolist(), len(flat)]
    counts = [b - a for a, b in pairwise(edges)]
    return {"size": list(plane.shape), "counts": [0, *counts] if flat[0] else counts}


def _multiple(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // MULTIPLE) * MULTIPLE, -(-size[1] // MULTIPLE) * MULTIPLE


def _answered(
    run: Run, task: Task, waiting: Sequence[tuple[str, Tensor, Scene]], size: tuple[int, int]
) -> Iterator[Answer]:
    first = waiting[0][2].image
    images = first.new_zeros((len(waiting), first.shape[0], *size))
    for place, (_, _, scene) in zip(images, waiting):
        place[:, : scene.size[0], : scene.size[1]] = scene.image
    pixels = run.preprocessing.normalise(images)
    extents = torch.tensor([scene.size for _, _, scene in waiting], dtype=torch.int64)
    blank_outside(pixels, extents)
    told = task.predict(pixels.to(task.device)).float().cpu()
    for said, (path, image, scene) in zip(told, waiting, strict=True):
        stored = image.permute(1, 2, 0).numpy()
        answer = Answer(path, stored)
        if isinstance(run.task, Segment):
            yield replace(answer, mask=_mask(said, scene.size, stored.shape[:2]))
        else:
            yield _boxes(answer, said, scene.scale)


def _mask(
    probabilities: Float[Tensor, "k y x"], seen: tuple[int, int], size: Sequence[int]
) -> UInt8[np.ndarray, "h w"]:
    """The class of every pixel as it is stored, from what is told of the image as it was seen."""
    inside = probabilities[None, :, : seen[0], : seen[1]]
    if tuple(inside.shape[2:]) != tuple(size):
        inside = F.interpolate(inside, size=list(size), mode="bilinear", align_corners=False)
    return inside[0].argmax(0).to(torch.uint8).numpy()


def _boxes(answer: Answer, rows: Float[Tensor, "d _"], scale: float) -> Answer:
    rows = rows[rows[:, 5] >= 0]
    rows = rows[rows[:, 4].argsort(descending=True, stable=True)]
    height, width = answer.image.shape[:2]
    boxes = rows[:, :6].clone()
    boxes[:, :4] /= scale
    boxes[:, [0, 2]] = boxes[:, [0, 2]].clamp(0, width)
    boxes[:, [1, 3]] = boxes[:, [1, 3]].clamp(0, height)
    if rows.shape[1] == 6:
        return replace(answer, boxes=boxes.numpy())
    from plusx.tasks.average_precision import pasted

    planes = pasted(torch.cat([boxes, rows[:, 6:]], dim=1), height, width)
    return replace(answer, boxes=boxes.numpy(), planes=planes.numpy())


def _row(run: Run, answer: Answer, truth: Answer | None) -> dict[str, Any]:
    size = list(answer.image.shape[:2])
    row: dict[str, Any] = {"path": printable(answer.path), "size": size}
    if answer.mask is not None:
        counts = np.bincount(answer.mask.ravel(), minlength=len(run.classes))
        shares = (counts / max(1, answer.mask.size)).tolist()
        row["label"] = run.classes[int(counts.argmax())]
        row["shares"] = dict(zip(run.classes, shares, strict=True))
        if truth is not None and truth.mask is not None and truth.mask.shape == answer.mask.shape:
            row["truth"] = _agreement(run, answer.mask, truth.mask)
        return row
    assert answer.boxes is not None
    row["boxes"] = _told(run, answer)
    if truth is not None and truth.boxes is not None:
        row["truth"] = {"boxes": [{k: v for k, v in each.items() if k != "score"}
                                  for each in _told(run, truth)]}  # fmt: skip
    return row


def _told(run: Run, answer: Answer) -> list[dict[str, Any]]:
    assert answer.boxes is not None
    made = []
    for place, row in enumerate(answer.boxes.tolist()):
        each: dict[str, Any] = {
            "label": run.classes[int(row[5])],
            "score": row[4],
            "box": [round(side, 2) for side in row[:4]],
        }
        if answer.planes is not None:
            each["segmentation"] = run_lengths(answer.planes[place])
        made.append(each)
    return made


def _agreement(run: Run, told: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """The figures of one image, where any of it is judged."""
    if (right == drawing.UNJUDGED).all():
        return {}
    task = run.task
    assert isinstance(task, Segment)
    (meter,) = task.meters()
    assert isinstance(meter, Overlap)
    sure = F.one_hot(torch.from_numpy(told).long(), len(run.classes)).permute(2, 0, 1)[None]
    meter.update(sure.float(), torch.from_numpy(right)[None])
    figures = meter.compute()
    return {key: figures[key] for key in ("mean_iou", "dice", "position_accuracy")}


def _draw(
    out: Path, run: Run, row: dict[str, Any], answer: Answer, truth: Answer | None, number: int
) -> bytes:
    """Write the pictures of one image and name them in its row; the one for the page."""
    count = len(run.classes)
    stem = re.sub(r"[^\w-]+", "_", Path(printable(answer.path)).stem)[:60]
    name = f"{number:04}-{stem}.png"
    for folder in FOLDERS:
        if folder != "masks" or answer.mask is not None:
            store.make_folder(out / folder)
    pixels = drawing.as_rgb(answer.image)
    times = drawing.enlargement(pixels.shape[:2])
    large = drawing.enlarged(pixels, times)
    drawn = _drawn(run, large, answer, times)
    panels = [large, drawn]
    if truth is not None and (truth.mask is None or truth.mask.shape == pixels.shape[:2]):
        panels.append(_drawn(run, large, truth, times, right=True))
    if answer.mask is not None:
        row["mask"] = f"masks/{name}"
        store.write_bytes(out / row["mask"], drawing.mask_png(answer.mask, count))
    beside = drawing.png(drawing.abreast(panels))
    row["overlay"], row["side_by_side"] = f"overlays/{name}", f"side-by-side/{name}"
    store.write_bytes(out / row["overlay"], drawing.png(drawn))
    store.write_bytes(out / row["side_by_side"], beside)
    return beside


def _drawn(
    run: Run, pixels: np.ndarray, answer: Answer, times: int, right: bool = False
) -> np.ndarray:
    """An answer, or the truth, over the image."""
    count = len(run.classes)
    if answer.mask is not None:
        return drawing.overlaid(pixels, drawing.enlarged(answer.mask, times), count)
    assert answer.boxes is not None
    shown = np.flatnonzero(answer.boxes[:, 4] >= SHOWN)[::-1]  # the best ones last, on top
    numbers = answer.boxes[shown, 5].astype(int).tolist()
    if answer.planes is not None:
        for place, number in zip(shown, numbers):
            inside = drawing.enlarged(answer.planes[place], times) > 0
            pixels = drawing.painted(pixels, inside, drawing.colours(count)[number])
    labels = [
        run.classes[number] + ("" if right else f" {100 * answer.boxes[place, 4]:.0f} %")
        for place, number in zip(shown, numbers)
    ]
    return drawing.boxed(pixels, (times * answer.boxes[shown, :4]).tolist(), numbers, labels, count)

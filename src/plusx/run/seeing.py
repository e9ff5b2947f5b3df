"""What a network told of the places in images, as rows, JSON and pictures."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor
from torch.nn import functional as F

from plusx import store
from plusx.data.download import located
from plusx.data.image import printable
from plusx.data.source import Source
from plusx.data.truth import Boxes, Masks, Outline
from plusx.recipe.sets import SceneData
from plusx.report.seen import MOST, SHOWN, seen_page
from plusx.run import drawing, parts
from plusx.run.folder import Run, record_test_use
from plusx.run.telling import TOGETHER, Answer, answers
from plusx.tasks.overlap import Overlap
from plusx.tasks.segment import Segment
from plusx.tasks.task import Task


FOLDERS = ("masks", "overlays", "side-by-side")


class Truths:
    """What is known of the images of some sources, by their paths or, without these, names."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.places: dict[str, tuple[Source, int]] = {}
        for source in sources:
            for place in range(len(source)):
                self.places[_known_as(name_of(source, place))] = source, place

    def tests(self, path: str) -> bool:
        """Whether this is an image of the test set, whose truth is a look at it."""
        found = self.places.get(_known_as(path))
        return found is not None and found[0].split == "test"

    def of(self, answer: Answer) -> Answer | None:
        """The truth of an image as if it had been told; None where it is not known."""
        if (found := self.places.get(_known_as(answer.path))) is None:
            return None
        source, place = found
        truth = source.truth
        if isinstance(truth, Masks):
            return replace(answer, mask=truth.mask(place), boxes=None, outlines=None)
        if not isinstance(truth, Boxes):
            return None
        rows = truth.rows[place]
        boxes = np.concatenate([rows[:, :4], np.ones((len(rows), 1)), rows[:, 4:5]], axis=1)
        outlines = None if truth.outlines is None else truth.outlines[place]
        return replace(answer, mask=None, boxes=boxes.astype(np.float32), outlines=outlines)


def name_of(source: Source, place: int) -> str:
    """The path of an image, or what it is called where it lies in no file."""
    return source.where(place) if source.paths is None else source.paths[place]


def _known_as(path: str) -> str:
    return str(Path(path).resolve())


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


def see(
    run: Run,
    task: Task,
    images: Iterator[tuple[str, Num[Tensor, "c h w"]]],
    truths: Truths,
    *,
    out: str | Path | None,
    batch_size: int,
    asked: Sequence[str] = (),
) -> dict[str, Any]:
    """Predictions for images, and where `out` is a folder their pictures in it.

    Gives `predictions`: of masks path, size, shares (of the classes), label (the class of the
    largest share); of boxes path, size and boxes [{label, score, box, ...}], best first. Where the
    truth is known it stands beside it as `truth`; a use of the test set is recorded before the
    first truth of its images is looked at, with how many of those `asked` for are. With `out` a
    row names its `mask`, `overlay` and
    `side_by_side`, paths in that folder, and there are predictions.html and, of boxes, coco.json.
    """
    rows: list[dict[str, Any]] = []
    pictures: list[bytes] = []
    uses = None
    for answer in answers(run, task, images, batch_size):
        if uses is None and truths.tests(answer.path):
            uses = record_look(run.path, sum(map(truths.tests, asked)))
        truth = truths.of(answer)
        row = _row(run, answer, truth)
        if out is not None:
            picture = _draw(Path(out), run, row, answer, truth, len(rows) + 1)
            pictures += [picture] if len(pictures) < MOST else []
        rows.append(row)
    result: dict[str, Any] = {"classes": list(run.classes), "predictions": rows}
    if uses is not None:
        result["test_uses"] = uses
    if out is not None and rows:
        if answer.boxes is not None:
            store.write_json(Path(out) / "coco.json", coco(result))
        page = seen_page(result, pictures, drawing.colours(len(run.classes)), printable(run.path))
        store.write_text(Path(out) / "predictions.html", page)
    return result


def record_look(home: Path, count: int) -> int:
    """Record that predictions are set beside the truth of so many test images; uses so far."""
    use = {"data": home.name, "split": "test", "count": count, "by": "predict"}
    return record_test_use(home, use)


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


def run_lengths(outline: Outline, size: tuple[int, int]) -> dict[str, Any]:
    """A mask of an image (height, width) as COCO's uncompressed run lengths: column by column,
    beginning with zeros.
    """
    height, width = size
    columns = np.zeros((outline.width, height), np.int8)
    columns[:, outline.top : outline.top + outline.height] = outline.window().T
    changes = np.flatnonzero(np.diff(columns.ravel(), prepend=0, append=0))
    edges = [0, *(changes + outline.left * height).tolist()]
    if edges[-1] < height * width:
        edges.append(height * width)
    return {"size": [height, width], "counts": [b - a for a, b in pairwise(edges)]}


def _row(run: Run, answer: Answer, truth: Answer | None) -> dict[str, Any]:
    size = list(answer.image.shape[:2])
    row: dict[str, Any] = {"path": printable(answer.path), "size": size}
    if answer.mask is not None:
        # by rows: of all pixels at once numpy would make numbers of eight bytes
        lines = [np.bincount(line, minlength=len(run.classes)) for line in answer.mask]
        counts = np.sum(lines, axis=0)
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
    height, width = answer.image.shape[:2]
    for place, row in enumerate(answer.boxes.tolist()):
        each: dict[str, Any] = {
            "label": run.classes[int(row[5])],
            "score": row[4],
            "box": [round(side, 2) for side in row[:4]],
        }
        if answer.outlines is not None:
            each["segmentation"] = run_lengths(answer.outlines[place], (height, width))
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
    # in parts, which the figures below do not tell from the whole
    most = max(1, TOGETHER // (len(run.classes) * told.shape[1]))
    for one, other in zip(*(torch.from_numpy(each).split(most) for each in (told, right))):
        sure = F.one_hot(one.long(), len(run.classes)).permute(2, 0, 1)[None]
        meter.update(sure.float(), other[None])
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
    seen = drawing.resized(pixels, drawing.shown_size(pixels.shape[:2]))
    drawn = _drawn(run, seen, answer)
    panels = [seen, drawn]
    if truth is not None and (truth.mask is None or truth.mask.shape == pixels.shape[:2]):
        panels.append(_drawn(run, seen, truth, right=True))
    if answer.mask is not None:
        row["mask"] = f"masks/{name}"
        store.write_bytes(out / row["mask"], drawing.mask_png(answer.mask, count))
    beside = drawing.png(drawing.abreast(panels))
    row["overlay"], row["side_by_side"] = f"overlays/{name}", f"side-by-side/{name}"
    store.write_bytes(out / row["overlay"], drawing.png(drawn))
    store.write_bytes(out / row["side_by_side"], beside)
    return beside


def _drawn(run: Run, pixels: np.ndarray, answer: Answer, right: bool = False) -> np.ndarray:
    """An answer, or the truth, over the image as large as it is looked at."""
    count = len(run.classes)
    (height, width), size = answer.image.shape[:2], pixels.shape[:2]
    if answer.mask is not None:
        return drawing.overlaid(pixels, drawing.resized(answer.mask, size), count)
    assert answer.boxes is not None
    shown = np.flatnonzero(answer.boxes[:, 4] >= SHOWN)[::-1]  # the best ones last, on top
    numbers = answer.boxes[shown, 5].astype(int).tolist()
    if answer.outlines is not None:
        for place, number in zip(shown, numbers):
            plane = np.zeros((height, width), np.uint8)
            answer.outlines[place].draw(plane)
            inside = drawing.resized(plane, size) > 0
            pixels = drawing.painted(pixels, inside, drawing.colours(count)[number])
    labels = [
        run.classes[number] + ("" if right else f" {100 * answer.boxes[place, 4]:.0f} %")
        for place, number in zip(shown, numbers)
    ]
    down, along = size[0] / height, size[1] / width
    boxes = answer.boxes[shown, :4] * (along, down, along, down)
    return drawing.boxed(pixels, boxes.tolist(), numbers, labels, count)

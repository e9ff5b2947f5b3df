"""What a network tells of the places in images: masks and boxes, in pixels as they are stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Num, UInt8
from torch import Tensor
from torch.nn import functional as F

from plusx.data.on_scene import Scene, fitted
from plusx.data.scene_samples import MULTIPLE, blank_outside
from plusx.data.truth import Outline
from plusx.run.evaluation import Viewed
from plusx.run.folder import Run
from plusx.tasks.segment import Segment
from plusx.tasks.task import Task
from plusx.train.loop import evaluating


_NO_BOXES = np.zeros((0, 6), np.float32)
TOGETHER = 2**22  # positions of an input that are asked at once
HELD = 2**27  # bytes of stored images that wait for each other


@dataclass(frozen=True, eq=False)
class Answer:
    """What is told of one image, in pixels as it is stored.

    mask: the class of every pixel. boxes: left, top, right, bottom, score and class, and outlines
    the masks of what is in them.
    """

    path: str
    image: Num[np.ndarray, "h w c"]
    mask: UInt8[np.ndarray, "h w"] | None = None
    boxes: Float[np.ndarray, "d 6"] | None = None
    outlines: Sequence[Outline] | None = None


def answers(
    run: Run,
    task: Task,
    images: Iterator[tuple[str, Num[Tensor, "c h w"]]],
    batch_size: int,
) -> Iterator[Answer]:
    """What the task tells of images as they are stored, one after the other."""
    waiting: list[tuple[str, Tensor, Scene]] = []
    size: tuple[int, int] | None = None
    held = 0
    with evaluating(task), torch.inference_mode():
        for path, image in images:
            scene = Scene(image, _NO_BOXES)
            if run.sized:
                scene = fitted(scene, run.preprocessing.size)
            wanted = run.preprocessing.size if run.sized else _multiple(scene.size)
            most = min(batch_size, max(1, TOGETHER // prod(wanted)))
            held += image.nbytes
            if waiting and (wanted != size or len(waiting) == most or held > HELD):
                yield from _answered(run, task, waiting, size or wanted)
                waiting, held = [], image.nbytes
            size = wanted
            waiting.append((path, image, scene))
        if waiting:
            assert size is not None
            yield from _answered(run, task, waiting, size)


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
    inputs = pixels.to(task.device)
    segments = isinstance(run.task, Segment)
    if segments and not run.sized:
        classes = torch.cat([said.argmax(1).byte().cpu() for said in _bands(task, inputs)], 1)
        for mask, (path, image, scene) in zip(classes, waiting, strict=True):
            inside = mask[: scene.size[0], : scene.size[1]].numpy()
            yield Answer(path, image.permute(1, 2, 0).numpy(), mask=inside)
        return
    told = task.predict(inputs).float().cpu()
    for said, (path, image, scene) in zip(told, waiting, strict=True):
        answer = Answer(path, image.permute(1, 2, 0).numpy())
        if segments:
            yield replace(answer, mask=mask_of(said, scene.size, (image.shape[1], image.shape[2])))
        else:
            yield _boxes(answer, said, scene.scale)


def _bands(task: Task, inputs: Float[Tensor, "n c h w"]) -> Iterator[Float[Tensor, "n k b w"]]:
    """What `task.predict` gives, in bands of rows from the top: whole it can be very large."""
    asked = task.task if isinstance(task, Viewed) else task
    assert isinstance(asked, Segment)
    told = (said for _, said in asked.predict_in_bands(inputs))
    if not isinstance(task, Viewed) or task.views == "one":
        return told
    other = (said.flip(-1) for _, said in asked.predict_in_bands(inputs.flip(-1)))
    return ((one + two) / 2 for one, two in zip(told, other, strict=True))


def mask_of(
    probabilities: Float[Tensor, "k y x"], seen: tuple[int, int], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """The class of every pixel as it is stored, from what is told of the image as it was seen.

    Probabilities between those that are told are bilinear, as torch has them with align_corners
    False. Only some rows of them are there at a time: of all classes at once they can be many times
    what the image itself takes.
    """
    inside = probabilities[:, : seen[0], : seen[1]]
    if seen == size:
        return inside.argmax(0).byte().numpy()
    wide = F.interpolate(inside, size=size[1], mode="linear", align_corners=False)
    places = ((torch.arange(size[0]) + 0.5) * (seen[0] / size[0]) - 0.5).clamp(min=0)
    above = places.long()
    below = (above + 1).clamp(max=seen[0] - 1)
    share = (places - above)[:, None]
    made = torch.empty(size, dtype=torch.uint8)
    for rows in torch.arange(size[0]).split(max(1, TOGETHER // (len(inside) * size[1]))):
        low, high = wide[:, above[rows]], wide[:, below[rows]]
        made[rows] = torch.lerp(low, high, share[rows]).argmax(0).byte()
    return made.numpy()


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
    from plusx.tasks.average_precision import pasted_window

    outlines = []
    for row in torch.cat([boxes, rows[:, 6:]], dim=1):
        top, left, inside = pasted_window(row, height, width)
        found = Outline.of(inside.numpy() > 0)
        outlines.append(found._replace(top=top + found.top, left=left + found.left))
    return replace(answer, boxes=boxes.numpy(), outlines=outlines)

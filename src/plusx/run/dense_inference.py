"""Masks and boxes for images, in pixels of the images as they are stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.on_scene import Scene, fitted
from plusx.data.prediction import Prediction
from plusx.data.scene_samples import MULTIPLE, blank_outside
from plusx.run.folder import Run
from plusx.tasks.task import Task
from plusx.train.loop import evaluating


_NO_BOXES = np.zeros((0, 6), np.float32)
MAX_POSITIONS = 2**22  # of the inputs of a batch
MAX_WAITING = 2**27  # bytes of stored images that wait for a batch


@dataclass(frozen=True, eq=False)
class ImagePrediction:
    """The prediction for one image, in its stored pixels."""

    path: str
    image: Num[np.ndarray, "h w c"]
    prediction: Prediction


@dataclass(frozen=True, eq=False)
class _Waiting:
    path: str
    image: Num[Tensor, "c h w"]
    scene: Scene


def predict_images(
    run: Run,
    task: Task,
    images: Iterator[tuple[str, Num[Tensor, "c h w"]]],
    batch_size: int,
) -> Iterator[ImagePrediction]:
    """Predictions for images as they are stored, one after the other, in evaluation mode."""
    waiting: list[_Waiting] = []
    size: tuple[int, int] | None = None
    num_bytes = 0
    with evaluating(task), torch.inference_mode():
        for path, image in images:
            scene = Scene(image, _NO_BOXES, stored_size=(image.shape[1], image.shape[2]))
            if run.sized:
                scene = fitted(scene, run.preprocessing.size)
            padded = run.preprocessing.size if run.sized else _multiple(scene.size)
            most = min(batch_size, max(1, MAX_POSITIONS // prod(padded)))
            num_bytes += image.nbytes
            full = len(waiting) == most or num_bytes > MAX_WAITING
            if waiting and (padded != size or full):
                yield from _predicted(run, task, waiting, size or padded)
                waiting, num_bytes = [], image.nbytes
            size = padded
            waiting.append(_Waiting(path, image, scene))
        if waiting:
            assert size is not None
            yield from _predicted(run, task, waiting, size)


def letterboxed(run: Run, image: Num[Tensor, "c h w"]) -> Num[Tensor, "c y x"]:
    """A whole image at the network's size, the rest filled with the mean colour."""
    height, width = run.preprocessing.size
    inside = fitted(Scene(image, _NO_BOXES), (height, width)).image
    low, high = run.preprocessing.low, run.preprocessing.high
    mean = low + (high - low) * torch.tensor(run.preprocessing.mean)
    mean = mean if image.is_floating_point() else mean.round()
    padded = mean.to(image.dtype)[:, None, None].repeat(1, height, width)
    padded[:, : inside.shape[1], : inside.shape[2]] = inside
    return padded


def _multiple(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // MULTIPLE) * MULTIPLE, -(-size[1] // MULTIPLE) * MULTIPLE


def _predicted(
    run: Run, task: Task, waiting: Sequence[_Waiting], size: tuple[int, int]
) -> Iterator[ImagePrediction]:
    scenes = [each.scene for each in waiting]
    first = scenes[0].image
    images = first.new_zeros((len(scenes), first.shape[0], *size))
    for padded, scene in zip(images, scenes):
        padded[:, : scene.size[0], : scene.size[1]] = scene.image
    pixels = run.preprocessing.normalise(images)
    content = torch.tensor([scene.size for scene in scenes])
    blank_outside(pixels, content)
    extras = {
        "content_size": content,
        "stored_size": torch.tensor([scene.stored_size for scene in scenes]),
        "scale": torch.tensor([scene.scale for scene in scenes], dtype=torch.float32),
    }
    predictions = task.predict_stored(Batch(pixels, extras=extras).to(task.device))
    for each, prediction in zip(waiting, predictions, strict=True):
        yield ImagePrediction(each.path, each.image.permute(1, 2, 0).numpy(), prediction)

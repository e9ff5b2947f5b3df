"""Masks and boxes for images, in pixels of the images as they are stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from plusx.data.collate import collate, covering_size
from plusx.data.prediction import Prediction
from plusx.data.sample import Sample
from plusx.data.transforms.steps import fit
from plusx.data.transforms.transform import Transform
from plusx.run.folder import Run
from plusx.tasks.task import Task
from plusx.train.loop import evaluating


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
    sample: Sample


def predict_images(
    run: Run,
    task: Task,
    images: Iterator[tuple[str, Num[Tensor, "c h w"]]],
    batch_size: int,
) -> Iterator[ImagePrediction]:
    """Predictions for images as they are stored, one after the other, in evaluation mode."""
    transform = run.preprocessing.transform("", train=False, annotated=True)
    waiting: list[_Waiting] = []
    size: tuple[int, ...] | None = None
    num_bytes = 0
    with evaluating(task), torch.inference_mode():
        for path, image in images:
            sample = Sample(image, stored_size=(image.shape[1], image.shape[2]))
            sample = transform.begin(sample)
            padded = transform.final or covering_size([sample.size])
            most = min(batch_size, max(1, MAX_POSITIONS // prod(padded)))
            num_bytes += image.nbytes
            full = len(waiting) == most or num_bytes > MAX_WAITING
            if waiting and (padded != size or full):
                yield from _predicted(run, task, waiting, transform)
                waiting, num_bytes = [], image.nbytes
            size = padded
            waiting.append(_Waiting(path, image, sample))
        if waiting:
            yield from _predicted(run, task, waiting, transform)


def letterboxed(run: Run, image: Num[Tensor, "c h w"]) -> Num[Tensor, "c y x"]:
    """A whole image at the network's size, the rest filled with the mean colour."""
    height, width = run.preprocessing.size
    inside = fit(Sample(image), (height, width)).tensor
    low, high = run.preprocessing.low, run.preprocessing.high
    mean = low + (high - low) * torch.tensor(run.preprocessing.mean)
    mean = mean if image.is_floating_point() else mean.round()
    padded = mean.to(image.dtype)[:, None, None].repeat(1, height, width)
    padded[:, : inside.shape[1], : inside.shape[2]] = inside
    return padded


def _predicted(
    run: Run, task: Task, waiting: Sequence[_Waiting], transform: Transform
) -> Iterator[ImagePrediction]:
    collated = collate([each.sample for each in waiting], transform)
    batch = collated.batch(run.preprocessing.normalise(collated.inputs), task.device)
    for each, prediction in zip(waiting, task.predict_stored(batch), strict=True):
        yield ImagePrediction(each.path, each.image.permute(1, 2, 0).numpy(), prediction)

"""Mean and deviation of a data set's channels."""

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from plusx.data.modality.grid import GridModality
from plusx.data.splits import evenly


if TYPE_CHECKING:
    from plusx.data.dataset import Dataset

M = TypeVar("M", bound=GridModality)
_MEASURED = 500  # samples whose values are measured


def measured(modality: M, dataset: "Dataset") -> M:
    """Return the modality with the mean and deviation of the data set's channels.

    They are measured on at most 500 evenly spread samples, at the size of the network's input.
    """
    bare = replace(modality, mean=(0.0,) * modality.channels, std=(1.0,) * modality.channels)
    transform = modality.transform("", train=False, stored=dataset.in_memory)
    sums, squares, count = np.zeros(modality.channels), np.zeros(modality.channels), 0
    for index in evenly(len(dataset), _MEASURED):
        sample = transform.begin(dataset.read(int(index)))
        values = bare.normalise(sample.tensor).double().flatten(1).numpy()
        sums, squares = sums + values.sum(1), squares + (values**2).sum(1)
        count += values.shape[1]
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return replace(
        modality,
        mean=tuple(round(float(number), 6) for number in mean),
        # a channel that is the same everywhere is left as it is
        std=tuple(max(round(float(number), 6), 1e-6) if number > 1e-6 else 1.0 for number in std),
    )

"""The same classes under other conditions: changed images, for streams of domains."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from plusx.data.dataset import Dataset, MemoryItems, images_of
from plusx.data.rng import permutation
from plusx.errors import UserError


_PURPOSE = 1 << 38  # of the permutations


def permuted(dataset: Dataset, number: int, count: int, seed: int) -> Dataset:
    """Return the images of domain `number`, whose pixels are permuted, those of every image in the
    same way; those of domain 0 are unchanged (permuted MNIST, Goodfellow et al. 2013)."""
    images = _images(dataset, "permute")
    if number == 0:
        return dataset
    height, width = images.shape[2:]
    order = torch.from_numpy(permutation(height * width, seed ^ _PURPOSE, number))
    return _with_images(dataset, images.flatten(2)[..., order].unflatten(2, (height, width)))


def rotated(dataset: Dataset, number: int, count: int, seed: int) -> Dataset:
    """Return the images of domain `number` of `count`, rotated by 180 number / count degrees
    (rotated MNIST, Lopez-Paz and Ranzato 2017)."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    images, degrees = _images(dataset, "rotate"), 180 * number / count
    return _with_images(
        dataset, functional.rotate(images, degrees, interpolation=InterpolationMode.BILINEAR)
    )


def _images(dataset: Dataset, name: str) -> Tensor:
    if not dataset.in_memory:
        raise UserError(
            f'[stream] transform = "{name}" is for data sets in memory, such as digits and '
            f"fashion-mnist; give paths for {dataset.name}, a folder for each task"
        )
    return images_of(dataset)


def _with_images(dataset: Dataset, images: Tensor) -> Dataset:
    return replace(dataset, items=MemoryItems(images.contiguous()))


# name: (data set, number of the domain, number of domains, seed) -> its images
TRANSFORMS: dict[str, Callable[[Dataset, int, int, int], Dataset]] = {
    "permute": permuted,
    "rotate": rotated,
}

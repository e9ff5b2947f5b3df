"""Synthetic data sets, with the same pixels on every machine.

Mosaics are 2 x 2 images of CIFAR-10, with the classes of all four. Bands are images of 13 bands of
16 bits, as of satellites, with the class in only one of the bands.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Int16
from torch.nn import functional as F

from plusx.data.dataset import Dataset, MemoryItems, Split, images_of
from plusx.data.modality import BandsModality, ImageModality
from plusx.data.rng import permutation
from plusx.data.sets.published import CIFAR10, Validation, open_cifar
from plusx.data.splits import validation_count


BANDS = 13
CLASS_BAND = 8  # the band, counted from 1, that depends on the class
HIGHEST = 10_000  # of a reflectance in Sentinel-2's products
_ANGLES = (0, 30, 60, 90, 120, 150)  # degrees
_SIDE = 32
_COUNTS = {"train": 2400, "test": 600}
_HELD_OUT = 400
_SEEDS = {"train": 1, "test": 2}


def open_mosaics(split: Split, validation: Validation, seed: int) -> Dataset:
    """Open mosaics of 2 x 2 images of CIFAR-10, 64 x 64, labelled with the classes in each.

    Every image is in one mosaic, with three others of its own split. `validation` counts mosaics;
    None is 1,250, of the last 5,000 training images. They are the same for every seed.
    """
    held = validation
    if held is not None:
        held = 4 * validation_count(12_500, held)
    splits: Sequence[Split] = (split,)
    if split == "all":
        splits, held = ("train", "test"), 0
    parts = [open_cifar(CIFAR10, part, held) for part in splits]
    images, labels = [], []
    for source in parts:
        order = torch.from_numpy(permutation(len(source), 0, 0)[: len(source) // 4 * 4])
        four = images_of(source)[order].unflatten(0, (-1, 2, 2))  # n, down, along, c, h, w
        images.append(four.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 64, 64))
        shown = F.one_hot(source.labels[order], 10).unflatten(0, (-1, 4))
        labels.append(shown.amax(1).to(torch.float32))
    return Dataset(
        name="mosaics",
        split=split,
        classes=parts[0].classes,
        labels=torch.cat(labels),
        modality=ImageModality((64, 64), 3, CIFAR10.mean, CIFAR10.std, resize="stretch"),
        items=MemoryItems(torch.cat(images)),
    )


def open_bands(split: Split, validation: Validation, seed: int) -> Dataset:
    """Open images of 13 bands, 32 x 32, from 0 to 10,000: stripes of six directions in band 8.

    Every band has its own stripes, slowly varying brightness and noise; only the direction in band
    8 depends on the class, so that the other twelve bands contain no information. 2,000 train, 400
    validation, 600 test; another `validation` is taken from the end of the 2,400. They are the same
    for every seed.
    """
    parts = []
    if split != "test":
        images, labels = _striped("train")
        if split != "all":
            held = _HELD_OUT if validation is None else validation_count(len(labels), validation)
            end = len(labels) - held
            chosen = slice(end) if split == "train" else slice(end, None)
            images, labels = images[chosen], labels[chosen]
        parts.append((images, labels))
    if split in ("test", "all"):
        parts.append(_striped("test"))
    return Dataset(
        name="bands",
        split=split,
        classes=tuple(f"{angle} degrees" for angle in _ANGLES),
        labels=torch.from_numpy(np.concatenate([labels for _, labels in parts])),
        modality=BandsModality((_SIDE, _SIDE), BANDS, (0.3,) * BANDS, (0.07,) * BANDS, 0, HIGHEST),
        items=MemoryItems(torch.from_numpy(np.concatenate([images for images, _ in parts]))),
    )


def _striped(part: str) -> tuple[Int16[np.ndarray, "n c h w"], np.ndarray]:
    """Return the images and class numbers of one part."""
    random, count = np.random.Generator(np.random.PCG64(_SEEDS[part])), _COUNTS[part]
    labels = random.permutation(np.arange(count) % len(_ANGLES)).astype(np.int64)
    turns = random.integers(0, len(_ANGLES), (count, BANDS))
    turns[:, CLASS_BAND - 1] = labels
    images = np.empty((count, BANDS, _SIDE, _SIDE), np.int16)
    for start in range(0, count, 200):  # in parts, to limit the memory for floats
        images[start : start + 200] = _rendered(random, turns[start : start + 200])
    return images, labels


def _rendered(random: np.random.Generator, turns: np.ndarray) -> Int16[np.ndarray, "n c h w"]:
    """Return images with stripes in the directions `turns` (n, c), indices of _ANGLES."""
    shape = (*turns.shape, 1, 1)
    angle = np.deg2rad(np.array(_ANGLES, np.float32))[turns].reshape(shape)
    length = random.uniform(4, 8, shape).astype(np.float32)  # pixels from stripe to stripe
    begin = random.uniform(0, 2 * np.pi, shape).astype(np.float32)
    down, along = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)
    across = along * np.cos(angle) + down * np.sin(angle)
    stripes = np.sin(2 * np.pi / length * across + begin)
    values = 3000 + 600 * stripes + 500 * _slow(random, turns.shape)
    values += 400 * random.standard_normal(values.shape, np.float32)
    return np.rint(values).clip(0, HIGHEST).astype(np.int16)


def _slow(random: np.random.Generator, shape: tuple[int, ...]) -> Float32[np.ndarray, "n c h w"]:
    """Return random fields that vary over eight pixels."""
    coarse = torch.from_numpy(random.standard_normal((*shape, 5, 5), np.float32))
    fine = F.interpolate(coarse, size=(_SIDE, _SIDE), mode="bicubic", align_corners=True)
    return fine.numpy()

"""The made set `cells`: discs and rods that lie over each other, each with its mask.

Every pixel is a function of (which split, which image), drawn as all else is (draws), so that the
set is the same on every machine and for every seed of a run. A mask is what is to be seen of a
cell; cells of which less than a third is are not in the picture.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from plusx.data.annotations import Boxes
from plusx.data.dataset import Dataset, MemoryItems, Split, as_split
from plusx.data.instance_mask import InstanceMask
from plusx.data.modality import ImageModality
from plusx.data.rng import CounterRNG


CLASSES = ("disc", "rod")
COUNTS = {"train": 400, "validation": 100, "test": 100}
SIDE = 128
# how many cells an image is begun with, and half the lengths of their axes in pixels
_CELLS = (4, 12)
_LONG = (9.0, 19.0)
_ROUND, _LEAN = (0.8, 1.0), (0.3, 0.45)
_SEEN = 1 / 3
# standard deviation of the noise of the pixels, of 255
_NOISE = 12.0

Image = UInt8[np.ndarray, "c h w"]


def open_cells(
    split: str = "train", *, size: tuple[int, int] = (SIDE, SIDE), instances: bool = True
) -> Dataset:
    """One split of the set: 400 images of 128 x 128 train, 100 validate and 100 test."""
    wanted = as_split(split)
    names = tuple(COUNTS) if wanted == "all" else (wanted,)
    images, rows, outlines = [], [], []
    for name in names:
        for image, boxes, masks in _rendered(name):
            images.append(image)
            rows.append(boxes)
            outlines.append(list(masks))
    truth = Boxes(rows, outlines if instances else None)
    return Dataset(
        name="cells",
        split=wanted,
        classes=CLASSES,
        labels=truth.presence(len(CLASSES)),
        modality=ImageModality(size, 3, (0.45,) * 3, (0.22,) * 3, resize="fit"),
        items=MemoryItems(torch.from_numpy(np.stack(images))),
        annotations=truth,
    )


@lru_cache(maxsize=4)
def _rendered(split: Split) -> list[tuple[Image, np.ndarray, tuple[InstanceMask, ...]]]:
    place = list(COUNTS).index(split)
    return [rendered(place, index) for index in range(COUNTS[split])]


def rendered(split: int, index: int) -> tuple[Image, np.ndarray, tuple[InstanceMask, ...]]:
    """One image, its boxes, and their masks."""
    draws = CounterRNG.of(split, 0, np.array([index]))

    def drawn(low: int | float, high: int | float, draw: int) -> float:
        return float(draws.uniform(float(low), float(high), draw)[0])

    light = _shades(drawn(60, 110, 0), drawn(-25, 25, 1), drawn(-25, 25, 2))
    picture = np.repeat(light[None], 3, 0)
    count = int(drawn(*_CELLS, 3))
    kinds, insides = [], []
    for cell in range(count):
        begin = 10 + 16 * cell
        rod = drawn(0, 1, begin) < 0.5
        long = drawn(*_LONG, begin + 1)
        short = long * drawn(*(_LEAN if rod else _ROUND), begin + 2)
        middle = drawn(0, SIDE, begin + 3), drawn(0, SIDE, begin + 4)
        depth = _depth(middle, (long, short), drawn(0, np.pi, begin + 5))
        inside = depth < 1
        # brighter towards the rim, as a membrane is
        shade = drawn(120, 170, begin + 6) + 50 * depth.clip(0, 1) ** 4
        colours = np.array([drawn(0.75, 1.25, begin + 7 + channel) for channel in range(3)])
        picture = np.where(inside, shade * colours[:, None, None], picture)
        kinds.append(int(rod))
        insides.append(inside)
    noise = _noise(split, index, picture.shape)
    image = (picture + _NOISE * noise).round().clip(0, 255).astype(np.uint8)
    rows, outlines = [], []
    covered = np.zeros((SIDE, SIDE), np.bool_)
    for kind, inside in reversed(list(zip(kinds, insides))):
        seen = inside & ~covered
        covered |= inside
        outline = InstanceMask.of(seen)
        if seen.sum() < max(_SEEN * inside.sum(), 12):
            continue
        left, top = outline.left, outline.top
        rows.append((left, top, left + outline.width, top + outline.height, kind, 0))
        outlines.append(outline)
    return image, np.array(rows, np.float32).reshape(-1, 6), tuple(outlines)


def _shades(level: float, down: float, along: float) -> Float64[np.ndarray, "h w"]:
    steps = np.linspace(-0.5, 0.5, SIDE)
    made: np.ndarray = level + down * steps[:, None] + along * steps[None]
    return made


def _depth(
    middle: tuple[float, float], axes: tuple[float, float], angle: float
) -> Float64[np.ndarray, "h w"]:
    """0 in the middle of an ellipse, 1 on its rim, more outside."""
    places = np.arange(SIDE) + 0.5
    down, along = places[:, None] - middle[0], places[None] - middle[1]
    first = (along * np.cos(angle) + down * np.sin(angle)) / axes[0]
    second = (down * np.cos(angle) - along * np.sin(angle)) / axes[1]
    made: np.ndarray = np.sqrt(first**2 + second**2)
    return made


def _noise(split: int, index: int, shape: tuple[int, ...]) -> Float64[np.ndarray, "c h w"]:
    """Standard normal numbers (Box and Muller 1958)."""
    draws = CounterRNG.of(split, 1 + index, np.arange(int(np.prod(shape))))
    radius = np.sqrt(-2 * np.log(1 - draws.uniform(draw=0)))
    made: np.ndarray = (radius * np.cos(2 * np.pi * draws.uniform(draw=1))).reshape(shape)
    return made

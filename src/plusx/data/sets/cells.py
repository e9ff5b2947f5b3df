"""The synthetic set `cells`: overlapping discs and rods with instance masks.

Every pixel is a function of split and index, so that the set is the same on every machine and for
every seed of a run. A mask is the visible part of a cell; cells of which less than a third is
visible have no annotation.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from plusx.data.annotations import Boxes
from plusx.data.dataset import Dataset, MemoryItems, as_split
from plusx.data.instance_mask import InstanceMask
from plusx.data.modality import ImageModality
from plusx.data.rng import CounterRNG


CLASSES = ("disc", "rod")
COUNTS = {"train": 400, "validation": 100, "test": 100}
SIDE = 128
# how many cells an image is begun with, and half the lengths of their axes in pixels
_CELLS = (4, 12)
_LONG = (9.0, 19.0)
_DISC, _ROD = (0.8, 1.0), (0.3, 0.45)  # the short axis, as a fraction of the long one
_LEAST_VISIBLE = 1 / 3
# standard deviation of the noise of the pixels, of 255
_NOISE = 12.0

Image = UInt8[np.ndarray, "c h w"]


def open_cells(
    split: str = "train", *, size: tuple[int, int] = (SIDE, SIDE), instances: bool = True
) -> Dataset:
    """Open a split: 400 images of 128 x 128 for training, 100 for validation, 100 for testing."""
    split = as_split(split)
    images, rows, masks = [], [], []
    for name in COUNTS if split == "all" else (split,):
        for image, image_rows, image_masks in _rendered(name):
            images.append(image)
            rows.append(image_rows)
            masks.append(list(image_masks))
    boxes = Boxes(rows, masks if instances else None)
    return Dataset(
        name="cells",
        split=split,
        classes=CLASSES,
        labels=boxes.presence(len(CLASSES)),
        modality=ImageModality(size, 3, (0.45,) * 3, (0.22,) * 3, resize="fit"),
        items=MemoryItems(torch.from_numpy(np.stack(images))),
        annotations=boxes,
    )


@lru_cache(maxsize=4)
def _rendered(split: str) -> list[tuple[Image, np.ndarray, tuple[InstanceMask, ...]]]:
    number = list(COUNTS).index(split)
    return [rendered(number, index) for index in range(COUNTS[split])]


def rendered(split: int, index: int) -> tuple[Image, np.ndarray, tuple[InstanceMask, ...]]:
    """Render one image; return it with its boxes and their masks."""
    rng = CounterRNG.of(split, 0, np.array([index]))

    def uniform(low: int | float, high: int | float, draw: int) -> float:
        return float(rng.uniform(float(low), float(high), draw)[0])

    image = _gradient(uniform(60, 110, 0), uniform(-25, 25, 1), uniform(-25, 25, 2))
    image = np.repeat(image[None], 3, 0)
    kinds, shapes = [], []
    for cell in range(int(uniform(*_CELLS, 3))):
        draw = 10 + 16 * cell
        is_rod = uniform(0, 1, draw) < 0.5
        long = uniform(*_LONG, draw + 1)
        short = long * uniform(*(_ROD if is_rod else _DISC), draw + 2)
        centre = uniform(0, SIDE, draw + 3), uniform(0, SIDE, draw + 4)
        radius = _radius(centre, (long, short), uniform(0, np.pi, draw + 5))
        inside = radius < 1
        # brighter towards the rim, as a membrane is
        brightness = uniform(120, 170, draw + 6) + 50 * radius.clip(0, 1) ** 4
        colour = np.array([uniform(0.75, 1.25, draw + 7 + channel) for channel in range(3)])
        image = np.where(inside, brightness * colour[:, None, None], image)
        kinds.append(int(is_rod))
        shapes.append(inside)
    noise = _noise(split, index, image.shape)
    pixels = (image + _NOISE * noise).round().clip(0, 255).astype(np.uint8)
    rows, masks = [], []
    covered = np.zeros((SIDE, SIDE), np.bool_)
    for kind, inside in reversed(list(zip(kinds, shapes))):
        visible = inside & ~covered
        covered |= inside
        if visible.sum() < max(_LEAST_VISIBLE * inside.sum(), 12):
            continue
        mask = InstanceMask.of(visible)
        left, top = mask.left, mask.top
        rows.append((left, top, left + mask.width, top + mask.height, kind, 0))
        masks.append(mask)
    return pixels, np.array(rows, np.float32).reshape(-1, 6), tuple(masks)


def _gradient(level: float, down: float, along: float) -> Float64[np.ndarray, "h w"]:
    steps = np.linspace(-0.5, 0.5, SIDE)
    return level + down * steps[:, None] + along * steps[None]


def _radius(
    centre: tuple[float, float], axes: tuple[float, float], angle: float
) -> Float64[np.ndarray, "h w"]:
    """Return 0 at the centre of an ellipse, 1 on its border, and more outside."""
    positions = np.arange(SIDE) + 0.5
    down, along = positions[:, None] - centre[0], positions[None] - centre[1]
    first = (along * np.cos(angle) + down * np.sin(angle)) / axes[0]
    second = (down * np.cos(angle) - along * np.sin(angle)) / axes[1]
    return np.sqrt(first**2 + second**2)


def _noise(split: int, index: int, shape: tuple[int, ...]) -> Float64[np.ndarray, "c h w"]:
    """Return standard normal numbers (Box and Muller 1958)."""
    rng = CounterRNG.of(split, 1 + index, np.arange(int(np.prod(shape))))
    radius = np.sqrt(-2 * np.log(1 - rng.uniform(draw=0)))
    return (radius * np.cos(2 * np.pi * rng.uniform(draw=1))).reshape(shape)

"""The synthetic set `scenes`: one to three coloured shapes, and a sentence that describes them.

The sentences have the grammar

    scene    = objects | objects relation objects
    objects  = "a" size colour shape | number size colour shape "s"
    relation = "left of" | "above"

An image has exactly one such sentence. Things that are named together are equal in size, colour and
shape; of two groups the one on the left or on top is named first, and it is clear which one that
is: the groups are further apart in that direction than in the other one. Every pixel is a function
of split and index, so that the set is the same on every machine and for every seed of a run.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt8

from plusx.data.annotations import Texts
from plusx.data.dataset import Dataset, MemoryItems, as_split
from plusx.data.modality import ImageModality
from plusx.data.rng import CounterRNG
from plusx.data.tokenizer import END, Tokenizer


COUNTS = {"train": 6000, "validation": 500, "test": 1000}
SIDE = 64
SIZES = ("small", "large")
COLOURS = {
    "red": (205, 45, 40),
    "green": (50, 165, 65),
    "blue": (45, 85, 215),
    "yellow": (235, 205, 50),
    "purple": (150, 55, 185),
    "white": (235, 235, 235),
}
SHAPES = ("circle", "square", "triangle")
NUMBERS = ("a", "two", "three")
RELATIONS = ("left of", "above")
_OBJECTS = len(SIZES) * len(COLOURS) * len(SHAPES)
# half the width of a shape in pixels, from and to, by its size
_RADII = ((4.0, 5.5), (8.5, 10.0))
_SQUARE = 0.88  # half the side of a square, as a fraction of the radius
_TRIANGLE = 0.8  # how far the base of a triangle is below the middle, likewise
# how far a shape is from the middle of its quarter of the image, and all of them together
_JITTER, _SHIFT = 3.0, 3.0
_NOISE = 10  # grey levels, uniform in both directions
_CHUNK = 500  # images that are drawn at a time

Images = UInt8[np.ndarray, "n c h w"]
Drawn = Float64[np.ndarray, "n"]


class Group(NamedTuple):
    """Equal objects in each of n images: how many, and the number of their kind."""

    num_objects: Int64[np.ndarray, "n"]
    kind: Int64[np.ndarray, "n"]


def open_scenes(split: str = "train", *, size: tuple[int, int] = (SIDE, SIDE)) -> Dataset:
    """Open a split: 6,000 images of 64 x 64 pixels with their captions for training, 500 for
    validation, 1,000 for testing.

    size: height and width to which images are resized
    """
    split = as_split(split)
    parts = [_rendered(name) for name in (COUNTS if split == "all" else (split,))]
    captions = [caption for _, texts in parts for caption in texts]
    tokenizer = _tokenizer()
    dataset = Dataset(
        name="scenes",
        split=split,
        classes=tokenizer.vocabulary,
        labels=torch.zeros(len(captions), dtype=torch.int64),
        modality=ImageModality((SIDE, SIDE), 3, (0.4,) * 3, (0.2,) * 3, resize="stretch"),
        items=MemoryItems(torch.from_numpy(np.concatenate([images for images, _ in parts]))),
        annotations=Texts(captions, tokenizer),
    )
    if size == (SIDE, SIDE):
        return dataset
    modality = ImageModality(size, 3, (0.4,) * 3, (0.2,) * 3, resize="stretch")
    return dataset.with_modality(modality)


def _tokenizer() -> Tokenizer:
    """Return the tokenizer of the grammar's words, which are the same for every split."""
    plurals = [f"{shape}s" for shape in SHAPES]
    words = " ".join([*SIZES, *COLOURS, *SHAPES, *plurals, *NUMBERS, *RELATIONS])
    return Tokenizer.train([words], "words", 100, specials=(END,))


@lru_cache(maxsize=4)
def _rendered(split: str) -> tuple[Images, tuple[str, ...]]:
    """Render the images of a split; return them with their captions."""
    number = list(COUNTS).index(split)
    parts = [
        rendered(number, np.arange(start, min(start + _CHUNK, COUNTS[split])))
        for start in range(0, COUNTS[split], _CHUNK)
    ]
    images = np.concatenate([images for images, _ in parts])
    return images, tuple(caption for _, captions in parts for caption in captions)


def rendered(split: int, indices: Int64[np.ndarray, "n"]) -> tuple[Images, list[str]]:
    """Render some images of a split (0, 1 or 2); return them with their captions."""
    rng = CounterRNG.of(split, 0, indices)
    layout = rng.uniform(draw=0)
    has_relation = layout >= 0.3
    vertical = rng.uniform(draw=1) < 0.5
    # one object, two or three equal ones, one beside one, two beside one, one beside two
    first_count = np.select(
        [layout < 0.1, layout < 0.2, layout < 0.3, layout < 0.6, layout < 0.8], [1, 2, 3, 1, 2], 1
    )
    second_count = np.where(layout < 0.3, 0, np.where(layout < 0.8, 1, 2))
    kind = rng.below(_OBJECTS, draw=2)
    other = (kind + 1 + rng.below(_OBJECTS - 1, draw=3)) % _OBJECTS  # never the same kind
    first, second = Group(first_count, kind), Group(second_count, other)
    shift = np.stack([rng.uniform(-_SHIFT, _SHIFT, draw) for draw in (4, 5)])
    level = rng.uniform(60.0, 110.0, 6)
    down, along = (rng.uniform(-25.0, 25.0, draw) for draw in (7, 8))
    steps = np.linspace(-0.5, 0.5, SIDE)
    slope = down[:, None, None] * steps[:, None] + along[:, None, None] * steps
    images = np.repeat((level[:, None, None] + slope)[:, None], 3, 1)
    quarters = np.argsort(
        np.stack([rng.bits(draw) for draw in (10, 11, 12, 13)], 1), axis=1, kind="stable"
    )
    beside = rng.uniform(-1.0, 1.0, 14)  # where a group of one is, of the way to the upper quarter
    for number in range(3):
        in_first = number < first.num_objects
        drawn = number < first.num_objects + second.num_objects
        group_count = np.where(in_first, first.num_objects, second.num_objects)
        rank = np.where(in_first, number, number - first.num_objects)
        # along the relation, and across: -1 and 1 are the middles of the quarters
        main = np.where(in_first, -1.0, 1.0)
        # beside two, one is about in the middle; two are above each other
        three = first.num_objects + second.num_objects == 3
        across = np.where(group_count == 2, 2.0 * rank - 1, np.where(three, 0.3, 0.85) * beside)
        x, y = np.where(vertical, across, main), np.where(vertical, main, across)
        quarter = quarters[:, number]
        x = np.where(has_relation, x, 2.0 * (quarter % 2) - 1)
        y = np.where(has_relation, y, 2.0 * (quarter // 2) - 1)
        draws = 20 + 10 * number
        centre = [
            SIDE * (0.5 + 0.25 * side) + shift[axis] + rng.uniform(-_JITTER, _JITTER, draws + axis)
            for axis, side in enumerate((x, y))
        ]
        _draw(images, rng, draws + 2, np.where(in_first, first.kind, second.kind), centre, drawn)
    noise = np.random.Generator(np.random.PCG64([split, int(indices[0])]))
    pixels = images + noise.integers(-_NOISE, _NOISE + 1, images.shape, dtype=np.int8)
    captions = [
        _caption(first, second, index, vertical=bool(vertical[index]))
        for index in range(len(indices))
    ]
    return pixels.round().clip(0, 255).astype(np.uint8), captions


def _draw(
    images: Float64[np.ndarray, "n 3 h w"],
    rng: CounterRNG,
    draw: int,
    kind: Int64[np.ndarray, "n"],
    centre: list[Drawn],
    drawn: Bool[np.ndarray, "n"],
) -> None:
    """Draw one shape into each of the images where it is `drawn`. `draw`: of its first number."""
    size, colour, shape = _parts(kind)
    low, high = np.array(_RADII).T[:, size]
    radius = (low + (high - low) * rng.uniform(draw=draw))[:, None, None]
    brightness = rng.uniform(0.92, 1.08, draw + 1)
    positions = np.arange(SIDE) + 0.5
    dx = positions[None, None, :] - centre[0][:, None, None]
    dy = positions[None, :, None] - centre[1][:, None, None]
    circle = dx**2 + dy**2 <= radius**2
    square = np.maximum(abs(dx), abs(dy)) <= _SQUARE * radius
    # from the tip, a radius above the middle, to the base, which is two radii wide
    base = _TRIANGLE * radius
    triangle = (dy <= base) & (abs(dx) * (base + radius) <= (dy + radius) * radius)
    inside = np.choose(shape[:, None, None], [circle, square, triangle]) & drawn[:, None, None]
    values = np.array(list(COLOURS.values()), np.float64)[colour] * brightness[:, None]
    np.copyto(images, values[:, :, None, None], where=inside[:, None])


def _parts(kind: Int64[np.ndarray, "n"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the numbers of size, colour and shape of a kind of object."""
    rest, size = np.divmod(kind, len(SIZES))
    shape, colour = np.divmod(rest, len(COLOURS))
    return size, colour, shape


def _caption(first: Group, second: Group, index: int, *, vertical: bool) -> str:
    """Return the sentence that describes an image."""
    names = [_name(group, index) for group in (first, second) if group.num_objects[index]]
    return f" {RELATIONS[vertical]} ".join(names)


def _name(group: Group, index: int) -> str:
    count = int(group.num_objects[index])
    size, colour, shape = (int(part[0]) for part in _parts(group.kind[index : index + 1]))
    ending = "s" if count > 1 else ""
    return f"{NUMBERS[count - 1]} {SIZES[size]} {list(COLOURS)[colour]} {SHAPES[shape]}{ending}"

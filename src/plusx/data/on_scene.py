"""The augmentations that act on an image and on what is known of it together.

A word does to boxes and masks what it does to the pixels, by the same draws. Masks are never
mixed: a pixel that comes from between two has the class of the nearer one, and what comes from
outside the image is not judged. Of a box that a window cuts, what is inside stays, if that is at
least a quarter of it and a pixel wide and high.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Num, UInt8
from torch import Tensor
from torch.nn import functional

from plusx.data.augment import Word
from plusx.data.draws import Draws
from plusx.data.scaled import random_windows
from plusx.data.windows import alternating, crop_places, half


Size = tuple[int, int]
# the largest and the smallest (height, width), or None where images stay as large as they are
Wanted = Size | None

# of a box that is cut: the share of its area that must be left, and the least side in pixels
KEPT_SHARE = 0.25
LEAST_SIDE = 1.0


@dataclass(frozen=True, eq=False)
class Scene:
    """One image and its truth.

    boxes: left, top, right, bottom, class and crowd, in pixels of the image as it now is.
    planes: the masks of the boxes, 1 within and 0 without; or one plane, the class of every pixel.
    outside: what a plane has where there is no image: 0, or 255 for "not judged".
    scale: pixels of the image as it now is to a pixel of the stored one.
    stored_size: height and width of the stored image.
    """

    image: Num[Tensor, "c h w"]
    boxes: Float32[np.ndarray, "m 6"]
    planes: UInt8[Tensor, "p h w"] | None = None
    outside: int = 0
    scale: float = 1.0
    stored_size: Size = (0, 0)

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def instances(self) -> bool:
        """Whether the planes are those of the boxes."""
        return self.planes is not None and self.outside == 0


def fitted(scene: Scene, size: Size) -> Scene:
    """All of the scene, scaled by one number so that it just fits into (height, width)."""
    height, width = scene.size
    ratio = min(size[0] / height, size[1] / width)
    new = max(1, min(size[0], round(height * ratio))), max(1, min(size[1], round(width * ratio)))
    return _scaled(scene, new, ratio, ratio)


def _scaled(scene: Scene, size: Size, down: float, along: float) -> Scene:
    """The scene at a size; boxes are scaled by the numbers that the size is rounded from."""
    if size == scene.size:
        return scene
    boxes = scene.boxes.copy()
    boxes[:, [0, 2]] *= along
    boxes[:, [1, 3]] *= down
    planes = scene.planes
    if planes is not None and planes.shape[0]:
        planes = _nearest(planes, size, scene.instances)
    elif planes is not None:
        planes = planes.new_zeros((0, *size))
    return replace(
        scene,
        image=_resampled(scene.image, size),
        boxes=_within(boxes, size),
        planes=planes,
        scale=scene.scale * math.sqrt(down * along),
    )


def _nearest(planes: UInt8[Tensor, "p h w"], size: Size, keep: bool) -> UInt8[Tensor, "p y x"]:
    """Masks at a size, by the nearest pixel. Where `keep`, one of something so small that it lies
    between these has the pixels that it touches.
    """
    made = functional.interpolate(planes[None], size, mode="nearest-exact")[0]
    if keep:
        lost = planes.flatten(1).any(1) & ~made.flatten(1).any(1)
        for place in lost.nonzero()[:, 0].tolist():
            down, along = planes[place].nonzero(as_tuple=True)
            made[place, down * size[0] // planes.shape[1], along * size[1] // planes.shape[2]] = 1
    return made


def _resampled(image: Tensor, size: Size) -> Tensor:
    """Bilinear with antialiasing; of bytes by torch's kernel for them."""
    pixels = image if image.dtype == torch.uint8 else image.to(torch.float32)
    made = functional.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    return made if image.dtype == made.dtype else _back(made, image.dtype)


def _back(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats as pixels of that kind; whole numbers are rounded and stay in their range."""
    if dtype.is_floating_point:
        return pixels.to(dtype)
    kind = torch.iinfo(dtype)
    return pixels.round().clamp(kind.min, kind.max).to(dtype)


def _within(boxes: np.ndarray, size: Size) -> Float32[np.ndarray, "m 6"]:
    """Boxes cut to the image."""
    boxes[:, [0, 2]] = boxes[:, [0, 2]].clip(0, size[1])
    boxes[:, [1, 3]] = boxes[:, [1, 3]].clip(0, size[0])
    return boxes


def _area(boxes: np.ndarray) -> np.ndarray:
    sides: np.ndarray = (boxes[:, 2:4] - boxes[:, :2]).clip(0)
    return sides.prod(1)


def _cut(scene: Scene, whole: np.ndarray, keep: Bool[np.ndarray, "m"] | None = None) -> Scene:
    """Boxes cut to the image; those of which too little is left go. `whole`: areas before that."""
    boxes = _within(scene.boxes, scene.size)
    sides = boxes[:, 2:4] - boxes[:, :2]
    stays = (sides >= LEAST_SIDE).all(1) & (_area(boxes) >= KEPT_SHARE * whole)
    planes = scene.planes
    if scene.instances:
        assert planes is not None
        stays &= planes.flatten(1).bool().any(1).numpy()
        planes = planes if stays.all() else planes[torch.from_numpy(stays)]
    return replace(scene, boxes=boxes[stays], planes=planes)


def _window(scene: Scene, top: int, left: int, size: Size, fill: int = 0) -> Scene:
    """What a window of that size sees, of which parts may be outside: `fill` in the image there."""
    height, width = scene.size
    tall, wide = size
    inside = [max(0, top), min(height, top + tall), max(0, left), min(width, left + wide)]
    if inside[0] >= inside[1] or inside[2] >= inside[3]:
        inside = [0, 0, 0, 0]
    rows, columns = slice(inside[0], inside[1]), slice(inside[2], inside[3])

    def seen(pixels: Tensor, outside: int) -> Tensor:
        found = pixels[:, rows, columns]
        if found.shape[1:] == size:
            return found
        made = pixels.new_full((pixels.shape[0], tall, wide), outside)
        down, along = max(0, -top), max(0, -left)
        made[:, down : down + found.shape[1], along : along + found.shape[2]] = found
        return made

    boxes = scene.boxes.copy()
    boxes[:, [0, 2]] -= left
    boxes[:, [1, 3]] -= top
    planes = None if scene.planes is None else seen(scene.planes, scene.outside)
    moved = replace(scene, image=seen(scene.image, fill), boxes=boxes, planes=planes)
    return _cut(moved, _area(scene.boxes))


def _fit(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    assert size is not None
    return fitted(scene, size)


def _pad(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    assert word.side is not None
    height, width = scene.size
    return _window(scene, -word.side, -word.side, (height + 2 * word.side, width + 2 * word.side))


def _room(scene: Scene, word: Word, size: Wanted) -> tuple[Size, Size]:
    """The size of a window that is not larger than the image, and how far it can move."""
    wanted = size if word.side is None else (word.side, word.side)
    assert wanted is not None
    tall, wide = min(wanted[0], scene.size[0]), min(wanted[1], scene.size[1])
    return (tall, wide), (scene.size[0] - tall, scene.size[1] - wide)


def _crop(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    window, room = _room(scene, word, size)
    tops, lefts = crop_places(draws, room)
    return _window(scene, int(tops[0]), int(lefts[0]), window)


def _centercrop(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    window, room = _room(scene, word, size)
    return _window(scene, room[0] // 2, room[1] // 2, window)


def _resizedcrop(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    wanted = size if word.side is None else (word.side, word.side)
    assert wanted is not None
    height, width = scene.size
    found = random_windows(draws, np.array([height]), np.array([width]))
    top, left, tall, wide = (int(each[0]) for each in found)
    part = _window(scene, top, left, (tall, wide))
    return _scaled(part, wanted, wanted[0] / tall, wanted[1] / wide)


def _resize(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    assert word.side is not None
    height, width = scene.size
    ratio = word.side / min(height, width)
    new = max(1, round(height * ratio)), max(1, round(width * ratio))
    return _scaled(scene, new, ratio, ratio)


def _zoom(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    """Jitter of the scale, as Ghiasi et al. 2021 have it: the size that comes out is the wanted
    one, the picture in it larger or smaller than it would fit, at a random place.
    """
    assert word.value is not None
    assert size is not None
    height, width = scene.size
    ratio = min(size[0] / height, size[1] / width)
    strength = math.log(word.value)
    ratio *= math.exp(float(draws.uniform(-strength, strength, 2)[0]))
    # only what will be seen is scaled
    seen = min(height, math.ceil(size[0] / ratio)), min(width, math.ceil(size[1] / ratio))
    top = int(draws.below(height - seen[0] + 1, 0)[0])
    left = int(draws.below(width - seen[1] + 1, 1)[0])
    part = _window(scene, top, left, seen)
    new = (
        max(1, min(size[0], round(seen[0] * ratio))),
        max(1, min(size[1], round(seen[1] * ratio))),
    )
    part = _scaled(part, new, ratio, ratio)
    down = int(draws.below(size[0] - new[0] + 1, 3)[0])
    along = int(draws.below(size[1] - new[1] + 1, 4)[0])
    return _window(part, -down, -along, size)


def _turned_over(scene: Scene, across: bool) -> Scene:
    boxes, side = scene.boxes.copy(), scene.size[1 if across else 0]
    first, last = (0, 2) if across else (1, 3)
    boxes[:, first], boxes[:, last] = side - scene.boxes[:, last], side - scene.boxes[:, first]
    dimension = 2 if across else 1
    planes = None if scene.planes is None else scene.planes.flip(dimension)
    return replace(scene, image=scene.image.flip(dimension), boxes=boxes, planes=planes)


def _flip(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    return _turned_over(scene, across=True) if half(draws)[0] else scene


def _altflip(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    return _turned_over(scene, across=True) if alternating(draws)[0] else scene


def _vflip(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    return _turned_over(scene, across=False) if half(draws)[0] else scene


def _turn(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    """A number of quarter turns to the left."""
    for _ in range(int(draws.below(4)[0])):
        boxes, width = scene.boxes.copy(), scene.size[1]
        boxes[:, [0, 2]] = scene.boxes[:, [1, 3]]
        boxes[:, 1], boxes[:, 3] = width - scene.boxes[:, 2], width - scene.boxes[:, 0]
        planes = None if scene.planes is None else scene.planes.rot90(1, (1, 2))
        scene = replace(scene, image=scene.image.rot90(1, (1, 2)), boxes=boxes, planes=planes)
    return scene


def _rotate(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    """Boxes become those around their turned corners, or around what is left of their masks."""
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as v2_functional

    assert word.value is not None
    angle = float(draws.uniform(-word.value, word.value)[0])
    image = v2_functional.rotate(scene.image, angle, v2.InterpolationMode.BILINEAR)
    planes = scene.planes
    if planes is not None and len(planes):
        planes = v2_functional.rotate(planes, angle, fill=scene.outside)
    height, width = scene.size
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    corners = scene.boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] - (width / 2, height / 2)
    along = corners[..., 0] * cosine + corners[..., 1] * sine + width / 2
    down = corners[..., 1] * cosine - corners[..., 0] * sine + height / 2
    boxes = scene.boxes.copy()
    boxes[:, 0], boxes[:, 1] = along.min(1, initial=math.inf), down.min(1, initial=math.inf)
    boxes[:, 2], boxes[:, 3] = along.max(1, initial=-math.inf), down.max(1, initial=-math.inf)
    whole = _area(boxes)
    turned = replace(scene, image=image, boxes=boxes, planes=planes)
    if turned.instances:
        turned = _tight(turned)
    return _cut(turned, whole * (1 if planes is None else 0))


def _tight(scene: Scene) -> Scene:
    """Boxes that just hold their masks."""
    assert scene.planes is not None
    boxes = scene.boxes.copy()
    for row, plane in zip(boxes, scene.planes.numpy()):
        down, along = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
        if len(down):
            row[:4] = along[0], down[0], along[-1] + 1, down[-1] + 1
    return replace(scene, boxes=boxes)


def _jitter(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    from torchvision.transforms.v2 import functional as v2_functional

    assert word.value is not None
    steps = [v2_functional.adjust_brightness, v2_functional.adjust_contrast]
    if scene.image.shape[0] == 3:
        steps.append(v2_functional.adjust_saturation)
    image = scene.image
    for step in np.argsort([draws.bits(draw)[0] for draw in range(len(steps))]):
        factor = draws.uniform(1 - word.value, 1 + word.value, 3 + int(step))[0]
        image = steps[step](image, float(factor))
    return replace(scene, image=image)


def _grayscale(scene: Scene, word: Word, draws: Draws, size: Wanted) -> Scene:
    from torchvision.transforms.v2 import functional as v2_functional

    if scene.image.shape[0] != 3 or draws.uniform()[0] >= (word.value or 1.0):
        return scene
    return replace(scene, image=v2_functional.rgb_to_grayscale(scene.image, 3))


SCENE_STEPS: dict[str, Callable[[Scene, Word, Draws, Wanted], Scene]] = {
    "fit": _fit,
    "pad": _pad,
    "crop": _crop,
    "centercrop": _centercrop,
    "resizedcrop": _resizedcrop,
    "resize": _resize,
    "zoom": _zoom,
    "flip": _flip,
    "altflip": _altflip,
    "vflip": _vflip,
    "turn": _turn,
    "rotate": _rotate,
    "jitter": _jitter,
    "grayscale": _grayscale,
}

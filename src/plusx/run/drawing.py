"""Predictions drawn over an image: masks, outlines and boxes, as pixels and PNGs.

Pixels are uint8 (h, w, 3). Nothing here writes a file.
"""

import colorsys
import io
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont


SHOWN = 320  # pixels along the longer side of a drawing, at least
LARGEST = 2048  # and at most
_THOROUGH = 2**20  # pixels of a picture that is packed as small as can be, which takes long
_TONES = ((0.55, 0.75), (0.38, 0.90), (0.72, 0.65), (0.45, 0.35), (0.80, 0.85))
_SHARE = 0.55  # of the class's colour in what is drawn over the image
_LABEL = 12  # pixels high, at least
_LABELS, _LINES = 48, 300  # how many labels, and lines, are as high as the longer side
_GAP = 8

Pixels = UInt8[np.ndarray, "h w 3"]
Mask = UInt8[np.ndarray, "h w"]


@lru_cache(maxsize=32)
def colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """So many colours that are told apart: hues a golden section apart, in turn light and deep."""
    palette = []
    for number in range(count):
        hue = (0.58 + number * 0.618034) % 1
        light, saturation = _TONES[number % len(_TONES)]
        red, green, blue = colorsys.hls_to_rgb(hue, light, saturation)
        palette.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(palette)


def as_rgb(image: Shaped[np.ndarray, "h w c"]) -> Pixels:
    """Pixels of an image of any number of channels and any range, to be looked at.

    Three channels of 8 bits are as they are, and one is grey. Of others the first three (of two
    the first) are stretched, from the 1st to the 99th hundredth.
    """
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    values = image[:, :, : 3 if image.shape[2] >= 3 else 1].astype(np.float64)
    low, high = np.percentile(values, (1, 99), axis=(0, 1))
    values = ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return np.ascontiguousarray(
        np.broadcast_to((255 * values).round().astype(np.uint8), (*image.shape[:2], 3))
    )


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size (height, width) at which an image is drawn: small ones are enlarged by whole pixels,
    and large ones are no larger than a screen.
    """
    longest = max(size)
    if longest <= LARGEST:
        return size[0] * enlargement(size), size[1] * enlargement(size)
    return tuple(max(1, round(side * LARGEST / longest)) for side in size)  # type: ignore[return-value]


def resized(
    pixels: Shaped[np.ndarray, "h w ..."], size: tuple[int, int]
) -> Shaped[np.ndarray, "y x ..."]:
    """Pixels, or a mask, at the size that `shown_size` gives; masks keep their values."""
    height, width = pixels.shape[:2]
    if size[0] >= height and size[1] >= width:
        return enlarged(pixels, size[0] // height)
    if pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BOX))
    down, along = ((2 * np.arange(new) + 1) * old // (2 * new)
                   for new, old in zip(size, (height, width)))  # fmt: skip
    mask: np.ndarray = pixels[down[:, None], along]
    return mask


def enlargement(size: tuple[int, int]) -> int:
    """How many times a small image is enlarged to be looked at."""
    return max(1, -(-SHOWN // max(size)))


def enlarged(pixels: Shaped[np.ndarray, "h w ..."], times: int) -> Shaped[np.ndarray, "y x ..."]:
    """By whole pixels."""
    return pixels.repeat(times, 0).repeat(times, 1)


def mask_png(mask: Mask, count: int) -> bytes:
    """A mask as a PNG whose values are the numbers of the classes, and whose palette shows them."""
    image = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
    palette = [value for colour in colours(count) for value in colour]
    image.putpalette(palette + [0] * (768 - len(palette)))
    return _png(image)


def png(pixels: Pixels) -> bytes:
    return _png(Image.fromarray(pixels))


def overlaid(pixels: Pixels, mask: Mask, count: int) -> Pixels:
    """The classes' colours over an image, with lines where one class borders on another.

    What is not judged is left as it is.
    """
    labelled = mask < count
    table = np.zeros((256, 3), np.float64)
    table[:count] = colours(count)
    muted = 0.5 * pixels + 0.5 * pixels.mean(-1, keepdims=True)
    mixed = np.where(labelled[..., None], (1 - _SHARE) * muted + _SHARE * table[mask], pixels)
    mixed[_borders(mask) & labelled] = 255
    return mixed.round().astype(np.uint8)


def painted(
    pixels: Pixels, inside: Bool[np.ndarray, "h w"], colour: tuple[int, int, int]
) -> Pixels:
    """One thing's mask over an image, with its outline."""
    mixed = pixels.copy()
    mixed[inside] = (0.55 * pixels[inside] + 0.45 * np.array(colour)).round().astype(np.uint8)
    mixed[_borders(inside.astype(np.uint8)) & inside] = colour
    return mixed


def boxed(
    pixels: Pixels,
    boxes: Sequence[Sequence[int | float]],
    numbers: Sequence[int],
    labels: Sequence[str],
    count: int,
) -> Pixels:
    """Boxes (left, top, right, bottom) over an image, each in the colour of its class's number.

    Lines and labels grow with the image. The last box is the foremost. A label that finds no free
    place at its box is left out.
    """
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    longest = max(image.size)
    width = max(1, round(longest / _LINES), 2 * (longest >= SHOWN))
    for box, number in zip(boxes, numbers, strict=True):
        left, top, right, bottom = box
        corners = left, top, max(left, right - 1), max(top, bottom - 1)
        draw.rectangle(corners, outline=colours(count)[number], width=width)
    height = max(_LABEL, round(longest / _LABELS))
    font = ImageFont.load_default(height)
    gap = max(2, height // 6)
    taken: list[Sequence[int | float]] = []
    for box, number, label in list(zip(boxes, numbers, labels, strict=True))[::-1]:
        size = draw.textlength(label, font=font) + 2 * gap, height + 2 * gap
        place = _free_place(box, size, image.size, taken) if label else None
        if place is None:
            continue
        taken.append(place)
        colour = colours(count)[number]
        draw.rectangle(place, fill=colour)
        # dark on light colours, light on dark ones
        bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        ink = (0, 0, 0) if bright else (255,) * 3
        draw.text((place[0] + gap, (place[1] + place[3]) / 2), label, ink, font, anchor="lm")
    return np.asarray(image)


def _free_place(
    box: Sequence[int | float],
    size: tuple[int | float, int | float],
    within: tuple[int, int],
    taken: Sequence[Sequence[int | float]],
) -> tuple[int | float, ...] | None:
    """Where a label (width, height) at a box covers no other one: above it, in it or below it."""
    (left, top, right, bottom), (width, height) = box, size
    for along, down in product((left, right - width), (top - height, top, bottom, bottom - height)):
        x = max(0.0, min(along, within[0] - width))
        y = max(0.0, min(down, within[1] - height))
        place = x, y, x + width, y + height
        beside = (
            place[2] <= other[0] or other[2] <= x or place[3] <= other[1] or other[3] <= y
            for other in taken
        )
        if all(beside):
            return place
    return None


def abreast(pictures: Sequence[Pixels]) -> UInt8[np.ndarray, "h x 3"]:
    """Pictures of one size side by side, white between them."""
    gap = np.full((len(pictures[0]), _GAP, 3), 255, np.uint8)
    return np.concatenate([column for picture in pictures for column in (gap, picture)][1:], axis=1)


def _borders(mask: Mask) -> Bool[np.ndarray, "h w"]:
    """Pixels whose right or lower neighbour is of another class."""
    borders = np.zeros(mask.shape, bool)
    borders[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    borders[:-1] |= mask[:-1] != mask[1:]
    return borders


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=image.width * image.height <= _THOROUGH)
    return buffer.getvalue()

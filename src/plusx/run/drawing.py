"""Drawing of masks and boxes over images, and their encoding as PNG.

Pixels are uint8 (h, w, 3).
"""

import colorsys
import io
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont


MIN_SIDE = 320  # of the longer side of a drawing, in pixels
MAX_SIDE = 2048
_MAX_OPTIMISED = 2**20  # pixels of the largest PNG that is optimised, which is slow
_TONES = ((0.55, 0.75), (0.38, 0.90), (0.72, 0.65), (0.45, 0.35), (0.80, 0.85))
_ALPHA = 0.55  # of the colour of a class over the image
_MIN_LABEL = 12  # height of a label in pixels
_LABELS_PER_SIDE, _LINES_PER_SIDE = 48, 300  # longer side / height of a label, width of a line
_GAP = 8  # pixels between images side by side

Pixels = UInt8[np.ndarray, "h w 3"]
Mask = UInt8[np.ndarray, "h w"]


@lru_cache(maxsize=32)
def colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return distinct colours: hues at golden-ratio steps with alternating lightness."""
    palette = []
    for number in range(count):
        hue = (0.58 + number * 0.618034) % 1
        light, saturation = _TONES[number % len(_TONES)]
        red, green, blue = colorsys.hls_to_rgb(hue, light, saturation)
        palette.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(palette)


def as_rgb(image: Shaped[np.ndarray, "h w c"]) -> Pixels:
    """Return an image with any number of channels and any range as RGB.

    8-bit images with three channels are unchanged, those with one become grey. Of others the first
    three channels (of two the first) are scaled from the 1st to the 99th percentile.
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
    """Return the size (height, width) at which an image is drawn, of at most MAX_SIDE.

    Small images are enlarged by an integer factor.
    """
    longest = max(size)
    if longest <= MAX_SIDE:
        return size[0] * enlargement(size), size[1] * enlargement(size)
    return tuple(max(1, round(side * MAX_SIDE / longest)) for side in size)  # type: ignore[return-value]


def resized(
    pixels: Shaped[np.ndarray, "h w ..."], size: tuple[int, int]
) -> Shaped[np.ndarray, "y x ..."]:
    """Resize pixels or a mask to a `shown_size`; masks by nearest neighbour."""
    height, width = pixels.shape[:2]
    if size[0] >= height and size[1] >= width:
        return enlarged(pixels, size[0] // height)
    if pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BOX))
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new)
                   for new, old in zip(size, (height, width)))  # fmt: skip
    mask: np.ndarray = pixels[rows[:, None], columns]
    return mask


def enlargement(size: tuple[int, int]) -> int:
    """Return the integer factor by which a small image is enlarged."""
    return max(1, -(-MIN_SIDE // max(size)))


def enlarged(pixels: Shaped[np.ndarray, "h w ..."], times: int) -> Shaped[np.ndarray, "y x ..."]:
    """Repeat every pixel `times` times in both dimensions."""
    return pixels.repeat(times, 0).repeat(times, 1)


def mask_png(mask: Mask, count: int) -> bytes:
    """Encode a mask as a palette PNG whose values are the class indices."""
    image = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
    palette = [value for colour in colours(count) for value in colour]
    image.putpalette(palette + [0] * (768 - len(palette)))
    return _png(image)


def png(pixels: Pixels) -> bytes:
    return _png(Image.fromarray(pixels))


def overlay_mask(pixels: Pixels, mask: Mask, count: int) -> Pixels:
    """Draw the classes' colours over an image, with lines between classes.

    Pixels with ignored labels are unchanged.
    """
    labelled = mask < count
    table = np.zeros((256, 3), np.float64)
    table[:count] = colours(count)
    muted = 0.5 * pixels + 0.5 * pixels.mean(-1, keepdims=True)
    mixed = np.where(labelled[..., None], (1 - _ALPHA) * muted + _ALPHA * table[mask], pixels)
    mixed[_borders(mask) & labelled] = 255
    return mixed.round().astype(np.uint8)


def overlay_weights(pixels: Pixels, weights: Float[np.ndarray, "a b"]) -> Pixels:
    """Darken an image where weights, which are interpolated to its size, are below their
    maximum."""
    grid = Image.fromarray((weights / max(float(weights.max()), 1e-12)).astype(np.float32))
    size = pixels.shape[1], pixels.shape[0]
    opacity = np.asarray(grid.resize(size, Image.Resampling.BILINEAR)).clip(0, 1)[..., None]
    dark = 0.25 * pixels.mean(-1, keepdims=True)
    return (opacity * pixels + (1 - opacity) * dark).round().astype(np.uint8)


def overlay_instance(
    pixels: Pixels, inside: Bool[np.ndarray, "h w"], colour: tuple[int, int, int]
) -> Pixels:
    """Draw an instance mask over an image, with its outline."""
    mixed = pixels.copy()
    mixed[inside] = (0.55 * pixels[inside] + 0.45 * np.array(colour)).round().astype(np.uint8)
    mixed[_borders(inside.astype(np.uint8)) & inside] = colour
    return mixed


def draw_boxes(
    pixels: Pixels,
    boxes: Sequence[Sequence[int | float]],
    numbers: Sequence[int],
    labels: Sequence[str],
    count: int,
) -> Pixels:
    """Draw boxes (left, top, right, bottom) over an image in the colours of their classes.

    numbers: class indices, one for each box; count: the number of classes
    Lines and labels scale with the image. Later boxes are on top. A label is omitted if there is no
    free space for it at its box.
    """
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    longest = max(image.size)
    width = max(1, round(longest / _LINES_PER_SIDE), 2 * (longest >= MIN_SIDE))
    for box, number in zip(boxes, numbers, strict=True):
        left, top, right, bottom = box
        corners = left, top, max(left, right - 1), max(top, bottom - 1)
        draw.rectangle(corners, outline=colours(count)[number], width=width)
    height = max(_MIN_LABEL, round(longest / _LABELS_PER_SIDE))
    font = ImageFont.load_default(height)
    gap = max(2, height // 6)
    occupied: list[Sequence[int | float]] = []
    for box, number, label in list(zip(boxes, numbers, labels, strict=True))[::-1]:
        size = draw.textlength(label, font=font) + 2 * gap, height + 2 * gap
        label_box = _label_box(box, size, image.size, occupied) if label else None
        if label_box is None:
            continue
        occupied.append(label_box)
        colour = colours(count)[number]
        draw.rectangle(label_box, fill=colour)
        # dark on light colours, light on dark ones
        bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        ink = (0, 0, 0) if bright else (255,) * 3
        position = label_box[0] + gap, (label_box[1] + label_box[3]) / 2
        draw.text(position, label, ink, font, anchor="lm")
    return np.asarray(image)


def _label_box(
    box: Sequence[int | float],
    size: tuple[int | float, int | float],
    within: tuple[int, int],
    occupied: Sequence[Sequence[int | float]],
) -> tuple[int | float, ...] | None:
    """Return a free position for a label (width, height) above, in or below its box, or None."""
    (left, top, right, bottom), (width, height) = box, size
    for x, y in product((left, right - width), (top - height, top, bottom, bottom - height)):
        x = max(0.0, min(x, within[0] - width))
        y = max(0.0, min(y, within[1] - height))
        x2, y2 = x + width, y + height
        if all(x2 <= o[0] or o[2] <= x or y2 <= o[1] or o[3] <= y for o in occupied):
            return x, y, x2, y2
    return None


def side_by_side(images: Sequence[Pixels]) -> UInt8[np.ndarray, "h x 3"]:
    """Put images of one size side by side, with white gaps."""
    gap = np.full((len(images[0]), _GAP, 3), 255, np.uint8)
    return np.concatenate([column for image in images for column in (gap, image)][1:], axis=1)


def _borders(mask: Mask) -> Bool[np.ndarray, "h w"]:
    """Return where the right or lower neighbour is of another class."""
    borders = np.zeros(mask.shape, bool)
    borders[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    borders[:-1] |= mask[:-1] != mask[1:]
    return borders


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=image.width * image.height <= _MAX_OPTIMISED)
    return buffer.getvalue()

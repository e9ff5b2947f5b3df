"""The words of augmentation as functions of a sample: input, boxes and masks change together.

Inputs are tensors (c, *s), or Pillow images if there are no boxes or masks. Masks are resized to
the nearest class, and positions outside the input are ignored. A box that a window cuts is clipped,
or dropped if less than a quarter of its area or less than a pixel remains.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Num, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from plusx.data.image_file import ImageFile
from plusx.data.rng import CounterRNG, SampleRNG
from plusx.data.sample import Sample, image_array
from plusx.data.transforms.sound import SoundSetting, louder, of_length, played, shifted, tilted
from plusx.data.transforms.words import Word


Integers = Int64[np.ndarray, "n"]


def resample(images: Num[Tensor, "*n c h w"], size: tuple[int, int]) -> Num[Tensor, "*n c y x"]:
    """Resize images to (height, width), bilinear with antialiasing; integers are rounded.

    Bytes use torch's own kernel, which differs from Pillow's by one level in a few of a thousand
    pixels.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    batch = images if images.ndim == 4 else images[None]
    if images.dtype != torch.uint8:
        batch = batch.to(torch.float32)
    if len(batch) > 1000:  # in parts, so that intermediate results fit into memory
        return torch.cat([resample(part, size) for part in batch.split(1000)])
    resized = F.interpolate(batch, tuple(size), mode="bilinear", antialias=True)
    if resized.dtype != images.dtype:
        if not images.dtype.is_floating_point:
            kind = torch.iinfo(images.dtype)
            resized = resized.round().clamp(kind.min, kind.max)
        resized = resized.to(images.dtype)
    return resized if images.ndim == 4 else resized[0]


def resample_pixels(
    pixels: UInt8[np.ndarray, "y x c"], size: tuple[int, int], channels_last: bool = False
) -> UInt8[Tensor, "c h w"]:
    """Like resample, for decoded pixels, which must be writable, into the chosen memory layout."""
    image = torch.from_numpy(pixels)
    if channels_last:
        image = image[None].permute(0, 3, 1, 2)
    else:
        # with these strides torch outputs planes, which is faster than transposing the result
        image = image.permute(2, 0, 1)[None]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return resample(image, size).contiguous(memory_format=layout)[0]


class Rectangles(NamedTuple):
    """For each of n images a window of (heights, widths) at (tops, lefts)."""

    tops: Integers
    lefts: Integers
    heights: Integers
    widths: Integers


def random_windows(rng: CounterRNG, heights: Integers, widths: Integers) -> Rectangles:
    """Return the windows of torchvision's RandomResizedCrop: the first that fits of 10."""
    tops, lefts, tall, wide = (np.zeros(len(heights), np.int64) for _ in range(4))
    for attempt in range(0, 40, 4):
        area = heights * widths * rng.uniform(0.08, 1.0, attempt)
        ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), attempt + 1))
        across = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        down = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (tall == 0) & (across > 0) & (across <= widths) & (down > 0) & (down <= heights)
        top = rng.below(np.maximum(heights - down, 0) + 1, attempt + 2)
        left = rng.below(np.maximum(widths - across, 0) + 1, attempt + 3)
        for values, candidates in ((tops, top), (lefts, left), (tall, down), (wide, across)):
            values[fits] = candidates[fits]
        if tall.all():
            break
    else:
        none = tall == 0
        wide[none] = np.minimum(widths, np.maximum(1, np.rint(heights * 4 / 3)))[none]
        tall[none] = np.minimum(heights, np.maximum(1, np.rint(widths * 4 / 3)))[none]
        tops[none], lefts[none] = ((heights - tall) // 2)[none], ((widths - wide) // 2)[none]
    return Rectangles(tops, lefts, tall, wide)


def random_window(rng: SampleRNG, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the window of one image as random_windows: top, left, height and width."""
    for attempt in range(0, 40, 4):
        area = height * width * rng.uniform(0.08, 1.0, attempt)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), attempt + 1))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top = rng.below(height - down + 1, attempt + 2)
            return top, rng.below(width - across + 1, attempt + 3), down, across
    across = min(width, max(1, round(height * 4 / 3)))
    down = min(height, max(1, round(width * 4 / 3)))
    return (height - down) // 2, (width - across) // 2, down, across


Size = tuple[int, ...]

# a clipped box is dropped below this fraction of its area, and below this side in pixels
KEPT_FRACTION = 0.25
SMALLEST_SIDE = 1.0
# longer images are first cropped to this ratio of their sides, around the centre
_MAX_ASPECT_RATIO = 20


class Setting(NamedTuple):
    """What words need to know about the data set.

    size: the (height, width) of words without a number, for volumes the patch; None leaves images
        at their size
    low, high: the range of stored values
    channels_last: memory layout of outputs, where a step has the choice
    crop_fraction: the fraction of a side of the resized image that center_crop keeps
    interpolation: Pillow's filter for center_crop
    sound: what words need to know about sound
    unknown: the number of the unknown token of texts
    """

    size: Size | None
    low: float = 0.0
    high: float = 255.0
    channels_last: bool = False
    crop_fraction: float = 0.875
    interpolation: str = "bilinear"
    sound: SoundSetting | None = None
    unknown: int | None = None


Step = Callable[[Sample, Word, SampleRNG, Setting], Sample]


def fit(sample: Sample, size: Size) -> Sample:
    """Resize the whole image with its aspect ratio to fit into (height, width)."""
    height, width = sample.size
    ratio = min(size[0] / height, size[1] / width)
    new = max(1, min(size[0], round(height * ratio))), max(1, min(size[1], round(width * ratio)))
    return _scaled(sample.as_tensor(), new, ratio, ratio)


def _scaled(sample: Sample, size: Size, scale_y: float, scale_x: float) -> Sample:
    """The sample at a size; boxes are scaled by the unrounded factors (vertical, horizontal)."""
    height, width = size
    if (height, width) == sample.size:
        return sample
    if isinstance(sample.input, Image.Image):
        resized: Any = sample.input.resize((width, height), Image.Resampling.BILINEAR)
    else:
        resized = resample(sample.tensor, (height, width))
    boxes = sample.boxes
    if boxes is not None:
        boxes = _clip(
            boxes * np.array([scale_x, scale_y, scale_x, scale_y, 1, 1], np.float32), size
        )
    masks = sample.masks
    if masks is not None and len(masks):
        masks = _nearest(masks, size, keep_all=sample.has_instance_masks)
    elif masks is not None:
        masks = masks.new_zeros((0, *size))
    scale = sample.scale * math.sqrt(scale_y * scale_x)
    return replace(sample, input=resized, boxes=boxes, masks=masks, scale=scale)


def _nearest(masks: UInt8[Tensor, "p h w"], size: Size, keep_all: bool) -> UInt8[Tensor, "p y x"]:
    """Resize masks by nearest neighbour. With `keep_all`, a mask that would vanish keeps the pixels
    that it touches.
    """
    resized = F.interpolate(masks[None], size, mode="nearest-exact")[0]
    if keep_all:
        lost = masks.flatten(1).any(1) & ~resized.flatten(1).any(1)
        for index in lost.nonzero()[:, 0].tolist():
            down, along = masks[index].nonzero(as_tuple=True)
            resized[index, down * size[0] // masks.shape[1], along * size[1] // masks.shape[2]] = 1
    return resized


def _clip(boxes: np.ndarray, size: Size) -> Float32[np.ndarray, "m 6"]:
    """Clip boxes to the image."""
    boxes[:, [0, 2]] = boxes[:, [0, 2]].clip(0, size[1])
    boxes[:, [1, 3]] = boxes[:, [1, 3]].clip(0, size[0])
    return boxes


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides: np.ndarray = (boxes[:, 2:4] - boxes[:, :2]).clip(0)
    return sides.prod(1)


def _drop_cut_boxes(sample: Sample, areas: np.ndarray) -> Sample:
    """Clip boxes to the image; drop those with too small a rest. `areas`: before clipping."""
    if sample.boxes is None:
        return sample
    boxes, masks = _clip(sample.boxes, sample.size), sample.masks
    keep: Bool[np.ndarray, "m"] = (boxes[:, 2:4] - boxes[:, :2] >= SMALLEST_SIDE).all(1)
    keep &= _areas(boxes) >= KEPT_FRACTION * areas
    if sample.has_instance_masks:
        assert masks is not None
        keep &= masks.flatten(1).bool().any(1).numpy()
        masks = masks if keep.all() else masks[torch.from_numpy(keep)]
    return replace(sample, boxes=boxes[keep], masks=masks)


def window(sample: Sample, top: int, left: int, size: Size) -> Sample:
    """Return the window of this size at (top, left); black outside of the image."""
    height, width = size
    image: Any
    if isinstance(sample.input, Image.Image):
        image = sample.input.crop((left, top, left + width, top + height))
    else:
        image = _window_of(sample.tensor, top, left, (height, width), 0)
    boxes, areas = sample.boxes, np.zeros(0)
    if boxes is not None:
        areas = _areas(boxes)
        boxes = boxes - np.array([left, top, left, top, 0, 0], np.float32)
    masks = sample.masks
    if masks is not None:
        masks = _window_of(masks, top, left, (height, width), sample.mask_fill)
    return _drop_cut_boxes(replace(sample, input=image, boxes=boxes, masks=masks), areas)


def _window_of(
    values: Num[Tensor, "c y x"], top: int, left: int, size: tuple[int, int], fill: int
) -> Num[Tensor, "c h w"]:
    (height, width), (tall, wide) = values.shape[1:], size
    first, last = max(0, top), max(0, min(height, top + tall))
    begin, end = max(0, left), max(0, min(width, left + wide))
    inside = values[:, first:last, begin:end]
    if inside.shape[1:] == size:
        return inside
    output = values.new_full((values.shape[0], tall, wide), fill)
    if inside.numel():
        y, x = first - top, begin - left
        output[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
    return output


def _fit(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert setting.size is not None
    return fit(sample, setting.size)


def _stretch(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    """Resize the whole image to the size, whatever its aspect ratio."""
    assert setting.size is not None
    (height, width), sample = setting.size, sample.as_tensor()
    return _scaled(sample, (height, width), height / sample.size[0], width / sample.size[1])


def _center_crop(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    """Resize the shorter side to size / crop_fraction, then crop the centre."""
    assert setting.size is not None
    height, width = (round(side / setting.crop_fraction) for side in setting.size)
    image = covering(sample.pillow, height, width, setting.interpolation)
    return replace(sample, input=_central(image, *setting.size))


def covering(
    image: Image.Image, height: int, width: int, interpolation: str = "bilinear"
) -> Image.Image:
    """Resize an image to just cover (height, width); sides are rounded down."""
    image = _shortened(image)
    if height * image.width >= width * image.height:
        width = height * image.width // image.height
    else:
        height = width * image.height // image.width
    return image.resize((width, height), Image.Resampling[interpolation.upper()])


def _shortened(image: Image.Image) -> Image.Image:
    """Crop a very long image to its middle, so that resizing it cannot exhaust the memory."""
    longest = _MAX_ASPECT_RATIO * min(image.size)
    if max(image.size) <= longest:
        return image
    return _central(image, min(image.height, longest), min(image.width, longest))


def _central(image: Image.Image, height: int, width: int) -> Image.Image:
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _pad(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert word.side is not None
    (height, width), side = sample.size, word.side
    return window(sample, -side, -side, (height + 2 * side, width + 2 * side))


def _window_and_room(sample: Sample, word: Word, setting: Setting) -> tuple[Size, Size]:
    """The size of the window, at most the image's, and by how much it can move (down, right)."""
    size = setting.size if word.side is None else (word.side, word.side)
    assert size is not None
    tall, wide = min(size[0], sample.size[0]), min(size[1], sample.size[1])
    return (tall, wide), (sample.size[0] - tall, sample.size[1] - wide)


def _crop(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    size, room = _window_and_room(sample, word, setting)
    return window(sample, rng.below(room[0] + 1, 0), rng.below(room[1] + 1, 1), size)


def _centercrop(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    size, room = _window_and_room(sample, word, setting)
    return window(sample, round(room[0] / 2), round(room[1] / 2), size)


def _resizedcrop(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    target = setting.size if word.side is None else (word.side, word.side)
    assert target is not None
    height, width = sample.size
    size = target[0], target[1]
    top, left, tall, wide = random_window(rng, height, width)
    if isinstance(sample.input, ImageFile) and sample.boxes is None and sample.masks is None:
        box = left, top, left + wide, top + tall
        if sample.input.is_jpeg:  # decoded at a fraction of its size if the window allows it
            pixels = sample.input.window(box, _shrink((tall, wide), size))
        else:
            pixels = image_array(sample.pillow.crop(box))
        return replace(sample, input=resample_pixels(pixels, size, setting.channels_last))
    cropped = window(sample.as_tensor(), top, left, (tall, wide))
    return _scaled(cropped, size, size[0] / tall, size[1] / wide)


def _shrink(window: Size, size: Size) -> int:
    """Return the largest of 8, 4, 2, 1 by which the window divided has at least `size` pixels."""
    ratio = min(window[0] // size[0], window[1] // size[1])
    return next((factor for factor in (8, 4, 2) if ratio >= factor), 1)


def _resize(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    """Resize the shorter side to a number of pixels; the longer side is rounded down."""
    assert word.side is not None
    if isinstance(sample.input, Image.Image):
        sample = replace(sample, input=_shortened(sample.input))
    height, width = sample.size
    ratio = word.side / min(height, width)
    size = (
        (word.side, int(word.side * width / height))
        if height <= width
        else (int(word.side * height / width), word.side)
    )
    return _scaled(sample, size, ratio, ratio)


def _zoom(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    """Scale jitter (Ghiasi et al. 2021): the output has the size of the data set, and the image in
    it a random scale, around the one that fits, and position.
    """
    assert word.value is not None
    assert setting.size is not None
    sample, size = sample.as_tensor(), setting.size
    height, width = sample.size
    ratio = min(size[0] / height, size[1] / width)
    strength = math.log(word.value)
    ratio *= math.exp(rng.uniform(-strength, strength, 2))
    # only the visible part is resized
    visible = min(height, math.ceil(size[0] / ratio)), min(width, math.ceil(size[1] / ratio))
    top, left = rng.below(height - visible[0] + 1, 0), rng.below(width - visible[1] + 1, 1)
    new = (
        max(1, min(size[0], round(visible[0] * ratio))),
        max(1, min(size[1], round(visible[1] * ratio))),
    )
    scaled = _scaled(window(sample, top, left, visible), new, ratio, ratio)
    y, x = rng.below(size[0] - new[0] + 1, 3), rng.below(size[1] - new[1] + 1, 4)
    return window(scaled, -y, -x, size)


def _mirrored(sample: Sample, axis: int) -> Sample:
    """Mirror along an axis: -1 columns, -2 rows, -3 slices."""
    image: Any
    if isinstance(sample.input, Image.Image):
        flip = Image.Transpose.FLIP_LEFT_RIGHT if axis == -1 else Image.Transpose.FLIP_TOP_BOTTOM
        image = sample.input.transpose(flip)
    else:
        image = sample.tensor.flip(axis)
    boxes = sample.boxes
    if boxes is not None:
        first, side = (0 if axis == -1 else 1), sample.size[axis]
        boxes = boxes.copy()
        boxes[:, first] = side - sample.boxes[:, first + 2]  # type: ignore[index]
        boxes[:, first + 2] = side - sample.boxes[:, first]  # type: ignore[index]
    masks = None if sample.masks is None else sample.masks.flip(axis)
    return replace(sample, input=image, boxes=boxes, masks=masks)


def _flip(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    return _mirrored(sample, -1) if rng.coin() else sample


def _altflip(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    return _mirrored(sample, -1) if rng.alternating() else sample


def _vflip(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    return _mirrored(sample, -2) if rng.coin() else sample


def _dflip(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    return _mirrored(sample, -3) if rng.coin() else sample


def _rot90(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    """Rotate by 0, 90, 180 or 270 degrees counterclockwise."""
    turns, sample = rng.below(4, 0), sample.as_tensor()
    boxes, (height, width) = sample.boxes, sample.size[-2:]
    for _ in range(turns if boxes is not None else 0):
        assert boxes is not None
        left, top, right, bottom, *rest = boxes.T
        boxes = np.stack([top, width - right, bottom, width - left, *rest], 1)
        height, width = width, height
    masks = None if sample.masks is None else sample.masks.rot90(turns, (-2, -1))
    return replace(sample, input=sample.tensor.rot90(turns, (-2, -1)), boxes=boxes, masks=masks)


def _rotate(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    """A box becomes the one around its rotated corners, or around the rest of its mask."""
    from torchvision.transforms import v2

    assert word.value is not None
    angle = rng.uniform(-word.value, word.value)
    rotate = _torchvision().rotate
    image = rotate(sample.input, angle, v2.InterpolationMode.BILINEAR)
    masks = sample.masks
    if masks is not None and len(masks):
        masks = rotate(masks, angle, fill=sample.mask_fill)
    if sample.boxes is None:
        return replace(sample, input=image, masks=masks)
    height, width = sample.size
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    corners = sample.boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] - (width / 2, height / 2)
    x = corners[..., 0] * cosine + corners[..., 1] * sine + width / 2
    y = corners[..., 1] * cosine - corners[..., 0] * sine + height / 2
    boxes = sample.boxes.copy()
    boxes[:, 0], boxes[:, 1] = x.min(1, initial=math.inf), y.min(1, initial=math.inf)
    boxes[:, 2], boxes[:, 3] = x.max(1, initial=-math.inf), y.max(1, initial=-math.inf)
    areas = _areas(boxes)
    rotated = replace(sample, input=image, boxes=boxes, masks=masks)
    if not rotated.has_instance_masks:
        return _drop_cut_boxes(rotated, areas)
    assert masks is not None
    for row, mask in zip(boxes, masks.numpy()):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            row[:4] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return _drop_cut_boxes(rotated, np.zeros_like(areas))


def _jitter(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert word.value is not None
    functional, image = _torchvision(), sample.input
    steps = [functional.adjust_brightness, functional.adjust_contrast]
    if _has_colours(sample):
        steps.append(functional.adjust_saturation)
    for step in np.argsort([rng.bits(draw) for draw in range(len(steps))]):
        factor = rng.uniform(1 - word.value, 1 + word.value, 3 + int(step))
        image = steps[step](image, factor)
    return replace(sample, input=image)


def _has_colours(sample: Sample) -> bool:
    if isinstance(sample.input, Image.Image):
        return sample.input.mode == "RGB"
    return len(sample.tensor) == 3


def _grayscale(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    if not _has_colours(sample) or rng.uniform() >= (word.value or 1.0):
        return sample
    return replace(sample, input=_torchvision().rgb_to_grayscale(sample.input, 3))


def _policy(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    """Apply a policy of torchvision, seeded from the sample's random numbers."""
    from torchvision.transforms import v2

    assert setting.size is not None
    if word.kind == "randaugment":
        policy: Any = v2.RandAugment(magnitude=9 if word.side is None else word.side)
    elif word.kind == "trivialaugment":
        policy = v2.TrivialAugmentWide()
    else:
        names = v2.AutoAugmentPolicy
        policy = v2.AutoAugment(names.CIFAR10 if max(setting.size) <= 32 else names.IMAGENET)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.bits() >> 1)
        return replace(sample, input=policy(sample.input))


def _brightness(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert word.value is not None
    middle = (setting.low + setting.high) / 2
    factor = rng.uniform(1 - word.value, 1 + word.value)
    return replace(sample, input=(sample.tensor - middle) * factor + middle)


def _noise(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert word.value is not None
    deviation = rng.uniform(0.0, word.value) * (setting.high - setting.low)
    generator = np.random.Generator(np.random.Philox(key=rng.bits(1)))
    noise = generator.standard_normal(sample.tensor.shape, np.float32)
    noisy = sample.tensor + torch.from_numpy(np.float32(deviation) * noise)
    return replace(sample, input=noisy)


def _gain(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert word.value is not None
    return replace(sample, input=louder(sample.tensor, rng.uniform(-word.value, word.value)))


def _shift(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert word.value is not None
    assert setting.sound is not None
    most = round(word.value * setting.sound.rate)
    return replace(sample, input=shifted(sample.tensor, rng.below(2 * most + 1) - most))


def _speed(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert word.value is not None
    assert setting.sound is not None
    factor = rng.uniform(1 - word.value, 1 + word.value)
    return replace(sample, input=played(sample.tensor, setting.sound.rate, factor))


def _tilt(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert word.value is not None
    assert setting.sound is not None
    slope = rng.uniform(-word.value, word.value)
    return replace(sample, input=tilted(sample.tensor, setting.sound.rate, slope))


def _worddrop(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert word.value is not None
    assert setting.unknown is not None
    generator = np.random.Generator(np.random.Philox(key=rng.bits()))
    dropped = torch.from_numpy(generator.random(len(sample.tensor)) < word.value)
    return replace(sample, input=sample.tensor.masked_fill(dropped, setting.unknown))


def _of_length(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert setting.sound is not None
    return replace(sample, input=of_length(sample.tensor, setting.sound.samples))


def _spectrogram(sample: Sample, word: Word, rng: SampleRNG, setting: Setting) -> Sample:
    assert setting.sound is not None
    return replace(sample, input=setting.sound.spectrogram(sample.tensor))


def _torchvision() -> Any:
    # imported late: it takes a second, and data in memory does not need it
    from torchvision.transforms.v2 import functional

    return functional


STEPS: dict[str, Step] = {
    "fit": _fit,
    "stretch": _stretch,
    "center_crop": _center_crop,
    "pad": _pad,
    "crop": _crop,
    "centercrop": _centercrop,
    "resizedcrop": _resizedcrop,
    "resize": _resize,
    "zoom": _zoom,
    "flip": _flip,
    "vflip": _vflip,
    "dflip": _dflip,
    "altflip": _altflip,
    "rot90": _rot90,
    "rotate": _rotate,
    "jitter": _jitter,
    "grayscale": _grayscale,
    "brightness": _brightness,
    "noise": _noise,
    "gain": _gain,
    "shift": _shift,
    "speed": _speed,
    "tilt": _tilt,
    "worddrop": _worddrop,
    "of_length": _of_length,
    "spectrogram": _spectrogram,
    "randaugment": _policy,
    "trivialaugment": _policy,
    "autoaugment": _policy,
}
# steps whose result is the same for a tensor and a Pillow image
ON_TENSORS = frozenset({"fit", "stretch", "flip", "vflip", "altflip", "rot90", "zoom"})

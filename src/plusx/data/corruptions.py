"""Common corruptions of images (Hendrycks and Dietterich 2019): 15 kinds, five severities.

Images are arrays (h, w, c) from 0 to 1 with any number of channels. The parameters of the kinds are
those with which CIFAR-10-C and ImageNet-C were made (github.com/hendrycks/robustness,
ImageNet-C/create_c); images with a side below 96 pixels have those of CIFAR-10-C. Distances are in
pixels. The images here are not those of the published sets: random numbers differ, and frost is
generated rather than photographed.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from plusx.errors import UserError, did_you_mean


SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 96  # pixels; images with a shorter side have the parameters of CIFAR-10-C

Pixels = Float[np.ndarray, "h w c"]
Plane = Float[np.ndarray, "h w"]
Number = int | float


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    apply: (image, parameters, generator) -> the corrupted image, not yet clipped
    small, large: the parameters by severity, of images of 32 and of 224 pixels
    """

    title: str
    group: str
    apply: Callable[[Pixels, Any, np.random.Generator], Pixels]
    small: tuple[Any, ...]
    large: tuple[Any, ...]


def corrupt(image: Pixels, kind: str, severity: int, rng: np.random.Generator) -> Pixels:
    """Return a corrupted image of the same size, rounded to 8 bits as stored images are.

    Raises UserError for an unknown kind or severity.
    """
    check_corruption(kind, severity)
    corruption = CORRUPTIONS[kind]
    is_small = min(image.shape[:2]) < SMALL
    parameters = (corruption.small if is_small else corruption.large)[severity - 1]
    corrupted = corruption.apply(np.asarray(image, np.float32), parameters, rng)
    return ((corrupted.clip(0, 1) * 255).round() / 255).astype(np.float32)


def check_corruption(kind: str, severity: int) -> None:
    """Raise UserError for an unknown kind or severity."""
    if kind not in CORRUPTIONS:
        raise UserError(
            f"corruption {kind!r}: allowed are {', '.join(CORRUPTIONS)}"
            f"{did_you_mean(kind, CORRUPTIONS)}"
        )
    if severity not in SEVERITIES:
        raise UserError(f"severity {severity}: from {SEVERITIES[0]} to {SEVERITIES[-1]}")


def _gaussian_noise(image: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    return image + rng.normal(0, deviation, image.shape)


def _shot_noise(image: Pixels, photons: int, rng: np.random.Generator) -> Pixels:
    return rng.poisson(image.clip(0, 1) * photons) / photons


def _impulse_noise(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Set a share of the values to 0 or 1."""
    is_changed = rng.random(image.shape) < share
    return np.where(is_changed, rng.random(image.shape) < 0.5, image)


def _defocus_blur(image: Pixels, parameters: Any, rng: np.random.Generator) -> Pixels:
    """Average over a disk. parameters: its radius, and the deviation that smooths its edge."""
    radius, smoothing = parameters
    reach = np.arange(-max(8, int(radius)), max(8, int(radius)) + 1)
    disk = (reach[:, None] ** 2 + reach[None] ** 2 <= radius**2).astype(float)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * smoothing**2))
    disk = ndimage.convolve(disk / disk.sum(), np.outer(taps, taps) / taps.sum() ** 2)
    used = np.flatnonzero(disk.any(0))
    disk = disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1]
    return ndimage.convolve(image, disk[:, :, None].astype(image.dtype), mode="mirror")


def _glass_blur(image: Pixels, parameters: Any, rng: np.random.Generator) -> Pixels:
    """Copy nearby pixels over each other. parameters: deviation of the blur before and after it,
    distance, rounds."""
    deviation, distance, rounds = parameters
    height, width = image.shape[:2]
    pixels = _blurred(image, deviation)
    source = np.arange(height * width).tolist()  # a list: elements are set one after the other
    rows = range(height - distance, distance, -1)
    columns = range(width - distance, distance, -1)
    for _ in range(rounds):
        moves = rng.integers(-distance, distance, (len(rows), len(columns), 2))
        steps = (moves[..., 0] * width + moves[..., 1]).tolist()
        for row, row_steps in zip(rows, steps):
            for column, step in zip(columns, row_steps):
                position = row * width + column
                source[position] = source[position + step]
    return _blurred(pixels.reshape(height * width, -1)[source].reshape(image.shape), deviation)


def _blurred(image: Pixels, deviation: float) -> Pixels:
    return ndimage.gaussian_filter(image, (deviation, deviation, 0), mode="nearest")


def _motion_blur(image: Pixels, parameters: Any, rng: np.random.Generator) -> Pixels:
    """Smear along a random line. parameters: its length, and the deviation of the weights."""
    length, deviation = parameters
    return _smeared(image, length, deviation, np.deg2rad(rng.uniform(-45, 45)))


def _smeared(image: Pixels, length: int, deviation: Number, angle: float) -> Pixels:
    """Average over a line that starts at the pixel, with the weights of half a Gaussian."""
    distances = np.arange(2 * length + 1)
    weights = np.exp(-(distances**2) / (2 * deviation**2))
    weights = weights / weights.sum()
    height, width = image.shape[:2]
    result = np.zeros_like(image)
    for distance, weight in zip(distances, weights):
        if weight < 1e-4:
            break
        rows = (np.arange(height) + round(distance * np.sin(angle))).clip(0, height - 1)
        columns = (np.arange(width) + round(distance * np.cos(angle))).clip(0, width - 1)
        result += weight * image[rows[:, None], columns]
    return result


def _zoom_blur(image: Pixels, parameters: Any, rng: np.random.Generator) -> Pixels:
    """Average over magnified copies. parameters: the largest factor, and the step between two."""
    end, step = parameters
    factors = np.arange(1, end, step)
    total = image + sum(_magnified(image, factor) for factor in factors)
    return total / (len(factors) + 1)


def _magnified(image: Pixels, factor: Number) -> Pixels:
    """Return the centre of an image, magnified to its size."""
    height, width = image.shape[:2]
    top, left = ((side - int(np.ceil(side / factor))) // 2 for side in (height, width))
    centre = image[top : height - top, left : width - left]
    large = ndimage.zoom(centre, (factor, factor, 1), order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return large[top : top + height, left : left + width]


def _snow(image: Pixels, parameters: Any, rng: np.random.Generator) -> Pixels:
    """Add flakes that a wind smears. parameters: mean and deviation of the noise that becomes
    flakes, its magnification, threshold, length and deviation of the smear, share of the image that
    keeps its brightness."""
    mean, deviation, factor, threshold, length, smear, share = parameters
    flakes = _magnified(rng.normal(mean, deviation, (*image.shape[:2], 1)), factor)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    flakes = _smeared(flakes, length, smear, np.deg2rad(rng.uniform(-135, -45)))
    pale = np.maximum(image, 1.5 * _grey(image) + 0.5)
    return share * image + (1 - share) * pale + flakes + np.rot90(flakes, 2)


def _grey(image: Pixels) -> Float[np.ndarray, "h w 1"]:
    """Return the brightness (h, w, 1): of RGB by ITU-R BT.601, else the mean of the channels."""
    if image.shape[2] == 3:
        return image @ np.array([0.299, 0.587, 0.114], image.dtype)[:, None]
    return image.mean(2, keepdims=True)


def _frost(image: Pixels, parameters: Any, rng: np.random.Generator) -> Pixels:
    """Add ice. parameters: weight of the image, weight of the ice."""
    weight, ice = parameters
    ground = _plasma(image.shape[:2], 2.0, rng)
    ridges = 1 - np.abs(2 * _plasma(image.shape[:2], 1.6, rng) - 1)  # thin bright lines
    bright = (0.25 + 0.45 * ground + 0.5 * ridges**4).clip(0, 1)[:, :, None]
    tint = np.array([0.88, 0.95, 1.0]) if image.shape[2] == 3 else 1.0
    return weight * image + ice * bright * tint


def _fog(image: Pixels, parameters: Any, rng: np.random.Generator) -> Pixels:
    """Add fog. parameters: its amount, and the decay of its roughness."""
    amount, decay = parameters
    brightest = image.max()
    foggy = image + amount * _plasma(image.shape[:2], decay, rng)[:, :, None]
    return foggy * brightest / (brightest + amount)


def _plasma(size: tuple[int, ...], decay: Number, rng: np.random.Generator) -> Plane:
    """Return a random landscape from 0 to 1, by the diamond-square algorithm on a torus.

    decay: divisor of the roughness from a scale to the next finer one
    """
    heights, roughness = np.zeros((1, 1)), 100.0
    while len(heights) < max(size):
        count = len(heights)

        def noise(count: int = count, roughness: float = roughness) -> Plane:
            return roughness * rng.uniform(-roughness, roughness, (count, count))

        right, below = np.roll(heights, -1, 1), np.roll(heights, -1, 0)
        centres = (heights + right + below + np.roll(below, -1, 1)) / 4 + noise()
        finer = np.empty((2 * count, 2 * count))
        finer[::2, ::2], finer[1::2, 1::2] = heights, centres
        finer[::2, 1::2] = (heights + right + centres + np.roll(centres, 1, 0)) / 4 + noise()
        finer[1::2, ::2] = (heights + below + centres + np.roll(centres, 1, 1)) / 4 + noise()
        heights, roughness = finer, roughness / decay
    heights = heights[: size[0], : size[1]]
    heights = heights - heights.min()
    return heights / max(heights.max(), 1e-12)


def _brightness(image: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    """Raise the value of HSV, the largest channel; hue and saturation stay."""
    value = image.max(2, keepdims=True)
    raised = (value + amount).clip(0, 1)
    return np.where(value > 0, image * raised / np.maximum(value, 1e-12), raised)


def _contrast(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    mean = image.mean((0, 1), keepdims=True)
    return mean + share * (image - mean)


def _elastic(image: Pixels, parameters: Any, rng: np.random.Generator) -> Pixels:
    """Move three points of a square, and every pixel. parameters, as fractions of the side: size of
    the movements of pixels, deviation of their blur, largest movement of the points."""
    height, width = image.shape[:2]
    side = min(height, width)
    size, smoothing, largest = (side * value for value in parameters)
    centre, half = np.array([height, width]) // 2, max(1, side // 3)
    corners = centre + half * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-largest, largest, corners.shape)
    # the affine map from the moved points back to where they were
    homogeneous = np.concatenate([moved, np.ones((3, 1))], 1)
    affine = np.linalg.lstsq(homogeneous, corners.astype(float), rcond=None)[0]
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    positions = grid.astype(float)
    if size:
        noise = rng.uniform(-1, 1, (height, width, 2))
        blur = partial(ndimage.gaussian_filter, mode="reflect", truncate=3)
        positions = positions + size * blur(noise, (smoothing, smoothing, 0))
    positions = positions @ affine[:2] + affine[2]
    channels = [
        ndimage.map_coordinates(channel, np.moveaxis(positions, -1, 0), order=1, mode="reflect")
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, -1)


def _pixelate(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Store with this share of the pixels in each direction."""
    height, width = image.shape[:2]
    small = max(1, int(width * share)), max(1, int(height * share))
    channels = []
    for channel in np.moveaxis(image, -1, 0):
        stored = Image.fromarray(channel).resize(small, Image.Resampling.BOX)
        channels.append(np.asarray(stored.resize((width, height), Image.Resampling.BOX)))
    return np.stack(channels, -1)


def _jpeg(image: Pixels, quality: int, rng: np.random.Generator) -> Pixels:
    stored = (image.clip(0, 1) * 255).round().astype(np.uint8)
    # RGB together, other channels each as a grey image
    parts = [stored] if stored.shape[2] == 3 else list(np.moveaxis(stored, -1, 0))
    return np.concatenate([_as_jpeg(part, quality) for part in parts], -1) / np.float32(255)


def _as_jpeg(values: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=quality)
    return np.atleast_3d(np.asarray(Image.open(file, formats=("JPEG",))))


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": Corruption(
        "Gaussian noise", "noise", _gaussian_noise,
        (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38),
    ),
    "shot-noise": Corruption(
        "shot noise", "noise", _shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)
    ),
    "impulse-noise": Corruption(
        "impulse noise", "noise", _impulse_noise,
        (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27),
    ),
    "defocus-blur": Corruption(
        "defocus blur", "blur", _defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass-blur": Corruption(
        "glass blur", "blur", _glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion-blur": Corruption(
        "motion blur", "blur", _motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom-blur": Corruption(
        "zoom blur", "blur", _zoom_blur,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "snow": Corruption(
        "snow", "weather", _snow,
        ((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
         (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
         (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
        ((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
         (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
         (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)),
    ),
    "frost": Corruption(
        "frost", "weather", _frost,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": Corruption(
        "fog", "weather", _fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Corruption(
        "brightness", "weather", _brightness,
        (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5),
    ),
    "contrast": Corruption(
        "contrast", "digital", _contrast,
        (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05),
    ),
    "elastic": Corruption(
        "elastic transform", "digital", _elastic,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
         (0.1, 0.03, 0.03)),
        # 244 / 224: the published set takes fractions of 244 pixels
        tuple(tuple(244 / 224 * value for value in values)
              for values in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02),
                             (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))),
    ),
    "pixelate": Corruption(
        "pixelation", "digital", _pixelate,
        (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25),
    ),
    "jpeg": Corruption(
        "JPEG compression", "digital", _jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)
    ),
}  # fmt: skip

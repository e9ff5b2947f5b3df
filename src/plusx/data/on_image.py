"""The augmentations that act on one image, mostly with torchvision's v2 functions on Pillow images.

Each takes an image of mode RGB or L, the word, the draws of that one sample and the set's size.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from plusx.data.augment import Word
from plusx.data.draws import Draws
from plusx.data.on_scene import SCENE_STEPS, Scene
from plusx.data.scaled import random_windows, scaled
from plusx.data.windows import alternating, crop_places, half


Size = tuple[int, int]
Step = Callable[[Image.Image, Word, Draws, Size], Image.Image]

# of the resized image, the share a side that evaluation keeps (He et al. 2015: 224 of 256)
EVALUATION_SHARE = 0.875
# a longer image is first cut to this many times its shorter side, around the middle
_LONGEST = 20


def evaluation_view(image: Image.Image, size: Size) -> Image.Image:
    """The shorter side to size / 0.875, then the window in the middle: what evaluation sees."""
    height, width = (round(side / EVALUATION_SHARE) for side in size)
    return _image(functional.center_crop(_covering(image, height, width), list(size)))


def shorter_side(image: Image.Image, side: int) -> Image.Image:
    """Scaled as evaluation does before it cuts: the shorter side to so many pixels."""
    return _covering(image, side, side)


def _covering(image: Image.Image, height: int, width: int) -> Image.Image:
    image = _shortened(image)
    # the least (height, width) of the image's shape that covers the wanted one, rounded down
    if height * image.width >= width * image.height:
        width = height * image.width // image.height
    else:
        height = width * image.height // image.width
    return _image(functional.resize(image, [height, width], antialias=True))


def _evaluate(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    return evaluation_view(image, size)


def _window(word: Word, size: Size) -> Size:
    return size if word.side is None else (word.side, word.side)


def _shortened(image: Image.Image) -> Image.Image:
    """Very long images, cut around the middle, so that scaling them cannot fill the memory."""
    longest = _LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    return _image(
        functional.center_crop(image, [min(image.height, longest), min(image.width, longest)])
    )


def _pad(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    assert word.side is not None
    return _image(functional.pad(image, [word.side], fill=0))


def _crop(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    height, width = _window(word, size)
    tops, lefts = crop_places(draws, (image.height - height, image.width - width))
    return _image(functional.crop(image, int(tops[0]), int(lefts[0]), height, width))


def _flip(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    return _image(functional.horizontal_flip(image)) if half(draws)[0] else image


def _altflip(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    return _image(functional.horizontal_flip(image)) if alternating(draws)[0] else image


def _vflip(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    return _image(functional.vertical_flip(image)) if half(draws)[0] else image


def _resize(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    return _image(functional.resize(_shortened(image), [word.side], antialias=True))


def _centercrop(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    return _image(functional.center_crop(image, list(_window(word, size))))


def _resizedcrop(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    found = random_windows(draws, np.array([image.height]), np.array([image.width]))
    top, left, tall, wide = (int(each[0]) for each in found)
    pixels = np.array(image.crop((left, top, left + wide, top + tall)))
    made = scaled(pixels.reshape(tall, wide, -1), _window(word, size), channels_last=True)
    planes = made.permute(1, 2, 0).numpy()
    return Image.fromarray(planes if len(made) == 3 else planes[:, :, 0])


def _by_scene(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    """As an image with boxes is treated, of which this one has none."""
    stored = np.array(image).reshape(image.height, image.width, -1)
    scene = Scene(torch.from_numpy(stored).permute(2, 0, 1), np.zeros((0, 6), np.float32))
    made = SCENE_STEPS[word.kind](scene, word, draws, size).image.permute(1, 2, 0).numpy()
    return Image.fromarray(made if made.shape[2] == 3 else made[:, :, 0])


def _jitter(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    assert word.value is not None
    steps = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    order = np.argsort([draws.bits(draw)[0] for draw in range(3)])
    for step in order:
        factor = draws.uniform(1 - word.value, 1 + word.value, 3 + int(step))[0]
        image = steps[step](image, float(factor))
    return image


def _grayscale(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    if image.mode == "L" or draws.uniform()[0] >= (1.0 if word.value is None else word.value):
        return image
    return _image(functional.rgb_to_grayscale(image, num_output_channels=3))


def _rotate(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    assert word.value is not None
    angle = float(draws.uniform(-word.value, word.value)[0])
    return _image(functional.rotate(image, angle, v2.InterpolationMode.BILINEAR))


def _randaugment(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    magnitude = 9 if word.side is None else word.side
    return _with_torch_draws(v2.RandAugment(magnitude=magnitude), image, draws)


def _trivialaugment(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    return _with_torch_draws(v2.TrivialAugmentWide(), image, draws)


def _autoaugment(image: Image.Image, word: Word, draws: Draws, size: Size) -> Image.Image:
    small = max(size) <= 32
    policy = v2.AutoAugmentPolicy.CIFAR10 if small else v2.AutoAugmentPolicy.IMAGENET
    return _with_torch_draws(v2.AutoAugment(policy), image, draws)


def _image(made: Any) -> Image.Image:
    """What torchvision, which is not typed, made of an image."""
    assert isinstance(made, Image.Image)
    return made


def _with_torch_draws(transform: v2.Transform, image: Image.Image, draws: Draws) -> Image.Image:
    """Let a transform that draws from torch's generator do so from a seed of the sample's own."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(draws.bits()[0] >> np.uint64(1)))
        return _image(transform(image))


IMAGE_STEPS: dict[str, Step] = {
    "evaluate": _evaluate,
    "pad": _pad,
    "crop": _crop,
    "flip": _flip,
    "vflip": _vflip,
    "altflip": _altflip,
    "resize": _resize,
    "centercrop": _centercrop,
    "resizedcrop": _resizedcrop,
    "zoom": _by_scene,
    "turn": _by_scene,
    "jitter": _jitter,
    "grayscale": _grayscale,
    "rotate": _rotate,
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
    "autoaugment": _autoaugment,
}

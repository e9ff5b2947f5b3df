"""Single samples, decoded and augmented one by one, in the main process or in a worker."""

import signal
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from plusx.data.augment import NORMALISED, Plan, Word
from plusx.data.draws import Draws
from plusx.data.image import DamagedImage, Picture
from plusx.data.sample import Source
from plusx.data.scaled import random_windows, scaled


# of an image in a file: all of it scaled to the size, or the window in its middle
View = Literal["middle", "whole"]

Pixels = UInt8[np.ndarray, "h w c"]


class Failure(NamedTuple):
    """What comes back from a worker in place of images that cannot be had."""

    message: str


class SampleError(RuntimeError):
    """A sample that cannot be decoded any more."""


class Samples(Dataset[UInt8[Tensor, "h w c"] | Failure]):
    """The samples (epoch, index) of a set, augmented by a plan."""

    def __init__(self, source: Source, steps: Plan, seed: int, channels_last: bool) -> None:
        self.source = source
        self.plan = steps
        self.seed = seed
        self.channels_last = channels_last
        self.on_image: Mapping[str, Callable[..., Image.Image]] = {}
        if not steps.batched:
            # torchvision takes a second or two to load, and sets in memory do without it
            from plusx.data.on_image import IMAGE_STEPS

            self.on_image = {**IMAGE_STEPS, "whole": _whole, "middle": _middle}
        self.working_on = torch.full((0,), -1, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> UInt8[Tensor, "h w c"] | Failure:
        epoch, index = place
        worker = get_worker_info()
        if worker is not None:
            self.working_on[worker.id] = index
        try:
            made = self._made(index, epoch)
        except (DamagedImage, OSError) as error:
            return Failure(f"{self.source.where(index)} cannot be used any more: {error}")
        if worker is not None:
            self.working_on[worker.id] = -1
        return torch.from_numpy(made)

    def _made(self, index: int, epoch: int) -> Pixels:
        size = self.source.preprocessing.size
        draws = Draws.of(self.seed, epoch, np.array([index]))
        words = [
            (number, word)
            for number, word in enumerate(self.plan.words)
            if word.kind not in NORMALISED
        ]
        stored = self.source.stored(index)
        image: Image.Image
        if not isinstance(stored, Picture):
            image = as_image(stored, self.source.preprocessing.channels)
        elif stored.is_jpeg and words and words[0][1].kind == "resizedcrop":
            (number, word), *words = words
            side = size if word.side is None else (word.side, word.side)
            image = self._resized(stored, side, draws.at(number))
        else:
            image = self._decoded(stored)
        for number, word in words:
            image = self.on_image[word.kind](image, word, draws.at(number), size)
        return as_array(image)

    def _decoded(self, picture: Picture, shrink: int = 1) -> Image.Image:
        source = self.source
        return picture.decoded(source.preprocessing.channels, decoder=source.decoder, shrink=shrink)

    def _resized(self, picture: Picture, size: tuple[int, int], draws: Draws) -> Image.Image:
        """`resizedcrop` as the first word: pixels that scaling would drop are not decoded."""
        width, height = picture.size
        found = random_windows(draws, np.array([height]), np.array([width]))
        top, left, tall, wide = (int(each[0]) for each in found)
        shrink = max(
            k for k in (1, 2, 4, 8) if k == 1 or (tall >= k * size[0] and wide >= k * size[1])
        )
        image = self._decoded(picture, shrink)
        if image.size == (width, height):
            shrink = 1
        right, bottom = -(-(left + wide) // shrink), -(-(top + tall) // shrink)
        window = image.crop((left // shrink, top // shrink, right, bottom))
        return Image.fromarray(_planes(scaled(as_array(window), size)))

    def collate(self, samples: list[Tensor | Failure]) -> UInt8[Tensor, "n c h w"] | Failure:
        """One tensor of all, or the first that failed."""
        for sample in samples:
            if isinstance(sample, Failure):
                return sample
        made = torch.stack([each for each in samples if isinstance(each, Tensor)])
        made = made.permute(0, 3, 1, 2)
        return made if self.channels_last else made.contiguous()


def good(images: Tensor | Failure) -> Tensor:
    """The images. Raises SampleError where they could not be had."""
    if isinstance(images, Failure):
        raise SampleError(images.message)
    return images


def viewed(image: Image.Image, size: tuple[int, int], view: View) -> Image.Image:
    """What a network of this size (height, width) sees of an image that is not augmented."""
    if view == "whole":
        height, width = size
        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling.BILINEAR)
    from plusx.data.on_image import evaluation_view  # loads torchvision

    return evaluation_view(image, size)


def _whole(image: Image.Image, word: Word, draws: Draws, size: tuple[int, int]) -> Image.Image:
    return viewed(image, size, "whole")


def _middle(image: Image.Image, word: Word, draws: Draws, size: tuple[int, int]) -> Image.Image:
    return viewed(image, size, "middle")


def as_image(pixels: Pixels, channels: int) -> Image.Image:
    """Pixels as a Pillow image of mode RGB or L."""
    image = Image.fromarray(_planes(pixels))
    return image if channels == pixels.shape[2] else image.convert({1: "L", 3: "RGB"}[channels])


def as_array(image: Image.Image) -> Pixels:
    """The pixels of an RGB or grey Pillow image."""
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def as_tensor(image: Image.Image) -> UInt8[Tensor, "c h w"]:
    """The pixels of an RGB or grey Pillow image."""
    return torch.from_numpy(as_array(image)).permute(2, 0, 1)


def _planes(pixels: Pixels) -> np.ndarray:
    return pixels if pixels.shape[2] == 3 else pixels[:, :, 0]


def begin_worker(number: int) -> None:
    """What a worker process does first."""
    # the handlers of a run (save and leave) are inherited, and are not a worker's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

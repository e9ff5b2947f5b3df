"""Single samples, decoded and augmented one by one, in the main process or in a worker."""

import signal
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from plusx.data.augment import NORMALISED, Plan, Word
from plusx.data.draws import Draws
from plusx.data.image import Box, Picture, UnreadableImage, quiet
from plusx.data.sample import Source
from plusx.data.scaled import random_windows, scaled
from plusx.data.windows import TURNS


# of an image in a file: all of it scaled to the size, or the window in its middle
View = Literal["middle", "whole"]

Pixels = UInt8[np.ndarray, "_ _ _"]
Made = UInt8[Tensor, "c h w"]

# samples whose headers are read, and draws made, at a time
_TOGETHER = 16


class Failure(NamedTuple):
    """What comes back from a worker in place of images that cannot be had."""

    message: str


class SampleError(RuntimeError):
    """A sample that cannot be decoded any more."""


class Samples(Dataset[Made | Failure]):
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

    def __getitem__(self, place: tuple[int, int]) -> Made | Failure:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[tuple[int, int]]) -> list[Made | Failure]:
        """Samples of one epoch; what comes after one that cannot be had is left out."""
        made: list[Made | Failure] = []
        for start in range(0, len(places), _TOGETHER):
            some = places[start : start + _TOGETHER]
            epochs, indices = {epoch for epoch, _ in some}, [index for _, index in some]
            (epoch,) = epochs
            with quiet:
                made += self._made(indices, epoch)
            if isinstance(made[-1], Failure):
                break
        return made

    def _made(self, indices: list[int], epoch: int) -> list[Made | Failure]:
        draws = Draws.of(self.seed, epoch, np.array(indices))
        words = [
            (word, draws.at(number))
            for number, word in enumerate(self.plan.words)
            if word.kind not in NORMALISED
        ]
        made: list[Made | Failure] = []
        current = indices[0]
        try:
            stored = []
            for current in indices:
                self._work_on(current)
                stored.append(self.source.stored(current))
            windows = self._windows(stored, words)
            for place, current in enumerate(indices):
                self._work_on(current)
                own = [(word, all_draws.alone(place)) for word, all_draws in words]
                made.append(self._augmented(stored[place], windows[place], own))
        except (UnreadableImage, OSError) as error:
            why = f"{self.source.where(current)} cannot be used any more: {error}"
            return [*made, Failure(why)]
        self._work_on(-1)
        return made

    def _work_on(self, index: int) -> None:
        worker = get_worker_info()
        if worker is not None:
            self.working_on[worker.id] = index

    def _windows(
        self, stored: list[Picture | Pixels], words: list[tuple[Word, Draws]]
    ) -> list[Box | None]:
        """Where `resizedcrop` comes first: what it sees of each JPEG, before that is decoded."""
        jpegs = [isinstance(each, Picture) and each.is_jpeg for each in stored]
        if not words or words[0][0].kind != "resizedcrop" or not any(jpegs):
            return [None] * len(stored)
        sizes = [each.size if isinstance(each, Picture) else (1, 1) for each in stored]
        widths, heights = np.array(sizes, np.int64).T
        found = np.stack(random_windows(words[0][1], heights, widths), 1).tolist()
        return [
            (left, top, left + wide, top + tall) if jpeg else None
            for jpeg, (top, left, tall, wide) in zip(jpegs, found)
        ]

    def _augmented(
        self, stored: Picture | Pixels, box: Box | None, words: list[tuple[Word, Draws]]
    ) -> Made:
        size, channels = self.source.preprocessing.size, self.source.preprocessing.channels
        image: Image.Image | Tensor
        if box is not None:
            assert isinstance(stored, Picture)
            (first, _), *words = words
            side = size if first.side is None else (first.side, first.side)
            pixels = stored.window(box, channels, self.source.decoder, _shrinking(box, side))
            image = scaled(pixels, side, self.channels_last)
        elif isinstance(stored, Picture):
            image = stored.decoded(channels, decoder=self.source.decoder)
        else:
            image = as_image(stored, channels)
        for word, draws in words:
            if isinstance(image, Tensor) and word.kind in TURNS:
                dimension, chosen = TURNS[word.kind]
                image = image.flip(dimension) if chosen(draws)[0] else image
            else:
                if isinstance(image, Tensor):
                    image = as_image(image.permute(1, 2, 0).numpy(), channels)
                image = self.on_image[word.kind](image, word, draws, size)
        return image if isinstance(image, Tensor) else as_tensor(image)

    def collate(self, samples: list[Tensor | Failure]) -> UInt8[Tensor, "n c h w"] | Failure:
        """One tensor of all, or the first that failed."""
        for sample in samples:
            if isinstance(sample, Failure):
                return sample
        images = [each for each in samples if isinstance(each, Tensor)]
        if self.channels_last:
            return torch.stack([each.permute(1, 2, 0) for each in images]).permute(0, 3, 1, 2)
        return torch.stack(images)


def _shrinking(box: Box, size: tuple[int, int]) -> int:
    """How many times fewer pixels still are as many as are wanted (height, width)."""
    left, top, right, bottom = box
    tall, wide = (bottom - top) // size[0], (right - left) // size[1]
    return next((by for by in (8, 4, 2) if min(tall, wide) >= by), 1)


Batched = TypeVar("Batched")


def good(images: Batched | Failure) -> Batched:
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

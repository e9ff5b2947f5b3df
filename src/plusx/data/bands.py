"""Images of any number of channels and of any range, as satellites and microscopes take them.

TIFF, as bands of one page or as pages, and PNG; each file has the same channels, and stored values
within a range that is said. A network sees the whole of an image, scaled where it has another size;
the words of augmentation are those that move windows: pad, crop, flip, vflip and altflip, and
cutout and erase.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Num
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from plusx.data.augment import Plan, plan
from plusx.data.check import Entry, OnUnreadable, judged
from plusx.data.choosing import evenly
from plusx.data.draws import Draws
from plusx.data.image import UnreadableImage
from plusx.data.sample import Preprocessing, Source
from plusx.data.samples import Failure
from plusx.data.tiff import read_bands
from plusx.data.windows import WINDOW_STEPS, Windows, seen
from plusx.errors import UserError


_MEASURED = 500  # images whose values are measured
_NARROW = 0.01  # the least share of the stated range that the values of all images have to take
_THREADS = 4


class _Found(NamedTuple):
    """What the values of one file are, or why it is refused."""

    problem: str | None
    low: float = 0.0
    high: float = 0.0


def checked_bands(path: str, known: Preprocessing) -> Float32[np.ndarray, "c h w"]:
    """As read_bands; values that are not finite or outside the stated range are refused too."""
    image = read_bands(path, known.channels, known.bands)
    if not image.size:
        raise UnreadableImage("it has no pixels")
    bad = int((~np.isfinite(image)).sum())
    if bad:
        raise UnreadableImage(f"{bad:,} of its values are not finite")
    low, high = float(image.min()), float(image.max())
    if low < known.low or high > known.high:
        raise UnreadableImage(
            f"its values run from {low:g} to {high:g}, outside {known.low:g} to {known.high:g}"
        )
    return image


def keep_bands(
    entries: Iterable[Entry], root: str, on_unreadable: OnUnreadable, known: Preprocessing
) -> tuple[list[Entry], list[str]]:
    """As data.check.keep, of images of bands.

    Raises UserError too where the values of all of them take less than a hundredth of the range
    that is said: it is another one, and every image would look the same.
    """
    listed = list(entries)
    paths = [entry.path for entry in listed if entry.state == "used"]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "plusx-check") as pool:
        verdicts = dict(zip(paths, pool.map(lambda path: _examined(path, known), paths)))
    used, notices = judged(
        [
            entry._replace(state="refused", reason=found.problem)
            if (found := verdicts.get(entry.path)) is not None and found.problem is not None
            else entry
            for entry in listed
        ],
        root,
        on_unreadable,
    )
    if used:
        low = min(verdicts[entry.path].low for entry in used)
        high = max(verdicts[entry.path].high for entry in used)
        if (problem := narrow(len(used), low, high, known)) is not None:
            raise UserError(f"{problem}: say the one that they have, [data] range")
    return used, notices


def narrow(count: int, low: float, high: float, known: Preprocessing) -> str | None:
    """What is wrong where images take next to nothing of the range: they would all look alike."""
    if high - low >= _NARROW * (known.high - known.low):
        return None
    return (
        f"the values of all {count:,} images lie from {low:g} to {high:g}, which is next to "
        f"nothing of the range {known.low:g} to {known.high:g} that is said of them"
    )


def band_plan(text: str, size: tuple[int, int]) -> Plan:
    """An augmentation of bands. Raises UserError for words that are for pictures alone."""
    made = plan(text, size, in_memory=True)
    if not made.batched:
        raise UserError(
            f"in {text!r}: images of bands know pad, crop, flip, vflip, altflip, cutout and erase; "
            "the other words are for pictures of 8 bits"
        )
    return made


def measured(source: Source) -> Preprocessing:
    """How images are prepared so that every band has mean 0 and deviation 1 over the set.

    Over at most 500 of them, spread evenly.
    """
    known = source.preprocessing
    bare = replace(known, mean=(0.0,) * known.channels, std=(1.0,) * known.channels)
    chosen = evenly(len(source), _MEASURED)
    sums, squares, count = np.zeros(known.channels), np.zeros(known.channels), 0
    for index in chosen:
        image = bare.normalise(source[int(index)].image).double().flatten(1).numpy()
        sums, squares = sums + image.sum(1), squares + (image**2).sum(1)
        count += image.shape[1]
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return replace(
        known,
        mean=tuple(round(float(each), 6) for each in mean),
        # a band that is the same everywhere tells nothing, and is left as it is
        std=tuple(max(round(float(each), 6), 1e-6) if each > 1e-6 else 1.0 for each in std),
    )


class BandSamples(Dataset[Tensor | Failure]):
    """The samples (epoch, index) of images of bands in files, their windows moved by a plan."""

    def __init__(self, source: Source, steps: Plan, seed: int) -> None:
        self.source, self.plan, self.seed = source, steps, seed
        self.working_on = torch.full((0,), -1, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> Tensor | Failure:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[tuple[int, int]]) -> list[Tensor | Failure]:
        """Samples of one epoch, or what failed."""
        indices, known = np.array([index for _, index in places]), self.source.preprocessing
        worker = get_worker_info()
        images = []
        for index in indices.tolist():
            if worker is not None:
                self.working_on[worker.id] = index
            try:
                images.append(self.source[index].image)
            except (UnreadableImage, OSError) as error:
                why = f"{self.source.where(index)} cannot be used any more: {error}"
                return [Failure(why)]
        if worker is not None:
            self.working_on[worker.id] = -1
        windows = Windows.whole(len(images), known.size)
        draws = Draws.of(self.seed, places[0][0], indices)
        for number, word in enumerate(self.plan.words):
            if word.kind in WINDOW_STEPS:
                windows = WINDOW_STEPS[word.kind](windows, word, draws.at(number), known.size)
        return list(seen(torch.stack(images), np.arange(len(images)), windows).unbind())

    def collate(self, samples: list[Tensor | Failure]) -> Num[Tensor, "n c h w"] | Failure:
        """One tensor of all, or the first that failed."""
        for sample in samples:
            if isinstance(sample, Failure):
                return sample
        return torch.stack([each for each in samples if isinstance(each, Tensor)])


def _examined(path: str, known: Preprocessing) -> _Found:
    try:
        image = checked_bands(path, known)
    except UnreadableImage as error:
        return _Found(str(error))
    except OSError as error:
        return _Found(f"cannot be read: {error.strerror or error}")
    return _Found(None, float(image.min()), float(image.max()))

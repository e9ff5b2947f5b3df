"""Patches of volumes that train, and whole volumes for all else.

The words of `augment` for volumes act on patches, in their order:

| word | meaning |
|---|---|
| `flip` `vflip` `dflip` | mirrored along the columns, the rows, the slices, every second time |
| `quarter` | turned by 0, 90, 180 or 270 degrees in the plane of rows and columns |
| `gain.2` | values times 0.8 to 1.2, around the middle of the window |
| `noise.1` | normal noise of a deviation of 0 to 0.1 of the window |
"""

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from plusx.data.draws import Draws
from plusx.data.sample import Source
from plusx.data.samples import Failure
from plusx.data.volumes import NOT_JUDGED
from plusx.errors import UserError


_SHARE = r"\.\d{1,4}|1|1\.0"
# word: how its value is written, and an example
VOCABULARY: dict[str, tuple[str, str]] = {
    "flip": ("", "flip"),
    "vflip": ("", "vflip"),
    "dflip": ("", "dflip"),
    "quarter": ("", "quarter"),
    "gain": (_SHARE, "gain.2"),
    "noise": (_SHARE, "noise.1"),
}
_AXES = {"flip": -1, "vflip": -2, "dflip": -3}
# the purposes of these draws; the words have 0, 1, 2, ...
_WHERE, _WHICH = 1 << 40, 1 << 41
_KEPT = 20_000  # voxels of a class, evenly many, around which patches are taken


class Step(NamedTuple):
    """A word of an augmentation, and its value where it has one."""

    kind: str
    value: float


class Patch(NamedTuple):
    """A part of a volume, or all of it."""

    image: Float32[Tensor, "c d h w"]
    mask: UInt8[Tensor, "d h w"]


class Patches(NamedTuple):
    """A batch of patches before their values are normalised."""

    images: Float32[Tensor, "n c d h w"]
    targets: UInt8[Tensor, "n d h w"]


class VolumeSamples(Dataset[Patch | Failure]):
    """Patch `index` of an epoch, of volume index % n; without training the whole of volume index.

    Raises UserError for an augmentation that is wrong, or that does not fit the patches.
    """

    def __init__(self, source: Source, augment: str, seed: int, train: bool) -> None:
        assert source.volumes is not None
        assert source.preprocessing.space is not None
        self.source, self.seed, self.train = source, seed, train
        self.volumes, self.size = source.volumes, source.preprocessing.space.patch
        self.steps = steps_of(augment) if train else ()
        if any(step.kind == "quarter" for step in self.steps) and self.size[1] != self.size[2]:
            raise UserError(
                f"augment {augment!r}: quarter needs as many rows as columns in a patch"
            )
        self.working_on = torch.full((0,), -1, dtype=torch.int64)
        self._within: dict[int, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.volumes) * (self.volumes.patches if self.train else 1)

    def __getitem__(self, place: tuple[int, int]) -> Patch | Failure:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[tuple[int, int]]) -> list[Patch | Failure]:
        """Samples of one epoch; what comes after one that cannot be had is left out."""
        worker = get_worker_info()
        made: list[Patch | Failure] = []
        for epoch, index in places:
            number = index % len(self.volumes)
            if worker is not None:
                self.working_on[worker.id] = number
            try:
                made.append(self._patch(epoch, index) if self.train else self._whole(number))
            except OSError as error:
                where = self.source.where(number)
                return [*made, Failure(f"{where} cannot be used any more: {error}")]
        if worker is not None:
            self.working_on[worker.id] = -1
        return made

    def collate(self, samples: Sequence[Patch | Failure]) -> Patches | Failure:
        """All in one batch, or the first that failed."""
        for sample in samples:
            if isinstance(sample, Failure):
                return sample
        patches = [each for each in samples if isinstance(each, Patch)]
        return Patches(
            torch.stack([each.image for each in patches]),
            torch.stack([each.mask for each in patches]),
        )

    def _whole(self, number: int) -> Patch:
        volume = self.volumes.each[number]
        image = torch.from_numpy(np.array(volume.image, np.float32))
        if volume.mask is None:
            return Patch(image, torch.full(image.shape[1:], NOT_JUDGED, dtype=torch.uint8))
        return Patch(image, torch.from_numpy(np.array(volume.mask)))

    def _patch(self, epoch: int, index: int) -> Patch:
        draws = Draws.of(self.seed, epoch, np.array([index]))
        number = index % len(self.volumes)
        volume = self.volumes.each[number]
        assert volume.mask is not None
        sides = volume.mask.shape
        begin = self._begin(number, sides, draws)
        window = tuple(slice(start, start + side) for start, side in zip(begin, self.size))
        image = np.array(volume.image[(slice(None), *window)], np.float32)
        mask = np.array(volume.mask[window])
        missing = [(0, side - held) for side, held in zip(self.size, mask.shape)]
        if any(end for _, end in missing):
            low = self.source.preprocessing.low
            image = np.pad(image, [(0, 0), *missing], constant_values=low)
            mask = np.pad(mask, missing, constant_values=NOT_JUDGED)
        for place, step in enumerate(self.steps):
            image, mask = self._changed(image, mask, step, draws.at(place))
        return Patch(
            torch.from_numpy(np.ascontiguousarray(image)),
            torch.from_numpy(np.ascontiguousarray(mask)),
        )

    def _begin(self, number: int, sides: tuple[int, ...], draws: Draws) -> list[int]:
        """Where a patch begins: anywhere, or so that it holds a drawn voxel of a class."""
        most = [max(0, side - own) for side, own in zip(sides, self.size)]
        where = draws.at(_WHERE)
        anywhere = [int(where.below(room + 1, draw)[0]) for draw, room in enumerate(most)]
        which = draws.at(_WHICH)
        held = self._of_classes(number) if which.uniform()[0] < self.volumes.foreground else []
        if not held:
            return anywhere
        voxels = held[int(which.below(len(held), 1)[0])]
        voxel = np.unravel_index(int(voxels[int(which.below(len(voxels), 2)[0])]), sides)
        begin = [
            int(along) - int(where.below(own, draw)[0])
            for draw, (along, own) in enumerate(zip(voxel, self.size))
        ]
        return [min(max(0, start), room) for start, room in zip(begin, most)]

    def _of_classes(self, number: int) -> list[np.ndarray]:
        """Voxels of every class of a volume but the first, as places in its flat mask."""
        found = self._within.get(number)
        if found is None:
            mask = self.volumes.each[number].mask
            assert mask is not None
            flat = np.asarray(mask).reshape(-1)
            found = []
            for value in range(1, len(self.source.classes)):
                places = np.flatnonzero(flat == value)
                if len(places):
                    found.append(places[:: -(-len(places) // _KEPT)])
            self._within[number] = found
        return found

    def _changed(
        self, image: np.ndarray, mask: np.ndarray, step: Step, draws: Draws
    ) -> tuple[np.ndarray, np.ndarray]:
        preprocessing = self.source.preprocessing
        low, high = preprocessing.low, preprocessing.high
        if step.kind in _AXES:
            if draws.below(2)[0]:
                axis = _AXES[step.kind]
                return np.flip(image, axis), np.flip(mask, axis)
        elif step.kind == "quarter":
            turns = int(draws.below(4)[0])
            return np.rot90(image, turns, (-2, -1)), np.rot90(mask, turns, (-2, -1))
        elif step.kind == "gain":
            middle, factor = (low + high) / 2, draws.uniform(1 - step.value, 1 + step.value)[0]
            image = (image - np.float32(middle)) * np.float32(factor) + np.float32(middle)
        elif step.kind == "noise":
            deviation = draws.uniform(0.0, step.value)[0] * (high - low)
            random = np.random.Generator(np.random.Philox(key=int(draws.bits(1)[0])))
            noise = random.standard_normal(image.shape, np.float32)
            image = image + np.float32(deviation) * noise
        return image, mask


def steps_of(text: str) -> tuple[Step, ...]:
    """Read an augmentation of volumes. UserError points at the word and suggests the nearest."""
    steps = []
    for place, token in enumerate(text.split(), 1):
        name = re.match("[a-z]*", token)
        assert name is not None
        kind, value = name.group(), token[name.end() :]
        if kind not in VOCABULARY:
            near = difflib.get_close_matches(kind or token, VOCABULARY, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else "the words are"
            raise UserError(
                f"in {text!r}, at {token!r} (word {place}): no such word for volumes, {hint} "
                f"{'' if near else ', '.join(VOCABULARY)}".rstrip()
            )
        pattern, example = VOCABULARY[kind]
        if not re.fullmatch(pattern, value):
            raise UserError(f"in {text!r}, at {token!r} (word {place}): written like {example}")
        steps.append(Step(kind, float(value) if value else 0.0))
    return tuple(steps)

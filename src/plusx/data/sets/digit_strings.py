"""Strings of spoken digits: recordings of single digits by one speaker, joined with silence.

The recordings are those of a folder such as the Free Spoken Digit Dataset (Jackson 2018), whose
names have the digit and the speaker. A string is 1 to 7 recordings of one speaker, with 0.05 to
0.4 s before, between and after them, at a level of -12 to 6 dB, in noise of -70 to -50 dB of full
scale. Its text spells the digits: "three one four". Everything but the recordings follows from the
seed; the strings of a split have the recordings of that split only.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64

from plusx.data.annotations import Texts
from plusx.data.dataset import Dataset, Items, Split, stored_sample
from plusx.data.modality import AudioModality, Modality
from plusx.data.readers.recordings import RecordingItems, open_recordings, pattern_of
from plusx.data.rng import SampleRNG
from plusx.data.sample import Sample
from plusx.data.tokenizer import BLANK, SPACE, Tokenizer
from plusx.errors import UserError


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST = 7  # digits of a string
MAX_STRING_SECONDS = 60.0
SILENCE = (0.05, 0.4)  # seconds
LEVEL = (-12.0, 6.0)  # dB
NOISE = (-70.0, -50.0)  # dB of full scale
# the epoch of the random numbers of each split
_PURPOSE = {"train": 1, "validation": 2, "test": 3, "all": 4}


class DigitString(NamedTuple):
    """One string: the indices of its recordings, the samples of silence around them, the factor of
    its level, the deviation of its noise and the seed of the noise."""

    recordings: tuple[int, ...]
    silences: tuple[int, ...]
    factor: float
    noise: float
    seed: int


@dataclass(frozen=True, eq=False)
class DigitStringItems(Items):
    """Strings of recordings."""

    recordings: RecordingItems
    strings: list[DigitString]
    paths: None = None
    patches: int = 1

    def __len__(self) -> int:
        return len(self.strings)

    @property
    def lengths(self) -> Int64[np.ndarray, "n"]:
        samples = self.recordings.samples
        return np.array(
            [sum(s.silences) + sum(samples[i] for i in s.recordings) for s in self.strings],
            np.int64,
        )

    def read(self, index: int, modality: Modality) -> Sample:
        string, paths = self.strings[index], self.recordings.paths
        parts = [np.zeros(string.silences[0], np.float32)]
        for number, silence in zip(string.recordings, string.silences[1:]):
            parts += [_waveform(paths[number], modality), np.zeros(silence, np.float32)]
        waveform = np.clip(np.concatenate(parts) * np.float32(string.factor), -1, 1)
        generator = np.random.Generator(np.random.Philox(key=string.seed))
        noise = generator.standard_normal(len(waveform), np.float32) * np.float32(string.noise)
        return stored_sample(torch.from_numpy(waveform + noise)[None])

    def name(self, index: int) -> str:
        names = [self.recordings.name(number) for number in self.strings[index].recordings]
        return f"string {index} ({', '.join(names)})"

    def subset(self, indices: Sequence[int]) -> "DigitStringItems":
        return replace(self, strings=[self.strings[index] for index in indices])

    def digest(self, root: str | None) -> bytes:
        digest = hashlib.sha256(self.recordings.digest(root))
        digest.update(repr(self.strings).encode())
        return digest.digest()


@lru_cache(maxsize=8192)
def _waveform(path: str, modality: Modality) -> Float32[np.ndarray, "t"]:
    """Return a recording; those of a data set stay in memory."""
    waveform: Any = modality.read_file(path)
    values: np.ndarray = waveform[0].numpy()
    return values


def open_digit_strings(
    path: str | Path,
    modality: AudioModality,
    *,
    split: Split,
    seed: int,
    count: int,
    label: str,
    speaker: str,
    test: str,
    validation: float | int | None = None,
    by_speaker: bool = False,
    on_unreadable: Literal["error", "skip"] = "error",
) -> Dataset:
    """Open strings of the spoken digits in a folder.

    count: strings of the split
    label, speaker: regular expressions for the names of recordings, whose groups are the digit, 0
        to 9, and the speaker
    test, validation: the recordings of these splits, as for `open_recordings`
    by_speaker: whether the recordings of a speaker stay together in a split by the seed
    Raises UserError if a name has no digit or speaker.
    """
    digits = open_recordings(
        path,
        modality,
        split=split,
        seed=seed,
        validation=validation,
        label=label,
        group=speaker if by_speaker else "",
        test=test,
        background="",
        on_unreadable=on_unreadable,
    )
    wrong = [name for name in digits.classes if name not in map(str, range(10))]
    if wrong:
        raise UserError(
            f"{digits.name}: label = {label!r} finds {wrong[0]!r}, which is not a digit from 0 to 9"
        )
    items = digits.items
    assert isinstance(items, RecordingItems)
    speakers = _speakers(items, digits.root or "", speaker)
    strings = _strings(speakers, count, split, seed, modality)
    numbers = [int(digits.classes[label]) for label in digits.labels.tolist()]
    texts = [" ".join(WORDS[numbers[i]] for i in string.recordings) for string in strings]
    letters = sorted({letter for word in WORDS for letter in word})
    tokenizer = Tokenizer("characters", (BLANK, SPACE, *letters), lower=True)
    return Dataset(
        name=digits.name,
        split=split,
        classes=tokenizer.vocabulary,
        labels=torch.zeros(len(strings), dtype=torch.int64),
        modality=modality,
        items=DigitStringItems(items, strings),
        annotations=Texts(texts, tokenizer),
        warnings=digits.warnings,
        root=digits.root,
    )


def _speakers(items: RecordingItems, root: str, speaker: str) -> list[list[int]]:
    """Return the recordings of each speaker. Raises UserError if a name has none."""
    pattern = pattern_of(speaker, "speaker", groups=1)
    recordings: dict[str, list[int]] = {}
    for index, path in enumerate(items.paths):
        name = os.path.relpath(path, root)
        match = pattern.search(name)
        if match is None:
            raise UserError(f"{name} does not match speaker = {speaker!r}")
        recordings.setdefault(match.group(1), []).append(index)
    return [recordings[name] for name in sorted(recordings)]


def _strings(
    speakers: Sequence[Sequence[int]], count: int, split: Split, seed: int, modality: AudioModality
) -> list[DigitString]:
    """Return random strings, a function of the arguments."""
    rate = modality.rate
    strings = []
    for number in range(count):
        rng = SampleRNG.of(seed, _PURPOSE[split], number)
        recordings = speakers[rng.below(len(speakers), 0)]
        length = 1 + rng.below(LONGEST, 1)
        strings.append(
            DigitString(
                tuple(recordings[rng.below(len(recordings), 10 + i)] for i in range(length)),
                tuple(round(rate * rng.uniform(*SILENCE, 20 + i)) for i in range(length + 1)),
                10 ** (rng.uniform(*LEVEL, 2) / 20),
                10 ** (rng.uniform(*NOISE, 3) / 20),
                rng.bits(4) >> 1,
            )
        )
    return strings

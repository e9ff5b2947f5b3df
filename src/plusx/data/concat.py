"""Several data sets as one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Int64

from plusx.data.dataset import Dataset, Items, MemoryItems
from plusx.data.modality import Modality
from plusx.data.sample import Sample
from plusx.errors import UserError


@dataclass(frozen=True, eq=False)
class ConcatItems(Items):
    """The items of several data sets, one after another."""

    parts: tuple[Items, ...]

    def __post_init__(self) -> None:
        paths = [part.paths for part in self.parts]
        joined = None if None in paths else [path for part in paths for path in part or ()]
        object.__setattr__(self, "paths", joined)
        object.__setattr__(self, "patches", self.parts[0].patches)
        object.__setattr__(self, "of_one_size", all(part.of_one_size for part in self.parts))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(self, index: int, modality: Modality) -> Sample:
        part, number = self._locate(index)
        return part.read(number, modality)

    def name(self, index: int) -> str:
        part, number = self._locate(index)
        return part.name(number)

    def subset(self, indices: Sequence[int]) -> Items:
        # items of one part that are adjacent stay together
        runs: list[tuple[Items, list[int]]] = []
        for index in indices:
            part, number = self._locate(index)
            if not runs or runs[-1][0] is not part:
                runs.append((part, []))
            runs[-1][1].append(number)
        return joined_items([part.subset(numbers) for part, numbers in runs])

    def digest(self, root: str | None) -> bytes:
        digest = sha256()
        for part in self.parts:
            digest.update(part.digest(root))
        return digest.digest()

    def digests(self) -> list[str]:
        texts = [part.digests() for part in self.parts]
        return [text for part in texts for text in part] if all(texts) else []

    @property
    def lengths(self) -> Int64[np.ndarray, "n"] | None:
        lengths = [part.lengths for part in self.parts]
        present = [values for values in lengths if values is not None]
        return np.concatenate(present) if len(present) == len(lengths) else None

    def fit(self, modality: Modality) -> Items:
        return replace(self, parts=tuple(part.fit(modality) for part in self.parts))

    def reference(self) -> Items:
        return replace(self, parts=tuple(part.reference() for part in self.parts))

    def _locate(self, index: int) -> tuple[Items, int]:
        index = range(len(self))[index]
        ends = list(accumulate(map(len, self.parts)))
        number = int(np.searchsorted(ends, index, side="right"))
        return self.parts[number], index - (ends[number - 1] if number else 0)


def joined_items(parts: Sequence[Items]) -> Items:
    """Return the items of all parts; those in memory stay so."""
    if len(parts) == 1:
        return parts[0]
    in_memory = [part for part in parts if isinstance(part, MemoryItems) and part.paths is None]
    if len(in_memory) == len(parts):
        return replace(in_memory[0], images=torch.cat([part.images for part in in_memory]))
    return ConcatItems(tuple(parts))


def concat(parts: Sequence[Dataset]) -> Dataset:
    """Return the samples of several data sets with the same classes and modality, in order.

    The name, the split and the warnings are those of the first. Raises UserError if classes
    differ, or samples have boxes, masks or texts.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts:
        if part.classes != first.classes:
            raise UserError(f"{part.name} has other classes than {first.name}")
        if part.annotations is not None:
            raise UserError(f"{part.name}: only samples with classes can be joined")
    return replace(
        first,
        labels=torch.cat([part.labels for part in parts]),
        items=joined_items([part.items for part in parts]),
        rows=None,
    )

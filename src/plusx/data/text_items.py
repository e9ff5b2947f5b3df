"""`TextItems`: texts as the stored inputs of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from plusx.data.annotations import texts_digest
from plusx.data.dataset import Items
from plusx.data.modality import Modality, TextModality
from plusx.data.sample import Sample
from plusx.errors import shortened


@dataclass(frozen=True, eq=False)
class TextItems(Items):
    """Texts in memory.

    names: of the texts, for messages, such as "row 12"
    known_lengths: that are similar in a bucketed batch; None: the numbers of characters
    """

    texts: list[str]
    names: list[str]
    known_lengths: Int64[np.ndarray, "n"] | None = None
    patches: int = 1
    paths: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, index: int, modality: Modality) -> Sample:
        assert isinstance(modality, TextModality)
        return Sample(modality.encode(self.texts[index]))

    def subset(self, indices: Sequence[int]) -> "TextItems":
        return replace(
            self,
            texts=[self.texts[index] for index in indices],
            names=[self.names[index] for index in indices],
            known_lengths=None if self.known_lengths is None else self.known_lengths[list(indices)],
        )

    def name(self, index: int) -> str:
        return f"{self.names[index]} ({shortened(self.texts[index])!r})"

    @cached_property
    def lengths(self) -> Int64[np.ndarray, "n"]:
        return np.array([len(text) for text in self.texts], np.int64)

    @property
    def batch_lengths(self) -> Int64[np.ndarray, "n"]:
        return self.lengths if self.known_lengths is None else self.known_lengths

    def digests(self) -> list[str]:
        return [" ".join(text.split()) for text in self.texts]

    def digest(self, root: str | None) -> bytes:
        return texts_digest(self.texts)

"""Text as token numbers, by a tokenizer that is saved with the weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Int64
from pydantic import ConfigDict
from torch import Tensor

from plusx.data.batch import Collated, collate_sequences
from plusx.data.buffer_pool import BufferPool
from plusx.data.image_file import UnreadableInput
from plusx.data.modality.modality import Modality
from plusx.data.sample import Input, Sample
from plusx.data.tokenizer import PAD, UNKNOWN, Tokenizer
from plusx.data.transforms.steps import Setting
from plusx.data.transforms.transform import Transform
from plusx.data.transforms.words import TEXT, parse_augment
from plusx.errors import UserError


if TYPE_CHECKING:
    from plusx.data.dataset import Dataset

_MAX_LENGTH = 100_000  # tokens
_MANY_UNKNOWN = 0.2  # fraction of unknown tokens that is worth a warning


@dataclass(frozen=True)
class TextModality(Modality):
    """Text as token numbers.

    tokenizer: its vocabulary is empty until it is trained
    vocabulary_size: maximum number of tokens in the vocabulary
    max_length: tokens of an input; longer texts are truncated
    min_length: tokens to which shorter texts are padded, since networks with strides need some
    """

    tokenizer: Tokenizer
    vocabulary_size: int = 20_000
    max_length: int = 1024
    min_length: int = 16

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    kind: ClassVar[str] = "text"
    noun: ClassVar[str] = "text"
    words: ClassVar[frozenset[str]] = TEXT
    length_unit: ClassVar[str] = "characters"
    sequence: ClassVar[bool] = True
    tokens: ClassVar[bool] = True
    key: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        if not 1 <= self.min_length <= self.max_length <= _MAX_LENGTH:
            raise UserError(
                f"min_length = {self.min_length}, max_length = {self.max_length}: from 1 to "
                f"{_MAX_LENGTH:,} tokens, the first at most the second"
            )
        vocabulary = self.tokenizer.vocabulary
        if vocabulary and (PAD not in vocabulary or len(set(vocabulary)) < len(vocabulary)):
            raise UserError(f"a vocabulary without {PAD}, or with a repeated token")

    @property
    def size(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.max_length,)

    @property
    def channels(self) -> int:  # type: ignore[override]
        return len(self.tokenizer.vocabulary) or self.vocabulary_size

    def fitted(self, dataset: "Dataset") -> "TextModality":
        """Return the modality with the vocabulary of the training set."""
        kind, lower = self.tokenizer.kind, self.tokenizer.lower
        items: Any = dataset.items
        tokenizer = Tokenizer.train(items.texts, kind, self.vocabulary_size, lower=lower)
        return replace(self, tokenizer=tokenizer)

    def like(self, other: Modality) -> Modality:
        return other if isinstance(other, TextModality) else self

    def warnings(self, dataset: "Dataset") -> list[str]:
        items: Any = dataset.items
        encoded = [self.tokenizer.encode(text) for text in items.texts]
        warnings = []
        cut = [index for index, numbers in enumerate(encoded) if len(numbers) > self.max_length]
        if cut:
            what = "text is" if len(cut) == 1 else "texts are"
            warnings.append(
                f"{len(cut):,} of {len(encoded):,} {what} longer than max_length = "
                f"{self.max_length} tokens and cut there, the first is {dataset.describe(cut[0])}"
            )
        if UNKNOWN in self.tokenizer.vocabulary:
            unknown = self.tokenizer.number(UNKNOWN)
            count = sum(map(len, encoded))
            fraction = sum(numbers.count(unknown) for numbers in encoded) / max(1, count)
            if fraction > _MANY_UNKNOWN:
                warnings.append(
                    f"{fraction:.0%} of the tokens of {dataset.name} {dataset.split} are not in "
                    f"the vocabulary of {self.channels:,}"
                )
        return warnings

    def encode(self, text: str) -> Int64[Tensor, "t"]:
        """Return the token numbers of a text, at least min_length and at most max_length."""
        numbers = self.tokenizer.encode(text)[: self.max_length]
        padding = self.min_length - len(numbers)
        if padding > 0:
            numbers += [self.tokenizer.number(PAD)] * padding
        return torch.tensor(numbers, dtype=torch.int64)

    def decode(self, source: str | bytes) -> Input:
        """Return the token numbers of a text, or of its bytes in UTF-8."""
        try:
            text = source.decode("utf-8-sig") if isinstance(source, bytes) else source
            text.encode()  # command-line arguments can contain bytes that are not UTF-8
        except UnicodeError as error:
            raise UnreadableInput(f"not UTF-8: {error}") from None
        if not text.strip():
            raise UnreadableInput("an empty text")
        return self.encode(text)

    def transform(
        self,
        augment: str,
        *,
        train: bool,
        annotated: bool = False,
        stored: bool = False,
        channels_last: bool = False,
    ) -> Transform:
        words = parse_augment(augment if train else "", self.words, self.inputs)
        trained = bool(self.tokenizer.vocabulary)
        unknown = self.tokenizer.number(UNKNOWN) if words and trained else None
        return Transform(words, Setting(None, 0, 1, unknown=unknown), None)

    def collate(self, samples: Sequence[Sample], transform: Transform) -> Collated:
        return collate_sequences(samples, self.tokenizer.number(PAD))

    def normalise(
        self, values: Int64[Tensor, "n t"], pool: BufferPool | None = None
    ) -> Int64[Tensor, "n t"]:
        return values

    def input_steps(self, dense: bool) -> list[dict[str, Any]]:
        return [
            {"step": "normalise_text", "unicode": "NFC", "lower": self.tokenizer.lower},
            {"step": "tokenise", **asdict(replace(self.tokenizer, vocabulary=()))},
            {"step": "length", "min": self.min_length, "max": self.max_length},
        ]

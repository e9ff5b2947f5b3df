"""`Tokenizer`: text to numbers and back, defined by its vocabulary alone.

| kind | a token |
|---|---|
| `bytes` | a byte of UTF-8 |
| `characters` | a Unicode character |
| `words` | a word or a punctuation mark |
| `bpe` | a part of a word, by byte-pair encoding (Sennrich et al. 2016) |

A token begins with U+2581 (the lower one eighth block, as in SentencePiece) where the text has a
space before it. Tokens in angle brackets, such as "<pad>", stand for no text.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, get_args

from plusx.errors import MissingLibrary, UserError, shortened


TokenizerKind = Literal["bytes", "characters", "words", "bpe"]

SPACE = "\u2581"
PAD, UNKNOWN, BLANK, START, END = "<pad>", "<unk>", "<blank>", "<s>", "</s>"
_SPECIAL = re.compile(r"</?\w+>")
_BYTE = re.compile(r"0x[0-9a-f]{2}")
_PIECE = re.compile(rf"{SPACE}?(?:[^\W{SPACE}]+|[^\w{SPACE}])|{SPACE}")
_MAX_SIZE = 200_000


@dataclass(frozen=True)
class Tokenizer:
    """Text to token numbers.

    vocabulary: the tokens in the order of their numbers; those of `bpe` in the order in which they
        are merged
    lower: whether text is in lower case
    """

    kind: TokenizerKind
    vocabulary: tuple[str, ...] = ()
    lower: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(TokenizerKind):
            raise UserError(
                f"tokenizer {self.kind!r}: allowed are {', '.join(get_args(TokenizerKind))}"
            )
        if len(self.vocabulary) > _MAX_SIZE:
            raise UserError(f"a vocabulary of {len(self.vocabulary):,} tokens: at most {_MAX_SIZE}")

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: TokenizerKind,
        size: int,
        *,
        lower: bool = False,
        specials: Sequence[str] = (PAD, UNKNOWN),
    ) -> "Tokenizer":
        """Return the tokenizer of these texts.

        size: tokens of the vocabulary at most, the most frequent ones; of bytes always all 256
        specials: the first tokens. Without "<unk>", text outside the vocabulary is an error
        Raises UserError if the texts are empty, or the size is too small; MissingLibrary
        if "bpe" needs a library that is not installed.
        """
        empty = cls(kind, tuple(specials), lower)
        if kind == "bytes":
            return cls(kind, (*specials, *(f"0x{byte:02x}" for byte in range(256))), lower)
        counts = Counter(piece for text in texts for piece in empty.pieces(text))
        if not counts:
            raise UserError("the texts are empty: there is nothing to build a vocabulary from")
        room = size - len(specials)
        if room < 1:
            raise UserError(f"a vocabulary of {size} tokens: {len(specials)} of them are special")
        if kind == "bpe":
            return cls(kind, _merged(counts, size, specials), lower)
        # of equally frequent tokens the first in the alphabet
        ordered = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return cls(kind, (*specials, *ordered[:room]), lower)

    def normalised(self, text: str) -> str:
        """Return text in composed Unicode (NFC), with single spaces instead of white space."""
        text = " ".join(unicodedata.normalize("NFC", text).split())
        return text.lower() if self.lower else text

    def pieces(self, text: str) -> list[str]:
        """Return the characters of a text, or its words and punctuation marks."""
        text = self.normalised(text)
        if not text:
            return []
        if self.kind == "characters":
            return list(text.replace(" ", SPACE))
        return _PIECE.findall(SPACE + text.replace(" ", SPACE))

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text, whether or not they are in the vocabulary."""
        if self.kind == "bytes":
            return [f"0x{byte:02x}" for byte in self.normalised(text).encode("utf-8", "replace")]
        pieces = self.pieces(text)
        if self.kind == "bpe":
            return [part for piece in pieces for part in self._parts(piece)]
        return pieces

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of a text. Raises UserError for a token that is not in a
        vocabulary without "<unk>"."""
        numbers, unknown = self._numbers, self._numbers.get(UNKNOWN)
        if self.kind == "bytes":
            first = len(self.vocabulary) - 256
            return [first + byte for byte in self.normalised(text).encode("utf-8", "replace")]
        tokens = self.tokens(text)
        encoded = [numbers.get(token, unknown) for token in tokens]
        if None in encoded:
            missing = tokens[encoded.index(None)].replace(SPACE, " ")
            raise UserError(
                f"{missing!r} in {shortened(text)!r} is not in the vocabulary of "
                f"{len(self.vocabulary)} tokens"
            )
        return encoded  # type: ignore[return-value]

    def decode(self, numbers: Iterable[int]) -> str:
        """Return the text of token numbers, without special tokens."""
        return decoded([self.vocabulary[number] for number in numbers])

    def number(self, token: str) -> int:
        """Return the number of a token of the vocabulary."""
        return self._numbers[token]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.vocabulary)}

    @cached_property
    def _cache(self) -> dict[str, list[str]]:
        return {}

    def _parts(self, piece: str) -> list[str]:
        """Return a word in the tokens of its byte-pair encoding."""
        parts = self._cache.get(piece)
        if parts is None:
            if len(self._cache) > _MAX_SIZE:
                self._cache.clear()
            parts = self._cache[piece] = list(_merge(piece, self._numbers.get))
        return parts


def decoded(tokens: Sequence[str]) -> str:
    """Return the text of tokens, without those in angle brackets."""
    if any(_BYTE.fullmatch(token) for token in tokens):
        values = bytes(int(token, 16) for token in tokens if _BYTE.fullmatch(token))
        return values.decode("utf-8", "replace")
    text = "".join(token for token in tokens if not _SPECIAL.fullmatch(token))
    return " ".join(text.replace(SPACE, " ").split())


def _merge(piece: str, rank: Callable[[str], int | None]) -> Iterator[str]:
    """Merge the neighbours whose joint token comes first in the vocabulary, while there are any.

    The vocabulary is in the order of its merges, so that no other list is needed.
    """
    parts = list(piece)
    while len(parts) > 1:
        ranks = [
            (number, i)
            for i, pair in enumerate(pairwise(parts))
            if (number := rank("".join(pair))) is not None
        ]
        if not ranks:
            break
        _, i = min(ranks)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return iter(parts)


def _merged(counts: Counter[str], size: int, specials: Sequence[str]) -> tuple[str, ...]:
    """Return the vocabulary of a byte-pair encoding, trained by the library `tokenizers`."""
    try:
        from tokenizers import Tokenizer as Library
        from tokenizers import models, pre_tokenizers, trainers
    except ImportError:
        raise MissingLibrary('tokenizer "bpe" needs tokenizers', "text") from None
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(specials), show_progress=False
    )
    # sorted, since the order of the pieces decides between equally frequent pairs
    pieces = ("\n".join([piece] * count) for piece, count in sorted(counts.items()))
    library.train_from_iterator(pieces, trainer)
    numbers = library.get_vocab()
    if len(numbers) > size:  # every character is a token
        raise UserError(
            f"a vocabulary of {size:,} tokens: the texts have {len(numbers) - len(specials):,} "
            f'different characters, so that tokenizer "bpe" needs {len(numbers):,} or more'
        )
    return tuple(sorted(numbers, key=numbers.__getitem__))

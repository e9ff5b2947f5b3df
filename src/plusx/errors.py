"""The error for mistakes of the user, and helpers for messages."""

import os
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class UserError(ValueError):
    """A mistake of the user.

    The message is one sentence: where, what was given, what is allowed, the nearest match, what to
    do. The command line prints it and exits with 2; any other exception is a failure and exits with
    1.
    """


class MissingLibrary(RuntimeError):
    """A library of one of the extras of plusx is not installed.

    needed: what needs which library, for example "BLEU needs sacrebleu"
    """

    def __init__(self, needed: str, extra: str) -> None:
        super().__init__(f"{needed}: pip install 'plusx[{extra}]'")


def did_you_mean(word: str, options: Iterable[str], count: int = 1, cutoff: float = 0.6) -> str:
    """Return "; did you mean a or b?" with the options closest to the word, or an empty string."""
    near = get_close_matches(word, list(options), n=count, cutoff=cutoff)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def counted(count: int, noun: str, nouns: str = "") -> str:
    """Return a number and its noun: "1 image", "2,000 images". nouns: an irregular plural."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def shortened(name: str, length: int = 60) -> str:
    """Return a name of at most `length` characters for tables; of a longer one both ends."""
    if len(name) <= length:
        return name
    return f"{name[: length - 11]}...{name[-8:]}"


def printable(text: str | Path, root: str | Path | None = None) -> str:
    """Return a path, or other text from outside, for a message: one line of valid UTF-8 without
    control characters. A path below `root` is relative to it."""
    name = os.fspath(text)
    if root is not None and name.startswith(os.path.join(root, "")):
        name = os.path.relpath(name, root)
    if name.isprintable():
        return name
    return "".join(
        letter
        if unicodedata.category(letter)[0] != "C"
        # a byte that is not UTF-8, or a character that is not printable
        else f"\\x{ord(letter) - 0xDC00:x}"
        if 0xDC80 <= ord(letter) <= 0xDCFF
        else ascii(letter)[1:-1]
        for letter in name
    )

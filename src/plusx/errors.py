"""The one error that is the user's to mend, and how foreign text stands in messages."""

import os
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class UserError(ValueError):
    """What was asked for cannot be done as it was asked.

    The message is one sentence for the person who typed the command or called the function: where,
    what was given, what is allowed, the nearest match, what to do next. The command line prints it
    and exits with 2; every other exception is a failure of the work and exits with 1.
    """


def did_you_mean(word: str, options: Iterable[str], count: int = 1, cutoff: float = 0.6) -> str:
    """ "; did you mean a or b?" for the options that are nearest to the word; empty without any."""
    near = get_close_matches(word, list(options), n=count, cutoff=cutoff)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def printable(text: str | Path, root: str | Path | None = None) -> str:
    """A path, or any text that others wrote, for messages: on one line, valid UTF-8, without
    characters that control a terminal; of a path below `root` the part below it.
    """
    name = os.fspath(text)
    if root is not None and name.startswith(os.path.join(root, "")):
        name = os.path.relpath(name, root)
    if name.isprintable():
        return name
    return "".join(
        letter
        if unicodedata.category(letter)[0] != "C"
        # a byte of a name that is no UTF-8, or a character that is not printed
        else f"\\x{ord(letter) - 0xDC00:x}"
        if 0xDC80 <= ord(letter) <= 0xDCFF
        else ascii(letter)[1:-1]
        for letter in name
    )

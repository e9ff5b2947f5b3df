"""A reader's list of files and labels, before decoding."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from plusx.data.dataset import FileItems, Items, Labels
from plusx.data.image_file import Decoder
from plusx.data.modality import Modality
from plusx.data.readers.verdicts import Entry, OnUnreadable, check_entries
from plusx.errors import UserError, printable


# characters that `printable` shows by their number
_ESCAPED = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[nrt])")


@dataclass(frozen=True, eq=False, kw_only=True)
class Listing:
    """All entries below a root, and the classes in order.

    splits: those that the data defines ("train", "validation", "test"); () if a seed splits it
    warnings: about the data as a whole
    """

    root: str
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    warnings: tuple[str, ...] = ()

    @property
    def learned_from(self) -> list[Entry]:
        """The training entries, or all if the data defines no splits."""
        has_train = "train" in self.splits
        return [entry for entry in self.entries if not has_train or entry.split == "train"]

    @property
    def is_multilabel(self) -> bool:
        """Whether an entry can have several labels."""
        return False

    def usable(
        self, entries: Sequence[Entry], modality: Modality, on_unreadable: OnUnreadable
    ) -> tuple[list[Entry], list[str]]:
        """Return the usable entries, and warnings about the others, or raise UserError."""
        used, warnings = check_entries(entries, self.root, on_unreadable, modality)
        return used, [*self.warnings, *warnings]

    def labels(self, entries: Sequence[Entry], classes: tuple[str, ...]) -> Labels:
        """Return the class numbers of entries."""
        numbers = {name: number for number, name in enumerate(classes)}
        return torch.tensor([numbers[entry.label] for entry in entries], dtype=torch.int64)

    def items(self, entries: Sequence[Entry], decoder: Decoder) -> Items:
        """Return the items of entries."""
        return file_items(entries, decoder)


def file_items(entries: Sequence[Entry], decoder: Decoder = "pillow") -> FileItems:
    """Return the items of decoded files."""
    contents = [entry.verdict.content for entry in entries if entry.verdict is not None]
    paths = [entry.path for entry in entries]
    return FileItems(paths, decoder, contents if len(contents) == len(paths) else None)


def class_name(text: str) -> str:
    """Normalise a class name: Unicode NFC, no surrounding blanks, no control characters."""
    return printable(unicodedata.normalize("NFC", text).strip())


def refuse_similar_names(names: Iterable[str], where: str) -> None:
    """Raise UserError if two names differ only in case, Unicode form or invisible characters."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(_visible(name).casefold(), name)
        if other != name:
            how = "blanks, invisible characters or Unicode form"
            if _visible(other) != _visible(name):
                how = "case"
            raise UserError(
                f"{where}: the classes {printable(other)!r} and {printable(name)!r} differ in "
                f"{how} only: give them one name"
            )


def _visible(name: str) -> str:
    """Return a class name without invisible characters, and with single spaces."""
    return " ".join(_ESCAPED.sub("", class_name(name)).split())


def file_problem(path: str, root: str) -> str | None:
    """Return why a listed file cannot be opened; None if it is a regular file below root.

    Links are followed inside the root only. root: without links (os.path.realpath)
    """
    try:
        target = os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return "a link to nothing" if os.path.islink(path) else "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not target.startswith(os.path.join(root, "")):
        return "a link that leaves the folder"
    return None if os.path.isfile(target) else "not a regular file"

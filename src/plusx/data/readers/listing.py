"""A reader's list of files and their labels, before any of them is decoded."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from plusx.data.dataset import FileItems, Items, Labels
from plusx.data.image_file import Decoder
from plusx.data.modality import Modality
from plusx.data.readers.verdicts import Entry, OnUnreadable, check_entries
from plusx.errors import UserError


@dataclass(frozen=True, eq=False, kw_only=True)
class Listing:
    """All entries below a root, and the classes in order.

    splits: those that the data has itself ("train", "validation", "test"); () where a seed splits
    """

    root: str
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def learned_from(self) -> list[Entry]:
        """The entries that train, or all where the data has no splits of its own."""
        has_train = "train" in self.splits
        return [entry for entry in self.entries if not has_train or entry.split == "train"]

    @property
    def is_multilabel(self) -> bool:
        """Whether an entry can have several labels."""
        return False

    def usable(
        self, entries: Sequence[Entry], modality: Modality, on_unreadable: OnUnreadable
    ) -> tuple[list[Entry], list[str]]:
        """The entries that can be used, and warnings about the others. UserError names them."""
        return check_entries(entries, self.root, on_unreadable, modality)

    def labels(self, entries: Sequence[Entry], classes: tuple[str, ...]) -> Labels:
        """Class numbers of entries."""
        numbers = {name: number for number, name in enumerate(classes)}
        return torch.tensor([numbers[entry.label] for entry in entries], dtype=torch.int64)

    def items(self, entries: Sequence[Entry], decoder: Decoder) -> Items:
        """The inputs of entries."""
        return file_items(entries, decoder)


def file_items(entries: Sequence[Entry], decoder: Decoder = "pillow") -> FileItems:
    """Files that have been decoded once."""
    contents = [entry.verdict.content for entry in entries if entry.verdict is not None]
    paths = [entry.path for entry in entries]
    return FileItems(paths, decoder, contents if len(contents) == len(paths) else None)


def refuse_similar_names(names: Iterable[str], where: str) -> None:
    """UserError where two classes differ in upper and lower case or in Unicode form only."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UserError(f"{where}: the classes {other!r} and {name!r} differ in case only")

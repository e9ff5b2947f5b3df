"""Packed images as a Listing: resized once, kept as bytes in one file, and not decoded again."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from plusx.data.dataset import BatchMaker, BatchRequest, Items, paths_digest, stored_sample
from plusx.data.image_file import Decoder, UnreadableInput, printable, read_regular
from plusx.data.modality import Modality
from plusx.data.readers.folder import NEW_FOLDER, scan
from plusx.data.readers.listing import Listing
from plusx.data.readers.packed_batches import PackedBatches
from plusx.data.readers.packed_file import MAGIC, PackedFile, open_packed_file
from plusx.data.readers.verdicts import Entry, OnUnreadable, file_stamp
from plusx.data.sample import Sample, pillow_image
from plusx.data.splits import own_splits
from plusx.errors import UserError


@dataclass(frozen=True, eq=False)
class PackedItems(Items):
    """Images of a packed file, selected by `numbers`."""

    paths: list[str]
    file: PackedFile
    numbers: Int64[np.ndarray, "n"]
    patches: int = 1

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, modality: Modality) -> Sample:
        pixels = self.file.pixels(int(self.numbers[index]))
        return stored_sample(pillow_image(pixels, modality.channels))

    def subset(self, indices: Sequence[int]) -> "Items":
        paths = [self.paths[index] for index in indices]
        return replace(self, paths=paths, numbers=self.numbers[list(indices)])

    def digest(self, root: str | None) -> bytes:
        return paths_digest(self.file.digest, self.paths, root)

    def batch_maker(self, request: BatchRequest) -> BatchMaker | None:
        if not PackedBatches.supports(request):
            return None
        return PackedBatches(self.file, self.numbers, request)


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedListing(Listing):
    """The images of a packed file."""

    file: PackedFile

    def usable(
        self, entries: Sequence[Entry], modality: Modality, on_unreadable: OnUnreadable
    ) -> tuple[list[Entry], list[str]]:
        modality.refuse_archive(self.file.path)
        warnings, size = list(self.warnings), max(modality.size)
        if size > self.file.side:
            warnings.append(
                f"the packed images have {self.file.side} pixels per side, the network's "
                f"input has {size}"
            )
        return list(entries), warnings

    def items(self, entries: Sequence[Entry], decoder: Decoder) -> PackedItems:
        numbers = {entry.path: number for number, entry in enumerate(self.entries)}
        paths = [entry.path for entry in entries]
        return PackedItems(paths, self.file, np.array([numbers[path] for path in paths], np.int64))


def recognise_packed(path: str) -> str:
    """Return why read_packed can read a path, or ""."""
    try:
        if os.path.isfile(path):  # opening a pipe would block
            with open(path, "rb") as file:
                if file.read(len(MAGIC)) == MAGIC:
                    return "a file that plusx pack has written"
    except OSError:
        pass
    return ""


def read_packed(path: str | Path) -> PackedListing:
    """Open a packed file. The packed folder must be unchanged, if it still exists.

    Raises UserError if the file is corrupt, or with the first image that changed.
    """
    file = open_packed_file(path)
    if change := _first_change(file):
        shown, root = printable(path), printable(file.root)
        raise UserError(
            f"{shown} was packed from {root}, where {change}: pack it again "
            f"(plusx pack {root} --out {shown})"
        )
    return PackedListing(
        root=file.root,
        splits=own_splits(file.entries),
        classes=file.classes,
        entries=file.entries,
        warnings=file.warnings,
        file=file,
    )


def _first_change(file: PackedFile) -> str:
    """Return the first change in the packed folder; "" if there is none, or no such folder.

    A packed file from another source can name any folder of this machine. So only the files that it
    lists are accessed, and folders are searched for new files only if all of these are unchanged.
    """
    root = file.root
    paths = [os.path.join(root, source.name) for source in file.source_files]
    stamps = [file_stamp(path) for path in paths]
    if not any(stamps):
        return ""
    for path, stamp, source in zip(paths, stamps, file.source_files):
        if stamp is None:
            return f"{printable(path, root)} is missing"
        if source.sha256 is None or stamp[:2] == (source.bytes, source.modified):
            continue
        if stamp[0] != source.bytes or _digest(path) != source.sha256:
            return f"{printable(path, root)} has changed"
    try:
        entries = scan(root, {os.path.join(root, name) for name in file.source_folders}).entries
    except ValueError as error:
        return str(error)
    present = {entry.path for entry in entries if entry.state == "used"}
    folders = {entry.path for entry in entries if entry.reason == NEW_FOLDER}
    for path in sorted(folders | (present ^ set(paths))):
        return f"{printable(path, root)} is {'new' if path in folders | present else 'missing'}"
    return ""


def _digest(path: str) -> str:
    """Return the sha256 of a regular file, or "" if it is unreadable."""
    try:
        return hashlib.sha256(read_regular(path)).hexdigest()
    except (UnreadableInput, OSError):
        return ""

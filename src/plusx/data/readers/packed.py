"""A packed set: images scaled once and kept as bytes in one file, so that nothing is decoded again.

The file, of which nothing is believed before it is checked:

    MAGIC | the images' pixels, row by row, RGB, one after the other | JSON | sha256 of the JSON |
    length of the JSON in 8 bytes, least first | MAGIC

The JSON has the classes, and of every image its name below the folder, class, split, height and
width; the size and digest of the file that it was made from; the folders that were looked into;
and the digest of all pixels.
"""

import hashlib
import json
import logging
import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from plusx.data.dataset import BatchMaker, BatchRequest, Items, paths_digest, stored_sample
from plusx.data.image_file import Decoder, UnreadableInput, printable, read_regular
from plusx.data.modality import Modality
from plusx.data.readers.folder import NEW_FOLDER, scan
from plusx.data.readers.listing import Listing
from plusx.data.readers.verdicts import (
    Entry,
    OnUnreadable,
    Stamp,
    file_stamp,
    read_cache,
    write_cache,
)
from plusx.data.sample import Sample, pillow_image
from plusx.data.splits import own_splits
from plusx.errors import UserError


_log = logging.getLogger("plusx.data")

MAGIC = b"plusx packed 1\n\0"
_END = 32 + 8 + len(MAGIC)
_JSON_LIMIT = 2**31
_CHUNK = 1 << 24
_COLUMNS = ("path", "label", "split", "height", "width", "bytes", "modified", "sha256")
# the name below the folder, and of what was packed its size, its time of change and its digest
File = tuple[str, int | None, int | None, str | None]
_SPLITS = ("", "train", "validation", "test")


class _Origin(NamedTuple):
    """The folder that a set was packed from: its files, and the folders that were searched."""

    files: list[File]
    folders: list[str]


@dataclass(frozen=True, eq=False)
class PackedFile:
    """The pixels of a packed file whose checksums are valid."""

    path: str
    heights: Int64[np.ndarray, "n"]
    widths: Int64[np.ndarray, "n"]
    digest: str
    _starts: Int64[np.ndarray, "n"]
    _bytes: UInt8[np.ndarray, "b"]

    def pixels(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return the read-only pixels of one image."""
        height, width, start = self.heights[number], self.widths[number], self._starts[number]
        return self._bytes[start : start + 3 * height * width].reshape(height, width, 3)

    def __reduce__(self) -> tuple[Any, ...]:
        # to a worker goes where the file is, and not what is in it
        return _reopened, (self.path,)


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
        from plusx.data.readers.packed_batches import PackedBatches, can_cut

        return PackedBatches(self.file, self.numbers, request) if can_cut(request) else None


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedListing(Listing):
    """The images of a packed file; `side` is their shorter side in pixels."""

    file: PackedFile
    side: int

    def usable(
        self, entries: Sequence[Entry], modality: Modality, on_unreadable: OnUnreadable
    ) -> tuple[list[Entry], list[str]]:
        modality.refuse_archive(self.file.path)
        warnings, size = list(self.warnings), max(modality.size)
        if size > self.side:
            warnings.append(
                f"the packed images have {self.side} pixels per side, the network's "
                f"input has {size}"
            )
        return list(entries), warnings

    def items(self, entries: Sequence[Entry], decoder: Decoder) -> PackedItems:
        numbers = {entry.path: number for number, entry in enumerate(self.entries)}
        paths = [entry.path for entry in entries]
        chosen = np.array([numbers[path] for path in paths], np.int64)
        return PackedItems(paths, self.file, chosen)


def is_packed(path: str | Path) -> bool:
    """Whether a file begins like a packed set."""
    try:
        # a pipe must not be opened, which would wait for its other end
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def recognise_packed(path: str) -> str:
    """Return why read_packed can read a path, or ""."""
    return "a file that plusx pack has written" if is_packed(path) else ""


def read_packed(path: str | Path) -> PackedListing:
    """Open a packed file: its sums are checked (once for as long as it does not change), and the
    folder that it was made from, where that is still there, has to be as it was.

    Raises UserError that names the file where it is damaged, and the first image that changed.
    """
    real = os.path.realpath(path)
    stamp = file_stamp(real)
    if stamp is None:
        raise UserError(f"{printable(path)} is missing")
    packed, origin = _read(real, stamp)
    changed = _first_change(packed.root, origin)
    if changed:
        shown, root = printable(path), printable(packed.root)
        raise UserError(
            f"{shown} was packed from {root}, where {changed}: pack it again "
            f"(plusx pack {root} --out {shown})"
        )
    return packed


def _reopened(path: str) -> PackedFile:
    return read_packed(path).file


@lru_cache(maxsize=4)
def _read(path: str, stamp: Stamp) -> tuple[PackedListing, _Origin]:
    shown = printable(path)
    header, digest, end = _index(path, shown)
    try:
        packed, origin = _parse_index(header, digest, path, end)
        checksum = str(header["pixels"]["sha256"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{shown} is no packed set that can be read: {error}") from None
    if read_cache(path, "sum", stamp, str) != checksum:
        if _sum(packed.file._bytes[len(MAGIC) : end], shown) != checksum:
            raise UserError(
                f"{shown} is corrupt: its pixels do not fit their checksum; pack it again"
            )
        write_cache(path, "sum", stamp, checksum)
    return packed, origin


def _index(path: str, shown: str) -> tuple[dict[str, Any], str, int]:
    """Return the JSON, its digest, and its offset."""
    whole = os.path.getsize(path)
    with open(path, "rb") as file:
        begins = file.read(len(MAGIC)) == MAGIC
        if begins and whole >= len(MAGIC) + _END:
            file.seek(whole - _END)
            last = file.read(_END)
            length = int.from_bytes(last[32:40], "little")
            end = whole - _END - length
            if last[40:] == MAGIC and length <= _JSON_LIMIT and end >= len(MAGIC):
                file.seek(end)
                text = file.read(length)
                if hashlib.sha256(text).digest() == last[:32]:
                    try:
                        return json.loads(text), last[:32].hex(), end
                    except (ValueError, RecursionError) as error:
                        raise UserError(f"{shown} is no packed set: {error}") from None
    raise UserError(
        f"{shown} is corrupt: its end does not fit its checksum; pack it again"
        if begins
        else f"{shown} is no packed set"
    )


def _parse_index(
    header: dict[str, Any], digest: str, path: str, end: int
) -> tuple[PackedListing, _Origin]:
    columns = {name: header["images"][name] for name in _COLUMNS}
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) != 1 or not counts["path"]:
        raise UserError(f"its columns have {counts} entries")
    root, classes = str(header["source"]), tuple(map(str, header["classes"]))
    for name in (root, *columns["path"], *header["left_out"], *header["folders"]):
        if b"\0" in os.fsencode(name):
            raise UserError(f"{name!r} is no name")
        if name is not root and (os.path.isabs(name) or ".." in Path(name).parts):
            raise UserError(f"{name!r} lies outside its folder")
    if not set(columns["split"]) <= set(_SPLITS):
        raise UserError("an image is of an unknown split")
    entries = tuple(
        Entry(os.path.join(root, name), classes[label], split=split)
        for name, label, split in zip(columns["path"], columns["label"], columns["split"])
    )
    if min(columns["label"]) < 0:
        raise UserError("an image has no class")
    heights, widths = (np.array(columns[name], np.int64) for name in ("height", "width"))
    if min(heights.min(), widths.min()) < 1 or max(heights.max(), widths.max()) > 2**20:
        raise UserError("an image has no size")
    sizes = 3 * heights * widths
    starts = len(MAGIC) + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    if len(MAGIC) + int(sizes.sum()) != end:
        raise UserError("it has not as many pixels as its images")
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    packed = PackedListing(
        root=root,
        splits=own_splits(entries),
        classes=classes,
        entries=entries,
        file=PackedFile(path, heights, widths, digest, starts, np.frombuffer(mapped, np.uint8)),
        side=int(header["side"]),
        warnings=tuple(map(str, header["notices"])),
    )
    names = [*columns["path"], *header["left_out"]]
    nothing = [None] * len(header["left_out"])
    made_from = [[*columns[name], *nothing] for name in ("bytes", "modified", "sha256")]
    return packed, _Origin(list(zip(names, *made_from)), [*header["folders"]])


def _sum(pixels: UInt8[np.ndarray, "b"], shown: str) -> str:
    digest, header = hashlib.sha256(), time.monotonic()
    for start in range(0, len(pixels), _CHUNK):
        digest.update(pixels[start : start + _CHUNK].data)
        if time.monotonic() - header > 2:
            _log.info("checked %.0f %% of %s", 100 * start / len(pixels), shown)
            header = time.monotonic()
    return digest.hexdigest()


def _first_change(root: str, origin: _Origin) -> str:
    """What is not as it was in the folder, where that is still there; "" if nothing.

    A file of a stranger may name any folder of ours, so only what it lists is asked for, and only
    where all of that is as it says are the folders that it lists looked into for what is new.
    """
    paths = [os.path.join(root, name) for name, *_ in origin.files]
    stamps = [file_stamp(path) for path in paths]
    if not any(stamps):
        return ""
    for path, stamp, (_, size, modified, digest) in zip(paths, stamps, origin.files):
        if stamp is None:
            return f"{printable(path, root)} is missing"
        if digest is None or stamp[:2] == (size, modified):
            continue
        if stamp[0] != size or _digest(path) != digest:
            return f"{printable(path, root)} has changed"
    try:
        entries = scan(root, {os.path.join(root, name) for name in origin.folders}).entries
    except ValueError as error:
        return str(error)
    present = {entry.path for entry in entries if entry.state == "used"}
    folders = {entry.path for entry in entries if entry.reason == NEW_FOLDER}
    for path in sorted(folders | (present ^ set(paths))):
        return f"{printable(path, root)} is {'new' if path in folders | present else 'missing'}"
    return ""


def _digest(path: str) -> str:
    """Return the digest of a regular file; one that matches nothing if it is unreadable."""
    try:
        return hashlib.sha256(read_regular(path)).hexdigest()
    except (UnreadableInput, OSError):
        return ""

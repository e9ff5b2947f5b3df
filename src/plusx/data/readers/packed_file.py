"""The file format of packed images: all pixels, then an index in JSON, each with its checksum.

    MAGIC | the pixels of all images, RGB, row by row | JSON | sha256 of the JSON |
    length of the JSON (8 bytes, little-endian) | MAGIC

The JSON has the classes; of every image its relative path, class, split, height and width, and the
size, modification time and digest of its source file; the folders that were listed; and the digest
of all pixels. Nothing in a file is trusted before it is verified.
"""

import hashlib
import json
import logging
import mmap
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from plusx.data.image_file import printable
from plusx.data.readers.verdicts import Entry, Stamp, file_stamp, read_cache, write_cache
from plusx.errors import UserError


_log = logging.getLogger("plusx.data")

MAGIC = b"plusx packed 1\n\0"
_END = 32 + 8 + len(MAGIC)
_JSON_LIMIT = 2**31
_CHUNK = 1 << 24
_COLUMNS = ("path", "label", "split", "height", "width", "bytes", "modified", "sha256")
_SPLITS = ("", "train", "validation", "test")


class SourceFile(NamedTuple):
    """A file of the packed folder; all but its name is None if it was left out."""

    name: str
    bytes: int | None
    modified: int | None
    sha256: str | None


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedFile:
    """A packed file whose checksums are valid.

    root: the folder that was packed
    side: pixels of the shorter side
    digest: of the index
    source_files, source_folders: what was listed in `root`
    """

    path: str
    root: str
    side: int
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    warnings: tuple[str, ...]
    digest: str
    heights: Int64[np.ndarray, "n"]
    widths: Int64[np.ndarray, "n"]
    source_files: list[SourceFile]
    source_folders: list[str]
    _starts: Int64[np.ndarray, "n"]
    _bytes: UInt8[np.ndarray, "b"]

    def pixels(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return the read-only pixels of one image."""
        height, width, start = self.heights[number], self.widths[number], self._starts[number]
        return self._bytes[start : start + 3 * height * width].reshape(height, width, 3)

    def __reduce__(self) -> tuple[Any, ...]:
        # only the path is pickled, not the data
        return open_packed_file, (self.path,)


def open_packed_file(path: str | Path) -> PackedFile:
    """Open a packed file and verify its checksums; those of the pixels once until it changes.

    Raises UserError if the file is missing, corrupt or not a packed file.
    """
    real = os.path.realpath(path)
    stamp = file_stamp(real)
    if stamp is None:
        raise UserError(f"{printable(path)} is missing")
    return _open(real, stamp)


@lru_cache(maxsize=4)
def _open(path: str, stamp: Stamp) -> PackedFile:
    shown = printable(path)
    index, digest, end = _read_index(path, shown)
    try:
        packed = _parse_index(index, digest, path, end)
        checksum = str(index["pixels"]["sha256"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{shown} is not a valid packed file: {error}") from None
    if read_cache(path, "sum", stamp, str) != checksum:
        if _pixel_digest(packed._bytes[len(MAGIC) : end], shown) != checksum:
            raise UserError(
                f"{shown} is corrupt: its pixels do not match their checksum; pack it again"
            )
        write_cache(path, "sum", stamp, checksum)
    return packed


def _read_index(path: str, shown: str) -> tuple[dict[str, Any], str, int]:
    """Return the JSON, its digest, and its offset."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{shown} is not a packed file")
        if size >= len(MAGIC) + _END:
            file.seek(size - _END)
            trailer = file.read(_END)
            length = int.from_bytes(trailer[32:40], "little")
            end = size - _END - length
            if trailer[40:] == MAGIC and length <= _JSON_LIMIT and end >= len(MAGIC):
                file.seek(end)
                text = file.read(length)
                if hashlib.sha256(text).digest() == trailer[:32]:
                    try:
                        return json.loads(text), trailer[:32].hex(), end
                    except (ValueError, RecursionError) as error:
                        raise UserError(f"{shown} is not a packed file: {error}") from None
    raise UserError(f"{shown} is corrupt: its index does not match its checksum; pack it again")


def _parse_index(index: dict[str, Any], digest: str, path: str, end: int) -> PackedFile:
    columns = {name: index["images"][name] for name in _COLUMNS}
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) != 1 or not counts["path"]:
        raise UserError(f"its columns have {counts} entries")
    root, classes = str(index["source"]), tuple(map(str, index["classes"]))
    for name in (root, *columns["path"], *index["left_out"], *index["folders"]):
        if b"\0" in os.fsencode(name):
            raise UserError(f"{name!r} is not a file name")
        if name is not root and (os.path.isabs(name) or ".." in Path(name).parts):
            raise UserError(f"{name!r} is outside its folder")
    if not set(columns["split"]) <= set(_SPLITS):
        raise UserError("an image has an unknown split")
    entries = tuple(
        Entry(os.path.join(root, name), classes[label], split=split)
        for name, label, split in zip(columns["path"], columns["label"], columns["split"])
    )
    if min(columns["label"]) < 0:
        raise UserError("an image has no class")
    heights, widths = (np.array(columns[name], np.int64) for name in ("height", "width"))
    if min(heights.min(), widths.min()) < 1 or max(heights.max(), widths.max()) > 2**20:
        raise UserError("an image has an invalid size")
    sizes = 3 * heights * widths
    starts = len(MAGIC) + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    if len(MAGIC) + int(sizes.sum()) != end:
        raise UserError("the sizes of its images do not add up to its pixels")
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    rows = zip(*(columns[name] for name in ("path", "bytes", "modified", "sha256")))
    left_out = [SourceFile(name, None, None, None) for name in index["left_out"]]
    return PackedFile(
        path=path,
        root=root,
        side=int(index["side"]),
        classes=classes,
        entries=entries,
        warnings=tuple(map(str, index["notices"])),
        digest=digest,
        heights=heights,
        widths=widths,
        source_files=[*(SourceFile(*row) for row in rows), *left_out],
        source_folders=[*index["folders"]],
        _starts=starts,
        _bytes=np.frombuffer(mapped, np.uint8),
    )


def _pixel_digest(pixels: UInt8[np.ndarray, "b"], shown: str) -> str:
    digest, logged = hashlib.sha256(), time.monotonic()
    for start in range(0, len(pixels), _CHUNK):
        digest.update(pixels[start : start + _CHUNK].data)
        if time.monotonic() - logged > 2:
            _log.info("checked %.0f %% of %s", 100 * start / len(pixels), shown)
            logged = time.monotonic()
    return digest.hexdigest()

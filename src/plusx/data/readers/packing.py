"""Packing a folder: every image is decoded and resized once."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from plusx import __version__, store
from plusx.data.image_file import ImageFile, UnreadableInput, printable, read_regular
from plusx.data.modality import IMAGENET_MEAN, IMAGENET_STD, ImageModality
from plusx.data.readers.folder import scan
from plusx.data.readers.layouts import LAYOUTS, kinds_of
from plusx.data.readers.packed_file import MAGIC
from plusx.data.readers.verdicts import (
    Entry,
    OnUnreadable,
    examined,
    file_stamp,
    usable_entries,
    write_cache,
)
from plusx.data.transforms.steps import covering
from plusx.errors import UserError


_log = logging.getLogger("plusx.data")

_MOST_THREADS = 1024
_AHEAD = 4  # images per thread that wait to be written


class _Packed(NamedTuple):
    pixels: UInt8[np.ndarray, "h w 3"]
    bytes: int
    modified: int
    sha256: str


def pack(
    folder: str | Path,
    to: str | Path,
    *,
    size: int = 224,
    side: int | None = None,
    on_unreadable: OnUnreadable = "error",
    threads: int | None = None,
) -> dict[str, Any]:
    """Pack a folder of class folders into one file; return a summary.

    side: pixels of the stored shorter side. None: that to which evaluation at `size` resizes, so
        that evaluation has the same pixels from the file and from the folder
    Raises UserError as opening the folder does, or for an invalid argument; RuntimeError for an
    image that changes meanwhile; OSError for the disk.
    """
    for kind, reason in kinds_of(folder).items():
        if LAYOUTS[kind].annotation in ("boxes", "masks"):
            raise UserError(
                f"{printable(folder)} has {LAYOUTS[kind].title} ({reason}), which are not packed: "
                "they are read from their files, and small data sets are kept in memory"
            )
    modality = ImageModality((size, size), 3, IMAGENET_MEAN[3], IMAGENET_STD[3])
    if side is None:
        side = round(size / modality.crop_fraction)
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise UserError(f"threads = {threads}: from 1 to {_MOST_THREADS}, or 0 for one per core")
    if not 1 <= side <= 4096:
        raise UserError(f"the shorter side is {side}: from 1 to 4096 pixels")
    path, listing = Path(to), scan(folder)
    if path.is_dir() or not path.absolute().parent.is_dir():
        problem = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise UserError(f"{printable(path)} {problem}: name a file to write")
    if Path(os.path.realpath(path)).is_relative_to(listing.root):
        raise UserError(f"{printable(path)} is inside the folder that is packed")
    began = time.monotonic()
    entries = examined(list(listing.entries), listing.root, modality)
    used, warnings = usable_entries(entries, listing.root, on_unreadable)
    listed = {entry.path for entry in listing.entries if entry.state == "used"}
    left_out = [entry for entry in entries if entry.state == "refused" and entry.path in listed]
    if not used:
        raise UserError(f"{printable(folder)} has no image that can be used")
    lost = sorted(set(listing.classes) - {entry.label for entry in used})
    if lost:
        raise UserError(f"{printable(folder)}: the class folder {lost[0]!r} has no images")
    checked = time.monotonic()
    columns: dict[str, list[Any]] = {
        "path": [os.path.relpath(entry.path, listing.root) for entry in used],
        "label": [listing.classes.index(entry.label) for entry in used],
        "split": [entry.split for entry in used],
        **{name: [] for name in ("height", "width", "bytes", "modified", "sha256")},
    }
    digest = hashlib.sha256()
    with store.atomic_file(path) as file:
        file.write(MAGIC)
        for packed in _packed_in_order(used, listing.root, side, threads or os.cpu_count() or 1):
            pixels = np.ascontiguousarray(packed.pixels)
            digest.update(pixels.data)
            file.write(pixels.data)
            columns["height"].append(pixels.shape[0])
            columns["width"].append(pixels.shape[1])
            for name in ("bytes", "modified", "sha256"):
                columns[name].append(getattr(packed, name))
        text = json.dumps(
            {
                "plusx": __version__,
                "source": listing.root,
                "side": side,
                "parts": listing.splits,
                "classes": listing.classes,
                "notices": warnings,
                "folders": [os.path.relpath(folder, listing.root) for folder in listing.folders],
                "left_out": [os.path.relpath(entry.path, listing.root) for entry in left_out],
                "pixels": {"bytes": file.tell() - len(MAGIC), "sha256": digest.hexdigest()},
                "images": columns,
            }
        ).encode()
        file.write(text + hashlib.sha256(text).digest() + len(text).to_bytes(8, "little") + MAGIC)
        size_in_bytes = file.tell()
    stamp = file_stamp(os.path.realpath(path))
    if stamp is not None:
        write_cache(os.path.realpath(path), "sum", stamp, digest.hexdigest())
    seconds = time.monotonic() - checked
    return {
        "file": str(path),
        "images": len(used),
        "classes": len(listing.classes),
        "side": side,
        "bytes": size_in_bytes,
        "source_bytes": sum(columns["bytes"]),
        "seconds": seconds,
        "checking_seconds": checked - began,
        "images_per_second": len(used) / seconds,
        "warnings": warnings,
    }


def _packed_in_order(entries: list[Entry], root: str, side: int, threads: int) -> Iterator[_Packed]:
    """Yield the resized images in order; threads compute a few ahead."""
    waiting: list[Future[_Packed]] = []
    began = last_line = time.monotonic()
    with ThreadPoolExecutor(threads, thread_name_prefix="plusx-pack") as pool:
        try:
            upcoming = iter(entries)
            for count, entry in enumerate(entries, 1):
                while len(waiting) < _AHEAD * threads and (another := next(upcoming, None)):
                    waiting.append(pool.submit(_pack_one, another.path, side))
                try:
                    yield waiting.pop(0).result()
                except (UnreadableInput, OSError) as error:
                    raise RuntimeError(
                        f"{entry.name(root)} cannot be used any more: {error}"
                    ) from error
                now = time.monotonic()
                if now - last_line > 2:
                    rate = count / (now - began)
                    _log.info(
                        "packed %s of %s images, %.0f a second",
                        f"{count:,}",
                        f"{len(entries):,}",
                        rate,
                    )
                    last_line = now
        finally:
            pool.shutdown(cancel_futures=True)


def _pack_one(path: str, side: int) -> _Packed:
    stamp = file_stamp(path)
    if stamp is None:
        raise UnreadableInput("missing")
    data = read_regular(path)
    image = covering(ImageFile(data).decoded(), side, side)
    return _Packed(np.asarray(image), stamp[0], stamp[1], hashlib.sha256(data).hexdigest())

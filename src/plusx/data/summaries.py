"""Summaries of data sets, cached until a file changes. This module does not import torch."""

import hashlib
import json
import os
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from plusx import __version__, store


_CACHE_VERSION = 6  # increased whenever the content of a summary changes
# files and folders in a folder, and around a file; with more, nothing is cached
_MAX_ENTRIES, _MAX_AROUND = 2_000_000, 100_000
_LIMIT = 2**28


def content_stamp(path: str) -> str:
    """Return a digest of names, sizes and times of change in a folder, or around a file.

    Returns "" for other paths, and for folders with too many entries.
    """
    is_folder = os.path.isdir(path)
    if not is_folder and not os.path.isfile(path):
        return ""
    limit = _MAX_ENTRIES if is_folder else _MAX_AROUND
    folders = [path if is_folder else os.path.dirname(path) or "."]
    digest, count = hashlib.sha256(), 0
    while folders:
        try:
            with os.scandir(folders.pop()) as items:
                entries = sorted(items, key=lambda item: item.name)
        except OSError:
            return ""
        count += len(entries)
        if count > limit:
            return ""
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            times = status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns
            digest.update(os.fsencode(entry.path) + repr(times).encode())
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
    return digest.hexdigest()


def read_summary(data: str, kind: str | None, stamp: str) -> dict[str, Any] | None:
    """Return the summary stored by write_summary; None if there is none for this content."""
    try:
        cached = json.loads(store.read_bytes(_file(data), _LIMIT))
        summary: dict[str, Any] = cached["summary"]
        return summary if stamp and cached["terms"] == _terms(data, kind, stamp) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_summary(data: str, kind: str | None, stamp: str, summary: dict[str, Any]) -> None:
    """Store the summary of `data`, whose content had this stamp."""
    if not stamp:
        return
    content = {"terms": _terms(data, kind, stamp), "summary": summary}
    try:
        store.make_folder(_file(data).parent)
        store.write_text(_file(data), json.dumps(content))
    except OSError:
        return  # it is computed again next time


def _terms(data: str, kind: str | None, stamp: str) -> list[Any]:
    extras = [find_spec(name) is not None for name in ("pillow_heif", "nibabel", "pydicom")]
    return [_CACHE_VERSION, __version__, version("pillow"), extras, data, kind, stamp]


def _file(data: str) -> Any:
    name = hashlib.sha256(os.fsencode(os.path.abspath(data))).hexdigest()[:32]
    return store.cache_folder() / "checked" / f"{name}-summary.json"

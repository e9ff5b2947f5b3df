"""The inputs of `predict` for each modality: files, folders, or texts."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from plusx.data.image_file import printable, read_regular
from plusx.data.modality import Modality
from plusx.data.modality.audio.sound_file import sound_files
from plusx.data.readers.csv_file import TABLES, read_rows
from plusx.data.readers.folder import scan_images
from plusx.data.readers.text_file import lines_of, text_of
from plusx.data.readers.volumes import scans_in
from plusx.errors import UserError, did_you_mean


Source = str | Path | bytes | Image.Image | np.ndarray | Tensor
Failed = list[dict[str, str]]

_MAX_BYTES = 2**28  # of a file of texts
_TEXT_COLUMNS = ("text", "sentence", "source")


def sources_of(listed: Sequence[Any], modality: Modality, failed: Failed) -> list[Source]:
    """Return the inputs, with folders replaced by their files, and files of texts by the texts.

    Missing and unusable files are added to `failed`. Raises UserError if there are no others.
    """
    expand = SOURCES.get(modality.kind, _images)
    sources: list[Source] = []
    for source in listed:
        if not isinstance(source, Source):
            raise UserError(
                f"an input of the type {type(source).__name__}: inputs are paths, bytes, "
                "Pillow images, NumPy arrays (h, w) or (h, w, c), or tensors (c, h, w)"
            )
    named = [source for source in listed if isinstance(source, str | Path)]
    if modality.kind in IN_WORDS:
        named = [source for source in named if not _is_text(source)]
    missing = set(_missing(named))
    for source in listed:
        if not isinstance(source, str | Path):
            sources.append(source)
        elif source in missing and len(missing) < len(listed):
            failed.append(_missing_file(source))
        else:
            sources += expand([source], modality, failed)
    return sources


def image_files(paths: Sequence[str | Path], failed: Failed) -> list[str]:
    """Return the given files, and the images in the given folders, ordered by name.

    Missing files, and entries that cannot be images (a pipe, a cyclic link), are added to `failed`.
    Raises UserError if all files are missing, or a folder has no images.
    """
    files: list[str] = []
    missing = _missing(paths)
    if len(missing) == len(paths):
        raise UserError(f"{', '.join(map(printable, missing[:3]))}: no such file or folder")
    for path in paths:
        if path in missing:
            failed.append(_missing_file(path))
            continue
        entries = scan_images(path)
        used = [entry.path for entry in entries if entry.state == "used"]
        if not used:
            raise UserError(f"{printable(path)} is a folder without images")
        files += used
        failed += [
            {"path": printable(entry.path), "reason": entry.reason}
            for entry in entries
            if entry.state == "refused"
        ]
    return files


def reason_of(error: Exception) -> str:
    """Return the reason of an error without the path of the file."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return reason or str(error)


def _missing(paths: Sequence[str | Path]) -> list[str | Path]:
    return [path for path in paths if not os.path.lexists(path)]


def _missing_file(path: str | Path) -> dict[str, str]:
    return {"path": printable(path), "reason": "no such file or folder"}


def _images(paths: Sequence[str | Path], modality: Modality, failed: Failed) -> list[str]:
    return image_files(paths, failed)


def _volumes(paths: Sequence[str | Path], modality: Modality, failed: Failed) -> list[str]:
    return scans_in(list(paths), modality.channels)


def _recordings(paths: Sequence[str | Path], modality: Modality, failed: Failed) -> list[str]:
    files: list[str] = []
    for path in paths:
        if not os.path.lexists(path):
            raise UserError(f"{printable(path)}: no such file or folder")
        inside = sound_files(os.fspath(path)) if os.path.isdir(path) else [os.fspath(path)]
        if not inside:
            raise UserError(f"{printable(path)} is a folder without recordings")
        files += inside
    return files


def _texts(paths: Sequence[str | Path], modality: Modality, failed: Failed) -> list[str]:
    """Return the texts of files: the lines of a .txt, the rows of a table. A str that is not the
    name of a file is itself a text."""
    texts: list[str] = []
    for path in paths:
        name = os.fspath(path)
        is_file = len(name) < 4096 and os.path.isfile(name)
        if not is_file and len(name) < 4096 and os.path.lexists(name):
            what = "a folder" if os.path.isdir(name) else "not a regular file"
            raise UserError(
                f"{printable(name)} is {what}: inputs are texts, .txt files and tables with a "
                "column text"
            )
        if not is_file:
            if not _is_text(path):
                raise UserError(f"{printable(name)}: no such file")
            if not name.strip():
                failed.append({"path": repr(name), "reason": "an empty text"})
                continue
            texts.append(name)
        elif name.lower().endswith(TABLES):
            texts += _column(name, failed)
        else:
            texts += _lines(name, failed)
    return texts


def _is_text(source: str | Path) -> bool:
    """Whether an input is a text: a str without the extension of a file of texts."""
    return isinstance(source, str) and not source.lower().endswith((".txt", *TABLES))


def _lines(path: str, failed: Failed) -> list[str]:
    shown = printable(path)
    lines = lines_of(text_of(read_regular(path, _MAX_BYTES), path))
    if not lines:
        failed.append({"path": shown, "reason": "an empty file"})
    for number, line in enumerate(lines, 1):
        if not line.strip():
            failed.append({"path": f"{shown}, line {number}", "reason": "an empty line"})
    return [line for line in lines if line.strip()]


def _column(path: str, failed: Failed) -> list[str]:
    shown = printable(path)
    columns, rows = read_rows(path, shown)
    column = next((name for name in _TEXT_COLUMNS if name in columns), None)
    if column is None:
        near = did_you_mean("text", columns)
        raise UserError(
            f"{shown} has the columns {', '.join(map(printable, columns)) or 'none'}, and texts "
            f"are in a column called text{near}"
        )
    if columns.count(column) > 1:
        raise UserError(f"{shown} has the column {column} more than once")
    if not rows:
        raise UserError(f"{shown} has no rows below its header")
    texts = [(row.where, row.text(column)) for row in rows]
    failed += [{"path": where, "reason": "an empty text"} for where, text in texts if not text]
    return [text for _, text in texts if text]


# modalities whose inputs can be given as text
IN_WORDS = frozenset({"text"})

SOURCES: dict[str, Callable[[Sequence[str | Path], Modality, Failed], list[str]]] = {
    "image": _images,
    "bands": _images,
    "volume": _volumes,
    "text": _texts,
    "audio": _recordings,
}

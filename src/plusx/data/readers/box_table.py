"""Boxes in a CSV: path,left,top,right,bottom,label and optionally split, a row for each box.

Rows count from 1 with the header. An image without boxes has one row with its path alone. Paths
are relative to the CSV's folder and stay inside it.
"""

import csv
import io
import os

from plusx.data.image_file import printable, read_regular
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    BoxAnnotation,
    Problem,
)
from plusx.data.splits import SPLIT_NAMES
from plusx.errors import UserError


_CORNERS = ("left", "top", "right", "bottom")
_NEEDED = ("path", *_CORNERS, "label")
_LIMIT = 2**31


def read_box_table(path: str) -> AnnotationIndex:
    """Every image of the CSV with its boxes. UserError: it is no such CSV, or splits differ."""
    shown, root = printable(path), os.path.dirname(os.path.realpath(path))
    if not os.path.isfile(path):
        raise UserError(f"{shown} is no file: a CSV of boxes is meant")
    text = read_regular(path, _LIMIT).decode("utf-8-sig", "surrogateescape")
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{shown}, row {len(rows) + 1}: {error}") from None
    header = [name.strip() for name in rows[0]] if rows else []
    missing = [name for name in _NEEDED if header.count(name) != 1]
    if missing:
        raise UserError(
            f"{shown} has the columns {','.join(map(printable, header)) or 'none'}; it needs "
            f"{','.join(_NEEDED)} once each, and may have split"
        )
    index = AnnotationIndex(root)
    boxes: dict[str, list[BoxAnnotation]] = {}
    splits: dict[str, tuple[str, int]] = {}
    first: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{os.path.basename(shown)}, row {number}"
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} fields under {len(header)} columns")
        cells = {name: cell.strip() for name, cell in zip(header, row)}
        split = _split(cells, where)
        image = os.path.normpath(os.path.join(root, cells["path"]))
        if not cells["path"] or not image.startswith(os.path.join(root, "")):
            raise UserError(f"{where}: the path {printable(cells['path'])!r} leaves the folder")
        if image in splits and splits[image][0] != split:
            had, at = splits[image]
            raise UserError(
                f"{where}: {printable(cells['path'])} is of {split or 'no split'} here and of "
                f"{had or 'no split'} in row {at}"
            )
        if image not in splits:
            splits[image] = (split, number)
            if not os.path.isfile(image):
                index.problems.append(Problem(where, f"{printable(cells['path'])} is missing"))
        content = (image, *(cells[name] for name in (*_CORNERS, "label")))
        if content in first:
            index.problems.append(Problem(where, f"repeats row {first[content]}"))
            continue
        first[content] = number
        found = boxes.setdefault(image, [])
        if not any(content[1:]):
            continue  # an image without boxes
        box = _box(cells, where)
        if isinstance(box, Problem):
            index.problems.append(box)
        else:
            found.append(box)
    for image, found in boxes.items():
        if os.path.isfile(image):
            index.images.append(AnnotatedImage(image, splits[image][0], tuple(found)))
    return index


def _split(cells: dict[str, str], where: str) -> str:
    said = cells.get("split", "")
    if "split" in cells and said not in SPLIT_NAMES:
        raise UserError(
            f"{where}: split {printable(said)!r}, allowed are train, validation (or val), test"
        )
    return SPLIT_NAMES.get(said, "")


def _box(cells: dict[str, str], where: str) -> BoxAnnotation | Problem:
    numbers = []
    for name in _CORNERS:
        try:
            numbers.append(float(cells[name]))
        except ValueError:
            return Problem(where, f"{name} {cells[name]!r} is no number")
    left, top, right, bottom = numbers
    return BoxAnnotation(where, printable(cells["label"]), (left, top, right, bottom))

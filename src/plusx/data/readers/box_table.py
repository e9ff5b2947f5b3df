"""Boxes in a CSV: path,left,top,right,bottom,label and optionally split, one row per box.

An image without boxes has one row with only its path.
"""

import os

from plusx.data.image_file import printable
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    BoxAnnotation,
    Problem,
)
from plusx.data.readers.csv_file import columns_of, read_rows
from plusx.data.readers.listing import class_name
from plusx.errors import UserError


CORNERS = ("left", "top", "right", "bottom")
_NEEDED = ("path", *CORNERS, "label")


def recognise_box_table(path: str) -> str:
    """Return why read_box_table can read a path, or ""."""
    has_columns = {"path", *CORNERS} <= set(columns_of(path))
    return f"a CSV with the columns {', '.join(_NEEDED)}" if has_columns else ""


def read_box_table(path: str) -> AnnotationIndex:
    """Read every image of the CSV with its boxes. Raises UserError if the CSV is invalid."""
    shown, root = printable(path), os.path.dirname(os.path.realpath(path))
    if not os.path.isfile(path):
        raise UserError(f"{shown} is not a file: a CSV of boxes is expected")
    columns, rows = read_rows(path, os.path.basename(shown))
    if any(columns.count(name) != 1 for name in _NEEDED):
        raise UserError(
            f"{shown} has the columns {','.join(map(printable, columns)) or 'none'}; it needs "
            f"{','.join(_NEEDED)} once each, and may have split"
        )
    index = AnnotationIndex(root)
    boxes: dict[str, list[BoxAnnotation]] = {}
    splits: dict[str, tuple[str, int]] = {}
    for row in rows:
        split, image = row.split, row.path(root)
        name = printable(image, root)
        if image not in splits and not os.path.isfile(image):
            index.problems.append(Problem(row.where, f"{name} is missing"))
        other_split, other_row = splits.setdefault(image, (split, row.number))
        if other_split != split:
            raise UserError(
                f"{row.where}: {name} is in {split or 'no split'} here and in "
                f"{other_split or 'no split'} in row {other_row}"
            )
        values = [row.cells[name].strip() for name in (*CORNERS, "label")]
        image_boxes = boxes.setdefault(image, [])
        if not any(values):
            continue  # an image without boxes
        try:
            left, top, right, bottom = (float(value) for value in values[:4])
        except ValueError:
            name, value = next(item for item in zip(CORNERS, values) if not _is_number(item[1]))
            index.problems.append(Problem(row.where, f"{name} {value!r} is not a number"))
            continue
        label = class_name(values[4])
        image_boxes.append(BoxAnnotation(row.where, label, (left, top, right, bottom)))
    for image, image_boxes in boxes.items():
        if os.path.isfile(image):
            index.images.append(AnnotatedImage(image, splits[image][0], tuple(image_boxes)))
    return index


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""The page of dense predictions: images with predicted masks or boxes and their ground truth."""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from math import prod
from pathlib import Path
from typing import Any

from PIL import Image

from plusx import store
from plusx.errors import UserError
from plusx.report import page
from plusx.report.metrics import METRICS
from plusx.report.page import Cell, Column, Table
from plusx.report.texts import coloured


MAX_IMAGES = 60  # images on the page; all are in side-by-side/
# a file in that folder and none above it, whatever its name
_NAME = re.compile(r"side-by-side/[^./\\\x00][^/\\\x00]*\.png")
_LARGEST = 64 << 20  # bytes of an image
_HEAVY = 1 << 17  # bytes above which an image is embedded as a smaller JPEG
_SIDES = 1440, 720  # its width and height, at most
_QUALITY = 75
_LISTED = 4  # classes that are named under an image
# descriptions of the examples, by a key of their rows; the first key that a row has counts
NOTES = {
    "caption": (
        "A word is predicted from the bright part of the image: the attention of the decoder's "
        "last layer, the mean over its heads, relative to its maximum."
    ),
    "tokens": (
        "The validation texts whose annotated class has the lowest probability. Green words speak "
        "for the predicted class, orange ones against it: the probability falls or rises without "
        "the word. Underlined words are not in the vocabulary."
    ),
    "command": (
        "The validation recordings with a wrong command, then those with the highest character "
        "error rates: log-mel spectrogram (low frequencies at the bottom), reference and "
        "transcript. Words without a partner are marked."
    ),
    "transcript": (
        "The validation recordings with the highest character error rates: log-mel spectrogram "
        "(low frequencies at the bottom), reference and transcript. Words without a partner are "
        "marked."
    ),
    "translation": (
        "Validation sentences with the lowest chrF, then those around the median. Words without a "
        "partner are marked."
    ),
    "probability": (
        "The validation recordings whose annotated class has the lowest probability, as log-mel "
        "spectrograms (low frequencies at the bottom)."
    ),
}
MEASURED = ("cer", "chrf")  # of single texts
MIN_SCORE = 0.3  # boxes with a lower score are in predictions.json only

Row = Mapping[str, Any]


def predictions_page(
    result: Mapping[str, Any],
    pictures: Sequence[bytes],
    colours: Sequence[tuple[int, int, int]],
    run: str,
) -> str:
    """Return the HTML page of predicted masks or boxes; `pictures` has a PNG for each image."""
    rows: Sequence[Row] = result["predictions"]
    return page.render(
        "predictions.html",
        {
            "run": run,
            "pictures": True,
            "finding": _finding(rows),
            "boxes": "boxes" in rows[0],
            "ground_truth": has_ground_truth(rows),
            "shown_from": MIN_SCORE,
            "examples": examples(rows[:MAX_IMAGES], pictures[:MAX_IMAGES]),
            "count": len(rows),
            "classes": _classes(result["classes"], rows, colours),
        },
    )


def examples(rows: Sequence[Row], pictures: Sequence[bytes | None]) -> list[dict[str, Any]]:
    """Return the examples for the template; `pictures` are PNGs, None for those without one."""
    return [
        {
            "path": row.get("path", ""),
            "uri": None if picture is None else _embedded(picture),
            "alt": _alternative(row),
            "is_spectrogram": "probability" in row or "transcript" in row,
            "note": next((note for key, note in NOTES.items() if key in row), ""),
            "lines": [prediction_text(row), *_ground_truth(row)],
            "texts": _aligned(row),
            **(coloured([row])[0] if "tokens" in row else {}),
        }
        for row, picture in zip(rows, pictures, strict=True)
    ]


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """Read the predictions in a folder for the template; [] if there are none.

    Raises UserError if predictions.json is invalid.
    """
    if not (folder / "predictions.json").is_file():
        return []
    file = folder / "predictions.json"
    values = store.read_json_part(file)
    rows = values.get("predictions") if isinstance(values, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("side_by_side", ""), str) for row in rows
    ):
        raise UserError(f"{file} is not what plusx wrote: restore or remove {folder}")
    pictures: list[bytes | None] = []
    for row in rows:
        if "side_by_side" not in row:
            pictures.append(None)
            continue
        if not _NAME.fullmatch(row["side_by_side"]):
            raise UserError(f"{folder}: {row['side_by_side']!r} is not an image of a prediction")
        pictures.append(store.read_part(folder / row["side_by_side"], _LARGEST))
    return examples(rows, pictures)


def has_ground_truth(rows: Sequence[Row]) -> bool:
    """Whether any row has ground truth."""
    return any("ground_truth" in row for row in rows)


def prediction_text(row: Row) -> str:
    """Return a prediction as one line: its caption, its class, the largest classes of the pixels,
    or the number of boxes of each class; "" for texts that are shown beside their reference."""
    if "caption" in row:
        return f"caption: {row['caption']}"
    if "command" in row:
        ratio = row["likelihood_ratio"]
        return f"command: {row['command']} (phrase {row['phrase']!r}, likelihood ratio {ratio:.2f})"
    if "probability" in row:
        return f"predicted: {row['label']}, {100 * row['probability']:.1f} %"
    if _generated(row):
        return ""
    if "boxes" not in row:
        largest = sorted(row["class_fractions"].items(), key=lambda pair: -pair[1])[:_LISTED]
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in largest if share)
    return counted(drawn(row["boxes"])) or "no box"


def _generated(row: Row) -> str:
    """Return the key of a text that has a reference, or ""."""
    return next((key for key in ("transcript", "translation") if key in row), "")


def _aligned(row: Row) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Return the source, the reference and the prediction of a generated text: a title for each,
    and its words, each with whether it is not in the other text."""
    key = _generated(row)
    if not key:
        return []
    reference, predicted = (
        text.split() or ["(nothing)"] for text in (row["ground_truth"][key], row[key])
    )
    differs: list[list[bool]] = [[True] * len(reference), [True] * len(predicted)]
    for match in SequenceMatcher(None, reference, predicted, autojunk=False).get_matching_blocks():
        for flags, start in zip(differs, (match.a, match.b)):
            flags[start : start + match.size] = [False] * match.size
    source = [("source", [(row["text"], False)])] if "text" in row else []
    return [
        *source,
        ("reference", list(zip(reference, differs[0], strict=True))),
        (key, list(zip(predicted, differs[1], strict=True))),
    ]


def drawn(boxes: Sequence[Row]) -> list[Row]:
    """Return the boxes with a score of at least MIN_SCORE."""
    return [box for box in boxes if box["score"] >= MIN_SCORE]


def counted(boxes: Sequence[Row]) -> str:
    """Return the number of boxes of each class, the most frequent first."""
    counts = Counter(box["label"] for box in boxes)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _alternative(row: Row) -> str:
    """Return the alternative text of an image."""
    if "caption" in row:
        return "the image, and its parts that each word is predicted from"
    if "probability" in row or _generated(row):
        return "the spectrogram"
    return "the prediction and the ground truth" if "ground_truth" in row else "the prediction"


def _ground_truth(row: Row) -> list[str]:
    target = row.get("ground_truth") or {}
    lines = []
    if "label" in target:
        lines.append(f"annotated: {target['label']}, {100 * target['probability']:.1f} %")
    lines += [
        METRICS[key].title + " " + METRICS[key].text(row[key]) for key in MEASURED if key in row
    ]
    if "command" in target:
        lines.append(f"ground truth: {target['command']}")
    if "caption" in target:
        equal = ", the same" if target["caption"] == row.get("caption") else ""
        lines.append(f"ground truth: {target['caption']}{equal}")
    if "mean_iou" in target:
        lines.append(f"mean IoU {100 * target['mean_iou']:.1f} %")
    if "boxes" in target:
        count = len(target["boxes"])
        lines.append(f"ground truth: {count} {'box' if count == 1 else 'boxes'}")
    return lines


def _finding(rows: Sequence[Row]) -> str:
    images = f"{len(rows):,} {'image' if len(rows) == 1 else 'images'}"
    if "boxes" in rows[0]:
        count = sum(len(drawn(row["boxes"])) for row in rows)
        return f"{count:,} {'box' if count == 1 else 'boxes'} in {images}."
    ious = [row["ground_truth"]["mean_iou"] for row in rows if row.get("ground_truth")]
    if not ious:
        return f"{images} segmented."
    which = f"{len(ious):,} with ground truth" if len(ious) < len(rows) else "images"
    mean = 100 * sum(ious) / len(ious)
    return f"{images} segmented: mean IoU {mean:.1f} % over the {which}."


def _embedded(picture: bytes) -> str:
    """Return a PNG as a data URI; a large one, which is also a file, as a smaller JPEG."""
    if len(picture) <= _HEAVY:
        return page.data_uri(picture)
    with Image.open(io.BytesIO(picture), formats=("PNG",)) as image:
        small = image.convert("RGB")
    small.thumbnail(_SIDES)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return page.data_uri(buffer.getvalue(), "jpeg")


def _classes(
    classes: Sequence[str], rows: Sequence[Row], colours: Sequence[tuple[int, int, int]]
) -> Table:
    marks = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in colours]
    if "boxes" in rows[0]:
        columns = [Column("Class", number=False), Column("Boxes")]
        counts = Counter(box["label"] for row in rows for box in drawn(row["boxes"]))
        cells = [
            [Cell(name, name, colour=mark), Cell(f"{counts[name]:,}", counts[name])]
            for name, mark in zip(classes, marks)
        ]
        return Table("Boxes per class", columns, cells)
    columns = [Column("Class", number=False), Column("Fraction of the pixels", "%")]
    pixels = [prod(row["size"]) for row in rows]  # of volumes voxels
    cells = []
    for name, mark in zip(classes, marks):
        share = sum(r["class_fractions"][name] * size for r, size in zip(rows, pixels)) / sum(
            pixels
        )
        cells.append([Cell(name, name, colour=mark), Cell(f"{100 * share:.1f}", share)])
    return Table("Pixels per class", columns, cells)

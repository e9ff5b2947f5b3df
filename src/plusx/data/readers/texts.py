"""Texts with classes: a CSV, TSV or JSONL file, or a folder of class folders of .txt files.

reviews.csv: text,label[,split]
reviews/[train|val|test/]CLASS/NAME.txt, one text per file
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from plusx.data.dataset import Dataset, as_split
from plusx.data.image_file import UnreadableInput, read_regular
from plusx.data.modality import TextModality
from plusx.data.readers.csv_file import Row, columns_of_table, rows_with
from plusx.data.readers.listing import class_name, refuse_similar_names
from plusx.data.readers.text_file import text_of
from plusx.data.readers.verdicts import OnUnreadable, Skipped
from plusx.data.sets.download import located
from plusx.data.splits import entries_of_split, held_out_of, lone_classes, own_splits, split_of
from plusx.data.text_items import TextItems
from plusx.data.tokenizer import Tokenizer
from plusx.errors import UserError, printable


_NAMED = 3
_MAX_BYTES = 2**24  # of a text file


class TextEntry(NamedTuple):
    """A text, its class, its split or "", and its name in messages."""

    text: str
    label: str
    split: str
    name: str


@dataclass(frozen=True)
class TextColumns:
    """The columns of a table of texts.

    test: values of the column `split` for the test set, if these are not names of splits; all
        other rows are for training
    """

    text: str = "text"
    label: str = "label"
    split: str = "split"
    test: tuple[str, ...] = ()


def recognise_texts(path: str) -> str:
    """Return why open_texts can read a path, or ""."""
    if {"text", "label"} <= set(columns_of_table(path)):
        return "a table with the columns text and label"
    if os.path.isdir(path) and _has_only_texts(path):
        return "a folder of class folders with .txt files"
    return ""


def _has_only_texts(root: str) -> bool:
    """Whether the files in subfolders are .txt files, several in at least one of them.

    Files directly in the root, such as a README, are not considered.
    """
    num_texts = num_folders = 0
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if folder == root:
            continue
        texts = [file for file in files if not file.startswith(".")]
        if not all(file.lower().endswith(".txt") for file in texts):
            return False
        num_texts, num_folders = num_texts + len(texts), num_folders + bool(texts)
    return num_texts > num_folders


def text_splits(path: str) -> tuple[str, ...]:
    """Return the splits that the data at a path defines."""
    return own_splits(read_texts(path, TextColumns()))


def open_texts(
    path: str | Path,
    modality: TextModality,
    *,
    split: str,
    seed: int,
    validation: float | int | None,
    columns: TextColumns = TextColumns(),
    classes: tuple[str, ...] = (),
    on_unreadable: OnUnreadable = "error",
) -> Dataset:
    """Open labelled texts.

    classes: the expected names, in order; (): those of the data
    on_unreadable: whether empty texts are an error, or skipped with a warning
    Raises UserError, with the file and the row, for texts that are empty or not UTF-8, a missing
    column or label, and data with one class.
    """
    shown, part = printable(path), as_split(split)
    entries = read_texts(path, columns)
    entries, warnings = _without_empty(entries, shown, on_unreadable)
    names = classes or tuple(sorted({entry.label for entry in entries}))
    if not classes:
        refuse_similar_names(names, shown)
    if len(names) < 2:
        raise UserError(
            f"{shown}: all {len(entries):,} texts have the class {names[0]!r}, but at least two "
            "classes are needed"
            if names
            else f"{shown} has no texts"
        )
    for entry in entries:
        if entry.label not in names:
            raise UserError(
                f"{shown}, {entry.name}: the label {entry.label!r} is not one of the classes "
                f"{', '.join(names[:10])}"
            )
    chosen, is_cut = entries_of_split(entries, part, validation, shown)
    if not chosen:
        raise UserError(f"{shown} has no texts in {part}")
    dataset = Dataset(
        name=printable(os.path.basename(os.path.realpath(located(path)))),
        split=part,
        classes=names,
        labels=torch.tensor([names.index(entry.label) for entry in chosen]),
        modality=modality,
        items=TextItems([entry.text for entry in chosen], [entry.name for entry in chosen]),
        warnings=warnings + _repeated(chosen),
    )
    if part == "train" and not classes:
        counts = torch.bincount(dataset.labels, minlength=len(names))
        if not counts.all():
            raise UserError(
                f"{shown}: no text of the class {names[int(counts.argmin())]!r} to train on"
            )
    if not is_cut:
        return dataset
    try:
        indices = held_out_of(dataset.labels, part, validation, seed)
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None
    if validation != 0:
        dataset.warnings.extend(lone_classes(dataset.labels, names))
    return dataset.subset(np.asarray(indices).tolist())


def open_readable_texts(path: str, split: str) -> Dataset:
    """Open a split of labelled texts without the empty ones, as words."""
    modality = TextModality(Tokenizer("words", lower=True))
    return open_texts(path, modality, split=split, seed=0, validation=None, on_unreadable="skip")


def read_texts(path: str | Path, columns: TextColumns) -> list[TextEntry]:
    """Return all texts of a table or a folder. Raises UserError."""
    name, shown = os.fspath(located(path)), printable(path)
    if os.path.isdir(name):
        return _read_folder(name, shown)
    header, rows = rows_with(name, shown, {"text": columns.text, "label": columns.label})
    if columns.test and columns.split not in header:
        raise UserError(f"{shown} has no column {columns.split!r}, which [data] test needs")
    return [_entry(row, columns) for row in rows]


def _entry(row: Row, columns: TextColumns) -> TextEntry:
    label = class_name(row.text(columns.label))
    if not label:
        raise UserError(f"{row.where}: no {columns.label}")
    split = ""
    if columns.test:
        split = "test" if row.cells[columns.split].strip() in columns.test else "train"
    elif columns.split in row.cells:
        split = split_of(row.cells[columns.split])
        if not split:
            raise UserError(
                f"{row.where}: {columns.split} {printable(row.cells[columns.split].strip())!r}, "
                "allowed are train, validation (or val), test; for other values, set those of the "
                "test set with data.test=[...]"
            )
    where = row.where.rpartition(", ")[2]
    return TextEntry(row.text(columns.text), label, split, where)


def _text_files(root: str) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            if file.lower().endswith(".txt") and folder != root:
                yield os.path.join(folder, file)


def _read_folder(root: str, shown: str) -> list[TextEntry]:
    entries = []
    for path in _text_files(root):
        parts = os.path.relpath(path, root).split(os.sep)[:-1]
        split = split_of(parts[0]) if len(parts) > 1 else ""
        label = class_name(parts[1] if split else parts[0])
        name = printable(path, root)
        try:
            text = text_of(read_regular(path, _MAX_BYTES), f"{shown}, {name}")
        except (UnreadableInput, OSError) as error:
            raise UserError(f"{shown}, {name}: {error}") from None
        entries.append(TextEntry(text.strip(), label, split, name))
    if not entries:
        raise UserError(f"{shown} has no .txt file in a class folder: CLASS/NAME.txt")
    return entries


def _without_empty(
    entries: list[TextEntry], shown: str, on_unreadable: OnUnreadable
) -> tuple[list[TextEntry], list[str]]:
    empty = [entry.name for entry in entries if not entry.text.strip()]
    if not empty:
        return entries, []
    if on_unreadable == "error":
        raise UserError(
            f'{shown}: {_listed(empty)} without text (on_unreadable = "skip" leaves them out)'
        )
    warnings: list[str] = [Skipped(f"skipped {name}: no text") for name in empty]
    return [entry for entry in entries if entry.text.strip()], warnings


def _repeated(entries: list[TextEntry]) -> list[str]:
    """Return warnings about texts that occur more than once, and with several classes."""
    counts = Counter(entry.text for entry in entries)
    labels: dict[str, set[str]] = {}
    for entry in entries:
        labels.setdefault(entry.text, set()).add(entry.label)
    warnings = []
    ambiguous = [text for text, names in labels.items() if len(names) > 1]
    if ambiguous:
        names = [entry.name for entry in entries if entry.text == ambiguous[0]]
        what = "text has" if len(ambiguous) == 1 else "texts have"
        warnings.append(f"{len(ambiguous):,} {what} several classes, the first in {_listed(names)}")
    repeated = sum(count - 1 for count in counts.values())
    if repeated:
        what = "repeats" if repeated == 1 else "repeat"
        warnings.append(f"{repeated:,} of {len(entries):,} texts {what} another one")
    return warnings


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_NAMED])
    more = len(names) - _NAMED
    return f"{shown} and {more:,} more" if more > 0 else shown

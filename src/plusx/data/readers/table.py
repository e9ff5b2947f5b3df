"""A CSV with the columns path and label, and optionally split and group (or patient).

Labels are names, or integers from 0 without gaps, or, if a row can have several, names joined by
`|` (a row may then have none). Rows of one group, such as a patient, are never in different splits.
"""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from plusx.data.dataset import Labels
from plusx.data.image_file import printable
from plusx.data.readers.box_table import CORNERS
from plusx.data.readers.csv_file import columns_of, read_rows
from plusx.data.readers.listing import Listing, class_name, file_problem, refuse_similar_names
from plusx.data.readers.verdicts import Entry
from plusx.data.splits import own_splits
from plusx.errors import UserError


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.I)
_INTEGER = re.compile(r"\d{1,9}")
LABEL_SEPARATOR = "|"
_GROUPS = ("group", "patient")  # columns for groups; the first that exists is used


@dataclass(frozen=True, eq=False, kw_only=True)
class Table(Listing):
    """The rows of a CSV as entries, and whether a row can have several labels."""

    multilabel: bool

    @property
    def is_multilabel(self) -> bool:
        return self.multilabel

    def labels(self, entries: Sequence[Entry], classes: tuple[str, ...]) -> Labels:
        """Return class numbers (n,), or for several labels rows (n, k) of 0 and 1."""
        if not self.multilabel:
            return super().labels(entries, classes)
        numbers = {name: number for number, name in enumerate(classes)}
        rows = torch.zeros(len(entries), len(classes))
        for row, entry in zip(rows, entries):
            for name in _names(entry, multilabel=True):
                row[numbers[name]] = 1
        return rows


def recognise_table(path: str) -> str:
    """Return why read_table can read a path, or ""."""
    columns = set(columns_of(path))
    if {"path", "label"} <= columns and not columns >= set(CORNERS):
        return "a CSV with the columns path and label"
    return ""


def table_splits(path: str | Path) -> tuple[str, ...]:
    """Return the splits in a CSV, without checking its labels. Raises UserError with the row."""
    shown, root = printable(path), os.path.dirname(os.path.realpath(path))
    return own_splits(_entries(path, root, shown))


def read_table(
    path: str | Path, classes: tuple[str, ...] | None = None, multilabel: bool = False
) -> Table:
    """Read a CSV and check every row; entries of files that do not exist are refused.

    classes: the expected names, in order; None: those of the CSV
    multilabel: whether a row can have several labels; also true if one has
    Raises UserError with the row.
    """
    shown = printable(path)
    root = os.path.dirname(os.path.realpath(path))
    entries = _entries(path, root, shown)
    if not entries:
        raise UserError(f"{shown} has no rows below its header")
    multilabel = multilabel or any(LABEL_SEPARATOR in entry.label for entry in entries)
    names = {name for entry in entries for name in _names(entry, multilabel)}
    if not multilabel and "" in names:
        row = next(entry.row for entry in entries if not entry.label)
        raise UserError(f"{shown}, row {row}: no label")
    if classes is None or not names <= set(classes):
        if not multilabel and all(_NUMBER.fullmatch(name) for name in names):
            entries, classes = _numbered(entries, shown, classes)
        elif classes is None:
            refuse_similar_names(sorted(names), shown)
            train = [entry for entry in entries if entry.split == "train"]
            train_names = {name for entry in train for name in _names(entry, multilabel)}
            if train:
                _refuse_others(entries, multilabel, train_names, shown, "a training class")
            classes = tuple(sorted(names))
        else:
            allowed = f"one of {len(classes)} classes: {', '.join(classes[:10])}"
            _refuse_others(entries, multilabel, classes, shown, allowed)
    return Table(
        root=root,
        splits=own_splits(entries),
        classes=classes,
        entries=tuple(entries),
        multilabel=multilabel,
    )


def _entries(path: str | Path, root: str, shown: str) -> list[Entry]:
    columns, rows = read_rows(path, shown)
    for needed in ("path", "label"):
        if columns.count(needed) != 1:
            raise UserError(
                f"{shown} has the columns {','.join(map(printable, columns)) or 'none'}; it needs "
                "path and label once each, and may have split and group (or patient)"
            )
    group_column = next((name for name in _GROUPS if name in columns), "")
    entries: list[Entry] = []
    first: dict[str, int] = {}
    for row in rows:
        path = row.path(root)
        if path in first:
            name = printable(path, root)
            raise UserError(f"{row.where} repeats row {first[path]} ({name})")
        first[path] = row.number
        group = printable(row.text(group_column)) if group_column else ""
        if group_column and not group:
            raise UserError(f"{row.where}: no {group_column}")
        label = class_name(row.text("label"))
        entry = Entry(path, label, row=row.number, split=row.split, group=group)
        problem = file_problem(path, root)
        if problem:
            entry = entry._replace(state="refused", reason=problem)
        entries.append(entry)
    _check_groups(entries, group_column, shown)
    return entries


def _check_groups(entries: list[Entry], column: str, shown: str) -> None:
    """Raise UserError if a group is in two splits."""
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.group, entry) if entry.group else entry
        if other.split != entry.split:
            raise UserError(
                f"{shown}, row {entry.row}: the {column} {entry.group!r} is in {entry.split} here "
                f"and in {other.split} in row {other.row}"
            )


def _names(entry: Entry, multilabel: bool) -> list[str]:
    if not multilabel:
        return [entry.label]
    return [name.strip() for name in entry.label.split(LABEL_SEPARATOR) if name.strip()]


def _refuse_others(
    entries: list[Entry], multilabel: bool, names: Collection[str], shown: str, allowed: str
) -> None:
    for entry in entries:
        for name in _names(entry, multilabel):
            if name not in names:
                raise UserError(
                    f"{shown}, row {entry.row}: label {printable(name)!r} is not {allowed}"
                )


def _numbered(
    entries: list[Entry], shown: str, classes: tuple[str, ...] | None
) -> tuple[list[Entry], tuple[str, ...]]:
    """Return entries with numbers as labels, and the names of their classes."""
    labels = {entry.label for entry in entries}
    distinct = {int(label) if _INTEGER.fullmatch(label) else label for label in labels}
    count = len(distinct) if classes is None else len(classes)
    kinds = f"{count} classes" if classes else f"there are {count} different labels"
    if (
        classes
        and any(map(_NUMBER.fullmatch, classes))
        and classes != tuple(map(str, range(count)))
    ):
        entry = next(entry for entry in entries if entry.label not in classes)
        raise UserError(
            f"{shown}, row {entry.row}: label {entry.label!r} is not one of the classes "
            f"{', '.join(classes[:10])}{', ...' * (count > 10)}; it is not used as the number of a "
            "class because the names are numbers too: write the names"
        )
    for entry in entries:
        where = f"{shown}, row {entry.row}: label {entry.label!r}"
        if not _INTEGER.fullmatch(entry.label):
            raise UserError(f"{where} is not an integer from 0 ({kinds})")
        if int(entry.label) >= count:
            raise UserError(
                f"{where} is outside 0 to {count - 1} ({kinds}): numeric labels count from 0 "
                "without gaps; other labels need a letter"
            )
    names = classes or tuple(map(str, range(count)))
    return [entry._replace(label=names[int(entry.label)]) for entry in entries], names

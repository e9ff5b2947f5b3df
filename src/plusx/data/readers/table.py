"""A CSV with the columns path and label, and optionally split and group (or patient).

Rows count from 1 with the header, as a spreadsheet shows them. Paths are relative to the CSV's
folder and stay inside it. Labels are names; or whole numbers from 0 without gaps; or, where a
row has several, names joined by `|` (a row may then have none). Rows of one group, as of one
patient, are never on two sides of a split.
"""

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from plusx.data.dataset import Labels
from plusx.data.image_file import printable, read_regular
from plusx.data.readers.listing import Listing, refuse_similar_names
from plusx.data.readers.verdicts import Entry
from plusx.data.splits import SPLIT_NAMES, own_splits
from plusx.errors import UserError


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.I)
_WHOLE = re.compile(r"\d{1,9}")
JOINT = "|"
_GROUPS = ("group", "patient")  # the columns whose rows stay together, the first that is there


@dataclass(frozen=True, eq=False, kw_only=True)
class Table(Listing):
    """The rows of a CSV as entries, and whether a row can have several labels."""

    multilabel: bool

    @property
    def is_multilabel(self) -> bool:
        return self.multilabel

    def labels(self, entries: Sequence[Entry], classes: tuple[str, ...]) -> Labels:
        """Class numbers (n,), or for several labels a row (n, k) of 0 and 1."""
        if not self.multilabel:
            return super().labels(entries, classes)
        numbers = {name: number for number, name in enumerate(classes)}
        rows = torch.zeros(len(entries), len(classes))
        for row, entry in zip(rows, entries):
            for name in _several(entry.label):
                row[numbers[name]] = 1
        return rows


def table_splits(path: str | Path) -> tuple[str, ...]:
    """The splits that a CSV names, whatever its labels are. Raises UserError with the row."""
    shown, root = printable(path), os.path.dirname(os.path.realpath(path))
    return own_splits(_entries(_rows(path, shown), root, shown))


def read_table(
    path: str | Path, classes: tuple[str, ...] | None = None, multilabel: bool = False
) -> Table:
    """Read a CSV and check every row; files that are missing or no files are refused entries.

    `classes` are the names that are expected, in their order; with `multilabel` a row can have
    several labels, also where none has. Raises UserError with the row.
    """
    shown = printable(path)
    root = os.path.dirname(os.path.realpath(path))
    entries = _entries(_rows(path, shown), root, shown)
    if not entries:
        raise UserError(f"{shown} has no rows below its header")
    multilabel = multilabel or any(JOINT in entry.label for entry in entries)
    entries, found = _named(entries, shown, multilabel, classes)
    splits = own_splits(entries)
    if classes is None:
        _check_unknown(entries, shown, multilabel, splits)
    return Table(
        root=root,
        splits=splits,
        classes=found,
        entries=tuple(entries),
        multilabel=multilabel,
    )


def _rows(path: str | Path, shown: str) -> list[list[str]]:
    # paths need not be UTF-8, and neither does the rest
    text = read_regular(path).decode("utf-8-sig", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    try:
        rows.extend(reader)
    except csv.Error as error:
        raise UserError(f"{shown}, row {len(rows) + 1}: {error}") from None
    return rows


def _entries(rows: list[list[str]], root: str, shown: str) -> list[Entry]:
    header = [name.strip() for name in rows[0]] if rows else []
    for needed in ("path", "label"):
        if header.count(needed) != 1:
            listed = ",".join(map(printable, header)) or "none"
            raise UserError(
                f"{shown} has the columns {listed}; it needs path and label once each, and "
                "may have split and group (or patient)"
            )
    grouped = next((name for name in _GROUPS if name in header), "")
    entries: list[Entry] = []
    first: dict[str, int] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(field.strip() for field in row):
            continue
        where = f"{shown}, row {number}"
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} fields under {len(header)} columns")
        cells = dict(zip(header, row))
        split = cells.get("split", "").strip()
        if "split" in header and split not in SPLIT_NAMES:
            allowed = "train, validation (or val), test"
            raise UserError(f"{where}: split {printable(split)!r}, allowed are {allowed}")
        path = _inside(cells["path"], root, where)
        if path in first:
            name = printable(path, root)
            raise UserError(f"{where} repeats row {first[path]} ({name})")
        first[path] = number
        entry = Entry(
            path,
            printable(cells["label"].strip()),
            row=number,
            split=SPLIT_NAMES.get(split, ""),
            group=_group(cells, grouped, where),
        )
        problem = _problem(path, root)
        if problem:
            entry = entry._replace(state="refused", reason=problem)
        entries.append(entry)
    _check_groups(entries, grouped, shown)
    return entries


def _group(cells: dict[str, str], column: str, where: str) -> str:
    group = printable(cells.get(column, "").strip())
    if column and not group:
        raise UserError(f"{where}: no {column}")
    return group


def _check_groups(entries: list[Entry], column: str, shown: str) -> None:
    """UserError where a group is on two sides of a split."""
    first: dict[str, Entry] = {}
    for entry in entries:
        known = first.setdefault(entry.group, entry) if entry.group else entry
        if known.split != entry.split:
            raise UserError(
                f"{shown}, row {entry.row}: the {column} {entry.group!r} is in {entry.split} here "
                f"and in {known.split} in row {known.row}"
            )


def _inside(text: str, root: str, where: str) -> str:
    if not text.strip() or "\0" in text:
        raise UserError(f"{where}: no path")
    path = os.path.normpath(os.path.join(root, text))
    if not path.startswith(os.path.join(root, "")):
        raise UserError(f"{where}: the path {printable(text)!r} leaves the folder of the CSV")
    return path


def _problem(path: str, root: str) -> str | None:
    try:
        target = os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return "a link to nothing" if os.path.islink(path) else "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not target.startswith(os.path.join(root, "")):
        return "a link that leaves the folder"
    return None if os.path.isfile(target) else "not a regular file"


def _several(label: str) -> list[str]:
    return [name.strip() for name in label.split(JOINT) if name.strip()]


def _named(
    entries: list[Entry], shown: str, multilabel: bool, classes: tuple[str, ...] | None
) -> tuple[list[Entry], tuple[str, ...]]:
    """Entries whose labels are names of classes, and the classes."""
    if not multilabel:
        for entry in entries:
            if not entry.label:
                raise UserError(f"{shown}, row {entry.row}: no label")
    names = {name for entry in entries for name in _names(entry, multilabel)}
    if classes is not None and names <= set(classes):
        return entries, classes
    if not multilabel and all(_NUMBER.fullmatch(name) for name in names):
        return _numbered(entries, shown, classes)
    if classes is not None:
        for entry in entries:
            for name in _names(entry, multilabel):
                if name not in classes:
                    raise UserError(
                        f"{shown}, row {entry.row}: label {printable(name)!r} is not one of "
                        f"{len(classes)} classes: {', '.join(classes[:10])}"
                    )
    refuse_similar_names(sorted(names), shown)
    return entries, tuple(sorted(names))


def _names(entry: Entry, multilabel: bool) -> list[str]:
    return _several(entry.label) if multilabel else [entry.label]


def _numbered(
    entries: list[Entry], shown: str, classes: tuple[str, ...] | None
) -> tuple[list[Entry], tuple[str, ...]]:
    distinct = {int(entry.label) for entry in entries if _WHOLE.fullmatch(entry.label)}
    count = len(distinct) if classes is None else len(classes)
    for entry in entries:
        if not _WHOLE.fullmatch(entry.label):
            why = "is not a whole number from 0"
        elif int(entry.label) >= count:
            why = f"is outside 0 to {count - 1}"
        else:
            continue
        kinds = f"{count} classes" if classes else f"{count} different labels, counted from 0"
        raise UserError(f"{shown}, row {entry.row}: label {entry.label!r} {why} ({kinds})")
    names = classes or tuple(str(number) for number in range(count))
    return [entry._replace(label=names[int(entry.label)]) for entry in entries], names


def _check_unknown(
    entries: list[Entry], shown: str, multilabel: bool, splits: tuple[str, ...]
) -> None:
    if "train" not in splits:
        return
    known = {
        name for entry in entries if entry.split == "train" for name in _names(entry, multilabel)
    }
    for entry in entries:
        for name in _names(entry, multilabel):
            if name not in known:
                raise UserError(
                    f"{shown}, row {entry.row}: label {printable(name)!r} is not among those "
                    "that train"
                )

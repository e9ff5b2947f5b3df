"""Images with captions: a CSV, TSV or JSONL file.

photos.csv: path,caption[,split]

An image may have several captions, one per row; its rows are never in different splits. Paths are
relative to the file's folder.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from plusx.data.annotations import Texts
from plusx.data.dataset import Dataset, as_split
from plusx.data.modality import ImageModality, Modality
from plusx.data.readers.csv_file import columns_of_table, read_rows
from plusx.data.readers.listing import file_items, file_problem
from plusx.data.readers.verdicts import Entry, LeftOut, OnUnreadable, check_entries
from plusx.data.sets.download import located
from plusx.data.splits import entries_of_split, held_out_of, own_splits
from plusx.data.tokenizer import END, UNKNOWN, Tokenizer, TokenizerKind
from plusx.errors import UserError, did_you_mean, printable


_NAMED = 3


class Vocabulary(NamedTuple):
    """How captions become tokens: see `Tokenizer.train`."""

    kind: TokenizerKind
    size: int
    lower: bool


def recognise_captions(path: str) -> str:
    """Return why open_captions can read a path, or ""."""
    if {"path", "caption"} <= set(columns_of_table(path)):
        return "a table with the columns path and caption"
    return ""


def open_captions(
    path: str | Path,
    modality: Modality,
    vocabulary: Vocabulary,
    *,
    split: str,
    seed: int,
    validation: float | int | None,
    column: str = "caption",
    on_unreadable: OnUnreadable = "error",
) -> Dataset:
    """Open images with captions.

    vocabulary: how the tokenizer is trained on the training captions
    column: of the captions
    on_unreadable: whether rows with an unusable image or an empty caption are an error, or skipped
        with a warning
    Raises UserError, with the row, for these, a missing column, and an image in two splits.
    """
    shown, part = printable(path), as_split(split)
    file = os.fspath(located(path))
    root = os.path.dirname(os.path.realpath(file))
    listed, warnings = _without_empty(
        _entries(file, root, shown, column), column, shown, on_unreadable
    )
    chosen = _of_split(listed, part, validation, seed, shown)
    try:
        used, unusable = check_entries(chosen, root, on_unreadable, modality)
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None
    if not used:
        raise UserError(f"{shown} has no image in {part} that can be used")
    tokenizer = Tokenizer(vocabulary.kind, lower=vocabulary.lower)
    if "train" in own_splits(listed) or not own_splits(listed):
        train = _of_split(listed, "train", validation, seed, shown)
        tokenizer = Tokenizer.train(
            [entry.label for entry in train],
            vocabulary.kind,
            vocabulary.size,
            lower=vocabulary.lower,
            specials=(END, UNKNOWN),  # the decoders' token 0 is the end
        )
    return Dataset(
        name=printable(os.path.basename(os.path.realpath(file))),
        split=part,
        classes=tokenizer.vocabulary,
        labels=torch.zeros(len(used), dtype=torch.int64),
        modality=modality,
        items=file_items(used),
        annotations=Texts([entry.label for entry in used], tokenizer, noun="caption"),
        warnings=[*warnings, *unusable],
        root=root,
        rows=[entry.row for entry in used if entry.row is not None],
    )


def open_readable_captions(path: str, split: str) -> Dataset:
    """Open a split of images with captions, in words, skipping unusable rows."""
    return open_captions(
        path,
        ImageModality((224, 224), 3, (0.5,) * 3, (0.5,) * 3, resize="stretch"),
        Vocabulary("words", 4_000, True),
        split=split,
        seed=0,
        validation=None,
        on_unreadable="skip",
    )


def caption_splits(path: str | Path, column: str = "caption") -> tuple[str, ...]:
    """Return the splits that a table of captions defines. Raises UserError."""
    file = os.fspath(located(path))
    root = os.path.dirname(os.path.realpath(file))
    return own_splits(_entries(file, root, printable(path), column))


def _entries(file: str, root: str, shown: str, column: str) -> list[Entry]:
    """Return an entry for each row; its label is the caption, its group the image."""
    if not os.path.isfile(file):
        raise UserError(
            f"{shown} is not a file: a CSV, TSV or JSONL file with the columns path and {column} "
            "is expected"
        )
    header, rows = read_rows(file, shown)
    for name in ("path", column):
        if header.count(name) != 1:
            key = "" if name == "path" else "; data.caption=COLUMN names another column"
            raise UserError(
                f"{shown} has the columns {', '.join(map(printable, header)) or 'none'}; it needs "
                f"path and {column} once each, and may have split"
                f"{did_you_mean(name, header)}{key}"
            )
    if not rows:
        raise UserError(f"{shown} has no rows below its header")
    entries: list[Entry] = []
    first: dict[str, Entry] = {}
    for row in rows:
        path = row.path(root)
        entry = Entry(path, row.text(column), row=row.number, split=row.split, group=path)
        other = first.setdefault(path, entry)
        if other.split != entry.split:
            raise UserError(
                f"{row.where}: {printable(path, root)} is in {entry.split} here and in "
                f"{other.split} in row {other.row}"
            )
        problem = file_problem(path, root)
        if problem:
            entry = entry._replace(state="refused", reason=problem)
        entries.append(entry)
    return entries


def _without_empty(
    entries: list[Entry], column: str, shown: str, on_unreadable: OnUnreadable
) -> tuple[list[Entry], list[str]]:
    empty = [entry.row for entry in entries if not entry.label]
    if not empty:
        return entries, []
    rows = ", ".join(map(str, empty[:_NAMED]))
    more = f" and {len(empty) - _NAMED:,} more" if len(empty) > _NAMED else ""
    where = f"row{'' if len(empty) == 1 else 's'} {rows}{more}"
    if on_unreadable == "error":
        raise UserError(
            f'{shown}: no {column} in {where} (on_unreadable = "skip" leaves such rows out)'
        )
    return [entry for entry in entries if entry.label], [LeftOut(f"skipped {where}: no {column}")]


def _of_split(
    entries: Sequence[Entry], split: str, validation: float | int | None, seed: int, shown: str
) -> list[Entry]:
    """Return the entries of a split; the rows of an image stay together."""
    chosen, is_cut = entries_of_split(entries, split, validation, shown)
    if not is_cut:
        return chosen
    labels = torch.zeros(len(chosen), dtype=torch.int64)
    groups = [entry.group for entry in chosen]
    if len(set(groups)) == len(groups):
        groups = []  # one row per image: split like other data
    try:
        indices = held_out_of(labels, split, validation, seed, groups)
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None
    return [chosen[index] for index in np.asarray(indices).tolist()]

"""Sentences and their translations: files with one sentence per line, or two columns of a table.

multi30k/train.de, train.en, val.de, val.en, test_2016_flickr.de, test_2016_flickr.en
pairs.csv: de,en[,split]

Line n of one file belongs to line n of the other. A line ends with LF or CR LF; other characters
that Unicode counts as ends of lines are part of a sentence. Files are UTF-8, with or without a byte
order mark, or UTF-16 with one.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from plusx.data.annotations import Texts
from plusx.data.dataset import Dataset, as_split
from plusx.data.image_file import read_regular
from plusx.data.modality import TextModality
from plusx.data.readers.csv_file import rows_with
from plusx.data.readers.text_file import lines_of, text_of
from plusx.data.readers.verdicts import OnUnreadable
from plusx.data.sets.download import located
from plusx.data.splits import entries_of_split, held_out_of, own_splits, split_of
from plusx.data.text_items import TextItems
from plusx.data.tokenizer import END, UNKNOWN, Tokenizer
from plusx.errors import UserError, printable


_LIMIT = 2**31  # bytes of a file
_NAMED = 3
_LONGEST = 10_000  # characters of a sentence; longer ones are sorted like this


class Pair(NamedTuple):
    """A sentence, its translation, its split or "", and its name in messages."""

    source: str
    target: str
    split: str
    name: str


class PairNames(NamedTuple):
    """The names of a corpus.

    source, target: languages: the extensions of files, or the columns of a table
    test: name of the test set: the first part of its file names, or a value of the column split
    """

    source: str
    target: str
    test: str = "test"


def recognise_parallel(path: str) -> str:
    """Return why open_parallel can read a folder, or ""."""
    languages = _languages(path)
    if len(languages) < 2:
        return ""
    return f"a folder of sentences line by line, train.{languages[0]} and train.{languages[1]}"


def _languages(path: str) -> list[str]:
    """Return the endings of the files of training sentences in a folder."""
    if not os.path.isdir(path):
        return []
    parts = [file.rpartition(".") for file in sorted(os.listdir(path))]
    return [ending for begin, _, ending in parts if begin == "train" and ending.isalpha()]


def names_of(path: str) -> PairNames:
    """Return the first two languages in a folder that `recognise_parallel` recognises."""
    source, target = _languages(path)[:2]
    return PairNames(source, target)


def open_readable_pairs(path: str, split: str) -> Dataset:
    """Open a split of a folder of sentences, in its first two languages, as words."""
    modality = TextModality(Tokenizer("words"))
    return open_parallel(
        path, modality, names_of(path), split=split, seed=0, validation=None, on_unreadable="skip"
    )


def parallel_splits(path: str | Path, names: PairNames) -> tuple[str, ...]:
    """Return the splits that a corpus defines."""
    return own_splits(read_pairs(path, names))


def open_parallel(
    path: str | Path,
    modality: TextModality,
    names: PairNames,
    *,
    split: str,
    seed: int,
    validation: float | int | None,
    on_unreadable: OnUnreadable = "error",
) -> Dataset:
    """Open sentences with their translations.

    modality: of the source; the target has a tokenizer of the same kind, of the training sentences
    on_unreadable: whether empty lines are an error, or skipped with a warning
    Raises UserError, with the file and the line, for sentences that are empty or not UTF-8, a
    missing file or column, and files with different numbers of lines.
    """
    shown, part = printable(path), as_split(split)
    pairs, warnings = _without_empty(read_pairs(path, names), shown, on_unreadable)
    chosen, is_cut = entries_of_split(pairs, part, validation, shown)
    if not chosen:
        raise UserError(f"{shown} has no sentences in {part}")
    if is_cut:
        try:
            indices = _held_out(len(chosen), part, validation, seed)
        except UserError as error:
            raise UserError(f"{shown}: {error}") from None
        chosen = [chosen[index] for index in indices]
    tokenizer = _target_tokenizer(pairs, modality, validation, seed)
    targets = [pair.target for pair in chosen]
    lengths = np.zeros(len(chosen), np.int64)
    if tokenizer.vocabulary:
        lengths[:] = [len(tokenizer.encode(text)) for text in targets]
    return Dataset(
        name=printable(os.path.basename(os.path.realpath(located(path)))),
        split=part,
        classes=tokenizer.vocabulary,
        labels=torch.zeros(len(chosen), dtype=torch.int64),
        modality=modality,
        items=TextItems(
            [pair.source for pair in chosen],
            [pair.name for pair in chosen],
            # sorted by the length of the translation, then of the source
            lengths * _LONGEST + np.array([len(pair.source) for pair in chosen]).clip(max=_LONGEST),
        ),
        annotations=Texts(targets, tokenizer, noun="sentence pair"),
        warnings=warnings + _too_long(lengths, modality.max_length, chosen),
    )


def read_pairs(path: str | Path, names: PairNames) -> list[Pair]:
    """Return all pairs of a folder or a table. Raises UserError."""
    file, shown = os.fspath(located(path)), printable(path)
    if os.path.isdir(file):
        return _read_folder(file, shown, names)
    _, rows = rows_with(file, shown, {"source": names.source, "target": names.target})
    pairs = []
    for row in rows:
        cell = row.cells.get("split", "").strip()
        split = _split(cell, names)
        if "split" in row.cells and not split:
            raise UserError(
                f"{row.where}: split {printable(cell)!r}, allowed are train, validation (or val) "
                f"and {names.test}"
            )
        where = row.where.rpartition(", ")[2]
        pairs.append(Pair(row.text(names.source), row.text(names.target), split, where))
    return pairs


def _split(name: str, names: PairNames) -> str:
    """Return the split of a usual name, or ""."""
    if name == names.test:
        return "test"
    split = split_of(name)
    return "" if split == "test" and names.test != "test" else split


def _read_folder(root: str, shown: str, names: PairNames) -> list[Pair]:
    files = sorted(os.listdir(root))
    begins = [file.removesuffix(f".{names.source}") for file in files]
    pairs = []
    for begin, file in zip(begins, files):
        split = _split(begin, names) if begin != file else ""
        if not split:
            continue
        other = f"{begin}.{names.target}"
        if other not in files:
            raise UserError(f"{shown} has {printable(file)}, but no {printable(other)}")
        sources, targets = (
            lines_of(text_of(read_regular(os.path.join(root, name), _LIMIT), name))
            for name in (file, other)
        )
        if len(sources) != len(targets):
            longer, shorter = (file, other) if len(sources) > len(targets) else (other, file)
            fewest = min(len(sources), len(targets))
            raise UserError(
                f"{shown}: {printable(file)} has {len(sources):,} lines and {printable(other)} "
                f"{len(targets):,}; line {fewest + 1:,} of {printable(longer)} has no counterpart "
                f"in {printable(shorter)}"
            )
        pairs += [
            Pair(source.strip(), target.strip(), split, f"{file} line {number}")
            for number, (source, target) in enumerate(zip(sources, targets), 1)
        ]
    if not pairs:
        endings = sorted({file.rpartition(".")[2] for file in files if "." in file})
        raise UserError(
            f"{shown} has no train.{names.source} (its files end with "
            f"{', '.join(map(printable, endings[:8])) or 'nothing'}): files are SPLIT.LANGUAGE, "
            "with SPLIT train, val or the name in data.test"
        )
    return pairs


def _without_empty(
    pairs: list[Pair], shown: str, on_unreadable: OnUnreadable
) -> tuple[list[Pair], list[str]]:
    empty = [pair for pair in pairs if not pair.source or not pair.target]
    if not empty:
        return pairs, []
    listed = ", ".join(
        f"{pair.name} ({'the sentence' if not pair.source else 'its translation'})"
        for pair in empty[:_NAMED]
    )
    more = f" and {len(empty) - _NAMED:,} more" if len(empty) > _NAMED else ""
    if on_unreadable == "error":
        raise UserError(
            f'{shown}: empty lines: {listed}{more} (on_unreadable = "skip" leaves these pairs out)'
        )
    rest = [pair for pair in pairs if pair.source and pair.target]
    return rest, [f"skipped {len(empty):,} pairs with an empty line: {listed}{more}"]


def _held_out(count: int, split: str, validation: float | int | None, seed: int) -> Sequence[int]:
    labels = torch.zeros(count, dtype=torch.int64)
    return np.asarray(held_out_of(labels, split, validation, seed)).tolist()


def _target_tokenizer(
    pairs: list[Pair], modality: TextModality, validation: float | int | None, seed: int
) -> Tokenizer:
    """Return the tokenizer of the training translations, the same for every split.

    Without training sentences the vocabulary is empty, and a trained network sets it.
    """
    kind, lower = modality.tokenizer.kind, modality.tokenizer.lower
    specials = (END, UNKNOWN)  # the decoders' token 0 is the end
    if "train" not in own_splits(pairs) and own_splits(pairs):
        return Tokenizer(kind, lower=lower)
    train, is_cut = entries_of_split(pairs, "train", validation, "")
    if is_cut:
        train = [train[index] for index in _held_out(len(train), "train", validation, seed)]
    texts = tuple(pair.target for pair in train)
    return _trained(texts, kind, modality.vocabulary_size, lower, specials)


@lru_cache(maxsize=2)  # the splits of one corpus are opened one after the other
def _trained(
    texts: tuple[str, ...], kind: str, size: int, lower: bool, specials: tuple[str, ...]
) -> Tokenizer:
    return Tokenizer.train(texts, kind, size, lower=lower, specials=specials)  # type: ignore[arg-type]


def _too_long(lengths: Int64[np.ndarray, "n"], max_length: int, pairs: list[Pair]) -> list[str]:
    """Return a warning about translations that are longer than `max_length`."""
    longer = [pairs[index].name for index in np.flatnonzero(lengths >= max_length)]  # with the end
    if not longer:
        return []
    are = "translation is" if len(longer) == 1 else "translations are"
    warning = (
        f"{len(longer):,} {are} longer than {max_length - 1} tokens, the first is {longer[0]}: "
        "they are cut there in training, with a decoder of this max_length"
    )
    return [warning]

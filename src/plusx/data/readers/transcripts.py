"""Recordings with transcripts: a manifest, or the folders of LibriSpeech.

    a CSV or TSV with the columns path and text, and optionally split and group (or speaker)
    a JSONL file with one object per line and the same keys (or audio_filepath for path)
    ROOT/.../SPEAKER-CHAPTER.trans.txt with lines "ID TEXT", and ID.flac beside it (LibriSpeech)

Paths in a manifest are relative to its folder and stay inside it. Text is UTF-8. The split of a
subset of LibriSpeech is the first word of its name (train-clean-100, dev-other, test-clean).
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from plusx.data.annotations import Texts
from plusx.data.dataset import Dataset, as_split
from plusx.data.image_file import read_regular
from plusx.data.modality import AudioModality, Modality
from plusx.data.modality.audio.sound_file import has_sound
from plusx.data.readers.csv_file import Row, columns_of_table, read_rows
from plusx.data.readers.listing import file_problem
from plusx.data.readers.recordings import hold_out, recording_items
from plusx.data.readers.verdicts import Entry, OnUnreadable, Skipped, check_entries, listed
from plusx.data.splits import entries_of_split, own_splits, split_of
from plusx.data.tokenizer import BLANK, SPACE, Tokenizer
from plusx.errors import UserError, counted, printable


Outside = Literal["error", "drop", "skip"]

_ENDING = ".trans.txt"
_LIMIT = 2**30  # bytes of a manifest
_MAX_ALPHABET = 10_000
_GROUPS = ("group", "speaker")
_PATHS, _TEXTS = ("path", "audio_filepath"), ("text", "sentence", "transcript")


@dataclass(frozen=True)
class TextRules:
    """How transcripts become sequences of characters.

    alphabet: the allowed characters; "": those of the training set
    lower: whether transcripts are converted to lower case
    replace: pairs of a text and its replacement, applied in order, after `lower`
    outside: handling of characters outside the alphabet: "error", "drop" (the characters) or "skip"
        (the recordings)
    """

    alphabet: str = ""
    lower: bool = True
    replace: tuple[tuple[str, str], ...] = ()
    outside: Outside = "error"

    def __post_init__(self) -> None:
        if self.lower and self.alphabet != self.alphabet.lower():
            raise UserError(
                f"[data] alphabet = {self.alphabet!r} has capital letters, and lower = true"
            )

    def cleaned(self, text: str) -> str:
        """Return a text in composed Unicode (NFC), replaced, with single spaces."""
        text = unicodedata.normalize("NFC", text)
        text = text.lower() if self.lower else text
        for before, after in self.replace:
            text = text.replace(before, after)
        return " ".join(text.split())

    def outsiders(self, text: str) -> list[str]:
        """Return the characters of a cleaned text that are not in the alphabet."""
        return sorted(set(text) - set(self.alphabet)) if self.alphabet else []

    def without_outsiders(self, text: str) -> str:
        """Return a cleaned text without characters that are not in the alphabet."""
        return " ".join("".join(c for c in text if c in self.alphabet).split())

    def tokenizer(self, texts: Sequence[str]) -> Tokenizer:
        """Return the tokenizer of the alphabet, or of these texts without one."""
        if not self.alphabet:
            return Tokenizer.train(
                texts, "characters", _MAX_ALPHABET, lower=self.lower, specials=(BLANK,)
            )
        tokens = (SPACE if letter == " " else letter for letter in dict.fromkeys(self.alphabet))
        return Tokenizer("characters", (BLANK, *tokens), self.lower)


class _Transcribed(NamedTuple):
    entry: Entry
    text: str


def open_transcripts(
    path: str | Path,
    modality: Modality,
    *,
    rules: TextRules,
    split: str = "train",
    seed: int = 0,
    validation: float | int | None = None,
    on_unreadable: OnUnreadable = "error",
) -> Dataset:
    """Open recordings with transcripts: a manifest (.csv, .tsv, .jsonl) or LibriSpeech's folders.

    split: "train", "validation", "test" or "all"
    Raises UserError, with file and row, for a manifest that cannot be read, an empty text, text
    outside the alphabet, and unusable recordings.
    """
    target, shown, split = os.path.realpath(path), printable(path), as_split(split)
    root = target if os.path.isdir(target) else os.path.dirname(target)
    listed_texts = _listed(target, root, shown)
    if not listed_texts:
        raise UserError(f"{shown} has no transcripts")
    texts = {_key(item.entry): item.text for item in listed_texts}
    entries, is_cut = entries_of_split(
        [item.entry for item in listed_texts], split, validation, shown
    )
    entries, warnings = _checked(entries, texts, rules, root, shown, on_unreadable)
    used, more = check_entries(entries, root, on_unreadable, modality)
    if not used:
        raise UserError(f"{shown} has no recording in {split} that can be used")
    transcripts = [texts[_key(entry)] for entry in used]
    tokenizer = rules.tokenizer(transcripts)
    if repeated := len(used) - len({entry.path for entry in used}):
        warnings.append(
            f"{shown}: {counted(repeated, 'row')} with the same recording as another row"
        )
    dataset = Dataset(
        name=printable(os.path.basename(target)),
        split=split,
        classes=tokenizer.vocabulary,
        labels=torch.zeros(len(used), dtype=torch.int64),
        modality=modality,
        items=recording_items([entry._replace(row=None) for entry in used]),
        annotations=Texts(transcripts, tokenizer),
        warnings=[*warnings, *more],
        root=root,
    )
    if not is_cut:
        return dataset
    if len({entry.group for entry in used}) == 1:  # one speaker, for training and validation
        used = [entry._replace(group="") for entry in used]
    return hold_out(dataset, used, validation, seed, shown)


def open_readable_transcripts(path: str, split: str) -> Dataset:
    """Open a split of recordings with transcripts without the unusable ones, as the recipe `speech`
    does."""
    modality = AudioModality(seconds=20.0, fixed=False, mels=64)
    return open_transcripts(path, modality, rules=TextRules(), split=split, on_unreadable="skip")


def recognise_transcripts(path: str) -> str:
    """Return why open_transcripts can read a path, or ""."""
    if os.path.isdir(path):
        return "a folder as LibriSpeech has it" if has_sound(path, _ENDING) else ""
    columns = set(columns_of_table(path))
    if columns & set(_PATHS) and columns & set(_TEXTS):
        return "a table with the columns path and text"
    return ""


def transcript_splits(path: str | Path) -> tuple[str, ...]:
    """Return the splits that recordings with transcripts define; () if none."""
    target = os.path.realpath(path)
    root = target if os.path.isdir(target) else os.path.dirname(target)
    return own_splits([item.entry for item in _listed(target, root, printable(path))])


def _key(entry: Entry) -> tuple[str, int | None]:
    return entry.path, entry.row


def _listed(path: str, root: str, shown: str) -> list[_Transcribed]:
    if os.path.isdir(path):
        return list(_librispeech(path, shown))
    if not os.path.isfile(path):
        raise UserError(f"{shown} is missing: there is no such file or folder")
    columns, rows = read_rows(path, shown)
    column = next((name for name in _PATHS if name in columns), None)
    text = next((name for name in _TEXTS if name in columns), None)
    if column is None or text is None:
        missing = "path" if column is None else "text"
        raise UserError(
            f"{shown} has no column {missing}: a manifest has the columns path and text "
            f"(it has {', '.join(map(printable, columns)) or 'none'})"
        )
    named = [
        row._replace(cells={**row.cells, "path": row.cells[column], "text": row.cells[text]})
        for row in rows
    ]
    return [_of_row(row, root) for row in named]


def _of_row(row: Row, root: str) -> _Transcribed:
    path = row.path(root)
    problem = file_problem(path, root) or ""
    group = next((row.text(name) for name in _GROUPS if name in row.cells), "")
    state: Literal["used", "refused"] = "refused" if problem else "used"
    entry = Entry(path, "", state, problem, row.number, row.split, group)
    return _Transcribed(entry, row.text("text"))


def _librispeech(root: str, shown: str) -> Iterator[_Transcribed]:
    """Yield the recordings of LibriSpeech's folders. Raises UserError if there are none."""
    files = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if name.endswith(_ENDING)
    )
    if not files:
        raise UserError(
            f"{shown} has no file *{_ENDING}: a folder must have the layout of LibriSpeech; for "
            "other recordings give a CSV or JSONL with path and text"
        )
    subsets = {os.path.relpath(file, root).split(os.sep)[0] for file in files}
    splits = {subset: split_of(subset.split("-")[0]) for subset in subsets}
    for file in files:
        subset = os.path.relpath(file, root).split(os.sep)[0]
        name = printable(file, root)
        try:
            lines = read_regular(file, _LIMIT).decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{name} is not UTF-8: {error}") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            identity, _, text = line.strip().partition(" ")
            path = os.path.join(os.path.dirname(file), f"{identity}.flac")
            problem = file_problem(path, root) or ""
            state: Literal["used", "refused"] = "refused" if problem else "used"
            speaker = identity.split("-")[0]
            entry = Entry(path, "", state, problem, number, splits[subset], speaker)
            yield _Transcribed(entry, text)


def _checked(
    entries: Sequence[Entry],
    texts: dict[tuple[str, int | None], str],
    rules: TextRules,
    root: str,
    shown: str,
    on_unreadable: OnUnreadable,
) -> tuple[list[Entry], list[str]]:
    """Clean the texts in place; return the entries that are used, and warnings.

    Raises UserError, with rows, for empty texts and text outside the alphabet.
    """
    used, empty, outside = [], [], []
    for entry in entries:
        text, name = rules.cleaned(texts[_key(entry)]), entry.name(root)
        outsiders = rules.outsiders(text)
        if outsiders:
            outside.append(f"{name}: {', '.join(map(repr, outsiders))}")
            if rules.outside == "skip":
                continue
            text = rules.without_outsiders(text)
        if not text:
            empty.append(name)
            if on_unreadable == "skip":
                continue
        texts[_key(entry)] = text
        used.append(entry)
    if empty and on_unreadable == "error" and not (outside and rules.outside == "error"):
        raise UserError(
            f"{shown}: {counted(len(empty), 'text')} without characters: {listed(empty)} "
            '(on_unreadable = "skip" leaves them out)'
        )
    warnings: list[str] = [Skipped(f"skipped {name}: no text") for name in empty]
    if outside and rules.outside == "error":
        raise UserError(
            f"{shown}: characters outside the alphabet {rules.alphabet!r}: {listed(outside)}; "
            '[data] replace maps them, outside = "drop" leaves them out, "skip" their recordings'
        )
    if not outside:
        return used, warnings
    left_out = "characters" if rules.outside == "drop" else "recordings"
    warning = (
        f"{counted(len(outside), 'text')} with characters outside the alphabet; the {left_out} are "
        f"left out: {listed(outside)}"
    )
    return used, [*warnings, warning]

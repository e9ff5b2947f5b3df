"""Recordings with classes: class folders, or files whose names contain the class.

    ROOT/CLASS/NAME.wav                          split by the seed
    ROOT/train/CLASS/..., ROOT/val, ROOT/test    split by folders
    ROOT/testing_list.txt, validation_list.txt   split as in Speech Commands (Warden 2018)
    ROOT/DIGIT_SPEAKER_INDEX.wav                 by regular expressions for label, group and test
    ROOT/_background_noise_/NAME.wav             long recordings, cut into pieces; one class

Every file is decoded once (see verdicts).
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from plusx.data.dataset import Dataset, Items, as_split, paths_digest, stored_sample
from plusx.data.image_file import read_regular
from plusx.data.modality import AudioModality, Modality
from plusx.data.modality.audio.sound_file import ENDINGS, has_sound, sound_files
from plusx.data.readers.listing import class_name, refuse_similar_names
from plusx.data.readers.verdicts import Entry, OnUnreadable, check_entries
from plusx.data.sample import Sample
from plusx.data.splits import (
    entries_of_split,
    held_out_of,
    lone_classes,
    own_splits,
    split_of,
)
from plusx.errors import UserError, did_you_mean, printable


UNKNOWN, BACKGROUND = "unknown", "background"
BACKGROUND_FOLDER = "_background_noise_"  # in Speech Commands
# the part of each background recording that is held out, if the data defines splits
_HELD_OUT_PIECES = {"validation": (0.8, 0.9), "test": (0.9, 1.0)}
_LISTS = {"testing_list.txt": "test", "validation_list.txt": "validation"}
_NO_CLASS_FOLDER = "in no class folder (data.label=REGEX finds a class in the name"
_DIGIT_NAME = re.compile(r"\d_")  # names for the recipe digits-spot
_MAX_LIST = 64 * 2**20  # bytes


@dataclass(frozen=True, eq=False)
class RecordingItems(Items):
    """Recordings in files, whole or in pieces.

    samples: the lengths, at the network's rate
    starts: the first sample of each piece, or -1 for a whole file
    contents: digests of the files
    speakers: "" if unknown
    """

    paths: list[str]
    samples: list[int]
    starts: list[int]
    contents: list[str]
    speakers: list[str]
    patches: int = 1

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def lengths(self) -> Int64[np.ndarray, "n"]:
        return np.array(self.samples, np.int64)

    def read(self, index: int, modality: Modality) -> Sample:
        path, start = self.paths[index], self.starts[index]
        if start < 0:
            return stored_sample(modality.read_file(path))
        waveform = _long_recording(path, modality)
        return stored_sample(waveform[:, start : start + self.samples[index]].clone())

    def name(self, index: int) -> str:
        return printable(os.path.basename(self.paths[index]))

    def digests(self) -> list[str]:
        return [
            content if start < 0 else f"{content} from {start}"
            for content, start in zip(self.contents, self.starts, strict=True)
        ]

    def groups(self) -> list[str]:
        return self.speakers if any(self.speakers) else []

    def subset(self, indices: Sequence[int]) -> "RecordingItems":
        return replace(
            self,
            paths=[self.paths[index] for index in indices],
            samples=[self.samples[index] for index in indices],
            starts=[self.starts[index] for index in indices],
            contents=[self.contents[index] for index in indices],
            speakers=[self.speakers[index] for index in indices],
        )

    def digest(self, root: str | None) -> bytes:
        pieces = hashlib.sha256(repr([*zip(self.starts, self.samples)]).encode()).hexdigest()
        return paths_digest(pieces + "".join(self.contents), self.paths, root)


@lru_cache(maxsize=16)  # background recordings, of which many pieces are read
def _long_recording(path: str, modality: Modality) -> torch.Tensor:
    waveform = modality.read_file(path)
    assert isinstance(waveform, torch.Tensor)
    return waveform


def open_recordings(
    path: str | Path,
    modality: Modality,
    *,
    split: str = "train",
    seed: int = 0,
    validation: float | int | None = None,
    label: str = "",
    group: str = "",
    test: str = "",
    keywords: tuple[str, ...] = (),
    background: str = BACKGROUND_FOLDER,
    piece: int = 0,
    on_unreadable: OnUnreadable = "error",
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    """Open recordings with classes.

    split: "train", "validation", "test" or "all"
    label: regular expression, searched in the path below the root, whose group is the class;
        "": the class is the folder
    group: regular expression whose group, such as the speaker, is kept together when the seed
        splits; "": none
    test: regular expression for the paths of the test set; "": none, or that of the data
    keywords: classes that are kept; all others become the class "unknown". (): all are kept
    background: a folder below the root with long recordings, which are cut into pieces of the
        class "background"; "": none
    piece: samples per piece of background
    classes: expected classes, in order (those of a trained network)
    Raises UserError for a folder without recordings, an expression that matches nothing, unusable
    files, or classes without a recording to train on.
    """
    root, shown, split = os.path.realpath(path), printable(path), as_split(split)
    if not os.path.isdir(root):
        raise UserError(f"{shown} is not a folder of recordings")
    entries = listed_recordings(root, shown, label=label, group=group, test=test, skip=background)
    if entries and all(entry.state == "ignored" for entry in entries):
        raise UserError(
            f"{shown}: none of {len(entries):,} recordings is used: {entries[0].reason}"
        )
    entries = _merged_classes(entries, keywords, shown)
    pieces = _background(root, background, shown) if background and piece else []
    if not entries and not pieces:
        raise UserError(
            f"{shown} has no recordings in class folders (files with the extensions "
            f"{', '.join(ENDINGS)})"
        )
    names = sorted({entry.label for entry in entries if entry.state == "used"})
    if pieces:
        names = [*names, BACKGROUND]
    refuse_similar_names(names, shown)
    if classes is not None and (unknown := sorted(set(names) - set(classes))):
        raise UserError(f"{shown}: the class {unknown[0]!r} is not one of {', '.join(classes)}")
    class_names = tuple(names) if classes is None else classes
    if len(class_names) < 2:
        raise UserError(f"{shown} has fewer than two classes ({', '.join(class_names)})")
    chosen, is_cut = entries_of_split(entries, split, validation, shown)
    used, warnings = check_entries(chosen, root, on_unreadable, modality)
    used = [*used, *_pieces(pieces, root, modality, piece, split, is_cut, on_unreadable)]
    if not used:
        raise UserError(f"{shown} has no recording in {split} that can be used")
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = torch.tensor([numbers[entry.label] for entry in used], dtype=torch.int64)
    missing = set(range(len(class_names))) - set(labels.tolist())
    if split == "train" and classes is None and missing:
        raise UserError(
            f"{shown}: no recording of the class {class_names[min(missing)]!r} to train on"
        )
    dataset = Dataset(
        name=printable(os.path.basename(root)),
        split=split,
        classes=class_names,
        labels=labels,
        modality=modality,
        items=recording_items(used),
        warnings=warnings,
        root=root,
    )
    return hold_out(dataset, used, validation, seed, shown) if is_cut else dataset


def open_readable_recordings(path: str, split: str) -> Dataset:
    """Open a split of recordings with classes as the recipe `commands`, skipping unusable ones.

    Without class folders, the split "all" has all recordings, without classes.
    """
    modality = AudioModality()
    if split == "all" and not recording_classes(path):
        return _without_classes(path, modality)
    return open_recordings(
        path, modality, split=split, piece=modality.samples, on_unreadable="skip"
    )


def recording_classes(path: str) -> list[str]:
    """Return the class folders of recordings."""
    listed = listed_recordings(
        os.path.realpath(path), printable(path), label="", group="", test="", skip=BACKGROUND_FOLDER
    )
    return sorted({entry.label for entry in listed if entry.state == "used"})


def _without_classes(path: str, modality: Modality) -> Dataset:
    root = os.path.realpath(path)
    entries = [Entry(file, "") for file in sound_files(root)]
    used, warnings = check_entries(entries, root, "skip", modality)
    return Dataset(
        name=printable(os.path.basename(root)),
        split="all",
        classes=(),
        labels=torch.full((len(used),), -1),
        modality=modality,
        items=recording_items(used),
        warnings=warnings,
        root=root,
    )


def _no_class_folder(name: str, shown: str) -> str:
    """Return the reason that a recording in no class folder has no class."""
    hint = f", as in `plusx train digits-spot data.path={shown}`" if _DIGIT_NAME.match(name) else ""
    return f"{_NO_CLASS_FOLDER}{hint})"


def recognise_recordings(path: str) -> str:
    """Return why open_recordings can read a path, or ""."""
    return "a folder of sound files" if os.path.isdir(path) and has_sound(path) else ""


def recording_splits(path: str | Path, label: str, test: str, background: str) -> tuple[str, ...]:
    """Return the splits that recordings at a path define; () if none."""
    root = os.path.realpath(path)
    entries = listed_recordings(
        root, printable(path), label=label, group="", test=test, skip=background
    )
    return own_splits([entry for entry in entries if entry.state == "used"])


def hold_out(
    dataset: Dataset,
    entries: Sequence[Entry],
    validation: float | int | None,
    seed: int,
    shown: str,
) -> Dataset:
    """Return the training or validation recordings of a split by the seed."""
    groups = [entry.group for entry in entries]
    try:
        indices = held_out_of(dataset.labels, dataset.split, validation, seed, groups).tolist()
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None
    if validation != 0 and not any(groups) and not dataset.has_texts:
        warnings = lone_classes(dataset.labels, dataset.classes)
        dataset = replace(dataset, warnings=[*dataset.warnings, *warnings])
    return dataset.subset(indices)


def recording_items(entries: Sequence[Entry]) -> RecordingItems:
    """Return the items of entries that were decoded once."""
    verdicts = [entry.verdict for entry in entries if entry.verdict is not None]
    assert len(verdicts) == len(entries)
    return RecordingItems(
        paths=[entry.path for entry in entries],
        samples=[verdict.width for verdict in verdicts],
        starts=[-1 if entry.row is None else entry.row for entry in entries],
        contents=[verdict.content for verdict in verdicts],
        speakers=[entry.group for entry in entries],
    )


def listed_recordings(
    root: str, shown: str, *, label: str, group: str, test: str, skip: str
) -> list[Entry]:
    """Return the recordings below a folder with their classes, groups and splits.

    skip: a folder that is left out
    """
    by_label = pattern_of(label, "label", groups=1) if label else None
    by_group = pattern_of(group, "group", groups=1) if group else None
    tests = pattern_of(test, "test") if test else None
    lists = _listed_splits(root)
    entries: list[Entry] = []
    for path in sound_files(root):
        name = os.path.relpath(path, root).replace(os.sep, "/")
        folders = name.split("/")[:-1]
        if skip and folders[:1] == [skip]:
            continue
        split = split_of(folders[0]) if folders and by_label is None else ""
        if by_label is None:
            where = folders[1:] if split else folders
            text, problem = (where[0], "") if where else ("", _no_class_folder(name, shown))
        else:
            match = by_label.search(name)
            text = match.group(1) or "" if match else ""
            problem = "" if text else f"its name does not match label = {label!r}"
        if problem:
            entries.append(Entry(path, "", "ignored", problem))
            continue
        if lists:
            split = lists.get(name, "train")
        speaker = ""
        if by_group is not None:
            match = by_group.search(name)
            if match is None or not match.group(1):
                raise UserError(f"{shown}: {name} does not match group = {group!r}")
            speaker = match.group(1)
        if tests is not None:
            split = "test" if tests.search(name) else split or "train"
        entries.append(Entry(path, class_name(text), split=split, group=speaker))
    used = [entry for entry in entries if entry.state == "used"]
    if used and tests is not None and not any(entry.split == "test" for entry in used):
        raise UserError(f"{shown}: no recording matches test = {test!r}")
    return entries


def pattern_of(text: str, field: str, groups: int = 0) -> re.Pattern[str]:
    """Return a regular expression. Raises UserError if it is not one, or has too few groups."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"[data] {field} = {text!r} is not a regular expression: {error}") from None
    if pattern.groups < groups:
        raise UserError(
            f"[data] {field} = {text!r} has no group: put the part to extract in parentheses"
        )
    return pattern


def _listed_splits(root: str) -> dict[str, str]:
    """Return the splits in the lists of Speech Commands by relative path; {} without lists."""
    splits: dict[str, str] = {}
    for name, split in _LISTS.items():
        path = os.path.join(root, name)
        if os.path.isfile(path):
            text = read_regular(path, _MAX_LIST).decode("utf-8", "replace")
            splits |= {line.strip(): split for line in text.splitlines() if line.strip()}
    return splits


def _merged_classes(entries: Sequence[Entry], keywords: tuple[str, ...], shown: str) -> list[Entry]:
    """Return the entries, with the class "unknown" for all classes that are not keywords."""
    if not keywords:
        return list(entries)
    names = {entry.label for entry in entries if entry.state == "used"}
    for keyword in keywords:
        if keyword not in names:
            hint = did_you_mean(keyword, names)
            raise UserError(f"{shown}: [data] keywords: there is no class {keyword!r}{hint}")
    return [
        entry if entry.label in keywords or entry.state != "used" else entry._replace(label=UNKNOWN)
        for entry in entries
    ]


def _background(root: str, folder: str, shown: str) -> list[Entry]:
    """Return the long recordings of a background folder; [] if there is no such folder."""
    inside = os.path.join(root, folder)
    if not os.path.isdir(inside):
        return []
    if os.path.realpath(inside) != os.path.normpath(inside):
        raise UserError(f"{shown}: [data] background = {folder!r} leads out of the folder")
    return [Entry(path, BACKGROUND) for path in sound_files(inside)]


def _pieces(
    recordings: Sequence[Entry],
    root: str,
    modality: Modality,
    piece: int,
    split: str,
    is_cut: bool,
    on_unreadable: OnUnreadable,
) -> list[Entry]:
    """Return the pieces of background recordings in a split; an entry's row is its first sample.

    If the data defines splits, the last tenth of each recording is for testing, the tenth before it
    for validation.
    """
    if not recordings:
        return []
    used, _ = check_entries(recordings, root, on_unreadable, modality)
    pieces = []
    for entry in used:
        assert entry.verdict is not None
        starts = list(range(0, entry.verdict.width - piece + 1, piece))
        low, high = 0.0, 1.0
        if split != "all" and not (is_cut and split == "validation"):
            low, high = _HELD_OUT_PIECES.get(split, (0.0, 0.9 if is_cut else 0.8))
        chosen = starts[round(low * len(starts)) : round(high * len(starts))]
        for start in chosen:
            verdict = entry.verdict._replace(width=piece)
            pieces.append(entry._replace(row=start, verdict=verdict))
    return pieces

"""Checks of the content of a data set: duplicates, empty images, and similar class names.

Findings that make metrics wrong are serious: an image in two splits, or with two classes.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from plusx.data.dataset import Dataset
from plusx.data.duplicates import (
    MAX_IMAGES,
    copies,
    copies_of_small_images,
    decoded_thumbnails,
    same_files,
)
from plusx.data.image_file import Verdict


_NAMED = 3  # groups of files in a message
_LISTED = 1000  # groups of files in a finding


@dataclass(frozen=True)
class Finding:
    """A problem of the content.

    check: a key for its kind
    message: a description with the first files
    files: groups of files that belong together
    serious: whether metrics on this data would be wrong
    """

    check: str
    message: str
    files: Sequence[Sequence[str]] = ()
    serious: bool = False

    def to_dict(self) -> dict[str, Any]:
        files = [list(names) for names in self.files[:_LISTED]]
        return {
            "check": self.check,
            "message": self.message,
            "count": len(self.files),
            "serious": self.serious,
            "files": files,
        }


class Member(NamedTuple):
    """An image: its split, its name in messages, its file or "", and its class."""

    split: str
    name: str
    path: str
    label: str
    verdict: Verdict


GreyReader = Callable[[int, tuple[int, int]], UInt8[np.ndarray, "h w"]]


def image_findings(members: Sequence[Member], *, by_class: bool, grey: GreyReader) -> list[Finding]:
    """Find duplicates, and images of a single colour.

    by_class: whether an image has one class, so that duplicates must not differ in it
    grey: reads the image of a member in grey, scaled to a width and a height
    """
    findings = _same(members, by_class, grey)
    flat = [[member.name] for member in members if member.verdict.contrast == 0]
    if flat:
        what = _count(flat, "image has a single colour", "images have a single colour")
        findings.append(Finding("one_colour", f"{what}: {_listed(flat)}", flat))
    return findings


def _same(members: Sequence[Member], by_class: bool, grey: GreyReader) -> list[Finding]:
    groups = same_files([m.path for m in members], [m.verdict.content for m in members])
    same = {(a, b) for group in groups for at, a in enumerate(group) for b in group[at + 1 :]}
    findings = _pair_findings(members, sorted(same), "same_file", "the same file", by_class)
    if len(members) > MAX_IMAGES:
        message = (
            f"{len(members):,} images are too many to compare all pairs: equal files are found, "
            "but not copies that were encoded again"
        )
        return [*findings, Finding("not_compared", message)]
    alike = copies(decoded_thumbnails([member.verdict.thumbnail for member in members]))
    if alike is None:
        message = "the images hardly differ: more than a million pairs are nearly the same"
        return [*findings, Finding("alike", message)]
    sizes = [(member.verdict.width, member.verdict.height) for member in members]
    copied = copies_of_small_images(*alike, sizes, grey).tolist()
    pairs = [(a, b) for a, b in copied if (a, b) not in same]
    what = "nearly the same (encoded again, resized or mirrored)"
    return findings + _pair_findings(members, pairs, "copy", what, by_class)


def _pair_findings(
    members: Sequence[Member],
    pairs: Sequence[tuple[int, int]],
    check: str,
    what: str,
    by_class: bool,
) -> list[Finding]:
    """Return findings about pairs of duplicates, by the splits and classes of both."""
    kinds: dict[tuple[str, str, bool], list[list[str]]] = {}
    for one, other in pairs:
        a, b = members[one], members[other]
        differs = by_class and a.label != b.label
        names = [f"{m.name} ({m.label})" if differs else m.name for m in (a, b)]
        kinds.setdefault((a.split, b.split, differs), []).append(names)
    findings = []
    for (first, second, differs), listed in kinds.items():
        across = first != second
        where = f"one in {first} and one in {second}" if across else f"both in {first}"
        classes = ", of different classes" if differs else ""
        count = _count(listed, "pair of images is", "pairs of images are")
        message = f"{count} {what}, {where}{classes}: {_listed(listed)}"
        key = check + ("_across_splits" if across else "") + ("_other_class" if differs else "")
        findings.append(Finding(key, message, listed, serious=across or differs))
    return sorted(findings, key=lambda finding: not finding.serious)


def leaks(train: Dataset, others: Mapping[str, Dataset]) -> list[str]:
    """Return warnings about samples that are in the training set and in another split.

    Files are compared by digests that were computed when decoding; without them there are no
    warnings.
    """
    warnings = []
    for split, dataset in others.items():
        trained, evaluated = train.items.digests(), dataset.items.digests()
        common = set(trained) & set(evaluated)
        members = [
            ("" if source.paths is None else source.paths[index], digest, source, index)
            for source, digests in ((train, trained), (dataset, evaluated))
            for index, digest in enumerate(digests)
            if digest in common
        ]
        groups = same_files([m[0] for m in members], [m[1] for m in members])
        names = []
        for group in groups:
            first = next((members[i] for i in group if members[i][2] is train), None)
            twins = [members[i] for i in group if members[i][2] is dataset]
            if first is not None:
                names += [[train.describe(first[3]), dataset.describe(t[3])] for t in twins]
        if names:
            inputs = dataset.modality.inputs
            are = "are" if len(names) > 1 else "is"
            same = "as the same file" if dataset.paths is not None else "word by word"
            warnings.append(
                f"{split} metrics of {dataset.name} are too good: {len(names):,} of its {inputs} "
                f"{are} in the training set too, {same}: {_listed(names)}"
            )
    return warnings


def group_findings(datasets: Mapping[str, Dataset]) -> list[Finding]:
    """Find speakers, or other groups of samples, in the training set and in another split."""
    trained = set(datasets["train"].items.groups()) if "train" in datasets else set()
    findings = []
    for split, dataset in datasets.items():
        common = sorted(trained & set(dataset.items.groups()) - {""})
        if split != "train" and common:
            names = [[name] for name in common]
            what = _count(names, "speaker is", "speakers are")
            message = f"{what} in train and in {split}: {_listed(names)}"
            findings.append(Finding("groups_across_splits", message, names, serious=True))
    return findings


def box_findings(datasets: Mapping[str, Dataset]) -> list[Finding]:
    """Find boxes of less than a pixel in width or height. Readers refuse repeated boxes."""
    tiny: list[list[str]] = []
    for dataset in datasets.values():
        boxes = None if dataset.annotations is None else dataset.annotations.boxes
        for index, rows in enumerate(boxes or ()):
            for row in rows[((rows[:, 2:4] - rows[:, :2]) < 1).any(1)]:
                corners = ", ".join(f"{corner:g}" for corner in row[:4].tolist())
                name = dataset.classes[int(row[4])]
                tiny.append([f"{dataset.describe(index)}: {name} [{corners}]"])
    if not tiny:
        return []
    what = _count(tiny, "box is", "boxes are") + " less than a pixel wide or high"
    return [Finding("tiny_boxes", f"{what}: {_listed(tiny)}", tiny)]


def class_findings(datasets: Mapping[str, Dataset]) -> list[Finding]:
    """Find classes with nearly the same name, and classes that are missing in a split."""
    names = list(dict.fromkeys(name for d in datasets.values() for name in d.classes))
    plain: dict[str, list[str]] = {}
    for name in names:
        letters = unicodedata.normalize("NFKC", name).casefold()
        plain.setdefault("".join(c for c in letters if c.isalnum()) or name, []).append(name)
    similar = [alike for alike in plain.values() if len(alike) > 1]
    findings = []
    if similar:
        what = _count(similar, "pair of classes has", "pairs of classes have")
        message = f"{what} nearly the same name: {_listed(similar)}"
        findings.append(Finding("similar_classes", message, similar))
    for split, dataset in datasets.items():
        labels = dataset.labels
        is_present = (labels > 0).any(0).tolist() if labels.ndim == 2 else None
        indices = labels.tolist() if is_present is None else np.flatnonzero(is_present).tolist()
        present = set(indices)
        missing = [[name] for i, name in enumerate(dataset.classes) if i not in present]
        if missing and len(dataset):
            what = _count(missing, "class is", "classes are")
            message = f"{what} not in {split}: {_listed(missing)}"
            findings.append(Finding(f"not_in_{split}", message, missing))
    return findings


def _count(names: Sequence[Any], one: str, several: str) -> str:
    return f"{len(names):,} {one if len(names) == 1 else several}"


def _listed(names: Sequence[Sequence[str]]) -> str:
    shown = "; ".join(" and ".join(group) for group in names[:_NAMED])
    more = len(names) - _NAMED
    return f"{shown}; and {more:,} more" if more > 0 else shown

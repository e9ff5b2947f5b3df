"""Data sets in tar files in WebDataset's format: 000017.jpg has its class in 000017.cls.

An uncompressed tar file can be read at any offset: its members are indexed once, then read like
files of a folder, in any order and by any process. Nothing is unpacked to disk. An archive is
refused as a whole if a member is not a regular file (a link, a device), has a path outside the
archive, or declares more bytes than there are.
"""

import glob
import hashlib
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from plusx.data.dataset import Items, paths_digest, stored_sample
from plusx.data.image_file import (
    DEFAULT_LIMIT,
    ENDINGS,
    UNSUPPORTED,
    Decoder,
    ImageFile,
    Verdict,
    decoders,
    examine,
    unsupported,
)
from plusx.data.modality import Modality
from plusx.data.readers.listing import Listing, class_name, refuse_similar_names
from plusx.data.readers.verdicts import (
    Entry,
    OnUnreadable,
    Stamp,
    State,
    file_stamp,
    in_threads,
    read_cache,
    usable_entries,
    write_cache,
)
from plusx.data.sample import Sample
from plusx.data.splits import own_splits, split_of
from plusx.errors import UserError, printable


_CACHE_VERSION = 4  # increased whenever the content of Member changes
_IMAGES = frozenset(ending[1:] for ending in (*ENDINGS, *UNSUPPORTED))
_LABEL_LIMIT = 1024
_HEADER_LIMIT = 2**20  # bytes of a member's header, with its name
_IMAGE_LIMIT = 512 * 2**20
_MAX_FILES = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Member(NamedTuple):
    """One image of a tar file: its offset and size, its class, and its verdict."""

    name: str
    offset: int
    size: int
    label: str
    verdict: Verdict


class Location(NamedTuple):
    """The position of the bytes of an image."""

    file: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class TarItems(Items):
    """Images in tar files."""

    paths: list[str]
    locations: list[Location]
    content: str  # a digest of the tar files' indices
    decoder: Decoder
    verdicts: list[Verdict]
    patches: int = 1

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, modality: Modality) -> Sample:
        file, offset, size = self.locations[index]
        with open(file, "rb", buffering=0) as opened:
            opened.seek(offset)
            return stored_sample(
                ImageFile(opened.read(size), DEFAULT_LIMIT, modality.channels, self.decoder)
            )

    def subset(self, indices: Sequence[int]) -> "Items":
        return replace(
            self,
            paths=[self.paths[index] for index in indices],
            locations=[self.locations[index] for index in indices],
            verdicts=[self.verdicts[index] for index in indices],
        )

    def reference(self) -> "Items":
        return replace(self, decoder="pillow")

    def digest(self, root: str | None) -> bytes:
        return paths_digest(self.content, self.paths, root)


@dataclass(frozen=True, eq=False, kw_only=True)
class TarListing(Listing):
    """The images of tar files; `locations` are the bytes of each entry, by its path."""

    locations: dict[str, Location]
    digest: str

    def usable(
        self, entries: Sequence[Entry], modality: Modality, on_unreadable: OnUnreadable
    ) -> tuple[list[Entry], list[str]]:
        modality.refuse_archive(self.root)
        return usable_entries(entries, self.root, on_unreadable)

    def items(self, entries: Sequence[Entry], decoder: Decoder) -> Items:
        paths = [entry.path for entry in entries]
        locations = [self.locations[path] for path in paths]
        verdicts = [entry.verdict for entry in entries if entry.verdict is not None]
        return TarItems(paths, locations, self.digest, decoder, verdicts)


def is_tar(path: str | Path) -> bool:
    """Whether a path has the extension of a tar file, or is a pattern of several."""
    name = os.fspath(path)
    return name.endswith(".tar") and (glob.has_magic(name) or "{" in name or os.path.isfile(name))


def recognise_tar(path: str) -> str:
    """Return why read_tar can read a path, or ""."""
    return "tar files, by the ending .tar" if is_tar(path) else ""


def expanded(pattern: str) -> list[str]:
    """Return the files of a pattern: *, ? and [ab] match existing files, {000..146} and {a,b} list
    files that must exist.

    Raises UserError if there are none, or a listed one is missing.
    """
    names = _without_braces(os.path.expanduser(pattern))
    paths: list[str] = []
    for name in names:
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not matches or not os.path.isfile(matches[0]):
            raise UserError(f"{printable(name)} is missing: there is no such tar file")
        paths += matches
    return sorted(dict.fromkeys(map(os.path.realpath, paths)))


def _without_braces(pattern: str) -> list[str]:
    """Return the names that a pattern with braces stands for."""
    names = [pattern]
    while (braces := _BRACES.search(names[0])) is not None:
        text = braces[1]
        if (range_ := _RANGE.fullmatch(text)) is not None:
            first, last = int(range_[1]), int(range_[2])
            if not 0 <= last - first < _MAX_FILES:
                raise UserError(
                    f"{pattern}: {{{text}}} is not a range from a lower to a higher number"
                )
            options = [f"{number:0{len(range_[1])}}" for number in range(first, last + 1)]
        else:
            options = text.split(",")
        if len(names) * len(options) > _MAX_FILES:
            raise UserError(f"{pattern} stands for more than {_MAX_FILES:,} files")
        names = [name.replace(braces[0], option, 1) for name in names for option in options]
    return names


def read_tar(pattern: str | Path) -> TarListing:
    """Index tar files and decode every image once; both are cached until a file changes.

    Raises UserError with the file and the member if one is corrupt or malicious.
    """
    files, shown = expanded(os.fspath(pattern)), printable(pattern)
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    splits = [_split_of(file) for file in files]
    if "" in splits and any(splits):
        file = printable(files[splits.index("")], root)
        raise UserError(f"{shown}: the name of {file} has no split, but others have")
    entries: list[Entry] = []
    locations: dict[str, Location] = {}
    digest = hashlib.sha256()
    for file, split in zip(files, splits):
        stamp = file_stamp(file)
        if stamp is None:
            raise UserError(f"{printable(file)} is missing: there is no such tar file")
        members = _members(file, stamp)
        indexed = [(*member[:4], member.verdict.problem) for member in members]
        digest.update(repr([os.path.relpath(file, root), stamp[0], indexed]).encode())
        for member in members:
            path = os.path.join(file, member.name)
            verdict = member.verdict
            state: State = "used" if verdict.problem is None else "refused"
            reason = verdict.problem or verdict.warning or ""
            entries.append(Entry(path, member.label, state, reason, split=split, verdict=verdict))
            locations[path] = Location(file, member.offset, member.size)
    if not entries:
        raise UserError(f"{shown} has no images")
    refuse_similar_names(sorted({entry.label for entry in entries}), shown)
    train = [entry for entry in entries if entry.split in ("", "train")]
    classes = _ordered({entry.label for entry in train or entries}, shown)
    unknown = sorted({entry.label for entry in entries} - set(classes))
    if unknown:
        raise UserError(f"{shown}: the class {unknown[0]!r} is not a training class")
    return TarListing(
        root=root,
        splits=own_splits(entries),
        classes=classes,
        entries=tuple(entries),
        locations=locations,
        digest=digest.hexdigest(),
    )


def _split_of(file: str) -> str:
    words = re.split(r"[^a-z]+", os.path.basename(file).lower())
    splits = {split for word in words if (split := split_of(word))}
    return splits.pop() if len(splits) == 1 else ""


def _ordered(names: set[str], shown: str) -> tuple[str, ...]:
    """Return classes by name; numbers count from 0 without gaps."""
    if not all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names))
    numbers = sorted(map(int, names))
    if numbers != list(range(len(names))):
        raise UserError(
            f"{shown}: classes that are numbers count from 0 without gaps; here are {numbers[:5]}"
        )
    return tuple(map(str, numbers))


def _members(file: str, stamp: Stamp) -> list[Member]:
    """Return the images of a tar file, each decoded once; cached until the file changes."""
    terms = [_CACHE_VERSION, DEFAULT_LIMIT, *decoders(), stamp]
    cached: list[Member] | None = read_cache(file, "shard", terms, list[Member])
    if cached is not None:
        return cached
    indexed = list(_index(file))

    def examine_member(member: tuple[str, int, int, str]) -> Verdict:
        if (problem := unsupported(member[0])) is not None:
            return Verdict(problem)
        with open(file, "rb", buffering=0) as opened:
            opened.seek(member[1])
            return examine(opened.read(member[2]))

    verdicts = in_threads(indexed, examine_member)
    members = [Member(*member, verdict) for member, verdict in zip(indexed, verdicts)]
    write_cache(file, "shard", terms, members)
    return members


class _Headers:
    """A file of which only headers are read, with a limit on the length of names."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_LIMIT:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _index(file: str) -> Iterator[tuple[str, int, int, str]]:
    """Return name, offset, size and class of every image, in the order of the file."""
    shown = printable(file)
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    with open(file, "rb") as opened:
        file_size = os.fstat(opened.fileno()).st_size
        for member in _read(opened, shown):
            name = member.name
            _refuse_hostile(member, shown, file_size)
            if not member.isfile() or os.path.basename(name).startswith("."):
                continue
            folder, _, base = name.rpartition("/")
            stem, _, kind = base.partition(".")
            key, kind = f"{folder}/{stem}", kind.lower()
            table: dict[str, Any] = images if kind in _IMAGES else labels
            if kind not in _IMAGES and kind != "cls":
                continue
            if key in table:
                raise UserError(f"{shown}: {printable(name)} is in it twice")
            if kind in _IMAGES:
                images[key] = (name, member.offset_data, member.size)
                continue
            if member.size > _LABEL_LIMIT:
                raise UserError(f"{shown}: {printable(name)} is too long for a class")
            opened.seek(member.offset_data)
            labels[key] = opened.read(member.size).decode("utf-8", "replace").strip()
    for key, (name, offset, size) in images.items():
        label = labels.get(key, "" if labels else key.rpartition("/")[0].rpartition("/")[2])
        if not label:
            raise UserError(
                f"{shown}: {printable(name)} has no class: no .cls beside it, and no folder"
            )
        yield name, offset, size, class_name(label)


def _read(file: BinaryIO, shown: str) -> Iterator[tarfile.TarInfo]:
    """Return the members. Raises UserError with the file for any error of tarfile."""
    try:
        # _Headers has only the methods of a file that tarfile calls here
        with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
            yield from archive
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it is truncated: the end of the archive is missing")
    except (tarfile.TarError, EOFError, OverflowError, RecursionError, ValueError) as error:
        raise UserError(
            f"{shown} is not a readable tar file (it must be uncompressed): {error}"
        ) from None


def _refuse_hostile(member: tarfile.TarInfo, shown: str, file_size: int) -> None:
    name = printable(member.name)
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise UserError(f"{shown}: {name} is not a regular file (links and devices are refused)")
    if member.name.startswith("/") or ".." in member.name.split("/") or "\\" in member.name:
        raise UserError(f"{shown}: {name} is a path outside the archive")
    # a negative size would make tarfile read the same member forever
    if not 0 <= member.size <= _IMAGE_LIMIT or member.offset_data + member.size > file_size:
        raise UserError(f"{shown}: {name} declares {member.size:,} bytes, more than there can be")

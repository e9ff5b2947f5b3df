"""The door of this room: open_data, from a set's name or a path to a Source."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plusx.data.bands import keep_bands
from plusx.data.check import Entry, OnUnreadable, judged, keep
from plusx.data.folder import ScanReport, scan, scan_images
from plusx.data.image import Decoder, check_decoder, printable
from plusx.data.packed import Packed, is_packed, read_packed
from plusx.data.published import PUBLISHED
from plusx.data.sample import Preprocessing, Sample, Source, Split, as_split
from plusx.data.shards import Shards, is_shards, read_shards
from plusx.data.splits import groups_held_out, held_out
from plusx.data.table import Table, read_table, table_parts
from plusx.errors import UserError


__all__ = [
    "Preprocessing",
    "Sample",
    "Source",
    "Split",
    "is_undivided",
    "open_data",
    "open_images",
    "parts_of",
]

Listing = ScanReport | Table | Packed | Shards

# of images in files, where no network says otherwise: ImageNet's
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224
# of the training files, where the data holds out none itself
VALIDATION_SHARE = 0.2


def open_data(
    data: str | Path,
    *,
    split: str = "train",
    seed: int = 0,
    validation: float | int | None = None,
    size: int | None = None,
    on_unreadable: OnUnreadable = "error",
    classes: tuple[str, ...] | None = None,
    multilabel: bool = False,
    decoder: Decoder = "pillow",
    preprocessing: Preprocessing | None = None,
) -> Source:
    """Open a set by its name (digits, fashion-mnist, cifar10, cifar100), a folder, a CSV, a
    packed file or tar files.

    split       "train", "validation", "test" or "all"
    seed        of the split where the data has none of its own
    validation  a share (below 1) or a number of training samples that validate; None is the
                set's own rule (files: their own split, else 0.2), 0 lets all of them train
    size        of the images a network sees; None is the set's own, 224 for files
    on_unreadable     "error": any file that cannot be used is an error that names it; "skip": such
                files are left out before anything else, and named in the notices
    classes     the classes that are expected, in their order (those of a trained network)
    multilabel  whether a row of a CSV can have several labels, also where none has
    decoder     of colour JPEGs in training: "pillow", or "simplejpeg", which is quicker, of
                slightly other pixels, and needs the extra plusx[fast]
    preprocessing of files; None is colours at `size`, normalised as for ImageNet. Files of other
                channels or of another range than 8 bits are TIFFs or PNGs (data.bands)

    Every file of the split is decoded once, and the verdict kept in the cache folder.
    Raises UserError for an unknown name, a missing path or data that cannot be used; OSError
    where a set cannot be downloaded.
    """
    name, wanted = os.fspath(data), as_split(split)
    if on_unreadable not in ("error", "skip"):
        raise UserError(f"on_unreadable = {on_unreadable!r}: allowed are 'error' and 'skip'")
    if size is not None and not 1 <= size <= 4096:
        raise UserError(f"size = {size}: a size is from 1 to 4096 pixels")
    if isinstance(data, str) and name in PUBLISHED:
        source = PUBLISHED[name](wanted, validation, seed)
        if classes is not None and classes != source.classes:
            raise UserError(
                f"{name} has the classes {_listed(source.classes)}; "
                f"expected were {_listed(classes)}"
            )
        if size is not None:
            source = source.with_preprocessing(replace(source.preprocessing, size=(size, size)))
    else:
        path = Path(data).expanduser()
        check_decoder(decoder)
        listing: Listing
        if path.is_dir():
            listing = scan(path)
        elif path.is_file() and path.suffix.lower() == ".csv":
            listing = read_table(path, classes, multilabel)
        elif is_shards(path):
            listing = read_shards(path)
        elif is_packed(path):
            if decoder != "pillow":
                raise UserError(f"decoder = {decoder!r}: {printable(path)} is decoded already")
            listing = read_packed(path)
        else:
            raise _unknown(data, path)
        side = IMAGENET_SIZE if size is None else size
        known = preprocessing or Preprocessing((side, side), 3, IMAGENET_MEAN, IMAGENET_STD)
        source = _from_files(listing, path, wanted, seed, validation, known, on_unreadable, classes)
        source = replace(source, decoder=decoder)
    if not len(source):
        raise UserError(f"{printable(name)} has no {wanted} split with validation = {validation}")
    return source


def kind_of(path: str | Path) -> str | None:
    """Which of folder, csv, packed and shards data of one's own is; None where there is none."""
    path = Path(path).expanduser()
    if path.is_dir():
        return "folder"
    if path.is_file():
        return "shards" if is_shards(path) else "packed" if is_packed(path) else "csv"
    return "shards" if is_shards(path) else None


def is_undivided(data: str | Path) -> bool:
    """Whether this is a folder or a CSV that does not say itself what validates and what tests."""
    path = Path(data).expanduser()
    own = path.is_dir() or path.suffix.lower() == ".csv" or is_packed(path) or is_shards(path)
    return own and not parts_of(data)


def parts_of(data: str | Path) -> tuple[str, ...]:
    """The splits that the data itself has ("train", "validation", "test"); none where it is cut."""
    path = Path(data).expanduser()
    if isinstance(data, str) and data in PUBLISHED:
        return "train", "test"
    if path.is_dir():
        return scan(path).parts
    if is_packed(path):
        return read_packed(path).parts
    if is_shards(path):
        return read_shards(path).parts
    return table_parts(path) if path.is_file() and path.suffix.lower() == ".csv" else ()


def open_images(
    paths: Sequence[str | Path],
    preprocessing: Preprocessing,
    *,
    on_unreadable: OnUnreadable = "error",
) -> Source:
    """Images without labels (all -1) in files and folders, in the order given, for prediction.

    Raises UserError that names a missing path, a folder without images, or, unless they are to
    be skipped, the files that cannot be used.
    """
    entries: list[Entry] = []
    for path in paths:
        if not os.path.lexists(path):
            raise UserError(f"{printable(path)} is missing")
        found = scan_images(path)
        if not any(entry.state == "used" for entry in found):
            raise UserError(f"{printable(path)} has no images")
        entries += found
    used, notices = keep(entries, os.getcwd(), on_unreadable)
    if not used:
        raise UserError("none of the images can be used")
    return Source(
        name="images",
        split="all",
        classes=(),
        labels=torch.full((len(used),), -1),
        preprocessing=preprocessing,
        paths=[entry.path for entry in used],
        notices=notices,
    )


def _from_files(
    listing: Listing,
    path: Path,
    split: Split,
    seed: int,
    validation: float | int | None,
    preprocessing: Preprocessing,
    on_unreadable: OnUnreadable,
    classes: tuple[str, ...] | None,
) -> Source:
    shown = printable(path)
    known, dropped = _known_classes(listing, shown, on_unreadable, classes)
    entries, cut = _entries_of(listing, shown, split, validation)
    if not preprocessing.pictures and isinstance(listing, Packed | Shards):
        raise UserError(f"{shown} holds pictures of 8 bits; bands are a folder or a CSV of TIFFs")
    try:
        used, notices = _used(listing, entries, preprocessing, on_unreadable)
    except ValueError as error:  # rows and files, of which set
        raise UserError(f"{shown}: {error}") from None
    if not used:
        raise UserError(f"{shown} has no image in {split} that can be used")
    labels = _labels(listing, used, known)
    if classes is None and (cut or split == "train") and labels.ndim == 1:
        lost = set(range(len(known))) - set(labels.tolist())
        if lost:
            raise UserError(f"{shown}: no image of the class {known[min(lost)]!r} can be used")
    chosen = np.arange(len(used))
    if cut:
        share = VALIDATION_SHARE if validation is None else validation
        groups = [entry.group for entry in used]
        held = (
            groups_held_out(labels, groups, share, seed)
            if any(groups)
            else held_out(labels, share, seed)
        )
        chosen = held if split == "validation" else np.delete(chosen, held)
    rows = [entry.row for entry in used if entry.row is not None]
    return Source(
        name=printable(os.path.basename(os.path.realpath(path))),
        split=split,
        classes=known,
        labels=labels,
        preprocessing=preprocessing,
        paths=[entry.path for entry in used],
        root=listing.root,
        rows=rows or None,
        notices=[*dropped, *notices],
        packed=listing if isinstance(listing, Packed) else None,
        shards=listing if isinstance(listing, Shards) else None,
        numbers=_numbers(listing, used) if isinstance(listing, Packed) else None,
    ).subset(chosen.tolist())


def _used(
    listing: Listing,
    entries: list[Entry],
    preprocessing: Preprocessing,
    on_unreadable: OnUnreadable,
) -> tuple[list[Entry], list[str]]:
    """The entries that can be used, and what there is to be said of the others."""
    if isinstance(listing, Packed):
        return entries, [*listing.notices, *_too_small(listing, max(preprocessing.size))]
    if isinstance(listing, Shards):
        return judged(entries, listing.root, on_unreadable)
    if preprocessing.pictures:
        return keep(entries, listing.root, on_unreadable)
    return keep_bands(entries, listing.root, on_unreadable, preprocessing)


def _numbers(packed: Packed, entries: list[Entry]) -> Tensor:
    numbers = {entry.path: number for number, entry in enumerate(packed.entries)}
    return torch.tensor([numbers[entry.path] for entry in entries], dtype=torch.int64)


def _too_small(packed: Packed, wanted: int) -> list[str]:
    if wanted <= packed.side:
        return []
    return [f"the packed images have {packed.side} pixels on a side, the network sees {wanted}"]


def _known_classes(
    listing: Listing, shown: str, on_unreadable: OnUnreadable, expected: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[str]]:
    """The classes, and notices of those left out. What is only listed decides, not what decodes."""
    found = listing.classes
    if expected is not None:
        unknown = sorted(set(found) - set(expected))
        if unknown:
            raise UserError(f"{shown}: the class {unknown[0]!r} is not one of {_listed(expected)}")
        return expected, []
    notices = []
    if isinstance(listing, ScanReport):
        learning = listing.of("train") if "train" in listing.parts else listing.entries
        states = {name: {e.state for e in learning if e.label == name} for name in found}
        for name, seen in states.items():
            if "used" in seen or (on_unreadable == "error" and "refused" in seen):
                continue
            if on_unreadable == "error" or any(
                entry.state == "used" and entry.label == name for entry in listing.entries
            ):
                raise UserError(f"{shown}: the class folder {name!r} has no images")
            found = tuple(other for other in found if other != name)
            notices.append(f"the class folder {name!r} has no images and is left out")
    if len(found) == 1 and not (isinstance(listing, Table) and listing.multilabel):
        raise UserError(
            f"{shown} has one class only ({found[0]!r}): there is nothing to tell apart"
        )
    if not found:
        raise UserError(f"{shown} has no images")
    return found, notices


def _entries_of(
    listing: Listing, shown: str, split: Split, validation: float | int | None
) -> tuple[list[Entry], bool]:
    """The entries that a split is made from, and whether it is cut from them by the seed."""
    parts = listing.parts
    if split == "all":
        return list(listing.entries), False
    if "validation" in parts and validation:
        raise UserError(
            f"{shown} has a validation split of its own; leave out validation = {validation}"
        )
    if split in parts:
        return listing.of(split), split == "train" and "validation" not in parts
    if split == "test" or (parts and "train" not in parts):
        has = ", ".join(parts) if parts else "none: it is split by the seed to train and validate"
        raise UserError(f"{shown} has no {split} split (its splits: {has})")
    return listing.of("train"), True


def _labels(listing: Listing, entries: list[Entry], classes: tuple[str, ...]) -> Tensor:
    if isinstance(listing, Table):
        return listing.labels(entries, classes)
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers[entry.label] for entry in entries], dtype=torch.int64)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _unknown(data: str | Path, path: Path) -> UserError:
    if os.path.lexists(path):
        return UserError(f"{printable(path)} is no folder, CSV, packed set or tar files")
    if isinstance(data, Path):  # a name of a set would be text
        return UserError(f"{printable(path)} is missing: there is no such folder or file")
    near = difflib.get_close_matches(data, PUBLISHED, 1, 0.5)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return UserError(
        f"no data {printable(data)!r}: neither a path nor one of {', '.join(PUBLISHED)}{hint}"
    )

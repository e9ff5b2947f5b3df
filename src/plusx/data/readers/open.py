"""Opening data sets by name or path: named sets, folders, CSVs, packed and tar files."""

import difflib
import os
from dataclasses import replace
from pathlib import Path

from plusx.data.dataset import Dataset, Split, as_split
from plusx.data.image_file import Decoder, check_decoder, printable
from plusx.data.modality import IMAGENET_MEAN, IMAGENET_STD, ImageModality, Modality
from plusx.data.readers.layouts import LAYOUTS, is_hinted, kind_of, kinds_of, unrecognised
from plusx.data.readers.listing import Listing
from plusx.data.readers.verdicts import LeftOut, OnUnreadable
from plusx.data.sets import NAMED_SETS
from plusx.data.sets.download import located
from plusx.data.splits import empty_split, entries_of_split, held_out_of, lone_classes
from plusx.errors import UserError


IMAGENET_SIZE = 224


def open_data(
    data: str | Path,
    *,
    kind: str | None = None,
    split: str = "train",
    seed: int = 0,
    validation: float | int | None = None,
    size: int | None = None,
    on_unreadable: OnUnreadable = "error",
    classes: tuple[str, ...] | None = None,
    multilabel: bool = False,
    decoder: Decoder = "pillow",
    modality: Modality | None = None,
) -> Dataset:
    """Open a data set by its name (digits, fashion-mnist, cifar10, cifar100, svhn, ...), or a
    folder, a CSV, a packed file or tar files.

    kind: what to read a path as (folder, csv, packed, shards); None: as it is recognised
    split: "train", "validation", "test" or "all"
    seed: splits the data if it defines no splits
    validation: a fraction (below 1) or a number of training samples to hold out for validation.
        None: the default of a named set; for files their validation split, or else 0.2. 0: none
    size: height and width of the network's input; None: that of a named set, 224 for files
    on_unreadable: "error": any unusable file is an error that names it; "skip": unusable files are
        left out before anything else, and named in the warnings
    classes: the expected classes, in order (those of a trained network)
    multilabel: whether a row of a CSV can have several labels, even if none has
    decoder: of colour JPEGs in training: "pillow", or "simplejpeg", which is faster, differs
        slightly, and needs the extra plusx[fast]
    modality: of files; None: colour images at `size`, normalised as for ImageNet. Files with other
        channels or another range than 8 bits must be TIFFs or PNGs

    Every file of the split is decoded once, and the result is cached.
    Raises UserError for an unknown name, a missing path or unusable data; OSError if a data set
    cannot be downloaded.
    """
    name, split = os.fspath(data), as_split(split)
    if on_unreadable not in ("error", "skip"):
        raise UserError(f"on_unreadable = {on_unreadable!r}: allowed are 'error' and 'skip'")
    if size is not None and not 1 <= size <= 4096:
        raise UserError(f"size = {size}: from 1 to 4096 pixels")
    if is_named_set(data):
        dataset = NAMED_SETS[name](split, validation, seed)
        if classes is not None and classes != dataset.classes:
            raise UserError(
                f"{name} has the classes {_listed(dataset.classes)}; "
                f"expected were {_listed(classes)}"
            )
        if os.path.lexists(name):
            warning = f"{name} is read as the named data set, not as the folder ./{name}"
            dataset = replace(dataset, warnings=[warning, *dataset.warnings])
        if size is not None:
            dataset = dataset.with_modality(dataset.modality.resized(size))
    else:
        check_decoder(decoder)
        path = located(data)
        kind = kind or kind_of(path) or _intended(data, path)
        read = LAYOUTS[kind].listing
        assert read is not None
        if kind == "packed" and decoder != "pillow":
            raise UserError(f"decoder = {decoder!r}: {printable(path)} is already decoded")
        listing = read(os.fspath(path), classes, multilabel)
        side = IMAGENET_SIZE if size is None else size
        if modality is None:
            modality = ImageModality((side, side), 3, IMAGENET_MEAN[3], IMAGENET_STD[3])
        dataset = _from_files(
            listing, path, split, seed, validation, modality, on_unreadable, classes, decoder
        )
    if not len(dataset):
        raise empty_split(printable(name), split, validation, splits_of(data))
    return dataset


def as_dataset(
    data: str | Path | Dataset, *, split: str | None, seed: int, size: int | None
) -> Dataset:
    """Return a Dataset unchanged; open a name or a path."""
    if isinstance(data, str | Path):
        return open_data(data, split=split or "train", seed=seed, size=size)
    if size is not None and data.modality.size != (size, size):
        raise UserError("a Dataset has a size already: set it in open_data(..., size=)")
    return data


def is_named_set(data: str | Path) -> bool:
    """Whether this is the name of a set; ./NAME is a folder of that name."""
    return isinstance(data, str) and data in NAMED_SETS


def is_undivided(data: str | Path) -> bool:
    """Whether this is a path to data that defines no splits."""
    return kind_of(data) is not None and not splits_of(data)


def splits_of(data: str | Path) -> tuple[str, ...]:
    """Return the splits that the data defines ("train", "validation", "test"); () if none."""
    if is_named_set(data):
        return "train", "test"
    kind = kind_of(data)
    return () if kind is None else LAYOUTS[kind].splits(os.fspath(located(data)))


def _from_files(
    listing: Listing,
    path: Path,
    split: Split,
    seed: int,
    validation: float | int | None,
    modality: Modality,
    on_unreadable: OnUnreadable,
    expected: tuple[str, ...] | None,
    decoder: Decoder,
) -> Dataset:
    shown = printable(path)
    classes, dropped = _classes(listing, shown, on_unreadable, expected)
    entries, is_cut = entries_of_split(listing.entries, split, validation, shown)
    try:
        used, warnings = listing.usable(entries, modality, on_unreadable)
    except ValueError as error:  # which names rows and files, but not the data set
        raise UserError(f"{shown}: {error}") from None
    if not used:
        why = f": {'; '.join(warnings[1:4])}" if warnings else ""
        raise UserError(f"{shown} has no image in {split} that can be used{why}")
    labels = listing.labels(used, classes)
    if expected is None and (is_cut or split == "train") and labels.ndim == 1:
        lost = set(range(len(classes))) - set(labels.tolist())
        if lost:
            raise UserError(f"{shown}: no image of the class {classes[min(lost)]!r} can be used")
    rows = [entry.row for entry in used if entry.row is not None]
    dataset = Dataset(
        name=printable(os.path.basename(os.path.realpath(path))),
        split=split,
        classes=classes,
        labels=labels,
        modality=modality,
        items=listing.items(used, decoder),
        warnings=[*dropped, *warnings],
        root=listing.root,
        rows=rows or None,
    )
    if not is_cut:
        return dataset
    groups = [entry.group for entry in used]
    try:
        indices = held_out_of(labels, split, validation, seed, groups).tolist()
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None
    if validation != 0:
        dataset = replace(dataset, warnings=[*dataset.warnings, *lone_classes(labels, classes)])
    return dataset.subset(indices)


def _classes(
    listing: Listing,
    shown: str,
    on_unreadable: OnUnreadable,
    expected: tuple[str, ...] | None,
) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes, and warnings about those without usable files, which are dropped."""
    classes = listing.classes
    if expected is not None:
        unknown = sorted(set(classes) - set(expected))
        if unknown:
            raise UserError(f"{shown}: the class {unknown[0]!r} is not one of {_listed(expected)}")
        return expected, []
    warnings: list[str] = []
    for name in () if listing.is_multilabel else classes:
        states = {entry.state for entry in listing.learned_from if entry.label == name}
        if "used" in states or (on_unreadable == "error" and "refused" in states):
            continue
        if on_unreadable == "error" or any(
            entry.state == "used" and entry.label == name for entry in listing.entries
        ):
            raise UserError(f"{shown}: the class folder {name!r} has no images")
        classes = tuple(other for other in classes if other != name)
        warnings.append(LeftOut(f"the class folder {name!r} has no images and is left out"))
    if len(classes) == 1 and not listing.is_multilabel:
        raise UserError(
            f"{shown} has one class only ({classes[0]!r}): at least two classes are needed"
        )
    if not classes:
        refused = [entry for entry in listing.entries if entry.state == "refused"]
        reason = ""
        if refused:
            first = printable(refused[0].path, listing.root)
            row = "" if refused[0].row is None else f"row {refused[0].row}, "
            reason = f" that can be used: {row}{first}: {refused[0].reason}"
            reason += f", and {len(refused) - 1:,} more" if refused[1:] else ""
        raise UserError(f"{shown} has no images{reason}")
    return classes, warnings


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _intended(data: str | Path, path: Path) -> str:
    """Return the kind whose reader can report what is missing. Raises UserError without one."""
    for kind, reason in kinds_of(path).items():
        if LAYOUTS[kind].annotation in ("boxes", "masks"):
            raise UserError(
                f'{printable(path)} has the kind "{kind}" ({reason}), but images with classes are '
                "needed"
            )
    if os.path.isfile(os.path.join(path, "recipe.toml")) or is_hinted(path):
        raise unrecognised(path)
    if os.path.isdir(path):
        return "folder"
    if path.suffix.lower() == ".csv" and os.path.isfile(path):
        return "csv"
    if isinstance(data, Path) or os.path.lexists(path):
        raise unrecognised(path)
    close = difflib.get_close_matches(data, NAMED_SETS, 1, 0.5)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise UserError(
        f"no data {printable(data)!r}: neither a path nor one of {', '.join(NAMED_SETS)}{hint}"
    )

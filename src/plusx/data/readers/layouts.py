"""The layouts of files: which readers can read a path, and why."""

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plusx.data.dataset import Dataset
from plusx.data.image_file import printable
from plusx.data.readers.annotation_index import AnnotationIndex
from plusx.data.readers.box_table import read_box_table, recognise_box_table
from plusx.data.readers.captions import caption_splits, open_readable_captions, recognise_captions
from plusx.data.readers.coco import read_coco, recognise_coco
from plusx.data.readers.csv_file import columns_of_table
from plusx.data.readers.folder import (
    begins_as_image,
    recognise_folder,
    recognise_people,
    scan,
)
from plusx.data.readers.listing import Listing
from plusx.data.readers.masks import read_mask_folder, recognise_masks
from plusx.data.readers.packed import read_packed, recognise_packed
from plusx.data.readers.parallel import (
    names_of,
    open_readable_pairs,
    parallel_splits,
    recognise_parallel,
)
from plusx.data.readers.recordings import (
    BACKGROUND_FOLDER,
    open_readable_recordings,
    recognise_recordings,
    recording_splits,
)
from plusx.data.readers.table import read_table, recognise_table, table_splits
from plusx.data.readers.tar import read_tar, recognise_tar
from plusx.data.readers.texts import open_readable_texts, recognise_texts, text_splits
from plusx.data.readers.transcripts import (
    open_readable_transcripts,
    recognise_transcripts,
    transcript_splits,
)
from plusx.data.readers.voc import read_voc, recognise_voc
from plusx.data.readers.volume_files import list_cases, recognise_volumes
from plusx.data.readers.yolo import read_yolo, recognise_yolo
from plusx.data.sets.download import located
from plusx.data.sets.published import published_set
from plusx.data.splits import own_splits, split_of
from plusx.errors import UserError


# the annotation of an image: its class, its boxes, the class of each position or a person's
# identity; or the kind of inputs that are not images
Annotation = Literal[
    "classes",
    "boxes",
    "masks",
    "people",
    "captions",
    "texts",
    "translations",
    "sounds",
    "transcripts",
]


_ANNOTATIONS = (".json", ".yaml", ".yml", ".xml", ".csv")
_MAX_FOLDERS = 20  # folders in a folder that are inspected
_CLASSES: tuple[Annotation, ...] = ("classes",)


@dataclass(frozen=True)
class Layout:
    """A layout of files.

    title: its name in messages
    annotation: the kind of annotation
    recognise: returns why a path has this layout, or ""
    splits: returns the splits that the data at a path defines
    listing: reads classified images; takes a path, the expected classes, and whether a row can
        have several labels
    index: reads images with boxes or masks
    open: opens a split of other data, skipping unusable files
    fields: returns the fields of [data], besides `path`, that follow from a path
    general: whether it is recognised only if no other layout is
    """

    title: str
    annotation: Annotation
    recognise: Callable[[str], str]
    splits: Callable[[str], tuple[str, ...]]
    listing: Callable[[str, tuple[str, ...] | None, bool], Listing] | None = None
    index: Callable[[str], AnnotationIndex] | None = None
    open: Callable[[str, str], Dataset] | None = None
    fields: Callable[[str], dict[str, str]] = lambda path: {}
    general: bool = False


def _annotated(
    title: str,
    annotation: Annotation,
    recognise: Callable[[str], str],
    read: Callable[[str], AnnotationIndex],
) -> Layout:
    def splits(path: str) -> tuple[str, ...]:
        return own_splits(read(path).images)

    return Layout(title, annotation, recognise, splits, index=read)


# by `kind` in [data]
LAYOUTS: dict[str, Layout] = {
    "folder": Layout(
        "a folder of class folders",
        "classes",
        recognise_folder,
        lambda path: scan(path).splits,
        listing=lambda path, classes, multilabel: scan(path),
        general=True,
    ),
    "csv": Layout(
        "a CSV of images and labels", "classes", recognise_table, table_splits, listing=read_table
    ),
    "shards": Layout(
        "tar files",
        "classes",
        recognise_tar,
        lambda path: read_tar(path).splits,
        listing=lambda path, classes, multilabel: read_tar(path),
    ),
    "packed": Layout(
        "a packed file",
        "classes",
        recognise_packed,
        lambda path: read_packed(path).splits,
        listing=lambda path, classes, multilabel: read_packed(path),
    ),
    "voc": _annotated("boxes in Pascal VOC's format", "boxes", recognise_voc, read_voc),
    "coco": _annotated("boxes in COCO's format", "boxes", recognise_coco, read_coco),
    "yolo": _annotated("boxes in YOLO's format", "boxes", recognise_yolo, read_yolo),
    "boxes": _annotated("a CSV of boxes", "boxes", recognise_box_table, read_box_table),
    "masks": _annotated("images with masks", "masks", recognise_masks, read_mask_folder),
    "people": Layout(
        "a folder of people",
        "people",
        recognise_people,
        lambda path: scan(path, same_classes=False).splits,
        general=True,
    ),
    "transcripts": Layout(
        "recordings with transcripts",
        "transcripts",
        recognise_transcripts,
        transcript_splits,
        open=open_readable_transcripts,
    ),
    "recordings": Layout(
        "recordings with classes",
        "sounds",
        recognise_recordings,
        lambda path: recording_splits(path, "", "", BACKGROUND_FOLDER),
        open=open_readable_recordings,
    ),
    "captions": Layout(
        "images with captions",
        "captions",
        recognise_captions,
        caption_splits,
        open=open_readable_captions,
    ),
    "texts": Layout(
        "texts with classes", "texts", recognise_texts, text_splits, open=open_readable_texts
    ),
    "parallel": Layout(
        "sentences and their translations",
        "translations",
        recognise_parallel,
        lambda path: parallel_splits(path, names_of(path)),
        open=open_readable_pairs,
        fields=lambda path: {"source": names_of(path).source, "target": names_of(path).target},
    ),
    "volumes": Layout(
        "volumes with masks",
        "masks",
        recognise_volumes,
        lambda path: own_splits(list_cases(path, "")),
    ),
}


def kinds_of(path: str | Path) -> dict[str, str]:
    """Return the kinds that a path can be read as, with reasons, the likeliest first.

    A relative path that does not exist is searched by `located`.
    """
    name = os.fspath(located(path))
    kinds = {kind: layout.recognise(name) for kind, layout in LAYOUTS.items()}
    kinds = {kind: reason for kind, reason in kinds.items() if reason}
    # the folders of another layout, such as images and masks, are not classes
    special = {kind: reason for kind, reason in kinds.items() if not LAYOUTS[kind].general}
    return special or ({} if kinds and data_below(name) else kinds)


def _has_more_than_images(folder: str) -> bool:
    """Whether a folder has subfolders or annotation files, unlike most class folders."""
    with os.scandir(folder) as entries:
        return any(
            entry.name.lower().endswith(_ANNOTATIONS) or entry.is_dir(follow_symlinks=False)
            for entry in entries
        )


def data_below(path: str) -> dict[str, str]:
    """Return the folders in a folder that are data sets themselves, with their kinds."""
    below: dict[str, str] = {}
    if not os.path.isdir(path):
        return below
    with os.scandir(path) as entries:
        folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    names = sorted(entry.name for entry in folders if not entry.name.startswith("."))
    for name in names[:_MAX_FOLDERS]:
        folder = os.path.join(path, name)
        kinds = [kind for kind, layout in LAYOUTS.items() if not layout.general]
        with suppress(OSError):
            if split_of(name) or not _has_more_than_images(folder):
                continue
            kind = next((kind for kind in kinds if LAYOUTS[kind].recognise(folder)), None)
            if kind is not None:
                below[name] = kind
    return below


def kind_of(path: str | Path, among: Collection[Annotation] = _CLASSES) -> str | None:
    """Return the likeliest kind of a path with one of these annotations, or None."""
    return next((kind for kind in kinds_of(path) if LAYOUTS[kind].annotation in among), None)


def recipe_for(kind: str) -> str:
    """Return the recipe that comes with plusx for data of this kind."""
    recipes = {
        "classes": "images",
        "texts": "text",
        "translations": "translate",
        "sounds": "commands",
        "transcripts": "speech",
        "volumes": "volumes",
    }
    annotation = LAYOUTS[kind].annotation
    return recipes.get(kind, recipes.get(annotation, annotation))


def choose_kind(path: str, stated: str | None, among: Collection[Annotation], advice: str) -> str:
    """Return the kind to read a path as.

    stated: the recipe's kind, for another path. Kinds with its annotation are preferred; if nothing
        is recognised it is returned, so that its reader reports what is missing
    among: the annotations that the task can use
    advice: what to do about data with other annotations
    Raises UserError if the path can be read in no way, or in several.
    """
    kinds, shown = kinds_of(path), printable(path)
    if stated is not None and not kinds and not is_hinted(path):
        return stated
    usable = [kind for kind in kinds if LAYOUTS[kind].annotation in among]
    annotation = LAYOUTS[stated].annotation if stated in LAYOUTS else None
    usable = [kind for kind in usable if LAYOUTS[kind].annotation == annotation] or usable
    if len(usable) == 1:
        return usable[0]
    readings = " or as ".join(f'"{kind}" ({kinds[kind]})' for kind in usable or kinds)
    if usable:
        raise UserError(f"{shown} can be read as {readings}: choose one with data.kind=KIND")
    if kinds:
        kind = next(iter(kinds))
        fields = LAYOUTS[kind].fields(os.fspath(located(path)))
        overrides = "".join(f" data.{name}={value}" for name, value in fields.items())
        raise UserError(
            f"{shown} can be read as {readings}{advice}: `plusx train {recipe_for(kind)} "
            f"data.path={shown}{overrides}` trains on it"
        )
    raise unrecognised(path)


def is_hinted(path: str | Path) -> bool:
    """Whether `unrecognised` has a specific hint for an existing path."""
    file = os.fspath(located(path))
    return bool(published_set(file) or data_below(file))


def unrecognised(path: str | Path) -> UserError:
    """Return the error for a path that cannot be read in any way."""
    shown, file = printable(path), os.fspath(located(path))
    if not os.path.lexists(file):
        return UserError(f"{shown} is missing: there is no such folder or file")
    if os.path.isfile(os.path.join(file, "recipe.toml")):
        return UserError(
            f"{shown} is the folder of a run, not data: `plusx evaluate {shown}` prints its "
            f"metrics, `plusx report {shown}` writes its page"
        )
    if name := published_set(file):
        return UserError(
            f"{shown} has the files of the named data set {name}: use `plusx info {name}`, or "
            f"data.kind={name} in recipes; its files are searched under PLUSX_DATA"
        )
    if below := data_below(file):
        several = ", ".join(f"{printable(name)} ({kind})" for name, kind in list(below.items())[:5])
        first = printable(os.path.join(os.fspath(path), next(iter(below))))
        more = f", and {len(below) - 5} more" if len(below) > 5 else ""
        return UserError(
            f"{shown} is not a data set itself, but contains data sets: {several}{more}; give the "
            f"path of one, as in `plusx info {first}`"
        )
    if os.path.isfile(file) and begins_as_image(file):
        return UserError(
            f"{shown} is one image, not a data set: `plusx predict RUN {shown}` predicts for it; "
            "data sets are folders, or CSVs with the paths of images"
        )
    if columns := columns_of_table(file):
        names, train = ", ".join(map(printable, columns)), "`plusx train"
        return UserError(
            f"{shown} has the columns {names}; recognised are tables with path and label (images), "
            "path and caption (captions), path and text (recordings), and text and label (texts). "
            f"Other columns can be named: {train} text data.path={shown} "
            f"data.text=COLUMN data.label=COLUMN`, {train} translate data.path={shown} "
            f"data.source=COLUMN data.target=COLUMN`, {train} captions data.path={shown} "
            "data.caption=COLUMN`"
        )
    return UserError(
        f"{shown} is not data that plusx can read: a folder (of images, recordings, texts or pairs "
        "of sentences), a CSV, TSV or JSONL (of images, captions, recordings or texts), a JSON of "
        "COCO, tar files or a packed file"
    )

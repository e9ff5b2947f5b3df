"""Opening the data sets of a recipe's [data]; `DATA` has an entry for each kind."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plusx.data import subset
from plusx.data.command_grammar import open_grammar
from plusx.data.dataset import Dataset, Split, as_split
from plusx.data.image_file import printable
from plusx.data.modality import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AudioModality,
    BandsModality,
    ImageModality,
    Modality,
    TextModality,
)
from plusx.data.modality.bands import select_bands
from plusx.data.readers.annotated import open_annotated
from plusx.data.readers.annotation_index import LayoutOptions
from plusx.data.readers.captions import Vocabulary, caption_splits, open_captions
from plusx.data.readers.layouts import LAYOUTS, kind_of, kinds_of
from plusx.data.readers.open import open_data
from plusx.data.readers.parallel import PairNames, open_parallel, parallel_splits
from plusx.data.readers.people import open_people
from plusx.data.readers.recordings import (
    BACKGROUND,
    BACKGROUND_FOLDER,
    UNKNOWN,
    open_recordings,
    recording_splits,
)
from plusx.data.readers.texts import TextColumns, open_texts
from plusx.data.readers.transcripts import TextRules, open_transcripts, transcript_splits
from plusx.data.readers.volume_files import list_cases
from plusx.data.readers.volumes import open_volumes
from plusx.data.sets.cells import open_cells
from plusx.data.sets.digit_strings import MAX_STRING_SECONDS, open_digit_strings
from plusx.data.sets.download import located
from plusx.data.sets.ellipsoids import open_ellipsoids
from plusx.data.sets.scenes import open_scenes
from plusx.data.sets.voice_commands import (
    ALPHABET,
    MAX_PHRASE_SECONDS,
    Counts,
    synthesised,
)
from plusx.data.splits import own_splits
from plusx.data.tokenizer import BLANK, SPACE, Tokenizer
from plusx.errors import UserError
from plusx.recipe import KnownData, OwnData, Recipe
from plusx.recipe.sets import (
    AnnotatedData,
    CaptionData,
    CellData,
    DigitStringData,
    EllipsoidData,
    ParallelData,
    PeopleData,
    RecordingData,
    SceneData,
    TextData,
    TranscriptData,
    VoiceCommandData,
    VolumeData,
)


@dataclass(frozen=True)
class DataKind:
    """A value of `kind` in [data].

    table: the type of [data]
    open: (recipe, table, split) -> the data set
    splits: table -> the splits that the data at its path defines; None for named and synthetic sets
    at: (table, another path, class names of a network) -> the table for that path
    published: whether mean and deviation are published with the set, not measured
    by_class: whether images have class labels, so that any other such kind can replace it
    has_people: whether the classes are people, each in only one split
    resolve: (table, training set) -> the table with the fields set that follow from the set
    """

    table: type
    open: Callable[[Recipe, Any, str], Dataset]
    splits: Callable[[Any], tuple[str, ...]] | None = None
    at: Callable[[Any, str, tuple[str, ...]], Any] = lambda data, path, _: replace(data, path=path)
    published: bool = False
    by_class: bool = False
    has_people: bool = False
    resolve: Callable[[Any, Dataset], Any] = lambda table, dataset: table


def open_split(recipe: Recipe, split: str) -> Dataset:
    """Open a split of the recipe's data. Raises UserError if it is missing or invalid."""
    data = recipe.data
    path: str | None = getattr(data, "path", None)
    if path is not None and not os.path.lexists(located(path)) and not kinds_of(path):
        raise UserError(
            f"{printable(path)} is missing: there is no such folder or file; data.path=PATH says "
            "where the data is"
        )
    dataset = DATA[data.kind].open(recipe, data, split)
    per_class: int | None = getattr(data, "per_class", None)
    train: int | float | None = getattr(data, "train", None)
    if split != "train" or (train is None and per_class is None):
        return dataset
    if per_class is not None:
        if train is not None:
            raise UserError("[data] train and per_class: give only one of them")
        return subset.few_per_class(dataset, per_class, recipe.seed)
    assert train is not None
    return subset.first_images(dataset, train, recipe.seed)


def open_train_and_validation(recipe: Recipe) -> tuple[Dataset, Dataset | None]:
    """Open the training set and the validation set, None without held-out samples."""
    train = open_split(recipe, "train")
    if not DATA[recipe.data.kind].published:
        train = train.fitted()
    if recipe.data.validation == 0:
        return train, None
    return train, open_split(recipe, "validation").like(train.modality, train.classes)


def at_another_path(
    recipe: Recipe, data: str | Path, split: Split, classes: tuple[str, ...]
) -> tuple[Recipe, Split]:
    """Return the recipe for data at another path, and the split to open.

    Data that defines no splits is opened completely ("all"). `classes` are the network's class
    names, () if unknown. Raises UserError if the recipe's kind of data is synthetic.
    """
    kind = DATA[recipe.data.kind]
    if kind.splits is None:
        raise UserError(f'[data] kind = "{recipe.data.kind}" is synthetic and has no files: {data}')
    table = kind.at(recipe.data, str(data), classes)
    splits = kind.splits(table)
    table = replace(table, validation=None if splits else 0)
    return replace(recipe, data=table), split if splits else "all"


def _layout_splits(data: AnnotatedData | PeopleData | TextData) -> tuple[str, ...]:
    return LAYOUTS[data.kind].splits(os.fspath(located(data.path)))


def open_for_network(
    kind: str, path: str | Path, split: str, modality: Modality, classes: tuple[str, ...]
) -> Dataset:
    """Open texts, recordings or transcripts for a network without its recipe, with its classes.

    Settings that only a recipe has, such as names of columns, have their defaults. Raises
    UserError.
    """
    located_path, seed = located(path), 0
    if kind == "texts":
        assert isinstance(modality, TextModality)
        return open_texts(
            located_path, modality, split=split, seed=seed, validation=None, classes=classes
        )
    assert isinstance(modality, AudioModality)
    if kind == "recordings":
        others = (UNKNOWN, BACKGROUND)
        keywords = tuple(name for name in classes if name not in others)
        return open_recordings(
            located_path,
            modality,
            split=split,
            seed=seed,
            keywords=keywords if UNKNOWN in classes else (),
            background=BACKGROUND_FOLDER,
            piece=modality.samples if BACKGROUND in classes else 0,
            classes=classes,
        )
    alphabet = "".join(classes).replace(BLANK, "").replace(SPACE, " ")
    rules = TextRules(alphabet, lower=alphabet == alphabet.lower())
    dataset = open_transcripts(located_path, modality, rules=rules, split=split, seed=seed)
    return dataset.like(modality, classes)


def replace_path(data: Any, path: str, on_unreadable: str) -> Any:
    """Return the table with another path."""
    return replace(data, path=path, on_unreadable=on_unreadable)


def _open_named(recipe: Recipe, data: KnownData, split: str) -> Dataset:
    dataset = open_data(
        data.kind, split=split, seed=recipe.seed, validation=data.validation, size=data.size
    )
    return _select(dataset, data)


def _open_own(recipe: Recipe, data: OwnData, split: str) -> Dataset:
    path = located(data.path)
    kinds = kinds_of(path)
    if kinds and not LAYOUTS[data.kind].recognise(os.fspath(path)):
        kind, reason = next(iter(kinds.items()))
        raise UserError(
            f'[data] kind = "{data.kind}", but {printable(data.path)} is of the kind "{kind}" '
            f"({reason})"
        )
    dataset = open_data(
        path,
        kind=data.kind,
        split=split,
        seed=recipe.seed,
        validation=data.validation,
        size=data.size,
        on_unreadable=data.on_unreadable,
        decoder=data.decoder,
        modality=own_modality(data),
        multilabel=getattr(recipe.task, "multilabel", False),
    )
    return _select(dataset, data)


def _select(dataset: Dataset, data: KnownData | OwnData) -> Dataset:
    """Return the data set with only the classes and bands that the recipe names."""
    if data.classes is not None:
        dataset = subset.of_classes(dataset, data.classes)
    return dataset if data.bands is None else subset.of_bands(dataset, data.bands)


def own_modality(data: OwnData) -> Modality | None:
    """Return the modality of images with bands, or a maximum size; None for plain RGB images.

    Mean and deviation of bands are placeholders until they are measured on the training set.
    Raises UserError for an invalid range or band.
    """
    if (data.channels, data.range, data.bands, data.max_pixels) == (None,) * 4:
        return None
    size = (data.size, data.size)
    low, high = data.range or (0.0, 255.0)
    if low >= high:
        raise UserError(f"[data] range = [{low}, {high}]: the first number must be lower")
    stored = data.channels or (3 if data.bands is None else max(data.bands))
    if data.range is None and data.bands is None and stored in (1, 3):
        mean, std = IMAGENET_MEAN[stored], IMAGENET_STD[stored]
        return ImageModality(size, stored, mean, std, max_pixels=data.max_pixels)
    if data.max_pixels is not None:
        raise UserError("[data] max_pixels is only for 8-bit images, not for bands")
    modality = BandsModality(size, stored, (0.5,) * stored, (0.25,) * stored, low, high)
    if data.bands is None:
        return modality
    for band in data.bands:
        if band > stored or data.bands.count(band) > 1:
            reason = "is listed twice" if band <= stored else f"is not one of {stored} channels"
            raise UserError(f"[data] bands = {list(data.bands)}: {band} {reason}")
    return select_bands(modality, data.bands)


def _wants_masks(recipe: Recipe) -> bool:
    """Whether the head needs instance masks."""
    return recipe.head is not None and recipe.head.has_masks


def _open_annotated(recipe: Recipe, data: AnnotatedData, split: str) -> Dataset:
    options = LayoutOptions(
        classes=data.classes,
        values=data.values,
        ignore=data.ignore,
        test=data.test,
        channels=data.channels,
        components=data.components,
        min_area=data.min_area,
        instances=_wants_masks(recipe),
        max_pixels=data.max_pixels,
    )
    return open_annotated(
        data.path,
        data.kind,
        split=split,
        seed=recipe.seed,
        validation=data.validation,
        size=data.size,
        on_unreadable=data.on_unreadable,
        options=options,
    )


def _annotated_at(data: AnnotatedData, path: str, classes: tuple[str, ...]) -> AnnotatedData:
    # other data need not contain every class
    names = data.classes if data.kind == "masks" or not classes else classes
    # boxes may be in another format there
    annotation, kinds = LAYOUTS[data.kind].annotation, kinds_of(path)
    kind: Any = data.kind if data.kind in kinds else kind_of(path, (annotation,)) or data.kind
    return replace(data, kind=kind, path=path, test="", classes=names)


def _open_cells(recipe: Recipe, data: CellData, split: str) -> Dataset:
    return open_cells(split, size=data.size, instances=_wants_masks(recipe))


def _open_scenes(recipe: Recipe, data: SceneData, split: str) -> Dataset:
    return open_scenes(split, size=data.size)


def _open_captions(recipe: Recipe, data: CaptionData, split: str) -> Dataset:
    return open_captions(
        data.path,
        ImageModality(
            data.size,
            3,
            IMAGENET_MEAN[3],
            IMAGENET_STD[3],
            resize="stretch",
            max_pixels=data.max_pixels,
        ),
        Vocabulary(data.tokenizer, data.vocabulary, data.lower),
        split=split,
        seed=recipe.seed,
        validation=data.validation,
        column=data.caption,
        on_unreadable=data.on_unreadable,
    )


def _open_people(recipe: Recipe, data: PeopleData, split: str) -> Dataset:
    return open_people(
        located(data.path),
        split=split,
        seed=recipe.seed,
        validation=data.validation,
        test=data.test,
        size=data.size,
        channels=data.channels,
        on_unreadable=data.on_unreadable,
        max_pixels=data.max_pixels,
    )


def _open_volumes(recipe: Recipe, data: VolumeData, split: str) -> Dataset:
    return open_volumes(
        located(data.path),
        split=split,
        seed=recipe.seed,
        classes=data.classes or (),
        range=data.range,
        window=data.window,
        spacing=data.spacing,
        orientation=data.orientation,
        patch=data.patch,
        patches=data.patches,
        foreground=data.foreground,
        ignore=data.ignore,
        patient=data.patient,
        channels=data.channels,
        validation=data.validation,
        on_unreadable=data.on_unreadable,
    )


def _with_spacing(data: VolumeData, dataset: Dataset) -> VolumeData:
    """Set the spacing to that of the training set, to which all volumes are resampled."""
    assert dataset.modality.grid is not None
    return replace(data, spacing=dataset.modality.grid.spacing)


def _open_ellipsoids(recipe: Recipe, data: EllipsoidData, split: str) -> Dataset:
    part, seed = as_split(split), recipe.seed
    return open_ellipsoids(part, data.validation, seed, data.patch, data.patches, data.foreground)


def _open_texts(recipe: Recipe, data: TextData, split: str) -> Dataset:
    modality = TextModality(
        Tokenizer(data.tokenizer, lower=data.lower),
        vocabulary_size=data.vocabulary,
        max_length=data.max_length,
        min_length=data.min_length,
    )
    return open_texts(
        data.path,
        modality,
        split=split,
        seed=recipe.seed,
        validation=data.validation,
        columns=TextColumns(data.text, data.label, data.split, data.test),
        on_unreadable=data.on_unreadable,
    )


def _open_parallel(recipe: Recipe, data: ParallelData, split: str) -> Dataset:
    modality = TextModality(
        Tokenizer(data.tokenizer, lower=data.lower),
        vocabulary_size=data.vocabulary,
        max_length=data.max_length,
        min_length=1,
    )
    return open_parallel(
        data.path,
        modality,
        _pair_names(data),
        split=split,
        seed=recipe.seed,
        validation=data.validation,
        on_unreadable=data.on_unreadable,
    )


def _pair_names(data: ParallelData) -> PairNames:
    return PairNames(data.source, data.target, data.test)


def _fixed_sound(data: RecordingData) -> AudioModality:
    return AudioModality(
        rate=data.rate,
        seconds=data.seconds,
        fixed=True,
        layout=data.layout,
        mels=data.mels,
        window=data.window,
        hop=data.hop,
    )


def _sound_sequences(
    data: TranscriptData | DigitStringData | VoiceCommandData, seconds: float
) -> AudioModality:
    return AudioModality(
        rate=data.rate,
        seconds=seconds,
        fixed=False,
        mels=data.mels,
        window=data.window,
        hop=data.hop,
    )


def _open_recordings(recipe: Recipe, data: RecordingData, split: str) -> Dataset:
    modality = _fixed_sound(data)
    return open_recordings(
        located(data.path),
        modality,
        split=split,
        seed=recipe.seed,
        validation=data.validation,
        label=data.label,
        group=data.group,
        test=data.test,
        keywords=data.keywords,
        background=data.background,
        piece=modality.samples,
        on_unreadable=data.on_unreadable,
    )


def _open_transcripts(recipe: Recipe, data: TranscriptData, split: str) -> Dataset:
    return open_transcripts(
        located(data.path),
        _sound_sequences(data, data.seconds),
        rules=TextRules(data.alphabet, data.lower, data.replace, data.outside),
        split=split,
        seed=recipe.seed,
        validation=data.validation,
        on_unreadable=data.on_unreadable,
    )


def _open_digit_strings(recipe: Recipe, data: DigitStringData, split: str) -> Dataset:
    counts = {"validation": data.validation_strings, "test": data.test_strings}
    return open_digit_strings(
        located(data.path),
        _sound_sequences(data, MAX_STRING_SECONDS),
        split=as_split(split),
        seed=recipe.seed,
        count=counts.get(split, data.strings),
        label=data.label,
        speaker=data.speaker,
        test=data.test,
        validation=data.validation,
        by_speaker=data.by_speaker,
        on_unreadable=data.on_unreadable,
    )


def _open_voice_commands(recipe: Recipe, data: VoiceCommandData, split: str) -> Dataset:
    counts = Counts(data.phrases, data.validation_phrases, data.test_phrases, data.outside)
    manifest = synthesised(open_grammar(data.grammar), counts, rate=data.rate, seed=recipe.seed)
    dataset = open_transcripts(
        manifest,
        _sound_sequences(data, MAX_PHRASE_SECONDS),
        rules=TextRules(ALPHABET),
        split=split,
        seed=recipe.seed,
    )
    return replace(dataset, name="synthetic voice-commands")


_NAMED = DataKind(KnownData, _open_named, published=True, by_class=True)
_OWN = DataKind(OwnData, _open_own, by_class=True)
_ANNOTATED = DataKind(AnnotatedData, _open_annotated, _layout_splits, _annotated_at)

DATA: dict[str, DataKind] = {
    "digits": _NAMED,
    "fashion-mnist": _NAMED,
    "cifar10": _NAMED,
    "cifar100": _NAMED,
    "svhn": _NAMED,
    "svhn-extra": _NAMED,
    "mosaics": _NAMED,
    "bands": _NAMED,
    "folder": _OWN,
    "csv": _OWN,
    "packed": _OWN,
    "shards": _OWN,
    "voc": _ANNOTATED,
    "coco": _ANNOTATED,
    "yolo": _ANNOTATED,
    "boxes": _ANNOTATED,
    "masks": _ANNOTATED,
    "texts": DataKind(
        TextData,
        _open_texts,
        _layout_splits,
        at=lambda data, path, _: replace(data, path=path, test=()),
    ),
    "parallel": DataKind(
        ParallelData,
        _open_parallel,
        lambda data: parallel_splits(data.path, _pair_names(data)),
    ),
    "cells": DataKind(CellData, _open_cells),
    "scenes": DataKind(SceneData, _open_scenes),
    "captions": DataKind(
        CaptionData, _open_captions, lambda data: caption_splits(data.path, data.caption)
    ),
    "people": DataKind(
        PeopleData,
        _open_people,
        _layout_splits,
        at=lambda data, path, _: replace(data, path=path, test=0),
        has_people=True,
    ),
    "volumes": DataKind(
        VolumeData,
        _open_volumes,
        lambda data: own_splits(list_cases(located(data.path), data.patient)),
        resolve=_with_spacing,
    ),
    "ellipsoids": DataKind(EllipsoidData, _open_ellipsoids),
    "recordings": DataKind(
        RecordingData,
        _open_recordings,
        lambda data: recording_splits(located(data.path), data.label, data.test, data.background),
    ),
    "transcripts": DataKind(
        TranscriptData,
        _open_transcripts,
        lambda data: transcript_splits(located(data.path)),
    ),
    "digit-strings": DataKind(DigitStringData, _open_digit_strings),
    "voice-commands": DataKind(VoiceCommandData, _open_voice_commands),
}

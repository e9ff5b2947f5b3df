"""The table [data] of a recipe: one dataclass for each `kind` of data."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field
from pydantic.dataclasses import dataclass

from plusx.recipe.values import (
    CONFIG,
    Count,
    CountOrFraction,
    Fraction,
    IdentitySelector,
    Name,
    Number,
    Path,
    Positive,
    Rate,
    StrictBool,
    UnitInterval,
)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class NoMix:
    """Training images are not mixed."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Mix:
    """Training images are mixed in pairs (Zhang et al. 2018; Yun et al. 2019)."""

    kind: Literal["mixup", "cutmix"]
    alpha: Rate = 1.0


# the order of an epoch: each image once, classes in equal numbers, groups of one class, or each
# image as two adjacent views
Sampler = Literal["uniform", "balanced", "pk", "views"]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class KnownData:
    """A named data set, or one that plusx generates."""

    kind: Literal[
        "digits",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "svhn",
        "svhn-extra",
        "mosaics",
        "bands",
    ]
    size: Positive | None = None  # pixels per side; None: as published
    augment: str = ""
    mix: Annotated[NoMix | Mix, Discriminator("kind")] = NoMix()
    validation: CountOrFraction | None = None  # images, or their fraction; None: default of the set
    train: CountOrFraction | None = None  # training images, or their fraction; None: all
    per_class: Positive | None = None  # training images per class; None: all
    classes: tuple[Name, ...] | None = None  # classes to use; None: all
    bands: tuple[Positive, ...] | None = None  # channels to use, from 1; None: all
    sampler: Sampler = "uniform"
    samples_per_class: Positive = 4  # per group, with sampler = "pk"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class OwnData:
    """A folder with a subfolder per class, a CSV with the columns path,label and optionally split,
    a folder packed by `plusx pack`, or tar files with images and their classes."""

    kind: Literal["folder", "csv", "packed", "shards"]
    path: Path
    size: Positive = 224
    augment: str = ""
    mix: Annotated[NoMix | Mix, Discriminator("kind")] = NoMix()
    validation: CountOrFraction | None = None
    train: CountOrFraction | None = None  # training images, or their fraction; None: all
    per_class: Positive | None = None  # training images per class; None: all
    classes: tuple[Name, ...] | None = None  # classes to use; None: all
    channels: Positive | None = None  # of a stored image; None: RGB
    range: tuple[Number, Number] | None = None  # of stored values; None: 0 to 255
    bands: tuple[Positive, ...] | None = None  # channels to use, from 1; None: all
    on_unreadable: Literal["error", "skip"] = "error"
    max_pixels: Positive | None = None  # of an image; None: 200 million
    decoder: Literal["pillow", "simplejpeg"] = "pillow"  # of JPEGs; not used for packed images
    sampler: Sampler = "uniform"
    samples_per_class: Positive = 4  # per group, with sampler = "pk"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class AnnotatedData:
    """Images with boxes or masks: a folder in the layout of Pascal VOC or YOLO, a COCO JSON, a CSV
    of boxes, or folders of images and of masks."""

    kind: Literal["voc", "coco", "yolo", "boxes", "masks"]
    path: Path
    size: tuple[Positive, Positive] | None = None  # height and width; None: unchanged
    channels: Literal[1, 3] = 3  # 1: greyscale
    classes: tuple[str, ...] = ()  # names in order; (): as in the data
    values: tuple[Count, ...] = ()  # of masks: one per class; (): 0, 1, 2, ...
    ignore: tuple[Count, ...] = ()  # of masks: ignored values
    test: str = ""  # regular expression for the names of test images
    components: tuple[str, ...] = ()  # of masks: classes whose connected components are objects
    min_area: Positive = 20  # pixels of a component; smaller ones are ignored
    augment: str = ""
    mix: NoMix = NoMix()
    validation: CountOrFraction | None = None
    train: CountOrFraction | None = None
    on_unreadable: Literal["error", "skip"] = "error"
    max_pixels: Positive | None = None  # of an image; None: 200 million
    sampler: Literal["uniform", "balanced"] = "uniform"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class PeopleData:
    """A folder with a subfolder per person, with aligned crops of faces. Each person is used for
    training, validation or test only."""

    kind: Literal["people"] = "people"
    path: Path
    size: tuple[Positive, Positive] = (112, 112)  # height and width of the network's input
    channels: Literal[1, 3] = 3
    augment: str = ""
    mix: NoMix = NoMix()
    validation: IdentitySelector | None = None  # of the people outside the test set; None: 0.2
    test: IdentitySelector = 0
    sampler: Sampler = "uniform"
    samples_per_class: Positive = 4  # per person and group, with sampler = "pk"
    on_unreadable: Literal["error", "skip"] = "error"
    max_pixels: Positive | None = None  # of an image; None: 200 million
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TextData:
    """Texts with classes: a CSV, TSV or JSONL file, or a folder of class folders of .txt files."""

    kind: Literal["texts"] = "texts"
    path: Path
    text: Name = "text"  # the column of the texts
    label: Name = "label"  # the column of the classes
    split: Name = "split"  # the column of the splits, if there is one
    test: tuple[str, ...] = ()  # cells of that column that are the test set; (): names of splits
    tokenizer: Literal["bytes", "characters", "words", "bpe"] = "words"
    vocabulary: Annotated[int, Field(ge=2, le=200_000)] = 20_000  # tokens at most
    lower: StrictBool = True  # in lower case
    max_length: Positive = 512  # tokens; longer texts are cut
    min_length: Positive = 16  # tokens; shorter texts are padded
    augment: str = ""
    mix: NoMix = NoMix()
    validation: CountOrFraction | None = None  # texts, or their fraction; None: 0.2
    train: CountOrFraction | None = None  # training texts, or their fraction; None: all
    per_class: Positive | None = None  # training texts per class; None: all
    on_unreadable: Literal["error", "skip"] = "error"
    # bucketed: texts of similar length in a batch
    sampler: Literal["uniform", "balanced", "bucketed"] = "bucketed"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ParallelData:
    """Sentences and their translations: files SPLIT.LANGUAGE of one sentence a line, or two columns
    of a CSV, TSV or JSONL file."""

    kind: Literal["parallel"] = "parallel"
    path: Path
    source: Name  # the language that is translated: the ending of its files, or its column
    target: Name
    test: Name = "test"  # name of the test split: of its files, or in the column split
    tokenizer: Literal["bytes", "characters", "words", "bpe"] = "bpe"
    vocabulary: Annotated[int, Field(ge=3, le=200_000)] = 4000  # tokens of each language at most
    lower: StrictBool = False
    max_length: Positive = 100  # tokens; longer sentences are cut
    augment: str = ""
    mix: NoMix = NoMix()
    validation: CountOrFraction | None = None  # pairs, or their fraction; None: 0.2
    train: CountOrFraction | None = None  # training pairs, or their fraction; None: all
    on_unreadable: Literal["error", "skip"] = "error"
    sampler: Literal["uniform", "bucketed"] = "bucketed"
    workers: Count = 0


Patch = tuple[Positive, Positive, Positive]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class VolumeData:
    """A folder of volumes, images/NAME.nii.gz or images/NAME/ with a DICOM series, and their masks,
    labels/NAME.nii.gz; or subfolders train, val and test with the same structure."""

    kind: Literal["volumes"]
    path: Path
    # of the masks' numbers 0, 1, ...; None: those of dataset.json
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    range: tuple[Number, Number]  # the values that volumes may have; others are refused
    # the part of the range that is the network's input; None: all
    window: tuple[Number, Number] | Literal["percentiles"] | None = None
    channels: Positive = 1  # the fourth dimension of a NIfTI file
    spacing: tuple[Rate, Rate, Rate] | None = None  # mm per voxel; None: unchanged
    orientation: str = "SPL"  # directions of increasing slices, rows and columns
    patch: Patch = (64, 64, 64)  # voxels of the network's input
    patches: Positive = 4  # per volume and epoch
    foreground: UnitInterval = 0.5  # fraction of patches with a class other than the first
    ignore: tuple[Count, ...] = ()  # ignored mask values
    patient: str = ""  # regular expression whose group is the patient; "": one per volume
    augment: str = ""
    mix: NoMix = NoMix()
    validation: CountOrFraction | None = None  # patients, or their fraction; None: 0.2
    train: CountOrFraction | None = None  # training volumes, or their fraction; None: all
    on_unreadable: Literal["error", "skip"] = "error"
    sampler: Literal["uniform"] = "uniform"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EllipsoidData:
    """Synthetic volumes: ellipsoids in noise that cannot be segmented by a threshold."""

    kind: Literal["ellipsoids"]
    patch: Patch = (32, 32, 32)
    patches: Positive = 4
    foreground: UnitInterval = 0.5
    augment: str = ""
    mix: NoMix = NoMix()
    validation: CountOrFraction | None = None  # patients, or their fraction; None: 12
    train: CountOrFraction | None = None
    sampler: Literal["uniform"] = "uniform"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CellData:
    """Synthetic images: overlapping discs and rods, each with its mask."""

    kind: Literal["cells"]
    size: tuple[Positive, Positive] = (128, 128)  # height and width of the network's input
    augment: str = ""
    mix: NoMix = NoMix()
    validation: Literal[0] | None = None  # 0: none is held out
    train: CountOrFraction | None = None
    sampler: Literal["uniform", "balanced"] = "uniform"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class RecordingData:
    """Recordings with classes: a folder of class folders, or files whose names have the class."""

    kind: Literal["recordings"]
    path: Path
    rate: Positive = 16_000  # samples per second of the network's input
    seconds: Rate = 1.0  # of every input: longer recordings are cropped, shorter ones padded
    mels: Positive = 40  # bands of the spectrogram
    window: Rate = 0.025  # of the spectrogram, in seconds
    hop: Rate = 0.010  # seconds between two spectra
    layout: Literal["sequence", "image"] = (
        "sequence"  # mels x time for networks in 1-D; "image": time x mels for 2-D
    )
    label: str = ""  # regular expression whose group is the class; "": the class folder
    group: str = ""  # regular expression whose group stays together in a split, as a speaker
    test: str = ""  # regular expression for the paths of the test set
    keywords: tuple[Name, ...] = ()  # classes; all others are "unknown". (): all are classes
    background: str = "_background_noise_"  # folder of noise, cut into a class; "": none
    augment: str = ""
    mix: Annotated[NoMix | Mix, Discriminator("kind")] = NoMix()
    validation: CountOrFraction | None = None  # recordings, or their fraction; None: 0.2
    train: CountOrFraction | None = None
    per_class: Positive | None = None  # training recordings per class; None: all
    on_unreadable: Literal["error", "skip"] = "error"
    sampler: Literal["uniform", "balanced", "views"] = "uniform"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TranscriptData:
    """Recordings with transcripts: a CSV, TSV or JSONL with path and text, or a folder of
    LibriSpeech."""

    kind: Literal["transcripts"]
    path: Path
    rate: Positive = 16_000
    seconds: Rate = 20.0  # longer recordings are refused
    mels: Positive = 64
    window: Rate = 0.025
    hop: Rate = 0.010
    alphabet: str = ""  # characters of transcripts; "": those of the training set
    lower: StrictBool = True  # transcripts in lower case
    replace: tuple[tuple[str, str], ...] = ()  # texts and their replacements
    # characters outside the alphabet: an error, left out, or their recordings left out
    outside: Literal["error", "drop", "skip"] = "error"
    augment: str = ""
    mix: NoMix = NoMix()
    validation: CountOrFraction | None = None
    train: CountOrFraction | None = None
    on_unreadable: Literal["error", "skip"] = "error"
    # bucketed: recordings of similar length in a batch
    sampler: Literal["uniform", "bucketed"] = "bucketed"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class DigitStringData:
    """Synthetic strings of 1 to 7 recordings of spoken digits, and the digits as words."""

    kind: Literal["digit-strings"]
    path: Path
    rate: Positive = 8_000
    mels: Positive = 40
    window: Rate = 0.025
    hop: Rate = 0.010
    label: str = r"(\d)_"  # regular expression whose group is the digit
    speaker: str = r"\d_(.*)_"  # regular expression whose group is the speaker
    test: str = ""  # regular expression for the recordings of the test set
    by_speaker: StrictBool = False  # whether validation has other speakers than training
    strings: Positive = 4_000  # of the training set
    test_strings: Positive = 1_000
    validation_strings: Positive = 500
    augment: str = ""
    mix: NoMix = NoMix()
    validation: CountOrFraction | None = None  # recordings, or their fraction; None: 0.2
    train: CountOrFraction | None = None
    on_unreadable: Literal["error", "skip"] = "error"
    sampler: Literal["uniform", "bucketed"] = "bucketed"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class VoiceCommandData:
    """Synthetic recordings of the phrases of a command grammar, spoken by espeak-ng, and of other
    phrases to be rejected."""

    kind: Literal["voice-commands"]
    grammar: Path = "home"  # a TOML file, or the name of a grammar that comes with plusx
    rate: Positive = 16_000
    mels: Positive = 40
    window: Rate = 0.025
    hop: Rate = 0.010
    phrases: Positive = 4_000  # of the training set
    validation_phrases: Positive = 400
    test_phrases: Positive = 1_000
    outside: Fraction = 0.25  # fraction of phrases outside the grammar, in each split
    augment: str = ""
    mix: NoMix = NoMix()
    validation: Literal[0] | None = None  # 0: no evaluation on the validation phrases
    train: CountOrFraction | None = None
    sampler: Literal["uniform", "bucketed"] = "bucketed"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SceneData:
    """Synthetic images of one to three coloured shapes, each with a sentence that describes it."""

    kind: Literal["scenes"]
    size: tuple[Positive, Positive] = (64, 64)  # height and width of the network's input
    augment: str = ""
    mix: NoMix = NoMix()
    validation: Literal[0] | None = None  # 0: no evaluation on the validation images
    train: CountOrFraction | None = None
    sampler: Literal["uniform"] = "uniform"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CaptionData:
    """Images with captions: a CSV, TSV or JSONL file with the columns path and caption, and
    optionally split. An image may have several captions, a row each."""

    kind: Literal["captions"] = "captions"
    path: Path
    caption: Name = "caption"  # the column of the captions
    size: tuple[Positive, Positive] = (224, 224)  # height and width of the network's input
    tokenizer: Literal["bytes", "characters", "words", "bpe"] = "words"
    vocabulary: Annotated[int, Field(ge=3, le=200_000)] = 4000  # tokens at most
    lower: StrictBool = True  # in lower case
    augment: str = ""
    mix: NoMix = NoMix()
    validation: CountOrFraction | None = None  # captions, or their fraction; None: 0.2
    train: CountOrFraction | None = None  # training captions, or their fraction; None: all
    on_unreadable: Literal["error", "skip"] = "error"
    max_pixels: Positive | None = None  # of an image; None: 200 million
    sampler: Literal["uniform"] = "uniform"
    workers: Count = 0


Data = (
    KnownData
    | OwnData
    | AnnotatedData
    | CellData
    | SceneData
    | CaptionData
    | PeopleData
    | VolumeData
    | EllipsoidData
    | TextData
    | ParallelData
    | RecordingData
    | TranscriptData
    | DigitStringData
    | VoiceCommandData
)

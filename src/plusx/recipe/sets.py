"""[data] of a recipe: one table for each `kind` of data."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field
from pydantic.dataclasses import dataclass

from plusx.recipe.values import (
    CONFIG,
    Count,
    CountOrFraction,
    IdentitySelector,
    Name,
    Number,
    Positive,
    Rate,
    UnitInterval,
)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class NoMix:
    kind: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Mix:
    kind: Literal["mixup", "cutmix"]
    alpha: Rate = 1.0


# the order of an epoch: each image once, classes in equal numbers, or groups of one class
Sampler = Literal["uniform", "balanced", "pk"]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class KnownData:
    """A set that plusx knows by name."""

    kind: Literal["digits", "fashion-mnist", "cifar10", "cifar100", "mosaics", "bands"]
    size: Positive | None = None  # positions a dimension; None: as published
    augment: str = ""
    mix: Annotated[NoMix | Mix, Discriminator("kind")] = NoMix()
    validation: CountOrFraction | None = None  # images, or their fraction; None: the set's own rule
    train: CountOrFraction | None = None  # images, or their fraction, to train on; None: all
    per_class: Positive | None = None  # images of each class that are trained on; None: all
    classes: tuple[Name, ...] | None = None  # those that are used; None: all
    bands: tuple[Positive, ...] | None = None  # channels that are used, from 1; None: all
    sampler: Sampler = "uniform"
    samples_per_class: Positive = 4  # that stand together, with sampler = "pk"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class OwnData:
    """A folder of class folders, a CSV with the columns path,label and optionally split, what
    `plusx pack` made of a folder, or tar files that hold images and their classes.
    """

    kind: Literal["folder", "csv", "packed", "shards"]
    path: str
    size: Positive = 224
    augment: str = ""
    mix: Annotated[NoMix | Mix, Discriminator("kind")] = NoMix()
    validation: CountOrFraction | None = None
    train: CountOrFraction | None = None  # images, or their fraction, to train on; None: all
    per_class: Positive | None = None  # images of each class that are trained on; None: all
    classes: tuple[Name, ...] | None = None  # those that are used; None: all
    channels: Positive | None = None  # of an image as it is stored; None: colour images
    range: tuple[Number, Number] | None = None  # of stored values; None: 0 and 255
    bands: tuple[Positive, ...] | None = None  # channels that are used, from 1; None: all
    on_unreadable: Literal["error", "skip"] = "error"
    max_pixels: Positive | None = None  # of an image; None: 200 million
    decoder: Literal["pillow", "simplejpeg"] = "pillow"  # of JPEGs; packed images need none
    sampler: Sampler = "uniform"
    samples_per_class: Positive = 4  # that stand together, with sampler = "pk"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class AnnotatedData:
    """Images with boxes or masks: a folder as Pascal VOC or YOLO has it, a COCO JSON, a CSV of
    boxes, or folders of images and of masks.
    """

    kind: Literal["voc", "coco", "yolo", "boxes", "masks"]
    path: str
    size: tuple[Positive, Positive] | None = None  # height and width; None: as images are
    channels: Literal[1, 3] = 3  # 1: grey
    classes: tuple[str, ...] = ()  # in their order; (): as the data names them
    values: tuple[Count, ...] = ()  # of masks: that of each class; (): 0, 1, 2, ...
    ignore: tuple[Count, ...] = ()  # of masks: values that are ignored
    test: str = ""  # a regular expression: images of such names test, the others train
    components: tuple[str, ...] = ()  # of masks: classes whose connected components become boxes
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
    """A folder of one folder a person, with aligned crops of faces; people train, validate or test,
    none of them in two ways.
    """

    kind: Literal["people"] = "people"
    path: str
    size: tuple[Positive, Positive] = (112, 112)  # height and width of what the network sees
    channels: Literal[1, 3] = 3
    augment: str = ""
    mix: NoMix = NoMix()
    validation: IdentitySelector | None = None  # of those who do not test; None: 0.2 of them
    test: IdentitySelector = 0
    sampler: Sampler = "uniform"
    samples_per_class: Positive = 4  # of a person that stand together, with sampler = "pk"
    on_unreadable: Literal["error", "skip"] = "error"
    max_pixels: Positive | None = None  # of an image; None: 200 million
    workers: Count = 0


Patch = tuple[Positive, Positive, Positive]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class VolumeData:
    """A folder of volumes, images/NAME.nii.gz or images/NAME/ with a DICOM series, and of their
    masks, labels/NAME.nii.gz; the same below train, val and test where the data is divided.
    """

    kind: Literal["volumes"]
    path: str
    # of the masks' numbers 0, 1, ...; None: those of dataset.json
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    range: tuple[Number, Number]  # the values that volumes may have; others are refused
    # what of it the network sees; None: all of it
    window: tuple[Number, Number] | Literal["percentiles"] | None = None
    channels: Positive = 1  # the fourth dimension of a NIfTI file
    spacing: tuple[Rate, Rate, Rate] | None = None  # mm a voxel; None: as volumes have it
    orientation: str = "SPL"  # where slices, rows and columns grow to
    patch: Patch = (64, 64, 64)  # voxels that a network sees at a time
    patches: Positive = 4  # that an epoch takes of each volume
    foreground: UnitInterval = 0.5  # the fraction of them that hold a class other than the first
    ignore: tuple[Count, ...] = ()  # numbers of the masks that are ignored
    patient: str = ""  # a regular expression whose group is the patient; "": each volume's own
    augment: str = ""
    mix: NoMix = NoMix()
    validation: CountOrFraction | None = None  # patients, or their fraction; None: 0.2
    train: CountOrFraction | None = None  # volumes, or their fraction, to train on; None: all
    on_unreadable: Literal["error", "skip"] = "error"
    sampler: Literal["uniform"] = "uniform"
    workers: Count = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EllipsoidData:
    """Synthetic volumes: ellipsoids in noise, which no threshold finds."""

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
    """Synthetic images: discs and rods that lie over each other, each with its mask."""

    kind: Literal["cells"]
    size: tuple[Positive, Positive] = (128, 128)  # height and width of what the network sees
    augment: str = ""
    mix: NoMix = NoMix()
    validation: Literal[0] | None = None  # 0: none is held out
    train: CountOrFraction | None = None
    sampler: Literal["uniform", "balanced"] = "uniform"
    workers: Count = 0


Data = KnownData | OwnData | AnnotatedData | CellData | PeopleData | VolumeData | EllipsoidData

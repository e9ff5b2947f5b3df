"""Annotations of samples: boxes, instance masks, the class of every pixel, and texts.

Coordinates are pixels of the stored image: x to the right, y down, the left and top edge at 0,
right and bottom edges exclusive.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from plusx.data.image_file import ImageFile, UnreadableInput, read_regular
from plusx.data.instance_mask import InstanceMask
from plusx.data.sample import IGNORE_INDEX, NO_BOXES, Sample
from plusx.data.tokenizer import END, UNKNOWN, Tokenizer


Rows = Float32[np.ndarray, "_ 6"]  # left, top, right, bottom, class, crowd (1 or 0)
Plane = UInt8[np.ndarray, "_ _"]
Planes = UInt8[np.ndarray, "_ _ _"]


class Annotations(ABC):
    """Annotations of samples besides their classes.

    spatial: whether they have positions in the input, which is then padded and never cropped
    noun: what a sample is called in messages; "": what its modality calls it
    """

    spatial: bool = True
    noun: str = ""

    @property
    def boxes(self) -> Sequence[Rows] | None:
        """The boxes of each sample; None if there are no boxes."""
        return None

    @property
    def counts(self) -> Int64[Tensor, "n k"] | None:
        """Number of positions of each class in each mask; None if there are no masks."""
        return None

    def nothing_to_learn(self) -> str:
        """Return why a network cannot learn from the annotations of a training set, or ""."""
        return ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def add_to(self, sample: Sample, index: int) -> Sample:
        """Return the sample with its annotations."""

    @abstractmethod
    def subset(self, indices: Sequence[int]) -> "Annotations":
        """Return the annotations of some samples, in that order."""

    def with_classes(self, classes: tuple[str, ...]) -> "Annotations":
        """Return the annotations in the classes of a trained network."""
        return self

    @abstractmethod
    def digest(self, root: str | None) -> bytes:
        """Return a digest of the annotations."""


@dataclass(frozen=True, eq=False)
class Boxes(Annotations):
    """The boxes of n images, with an instance mask for each box, if there are masks.

    image_ids, category_ids: ids of images and classes in the JSON that they are from
    """

    rows: list[Rows]
    masks: list[list[InstanceMask]] | None = None
    image_ids: list[int | str | None] | None = None
    category_ids: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        if self.masks is not None:
            assert list(map(len, self.rows)) == list(map(len, self.masks))

    @property
    def boxes(self) -> Sequence[Rows]:
        return self.rows

    def nothing_to_learn(self) -> str:
        """Return why a detector cannot learn from the boxes, or ""."""
        count = sum(map(len, self.rows))
        if not count:
            return "no training image has a box"
        if all((rows[:, 5] == 1).all() for rows in self.rows):
            which = "the only box" if count == 1 else f"all {count:,} boxes"
            return (
                f"{which} of the training images {'is' if count == 1 else 'are'} marked as crowd "
                "(iscrowd in COCO) or difficult (in VOC), which a detector ignores"
            )
        return ""

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def none(cls, count: int) -> "Boxes":
        """Return images without annotations, for prediction."""
        return cls([NO_BOXES for _ in range(count)])

    def add_to(self, sample: Sample, index: int) -> Sample:
        """Return the sample with its boxes."""
        planes = None
        if self.masks is not None:
            height, width = sample.size
            planes = torch.from_numpy(self.masks_of(index, (height, width)))
        return replace(sample, boxes=self.rows[index], masks=planes)

    def masks_of(self, index: int, size: tuple[int, int]) -> Planes:
        """Return the masks of an image's boxes at a size (height, width): 1 inside, 0 outside."""
        assert self.masks is not None
        planes = np.zeros((len(self.masks[index]), *size), np.uint8)
        for plane, mask in zip(planes, self.masks[index]):
            mask.draw(plane)
        return planes

    def presence(self, num_classes: int) -> Float32[Tensor, "n k"]:
        """Return 1 for every class of which an image has a box."""
        presence = torch.zeros(len(self), num_classes)
        for row, boxes in zip(presence, self.rows):
            row[torch.from_numpy(boxes[:, 4].astype(np.int64))] = 1
        return presence

    def subset(self, indices: Sequence[int]) -> "Annotations":
        """Return the boxes of some images, in that order."""
        masks, ids = self.masks, self.image_ids
        return replace(
            self,
            rows=[self.rows[index] for index in indices],
            masks=None if masks is None else [masks[index] for index in indices],
            image_ids=None if ids is None else [ids[index] for index in indices],
        )

    def digest(self, root: str | None) -> bytes:
        """Return a digest of all numbers."""
        digest = hashlib.sha256()
        for rows in self.rows:
            digest.update(len(rows).to_bytes(8, "little") + rows.tobytes())
        for mask in (mask for masks in self.masks or [] for mask in masks):
            digest.update(repr(mask[:4]).encode() + mask.bits)
        return digest.digest()


@dataclass(frozen=True)
class MaskEncoding:
    """The classes of the values in a mask.

    values: those of class 0, 1, ...; with `colours`, red, green and blue in one number (0xRRGGBB)
    ignored: values that are ignored; any other value is an error
    """

    values: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()
    colours: bool = False

    @cached_property
    def classes(self) -> dict[int, int]:
        """Return the class of each value, or IGNORE_INDEX."""
        classes = {value: number for number, value in enumerate(self.values)}
        return {**dict.fromkeys(self.ignored, IGNORE_INDEX), **classes}

    def problem(self, values: Sequence[int], counts: Sequence[int]) -> str:
        """Return what is wrong with a mask that has these values and counts, or ""."""
        for value, count in zip(values, counts):
            if value in self.classes:
                continue
            if self.colours:
                colour = value >> 16, value >> 8 & 255, value & 255
                return f"the colour {colour} is not in classes.csv"
            ignored = f", ignored are {_listed(self.ignored)}" if self.ignored else ""
            return (
                f"{count:,} pixels have the value {value}, which is not a class; classes are "
                f"{_listed(self.values)}{ignored}"
            )
        return ""

    def read(self, path: str | Path) -> Plane:
        """Read the class of every pixel, or IGNORE_INDEX. Raises UnreadableInput, OSError."""
        stored = stored_mask(read_regular(path), self.colours)
        values, indices, counts = np.unique(stored, return_inverse=True, return_counts=True)
        if problem := self.problem(values.tolist(), counts.tolist()):
            raise UnreadableInput(problem)
        table = np.array([self.classes[value] for value in values.tolist()], np.uint8)
        classes: np.ndarray = table[indices.reshape(stored.shape)]
        return classes


def stored_mask(data: bytes, colours: bool) -> Int64[np.ndarray, "h w"]:
    """Return the values in a mask: numbers, or with `colours` RGB in one number.

    A palette image gives its indices, or with `colours` the palette's colours. A grey image in
    three equal channels gives the grey value. Raises UnreadableInput.
    """
    image_file = ImageFile(data)  # checks the header, the size and the format
    if image_file.is_jpeg:
        raise UnreadableInput("a JPEG, which changes the values of a mask: save it as PNG")
    image = image_file.raw()
    if not colours and (image.mode in ("1", "L", "P") or image.mode.startswith("I;16")):
        return np.array(image).astype(np.int64)
    pixels = np.array(image.convert("RGB")).astype(np.int64)
    if colours:
        packed: np.ndarray = pixels @ np.array([1 << 16, 1 << 8, 1])
        return packed
    if (pixels != pixels[:, :, :1]).any():
        raise UnreadableInput(
            "a colour image where numbers are expected: list the colours of the classes in "
            "classes.csv (name,red,green,blue)"
        )
    return pixels[:, :, 0]


@dataclass(frozen=True, eq=False)
class Masks(Annotations):
    """The class of every pixel of n images, in files.

    class_counts: number of pixels of each class in each image
    contents: digests of the files
    """

    class_counts: Int64[Tensor, "n k"]
    paths: list[str]
    encoding: MaskEncoding
    contents: list[str]

    @property
    def counts(self) -> Int64[Tensor, "n k"]:
        return self.class_counts

    def __len__(self) -> int:
        return len(self.paths)

    def mask(self, index: int) -> Plane:
        """Return the class of every pixel of one image, or IGNORE_INDEX."""
        return self.encoding.read(self.paths[index])

    def add_to(self, sample: Sample, index: int) -> Sample:
        """Return the sample with its mask. Raises UnreadableInput if their sizes differ."""
        mask = self.mask(index)
        if mask.shape != sample.size:
            raise UnreadableInput(
                f"its mask has a different size, {mask.shape[1]} x {mask.shape[0]}"
            )
        return replace(sample, masks=torch.from_numpy(mask)[None], mask_fill=IGNORE_INDEX)

    def subset(self, indices: Sequence[int]) -> "Annotations":
        """Return the masks of some images, in that order."""
        return replace(
            self,
            class_counts=self.class_counts[list(indices)],
            paths=[self.paths[index] for index in indices],
            contents=[self.contents[index] for index in indices],
        )

    def digest(self, root: str | None) -> bytes:
        """Return a digest of the encoding, and of the names and content of the files."""
        digest = hashlib.sha256(repr(self.encoding).encode())
        digest.update(self.class_counts.numpy().tobytes())
        for path, content in zip(self.paths, self.contents, strict=True):
            name = os.path.relpath(path, root) if root else path
            digest.update(os.fsencode(name) + b"\0" + content.encode())
        return digest.digest()


@dataclass(frozen=True, eq=False)
class Texts(Annotations):
    """A text for each of n samples, such as a translation or a transcript.

    tokenizer: its vocabulary is the classes of the data set
    end: whether the token "</s>" ends every sequence
    noun: what an input with its text is called, such as "sentence pair"
    """

    texts: list[str]
    tokenizer: Tokenizer
    end: bool = False
    noun: str = ""
    spatial = False

    def __len__(self) -> int:
        return len(self.texts)

    def add_to(self, sample: Sample, index: int) -> Sample:
        """Return the sample with the token numbers of its text as target."""
        numbers = self.tokenizer.encode(self.texts[index])
        if self.end:
            numbers = [*numbers, self.tokenizer.number(END)]
        return replace(sample, target=torch.tensor(numbers, dtype=torch.int64))

    def subset(self, indices: Sequence[int]) -> "Annotations":
        """Return the texts of some samples, in that order."""
        return replace(self, texts=[self.texts[index] for index in indices])

    def with_classes(self, classes: tuple[str, ...]) -> "Annotations":
        """Return the texts in the vocabulary of a trained network."""
        return replace(self, tokenizer=replace(self.tokenizer, vocabulary=classes))

    def outside(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the index of each text with tokens that are not in the vocabulary, and these."""
        if self.tokenizer.kind == "bytes" or UNKNOWN in self.tokenizer.vocabulary:
            return
        vocabulary = frozenset(self.tokenizer.vocabulary)
        for index, text in enumerate(self.texts):
            if outside := sorted(set(self.tokenizer.pieces(text)) - vocabulary):
                yield index, outside

    def digest(self, root: str | None) -> bytes:
        """Return a digest of the texts."""
        return texts_digest(self.texts)


def texts_digest(texts: Sequence[str]) -> bytes:
    """Return a digest of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")

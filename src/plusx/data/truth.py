"""What is known of scenes besides their classes: boxes, the masks of boxes, classes of all pixels.

All of it is kept as it is stored, in pixels of the image as it lies in its file: x to the right,
y down, the left and top edge at 0, right and bottom edges exclusive.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from plusx.data.image import DEFAULT_LIMIT, Picture, UnreadableImage, read_regular
from plusx.data.instance_mask import InstanceMask


# the number in a mask of what is not judged
NOT_JUDGED = 255
# bytes read at each end of a mask for its fingerprint
_SAMPLED = 16384

Rows = Float32[np.ndarray, "_ 6"]  # left, top, right, bottom, class, crowd (1 or 0)
Plane = UInt8[np.ndarray, "_ _"]
Planes = UInt8[np.ndarray, "_ _ _"]
Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of n images, and where they are known the masks of what is in them."""

    rows: list[Rows]
    outlines: list[list[InstanceMask]] | None = None

    def __post_init__(self) -> None:
        if self.outlines is not None:
            assert list(map(len, self.rows)) == list(map(len, self.outlines))

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def none(cls, count: int) -> "Boxes":
        """Images of which nothing is known: their boxes are asked for."""
        return cls([np.zeros((0, 6), np.float32) for _ in range(count)])

    def planes(self, index: int, size: tuple[int, int]) -> Planes:
        """The masks of an image's boxes, of that size (height, width): 1 within, 0 without."""
        assert self.outlines is not None
        made = np.zeros((len(self.outlines[index]), *size), np.uint8)
        for plane, outline in zip(made, self.outlines[index]):
            outline.draw(plane)
        return made

    def presence(self, num_classes: int) -> Float32[Tensor, "n k"]:
        """1 for every class of which an image has a box."""
        made = torch.zeros(len(self), num_classes)
        for row, found in zip(made, self.rows):
            row[torch.from_numpy(found[:, 4].astype(np.int64))] = 1
        return made

    def counts(self, num_classes: int) -> Int64[Tensor, "k"]:
        """The boxes of each class in all images."""
        classes = np.concatenate([np.zeros(0), *(rows[:, 4] for rows in self.rows)])
        return torch.from_numpy(np.bincount(classes.astype(np.int64), minlength=num_classes))

    def subset(self, indices: Sequence[int]) -> "Boxes":
        """The boxes of some of the images, in that order."""
        masks = self.outlines
        return Boxes(
            [self.rows[index] for index in indices],
            None if masks is None else [masks[index] for index in indices],
        )

    def digest(self, root: str | None) -> bytes:
        """A digest that changes with every number."""
        made = hashlib.sha256()
        for rows in self.rows:
            made.update(len(rows).to_bytes(8, "little") + rows.tobytes())
        for outline in (each for some in self.outlines or [] for each in some):
            made.update(repr(outline[:4]).encode() + outline.bits)
        return made.digest()


@dataclass(frozen=True)
class Meaning:
    """Which class a value of a mask's pixels stands for: by number, or by colour.

    numbers: of class 0, 1, ...; colours: the same, where masks are pictures in colours.
    ignored: numbers, or colours, that are not judged. Any other is an error.
    """

    numbers: tuple[int, ...] = ()
    colours: tuple[Colour, ...] = ()
    ignored: tuple[int, ...] = ()
    ignored_colours: tuple[Colour, ...] = ()

    def read(self, path: str | Path, limit: int = DEFAULT_LIMIT) -> Plane:
        """The class of every pixel, 255 where it is not judged. Raises UnreadableImage, OSError."""
        stored = stored_mask(path, bool(self.colours), limit)
        return self._by_colour(stored) if stored.ndim == 3 else self._by_number(stored)

    def _by_number(self, stored: np.ndarray) -> Plane:
        found = np.unique(stored)
        table = np.zeros(max(int(found[-1]), 255) + 1, np.uint8)
        known = {number: place for place, number in enumerate(self.numbers)}
        for number in found.tolist():
            if number in known:
                table[number] = known[number]
            elif number in self.ignored:
                table[number] = NOT_JUDGED
            else:
                count = int((stored == number).sum())
                raise UnreadableImage(
                    f"{count:,} pixels have the value {number}, which is no class's; known are "
                    f"{_listed(self.numbers)}{self._not_judged()}"
                )
        made: np.ndarray = table[stored]
        return made

    def _not_judged(self) -> str:
        return f", and not judged {_listed(self.ignored)}" if self.ignored else ""

    def _by_colour(self, stored: np.ndarray) -> Plane:
        weights = np.array([1 << 16, 1 << 8, 1], np.int64)
        found, places = np.unique((stored.astype(np.int64) * weights).sum(2), return_inverse=True)
        known = {
            int((np.array(colour) * weights).sum()): place
            for place, colour in enumerate(self.colours)
        }
        for colour in self.ignored_colours:
            known[int((np.array(colour) * weights).sum())] = NOT_JUDGED
        table = np.zeros(len(found), np.uint8)
        for place, colour in enumerate(found.tolist()):
            if colour not in known:
                parts = colour >> 16, colour >> 8 & 255, colour & 255
                raise UnreadableImage(
                    f"the colour {parts} is no class's, and no row of classes.csv has it"
                )
            table[place] = known[colour]
        made: np.ndarray = table[places.reshape(stored.shape[:2])]
        return made


def stored_mask(path: str | Path, colours: bool, limit: int = DEFAULT_LIMIT) -> np.ndarray:
    """A mask as it lies there: numbers (h, w) of any integer kind, or colours (h, w, 3).

    A palette gives its numbers, or with `colours` what it shows. A grey picture in three equal
    channels gives the grey. Raises UnreadableImage with the reason; OSError.
    """
    data = read_regular(path)
    picture = Picture(data, limit)  # its header, size and kind are good
    if picture.is_jpeg:
        raise UnreadableImage("a JPEG, which changes the values of a mask: save it as PNG")
    image = picture.raw()
    if colours:
        made = np.array(image.convert("RGB"))
    elif image.mode in ("1", "L", "P") or image.mode.startswith("I;16"):
        made = np.array(image)
        made = made.astype(np.uint8) if made.dtype == bool else made
    else:
        made = np.array(image.convert("RGB"))
        if (made != made[:, :, :1]).any():
            raise UnreadableImage(
                "a picture in colours where numbers are expected: say which colour is which "
                "class in classes.csv (name,red,green,blue)"
            )
        made = made[:, :, 0]
    if made.dtype != np.uint8:
        made = made.astype(np.int64)
    return made


@dataclass(frozen=True, eq=False)
class Masks:
    """The class of every pixel of n images, in files or in memory.

    counts: how many pixels of each class every image has.
    """

    counts: Int64[Tensor, "n k"]
    paths: list[str] | None = None
    meaning: Meaning = Meaning()
    kept: list[Plane] | None = None

    def __post_init__(self) -> None:
        assert (self.paths is None) != (self.kept is None)

    def __len__(self) -> int:
        return len(self.counts)

    def mask(self, index: int) -> Plane:
        """The class of every pixel of one image, 255 where it is not judged."""
        if self.kept is not None:
            return self.kept[index]
        assert self.paths is not None
        return self.meaning.read(self.paths[index])

    def subset(self, indices: Sequence[int]) -> "Masks":
        """The masks of some of the images, in that order."""
        return replace(
            self,
            counts=self.counts[list(indices)],
            paths=None if self.paths is None else [self.paths[index] for index in indices],
            kept=None if self.kept is None else [self.kept[index] for index in indices],
        )

    def digest(self, root: str | None) -> bytes:
        """A digest of what the values mean, and of the files' names, sizes and 16 KiB each end."""
        made = hashlib.sha256(repr(self.meaning).encode())
        made.update(self.counts.numpy().tobytes())
        for plane in self.kept or []:
            made.update(repr(plane.shape).encode() + plane.tobytes())
        for path in self.paths or []:
            shown = os.path.relpath(path, root) if root else path
            data = read_regular(path)
            made.update(os.fsencode(shown) + b"\0" + len(data).to_bytes(8, "little"))
            made.update(data[:_SAMPLED] + data[max(_SAMPLED, len(data) - _SAMPLED) :])
        return made.digest()


Truth = Boxes | Masks


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")


def as_picture(mask: Plane) -> Image.Image:
    """A mask as an 8-bit picture of its class numbers."""
    return Image.fromarray(mask)

"""The mask of one object: its bounding window, with eight pixels per byte."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8


class InstanceMask(NamedTuple):
    """The mask of one object, in pixels of its image."""

    top: int
    left: int
    height: int
    width: int
    bits: bytes

    @classmethod
    def of(cls, inside: Bool[np.ndarray, "h w"]) -> "InstanceMask":
        """Return the mask of the true pixels."""
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if not len(rows):
            return cls(0, 0, 0, 0, b"")
        top, left = int(rows[0]), int(columns[0])
        window = inside[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
        height, width = window.shape
        return cls(top, left, height, width, np.packbits(window).tobytes())

    def window(self) -> UInt8[np.ndarray, "h w"]:
        """Return the pixels of the window: 1 inside, 0 outside."""
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.height * self.width)
        return bits.reshape(self.height, self.width)

    def draw(self, plane: UInt8[np.ndarray, "h w"]) -> None:
        """Set the pixels of this object to 1, in place."""
        plane[self.top : self.top + self.height, self.left : self.left + self.width] |= (
            self.window()
        )

    def run_lengths(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return COCO's uncompressed run lengths, column by column, in an image (height, width)."""
        plane = np.zeros(size, np.uint8)
        self.draw(plane)
        pixels = plane.ravel(order="F")
        edges = [0, *np.flatnonzero(np.diff(pixels, prepend=0)).tolist(), pixels.size]
        return {"size": list(size), "counts": np.diff(edges).tolist()}


def packed_run_lengths(counts: Sequence[int]) -> str:
    """Return COCO's compressed run lengths: five bits per character, as differences."""
    letters = []
    for index, count in enumerate(counts):
        number = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = number & 31
            number >>= 5
            more = number != (-1 if bits & 16 else 0)
            letters.append(chr(48 + (bits | 32 if more else bits)))
    return "".join(letters)

"""Memory of large batches, used again once nobody has it any more.

A system hands out fresh memory page by page and filled with zeros, which takes about as long as to
normalise what is written there. Whether an array is still in use, by a tensor, by a view of it, or
by a graph that has saved it, is told by the references to it: each of them holds one.
"""

import math
import sys

import numpy as np
from jaxtyping import Float32


class BufferPool:
    """A few arrays of one process, not to be shared by threads."""

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._arrays: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
        """An array of that shape with anything in it, which nobody else has."""
        size = math.prod(shape)
        for index in range(len(self._arrays)):
            if len(self._arrays[index]) == size and _references(self._arrays, index) == _ONLY_HERE:
                return self._arrays[index].reshape(shape)
        array = np.empty(size, np.float32)
        # the oldest, of a size that is not asked for any more, makes room
        self._arrays = [*self._arrays, array][-self.most :]
        return array.reshape(shape)


def _references(arrays: list[np.ndarray], index: int) -> int:
    """References to an array, those that asking takes among them."""
    return sys.getrefcount(arrays[index])


# what is counted where only the list has the array, which differs between Pythons
_ONLY_HERE = _references([np.empty(0, np.float32)], 0)

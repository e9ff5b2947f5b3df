"""A pool of arrays for large batches, which are reused when nothing refers to them.

New memory is zeroed page by page by the operating system, which takes about as long as normalising
a batch. An array is free if its reference count is that of the pool alone.
"""

import math
import sys

import numpy as np
from jaxtyping import Float32


class BufferPool:
    """At most `max_arrays` arrays; for one thread."""

    def __init__(self, max_arrays: int = 4) -> None:
        self.max_arrays = max_arrays
        self._arrays: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
        """Return an uninitialised array of that shape that is not in use."""
        size = math.prod(shape)
        for index in range(len(self._arrays)):
            if len(self._arrays[index]) == size and _references(self._arrays, index) == _ONLY_HERE:
                return self._arrays[index].reshape(shape)
        array = np.empty(size, np.float32)
        # the oldest is dropped: its size is probably not needed any more
        self._arrays = [*self._arrays, array][-self.max_arrays :]
        return array.reshape(shape)


def _references(arrays: list[np.ndarray], index: int) -> int:
    """Return the reference count of an array, including the references of this call."""
    return sys.getrefcount(arrays[index])


# the count of an array that only the list refers to, which differs between Python versions
_ONLY_HERE = _references([np.empty(0, np.float32)], 0)

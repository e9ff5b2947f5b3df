"""Random numbers that are a function of (seed, epoch, index, which draw), and of nothing else.

SplitMix64's finaliser (Steele, Lea and Flood 2014) turns the counters into bits. No generator is
kept, so a sample's pixels do not depend on the batch around it, on the number of workers, on the
device, or on whether the run was resumed.
"""

from dataclasses import dataclass, replace

import numpy as np


_MASK = (1 << 64) - 1
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
# the purpose of an order; the words of an augmentation have the purposes 0, 1, 2, ...
_ORDER = 1 << 32
# in the place of an epoch, of what is drawn once for all of them
_LASTING = 1 << 63


def _mixed(bits: np.ndarray) -> np.ndarray:
    bits = bits + _STEP
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    last: np.ndarray = bits ^ (bits >> np.uint64(31))
    return last


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """The random numbers of n samples; `at(k)` gives those of another purpose."""

    keys: np.ndarray  # (n,) uint64
    seed: int
    epoch: int
    indices: np.ndarray  # (n,)

    @classmethod
    def of(cls, seed: int, epoch: int, indices: np.ndarray) -> "Draws":
        """Draws of the samples `indices` (n,) in one epoch of one seed."""
        start = _mixed(_mixed(np.array([seed & _MASK], np.uint64)) ^ np.uint64(epoch & _MASK))
        return cls(_mixed(start ^ indices.astype(np.uint64)), seed, epoch, indices)

    def at(self, purpose: int) -> "Draws":
        """Independent draws of the same samples, for another purpose."""
        return replace(self, keys=_mixed(self.keys ^ np.uint64(purpose + 1)))

    def lasting(self) -> "Draws":
        """Draws of the same samples that are the same in every epoch."""
        return self.of(self.seed, _LASTING, self.indices)

    def alone(self, place: int) -> "Draws":
        """Those of one of the samples, the `place`-th."""
        here = slice(place, place + 1)
        return replace(self, keys=self.keys[here], indices=self.indices[here])

    def bits(self, draw: int = 0) -> np.ndarray:
        """64 random bits a sample, (n,) uint64."""
        return _mixed(self.keys + np.uint64(draw * int(_FIRST) & _MASK))

    def uniform(self, low: float = 0.0, high: float = 1.0, draw: int = 0) -> np.ndarray:
        """Numbers in [low, high), (n,) float64."""
        return low + (high - low) * ((self.bits(draw) >> np.uint64(11)) * 2.0**-53)

    def below(self, limit: int | np.ndarray, draw: int = 0) -> np.ndarray:
        """Whole numbers in [0, limit), (n,) int64; limit at most 2**32."""
        high = self.bits(draw) >> np.uint64(32)
        return ((high * np.asarray(limit).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """An order of 0 .. count - 1, (count,) int64, the same on every machine and version."""
    return np.argsort(Draws.of(seed, epoch, np.arange(count)).at(_ORDER).bits(), kind="stable")

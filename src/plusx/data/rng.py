"""Counter-based random numbers, a function of (seed, epoch, sample, view, purpose) only.

The finaliser of SplitMix64 (Steele, Lea and Flood 2014) turns the counters into bits. There is no
state, so a sample's pixels do not depend on the batch, the number of workers, the device, or on
whether the run was resumed. In a data set of n samples, copy k of sample i within an epoch has the
sample number i + k n, so that copies differ.
"""

from dataclasses import dataclass

import numpy as np


_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
# purpose of an order; the words of an augmentation have the purposes 0, 1, 2, ...
_ORDER = 1 << 32
# stands for the epoch of numbers that are the same in all epochs
_EVERY_EPOCH = 1 << 63


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = bits + np.uint64(_STEP)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_FIRST)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_SECOND)
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed


def _mix_one(bits: int) -> int:
    bits = (bits + _STEP) & _MASK
    bits = (bits ^ (bits >> 30)) * _FIRST & _MASK
    bits = (bits ^ (bits >> 27)) * _SECOND & _MASK
    return bits ^ (bits >> 31)


@dataclass(frozen=True, slots=True)
class SampleRNG:
    """The random numbers of one sample; `at(k)` returns those for another purpose.

    They equal the sample's row of a CounterRNG, as Python numbers, which is ten times as fast.
    """

    key: int
    seed: int
    epoch: int
    sample: int
    view: int = 0

    @classmethod
    def of(cls, seed: int, epoch: int, sample: int, view: int = 0) -> "SampleRNG":
        """Return the random numbers of a sample number in an epoch."""
        start = _mix_one(_mix_one(seed & _MASK) ^ (epoch & _MASK))
        if view:
            start = _mix_one(start ^ (view & _MASK))
        return cls(_mix_one(start ^ sample), seed, epoch, sample, view)

    def at(self, purpose: int) -> "SampleRNG":
        """Return independent numbers of the same sample, for another purpose."""
        key = _mix_one(self.key ^ (purpose + 1))
        return SampleRNG(key, self.seed, self.epoch, self.sample, self.view)

    def bits(self, draw: int = 0) -> int:
        """Return 64 random bits."""
        return _mix_one((self.key + draw * _FIRST) & _MASK)

    def uniform(self, low: float = 0.0, high: float = 1.0, draw: int = 0) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * ((self.bits(draw) >> 11) * 2.0**-53)

    def below(self, limit: int, draw: int = 0) -> int:
        """Return an integer in [0, limit); limit is at most 2**32."""
        return ((self.bits(draw) >> 32) * limit) >> 32

    def coin(self) -> bool:
        """Return True with probability 0.5."""
        return self.bits() >> 63 == 1

    def alternating(self) -> bool:
        """Return a coin that is flipped from one epoch to the next."""
        first = self.of(self.seed, _EVERY_EPOCH, self.sample, self.view)
        return first.coin() ^ (self.epoch % 2 == 1)


@dataclass(frozen=True, slots=True, eq=False)
class CounterRNG:
    """The random numbers of n samples; `at(k)` returns those for another purpose."""

    keys: np.ndarray  # (n,) uint64
    seed: int
    epoch: int
    samples: np.ndarray  # (n,)
    view: int = 0

    @classmethod
    def of(cls, seed: int, epoch: int, samples: np.ndarray, view: int = 0) -> "CounterRNG":
        """Return the random numbers of sample numbers (n,) in an epoch."""
        start = _mix(_mix(np.array([seed & _MASK], np.uint64)) ^ np.uint64(epoch & _MASK))
        if view:
            start = _mix(start ^ np.uint64(view & _MASK))
        return cls(_mix(start ^ samples.astype(np.uint64)), seed, epoch, samples, view)

    def at(self, purpose: int) -> "CounterRNG":
        """Return independent numbers of the same samples, for another purpose."""
        keys = _mix(self.keys ^ np.uint64(purpose + 1))
        return CounterRNG(keys, self.seed, self.epoch, self.samples, self.view)

    def every_epoch(self) -> "CounterRNG":
        """Return numbers of the same samples that are equal in all epochs."""
        return self.of(self.seed, _EVERY_EPOCH, self.samples, self.view)

    def bits(self, draw: int = 0) -> np.ndarray:
        """Return 64 random bits per sample, (n,) uint64."""
        return _mix(self.keys + np.uint64(draw * _FIRST & _MASK))

    def uniform(self, low: float = 0.0, high: float = 1.0, draw: int = 0) -> np.ndarray:
        """Return numbers in [low, high), (n,) float64."""
        return low + (high - low) * ((self.bits(draw) >> np.uint64(11)) * 2.0**-53)

    def below(self, limit: int | np.ndarray, draw: int = 0) -> np.ndarray:
        """Return integers in [0, limit), (n,) int64; limit is at most 2**32."""
        high = self.bits(draw) >> np.uint64(32)
        return ((high * np.asarray(limit).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)

    def coin(self) -> np.ndarray:
        """Return True with probability 0.5 for each sample, (n,)."""
        heads: np.ndarray = self.bits() >> np.uint64(63) == 1
        return heads

    def alternating(self) -> np.ndarray:
        """Return coins that are flipped from one epoch to the next, (n,)."""
        heads: np.ndarray = self.every_epoch().coin() ^ (self.epoch % 2 == 1)
        return heads


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of 0 .. count - 1 (int64), the same on every machine."""
    keys = CounterRNG.of(seed, epoch, np.arange(count)).at(_ORDER).bits()
    return np.argsort(keys, kind="stable")

"""The samples in a buffer, as a function of the seed and the tasks so far."""

from collections.abc import Sequence

import numpy as np

from plusx.data.concat import concat
from plusx.data.dataset import Dataset
from plusx.data.rng import CounterRNG


Buffer = tuple[tuple[int, ...], ...]  # of each task, the numbers of its samples
_PURPOSE = 1 << 37  # of these random numbers


def reservoir(parts: Sequence[Dataset], size: int, seed: int) -> Buffer:
    """Return `size` of all samples so far, each with the same probability.

    Every sample has a random key, and those with the lowest keys are selected. As in reservoir
    sampling (Vitter 1985), the buffer after a task has samples of the buffer before it and of this
    task only.
    """
    owners, numbers, keys = _keys(parts, seed)
    chosen = np.argsort(keys, kind="stable")[:size]
    return _buffer(owners[chosen], numbers[chosen], len(parts))


def balanced(parts: Sequence[Dataset], size: int, seed: int) -> Buffer:
    """Return the same number of samples of every class so far, chosen at random, or all of a class
    with fewer. In a stream of domains, the tasks of a class also have the same number each."""
    owners, numbers, keys = _keys(parts, seed)
    labels = np.concatenate([part.labels.cpu().numpy() for part in parts])
    groups = np.unique(np.stack([labels, owners]), axis=1).T
    chosen: list[int] = []
    for label, owner in groups:
        members = np.flatnonzero((labels == label) & (owners == owner))
        order = members[np.argsort(keys[members], kind="stable")]
        chosen += order[: size // len(groups)].tolist()
    return _buffer(owners[chosen], numbers[chosen], len(parts))


def replayed(parts: Sequence[Dataset], buffer: Buffer) -> Dataset:
    """Return the samples of a buffer."""
    chosen = [part.subset(list(numbers)) for part, numbers in zip(parts, buffer) if numbers]
    return concat(chosen)


def with_replay(parts: Sequence[Dataset], buffer: Buffer) -> Dataset:
    """Return the last part and as many samples of the buffer, which repeat.

    In a shuffled epoch, half of a batch is of the buffer on average. Repeated samples have their
    own sample numbers, so that each is augmented differently.
    """
    current = parts[-1]
    if not any(buffer):
        return current
    old = replayed(parts, buffer)
    return concat([current, old.subset([i % len(old) for i in range(max(len(current), len(old)))])])


def _keys(parts: Sequence[Dataset], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the task, the number and a random key of every sample."""
    owners = np.concatenate([np.full(len(part), task) for task, part in enumerate(parts)])
    numbers = np.concatenate([np.arange(len(part)) for part in parts])
    keys = [
        CounterRNG.of(seed, task, np.arange(len(part))).at(_PURPOSE).bits()
        for task, part in enumerate(parts)
    ]
    return owners, numbers, np.concatenate(keys)


def _buffer(owners: np.ndarray, numbers: np.ndarray, tasks: int) -> Buffer:
    return tuple(tuple(sorted(numbers[owners == task].tolist())) for task in range(tasks))

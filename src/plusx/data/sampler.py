"""The order of an epoch's samples, a function of (labels, seed, epoch) only.

| sampler | an epoch of n samples |
|---|---|
| `uniform` | every sample once, shuffled |
| `balanced` | n samples, equally many of each class: samples of rare classes are repeated |
| `bucketed` | every sample once; a batch has samples of similar length, and batches are shuffled |
| `pk` | groups of K samples of one class, P classes in a batch of P x K (Hermans et al. 2017) |
| `views` | every sample twice, shuffled: its two copies are adjacent, and count as one |

An order consists of sample numbers: copy k of sample i is i + k n, so that a repeated sample is
augmented differently each time.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int64, Shaped
from torch import Tensor

from plusx.data.rng import CounterRNG, permutation
from plusx.errors import UserError


Sampler = Literal["uniform", "balanced", "bucketed", "pk", "views"]
Indices = Int64[np.ndarray, "_"]
VIEWS = 2  # copies of a sample, with the sampler of that name

# purposes of the random numbers here, distinct from those of an order or an augmentation
_CLASSES, _MEMBERS, _PLACES = 1 << 34, 1 << 35, 1 << 36
_POOL = 50  # batches that are sorted by length together


def check_sampler(
    sampler: str, labels: Shaped[Tensor, "n ..."], batch_size: int, samples_per_class: int
) -> None:
    """Raise UserError if the sampler is unknown or does not suit these labels."""
    if sampler not in get_args(Sampler):
        raise UserError(f"sampler = {sampler!r}: allowed are {', '.join(get_args(Sampler))}")
    if sampler != "pk":
        return
    if labels.ndim != 1:
        raise UserError('sampler = "pk" needs one class per sample')
    if not 1 <= samples_per_class <= batch_size:
        raise UserError(
            f"samples_per_class = {samples_per_class}: from 1 to batch_size ({batch_size})"
        )
    count, needed = len(labels.unique()), -(-batch_size // samples_per_class)
    if count < needed:
        raise UserError(
            f'sampler = "pk": a batch of {batch_size} with samples_per_class = '
            f"{samples_per_class} needs {needed} classes, and there are {count}; "
            f"batch_size = {count * samples_per_class} would do"
        )


def epoch_order(
    sampler: Sampler,
    labels: Shaped[Tensor, "n ..."],
    seed: int,
    epoch: int,
    batch_size: int,
    samples_per_class: int = 4,
    patches: int = 1,
    lengths: Int64[np.ndarray, "n"] | None = None,
) -> Int64[np.ndarray, "..."]:
    """Return the `patches` * n sample numbers of one epoch in order; with "views" rows (n, 2) of
    the copies of a sample.

    labels: class numbers (n,), or one number per class (n, k): a sample has the classes above 0.
        With "balanced", samples without any class form one more class
    samples_per_class: with "pk", how many samples of a class are adjacent. A class with fewer
        samples repeats them; the classes of one batch differ
    patches: with "uniform", how many samples are taken of each item
    lengths: of the samples, with "bucketed"; None: they are equal
    """
    count = len(labels)
    if sampler == "uniform" or not count:
        return permutation(count * patches, seed, epoch)
    if sampler == "views":
        return permutation(count, seed, epoch)[:, None] + count * np.arange(VIEWS)
    if sampler == "bucketed":
        order = permutation(count, seed, epoch)
        return order if lengths is None else _bucketed(order, lengths, seed, epoch, batch_size)
    members = _members(labels)
    if sampler == "balanced":
        return _numbered(_balanced(members, count, seed, epoch), count)
    groups = _groups(members, seed, epoch, batch_size // samples_per_class, samples_per_class)
    chosen = [next(groups) for _ in range(-(-count // samples_per_class))]
    return _numbered(np.concatenate(chosen)[:count], count)


def _numbered(order: Indices, count: int) -> Indices:
    """Return sample numbers: i + k n for the k-th repetition of sample i."""
    by_sample = np.argsort(order, kind="stable")
    ordered = order[by_sample]
    first = np.searchsorted(ordered, ordered)
    copies = np.empty(len(order), np.int64)
    copies[by_sample] = np.arange(len(order)) - first
    numbers: Indices = order + copies * count
    return numbers


def _bucketed(order: Indices, lengths: Indices, seed: int, epoch: int, batch_size: int) -> Indices:
    """Return batches of similar lengths, from pools of many batches; an incomplete one is last."""
    full = len(order) // batch_size * batch_size
    pool = _POOL * batch_size
    batches = []
    for start in range(0, full, pool):
        chosen = order[start : min(start + pool, full)]
        batches.append(chosen[np.argsort(lengths[chosen], kind="stable")].reshape(-1, batch_size))
    if not batches:
        return order
    joined = np.concatenate(batches)
    shuffled = joined[permutation(len(joined), seed ^ _PLACES, epoch)]
    bucketed: Indices = np.concatenate([shuffled.ravel(), order[full:]])
    return bucketed


def _members(labels: Tensor) -> list[Indices]:
    """Return the samples of each class that has any."""
    values = labels.detach().cpu().numpy()
    if values.ndim == 1:
        members = [np.flatnonzero(values == label) for label in np.unique(values)]
    else:
        flat = values.reshape(len(values), -1) > 0
        members = [*(np.flatnonzero(column) for column in flat.T), np.flatnonzero(~flat.any(1))]
    return [indices for indices in members if len(indices)]


def _balanced(members: list[Indices], count: int, seed: int, epoch: int) -> Indices:
    """Return equally many samples of each class in random order; the remainder is random."""
    per_class, remainder = divmod(count, len(members))
    larger = set(permutation(len(members), seed ^ _CLASSES, epoch)[:remainder].tolist())
    chosen = []
    for number, indices in enumerate(members):
        size = per_class + (number in larger)
        rounds = [
            _shuffled(indices, seed, epoch, number, turn)
            for turn in range(-(-size // len(indices)))
        ]
        if rounds:
            chosen.append(np.concatenate(rounds)[:size])
    joined = np.concatenate(chosen)
    return joined[permutation(count, seed ^ _PLACES, epoch)]


def _groups(
    members: list[Indices], seed: int, epoch: int, per_batch: int, samples_per_class: int
) -> Iterator[Indices]:
    """Yield groups of one class each, endlessly: every class once per round, rounds shuffled.

    Classes that are already in the unfinished batch of a round come last in the next one, so that a
    batch has no class twice.
    """
    queues = [
        _groups_of_class(indices, seed, epoch, number, samples_per_class)
        for number, indices in enumerate(members)
    ]
    begun: list[int] = []  # the classes of the batch that is being filled
    turn = 0
    while True:
        order = permutation(len(members), seed ^ _CLASSES, epoch + (turn << 40)).tolist()
        turn += 1
        for number in [n for n in order if n not in begun] + [n for n in order if n in begun]:
            yield next(queues[number])
            begun.append(number)
            if len(begun) >= per_batch:
                begun = []


def _groups_of_class(
    indices: Indices, seed: int, epoch: int, number: int, samples_per_class: int
) -> Iterator[Indices]:
    """Yield groups of one class's samples, shuffled again when too few remain."""
    turn = 0
    while True:
        shuffled = _shuffled(indices, seed, epoch, number, turn)
        turn += 1
        if len(indices) < samples_per_class:
            yield np.resize(shuffled, samples_per_class)
        for start in range(0, len(indices) - samples_per_class + 1, samples_per_class):
            yield shuffled[start : start + samples_per_class]


def _shuffled(indices: Indices, seed: int, epoch: int, number: int, turn: int) -> Indices:
    keys = CounterRNG.of(seed, epoch, indices).at(_MEMBERS + (turn << 20)).at(number).bits()
    shuffled: Indices = indices[np.argsort(keys, kind="stable")]
    return shuffled

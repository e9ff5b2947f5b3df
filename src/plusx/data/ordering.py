"""The order of an epoch: which samples it has, and after which, by (labels, seed, epoch) alone.

| sampling | an epoch of n samples |
|---|---|
| `uniform` | every sample once, shuffled |
| `balanced` | n draws, as many of each class as of any other: samples of rare classes come again |
| `people` | groups of K samples of one class, P classes in a batch of P x K (Hermans et al. 2017) |
"""

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int64, Shaped
from torch import Tensor

from plusx.data.draws import Draws, permutation
from plusx.errors import UserError


Sampling = Literal["uniform", "balanced", "people"]
Indices = Int64[np.ndarray, "_"]

# the purposes of these draws, so that they are none of an order's or an augmentation's
_CLASSES, _MEMBERS, _PLACES = 1 << 34, 1 << 35, 1 << 36


def check_sampling(
    sampling: str, labels: Shaped[Tensor, "n ..."], batch_size: int, pictures: int
) -> None:
    """Raise UserError where samples with these labels cannot be ordered so."""
    if sampling not in get_args(Sampling):
        raise UserError(f"sampling = {sampling!r}: allowed are {', '.join(get_args(Sampling))}")
    if sampling != "people":
        return
    if labels.ndim != 1:
        raise UserError('sampling = "people" needs one class a sample')
    if not 1 <= pictures <= batch_size:
        raise UserError(
            f"pictures = {pictures}: from 1 to batch_size ({batch_size}), of which it is a part"
        )
    people, needed = len(labels.unique()), -(-batch_size // pictures)
    if people < needed:
        raise UserError(
            f'sampling = "people": a batch of {batch_size} with pictures = {pictures} needs '
            f"{needed} classes, and there are {people}; batch_size = {people * pictures} would do"
        )


def epoch_order(
    sampling: Sampling,
    labels: Shaped[Tensor, "n ..."],
    seed: int,
    epoch: int,
    batch_size: int,
    pictures: int = 4,
) -> Int64[np.ndarray, "n"]:
    """The indices of an epoch's samples in their order; n of them, whatever the sampling.

    labels      class numbers (n,), or one number a class (n, k), of which a sample has those above
                0; with "balanced" those without any are one class more
    pictures   with "people": how many of a class stand together. A class with fewer samples
                repeats them; the classes of one batch are different ones

    A sample that comes twice in an epoch is augmented alike both times.
    """
    count = len(labels)
    if sampling == "uniform" or not count:
        return permutation(count, seed, epoch)
    members = _members(labels)
    if sampling == "balanced":
        return _balanced(members, count, seed, epoch)
    groups = _groups(members, seed, epoch, batch_size // pictures, pictures)
    chosen = [next(groups) for _ in range(-(-count // pictures))]
    return np.concatenate(chosen)[:count]


def _members(labels: Tensor) -> list[Indices]:
    """The samples of each class that has any."""
    values = labels.detach().cpu().numpy()
    if values.ndim == 1:
        found = [np.flatnonzero(values == label) for label in np.unique(values)]
    else:
        flat = values.reshape(len(values), -1) > 0
        found = [*(np.flatnonzero(column) for column in flat.T), np.flatnonzero(~flat.any(1))]
    return [each for each in found if len(each)]


def _balanced(members: list[Indices], count: int, seed: int, epoch: int) -> Indices:
    """Equal numbers of each class; which ones get one more is drawn, and so is the order."""
    share, more = divmod(count, len(members))
    lucky = set(permutation(len(members), seed ^ _CLASSES, epoch)[:more].tolist())
    chosen = []
    for number, own in enumerate(members):
        wanted = share + (number in lucky)
        turns = [
            _shuffled(own, seed, epoch, number, turn) for turn in range(-(-wanted // len(own)))
        ]
        if turns:
            chosen.append(np.concatenate(turns)[:wanted])
    joined = np.concatenate(chosen)
    return joined[permutation(count, seed ^ _PLACES, epoch)]


def _groups(
    members: list[Indices], seed: int, epoch: int, together: int, pictures: int
) -> Iterator[Indices]:
    """Groups of one class each, without end: all classes in turn, each time in another order.

    Those that stand in a batch that the turn before has begun come last in the next one.
    """
    queues = [_pieces(own, seed, epoch, number, pictures) for number, own in enumerate(members)]
    begun: list[int] = []  # the classes of the batch that is being filled
    turn = 0
    while True:
        order = permutation(len(members), seed ^ _CLASSES, epoch + (turn << 40)).tolist()
        turn += 1
        for number in [n for n in order if n not in begun] + [n for n in order if n in begun]:
            yield next(queues[number])
            begun.append(number)
            if len(begun) >= together:
                begun = []


def _pieces(own: Indices, seed: int, epoch: int, number: int, pictures: int) -> Iterator[Indices]:
    """One class's samples, so many at a time, shuffled anew where fewer are left."""
    turn = 0
    while True:
        shuffled = _shuffled(own, seed, epoch, number, turn)
        turn += 1
        if len(own) < pictures:
            yield np.resize(shuffled, pictures)
        for start in range(0, len(own) - pictures + 1, pictures):
            yield shuffled[start : start + pictures]


def _shuffled(own: Indices, seed: int, epoch: int, number: int, turn: int) -> Indices:
    keys = Draws.of(seed, epoch, own).at(_MEMBERS + (turn << 20)).at(number).bits()
    shuffled: Indices = own[np.argsort(keys, kind="stable")]
    return shuffled

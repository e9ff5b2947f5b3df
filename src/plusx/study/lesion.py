"""Deleting blocks of a trained network: Veit et al. 2016, section 4.1 and 4.2.

A residual network loses one of many short paths with a block; a plain one loses its only path.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.nn.block import ResidualBlock
from plusx.study.anatomy import Place, pass_by, places, untouched


Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Lesion:
    """The error without one block; None with the reason where it cannot be deleted."""

    name: str
    error: float | None
    why: str = ""


@dataclass(frozen=True)
class Deletions:
    """The errors without `count` blocks at once, one for each draw of blocks."""

    count: int
    errors: tuple[float, ...]


class Passed(nn.Module):
    """What stands in the place of a deleted block that has a shortcut."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        return pass_by(self.block, x)


def lesions(net: nn.Module, evaluate: Evaluate) -> list[Lesion]:
    """The error, as `evaluate` gives it, with one block deleted after another; all are put back.

    A block with a shortcut loses its branch and passes its shortcut on, a projection included; one
    with `&` passes zeros for the features it would have added. A plain block is left out, which
    is only possible where it does not change the shape. `evaluate` is called with the network in
    evaluation mode and without gradients.

    UserError: the network is not made of blocks.
    """
    found = []
    for place in places(net):
        why = undeletable(place)
        if why:
            found.append(Lesion(place.name, None, why))
        else:
            with without(net, [place.name]):
                found.append(Lesion(place.name, evaluate(net)))
    return found


def deletions(
    net: nn.Module,
    evaluate: Evaluate,
    counts: Iterable[int],
    *,
    draws: int = 10,
    seed: int = 0,
) -> list[Deletions]:
    """The error without several random blocks at once (figure 5 a), `draws` times for each count.

    Drawn from the blocks that can be deleted, the same ones for the same seed.
    UserError: more blocks are asked for than can be deleted.
    """
    able = [place.name for place in places(net) if not undeletable(place)]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for count in counts:
        if not 0 <= count <= len(able):
            raise UserError(
                f"{count} blocks cannot be deleted at once: of this network 0 to {len(able)} can"
            )
        errors = []
        for _ in range(draws):
            chosen = torch.randperm(len(able), generator=generator)[:count].tolist()
            with without(net, [able[i] for i in chosen]):
                errors.append(evaluate(net))
        found.append(Deletions(count, tuple(errors)))
    return found


def undeletable(place: Place) -> str:
    """Why a block cannot be deleted; empty where it can."""
    if place.has_shortcut or not place.changes_shape:
        return ""
    into, out = place.flow, place.block.flow
    return (
        f"without it {into.channels} channels of {_size(into.size)} would reach what expects "
        f"{out.channels} of {_size(out.size)}, and it has no shortcut"
    )


@contextmanager
def without(net: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """The network in evaluation mode, without gradients and without these blocks.

    UserError: there is no such block, or it cannot be deleted.
    """
    known = {place.name: place for place in places(net)}
    for name in names:
        if name not in known:
            raise UserError(f"there is no block {name}; there are {', '.join(known)}")
        if why := undeletable(known[name]):
            raise UserError(f"{name} cannot be deleted: {why}")
    chosen = [known[name] for name in dict.fromkeys(names)]
    with untouched(net), torch.no_grad():
        net.eval()
        try:
            for place in chosen:
                left = Passed(place.block) if place.has_shortcut else nn.Identity()
                place.holder[place.index] = left.eval()
            yield
        finally:
            for place in chosen:
                place.holder[place.index] = place.block


def _size(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))

"""A residual network as a sum over paths: Veit et al. 2016, sections 3, 4.3 and 4.4.

At every block a path takes the branch or the shortcut; its length is the number of branches.
"""

import copy
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.errors import UserError
from plusx.nn.block import ResidualBlock, say
from plusx.study.anatomy import network_of, norm_of, places
from plusx.study.gradient import Loss


@dataclass(frozen=True)
class PathGradient:
    """The gradients of some paths of one length, at the first block's input.

    `norms` are those of the sampled paths; `paths` is the share of all paths that are this long.
    """

    length: int
    paths: float
    norms: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.norms) / len(self.norms)


def length_shares(blocks: int) -> list[float]:
    """The share of all 2^n paths through n blocks that has each length 0..n: binomial."""
    return [comb(blocks, length) / 2**blocks for length in range(blocks + 1)]


def path_gradients(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    lengths: Iterable[int] | None = None,
    samples: int = 24,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
) -> list[PathGradient]:
    """The gradient that flows along random paths of each length (None: every one, 0..n).

    The forward pass is the whole network's, in evaluation mode. On the way back each block passes
    its gradient on through the branch alone if the path takes it, else through the shortcut alone
    (section 4.3). A length with fewer paths than `samples` has each of its paths once at most.

    UserError: a block is none of x + F(x), or a length is not one of 0..n.
    """
    jacobian = Backward(net, inputs, targets, loss)
    count = len(jacobian.names)
    shares = length_shares(count)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in range(count + 1) if lengths is None else lengths:
        if not 0 <= length <= count:
            raise UserError(f"no path is {length} long: through {count} blocks 0 to {count}")
        chosen: set[frozenset[int]] = set()
        norms = []
        for _ in range(samples):
            taken = frozenset(torch.randperm(count, generator=generator)[:length].tolist())
            if taken not in chosen:
                chosen.add(taken)
                norms.append(norm_of(jacobian.along(taken)))
        found.append(PathGradient(length, shares[length], tuple(norms)))
    return found


def contributions(gradients: Sequence[PathGradient]) -> list[float]:
    """The share of the total gradient magnitude that comes from paths of each length.

    The number of paths times their mean gradient, over the sum of that (figure 6 c).
    """
    weights = [each.paths * each.mean for each in gradients]
    total = sum(weights)
    return [weight / total if total else 0.0 for weight in weights]


def effective_lengths(gradients: Sequence[PathGradient], share: float = 0.95) -> tuple[int, int]:
    """The shortest range of lengths that `share` of the gradient magnitude comes from."""
    parts = contributions(gradients)
    lengths = [each.length for each in gradients]
    ranges = [
        (lengths[j] - lengths[i], i, j)
        for i in range(len(parts))
        for j in range(i, len(parts))
        if sum(parts[i : j + 1]) >= share - 1e-12
    ]
    if not ranges:
        return lengths[0], lengths[-1]
    _, i, j = min(ranges)
    return lengths[i], lengths[j]


class Backward:
    """The way back through a network, one block at a time, by its branch or its shortcut alone.

    Each block's graph is made once; a path then costs the backward passes of its branches.
    """

    def __init__(self, net: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> None:
        # a copy: its graphs live on, while the network itself may go on being trained
        net = copy.deepcopy(network_of(net)).eval().requires_grad_(False)
        self.names = [place.name for place in places(net)]
        for place in places(net):
            if place.block.merge != "add":
                raise UserError(
                    f"{place.name} is no block x + F(x): paths are those of residual networks, "
                    "such as resnet56"
                )
        self.steps: list[_Step | _Entry] = []
        with torch.enable_grad():
            x = say(net, net.stem, inputs)
            for number, stage in enumerate(net.spec.stages, 1):
                if stage.enter:
                    entry = _Entry(getattr(net, f"enter{number}"), x)
                    self.steps += [entry] if self.steps else []
                    x = entry.output
                for block in getattr(net, f"layer{number}"):
                    self.steps.append(_Step(block, x))
                    x = self.steps[-1].output
            end = x.detach().requires_grad_()
            scored = loss(net.fc(net.tail(end).flatten(1)), targets)
            (self.arriving,) = torch.autograd.grad(scored, end)

    def along(self, branches: Set[int]) -> Tensor:
        """The gradient at the first block's input along the path that takes these branches."""
        gradient, position = self.arriving, len(self.names)
        for step in reversed(self.steps):
            if isinstance(step, _Entry):
                gradient = _back(step.output, step.x, gradient)
                continue
            position -= 1
            gradient = step.back(gradient, position in branches)
        return gradient


class _Step:
    """One block at the input that the forward pass gives it, its two ways kept apart."""

    def __init__(self, block: ResidualBlock, x: Tensor) -> None:
        self.x = x.detach().requires_grad_()
        y = say(block, block.lead, self.x)
        self.skip = self.x
        if block.downsample is not None:
            self.skip = block.downsample(y if block.projects else self.x)
        self.branch = block.survive(say(block, block.branch, y))
        self.sum = (self.branch + self.skip).detach().requires_grad_()
        # an activation may overwrite what it is given
        self.output = say(block, block.after, self.sum.clone())

    def back(self, gradient: Tensor, through_branch: bool) -> Tensor:
        gradient = _back(self.output, self.sum, gradient)
        return _back(self.branch if through_branch else self.skip, self.x, gradient)


class _Entry:
    """What is said on entry to a stage: every path goes through it."""

    def __init__(self, enter: nn.Module, x: Tensor) -> None:
        self.x = x.detach().requires_grad_()
        self.output: Tensor = enter(self.x)


def _back(output: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    if output is x:
        return gradient
    (given,) = torch.autograd.grad(
        output, x, gradient, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return given

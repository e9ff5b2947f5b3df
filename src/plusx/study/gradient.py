"""How gradients fare on their way back through a network, and the identity that residual ones obey.

He et al. 2016 (Identity Mappings in Deep Residual Networks), section 2.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.errors import UserError
from plusx.nn.block import say
from plusx.nn.layers import ConstantScale
from plusx.report import values
from plusx.study.anatomy import Place, network_of, norm_of, places, untouched, walk


# A gradient vanishes where that of the first block's output is less than a hundredth of the last
# block's, and explodes where it is more than a hundred times as large; between them it is steady.
FACTOR = 100.0

Verdict = Literal["vanish", "explode", "steady"]
Part = Literal["weights", "outputs"]
Ratio = int | float | None  # None: there is no gradient to compare
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class BlockGradient:
    """Norms of the loss gradient at one block.

    `weights`: in the weights of its convolutions, linear layers and attention (not in norms and
    biases, so that networks with and without batch norm can be compared); `outputs`: in what it
    gives, for the whole batch, of a loss that is the mean over the batch.
    """

    name: str
    weights: float
    outputs: float


def block_gradients(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    loss: Loss = F.cross_entropy,
    training: bool = True,
    seed: int = 0,
) -> list[BlockGradient]:
    """The norm of the loss gradient at every block, in order.

    `training`: with the batch's own statistics and with dropout drawn from `seed`, as a training
    step sees it; else as in evaluation. A block that is dropped has a gradient of 0 in its weights.
    Weights, their .grad, buffers, modes and torch's generator are left as they were.

    UserError: the network is not made of blocks.
    """
    found = places(net)
    with untouched(net), torch.enable_grad():
        net.train(training)
        for parameter in net.parameters():
            parameter.requires_grad_(True)
        torch.manual_seed(seed)
        passed = walk(net, inputs)
        weights = [[p for p in place.block.parameters() if p.ndim > 1] for place in found]
        wanted = [*passed.outputs, *(each for some in weights for each in some)]
        given = torch.autograd.grad(
            loss(passed.logits, targets), wanted, allow_unused=True, materialize_grads=True
        )
    rest = iter(given[len(found) :])
    return [
        BlockGradient(place.name, norm_of(*(next(rest) for _ in some)), norm_of(output))
        for place, some, output in zip(found, weights, given)
    ]


def gradient_ratio(gradients: Sequence[BlockGradient], part: Part = "outputs") -> float | None:
    """The norm at the first block over that at the last.

    Infinite where only the last is 0, None where both are: then there is no gradient to compare.
    NaN where one of them is not finite.
    """
    first, last = (getattr(each, part) for each in (gradients[0], gradients[-1]))
    if last:
        return float(first / last)
    return math.inf if first else None


def verdict(ratio: Ratio) -> Verdict:
    """What a ratio of first to last block says; see FACTOR."""
    if ratio is None or ratio < 1 / FACTOR:
        return "vanish"
    return "steady" if ratio <= FACTOR else "explode"


def course(ratios: Sequence[Ratio]) -> str:
    """What ratios say that were measured one after another through training, in words.

    Gradients settle where they vanish or explode at the start and are steady at the end.
    """
    told = {"vanish": "vanish", "explode": "explode", "steady": "are steady"}
    said = [verdict(ratio) for ratio in ratios]
    first, last = said[0], said[-1]
    begin, end = _times(ratios[0]), _times(ratios[-1])
    if len(ratios) == 1:
        return f"{told[first]} at the start ({begin})"
    if first == last:
        often = sorted(set(said) - {first})
        between = f", though between they {' and '.join(told[each] for each in often)}"
        return (
            f"{told[first]} from the start ({begin}) to the end ({end}){between if often else ''}"
        )
    verb = "settle" if last == "steady" else told[last]
    return f"{told[first]} at the start ({begin}) and {verb} by the end ({end})"


def _times(ratio: Ratio) -> str:
    if ratio is None:
        return "no gradient at all"
    if 0 < ratio < 1e-3:
        return f"{values.power(round(math.log10(ratio)))} times"
    return f"{ratio:,.0f} times" if ratio >= 100 else f"{ratio:.2g} times"


@dataclass(frozen=True)
class IdentityAt:
    """Equation 5 at the input of one block of a stage.

    `measured` and `expected` are norms of dL/dx_l, by autograd through the blocks and by the
    equation; `difference` is the largest difference of an entry over the largest entry.
    """

    name: str
    measured: float
    expected: float
    difference: float


def shortcut_identity(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    stage: int = 1,
    branches: bool = True,
    loss: Loss = F.cross_entropy,
) -> list[IdentityAt]:
    """He et al. 2016, eq. 5, at every depth of a stage (from 1) in float64, in evaluation mode:

        dL/dx_l = dL/dx_L (1 + d/dx_l (F_l + ... + F_(L-1)))

    from the block behind the last projection on. Where shortcuts are scaled by lambda, eq. 8:
    lambda^(L-l) in the place of the 1, and the branches are scaled likewise. Without `branches` F
    is 0, and the gradient is dL/dx_L times that factor at every depth.

    UserError: the stage does not exist or is none of pre-activation: something follows the sum,
    or the shortcut is not the identity times a constant.
    """
    network_of(net)
    net = copy.deepcopy(net).double().eval().requires_grad_(False)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    run = _unrolled(net, stage)
    if not branches:
        for place in run:
            words = [getattr(place.block, word) for word in place.block.branch]
            for parameter in next(w for w in reversed(words) if [*w.parameters()]).parameters():
                nn.init.zeros_(parameter)
    names = [place.name for place in places(net)]
    first = names.index(run[0].name)
    with torch.enable_grad():
        # all blocks in front give the start of the stage, all behind make the loss
        ahead = walk(net, inputs)
        at = ahead.outputs[first - 1] if first else ahead.start
        kept = [at.detach().requires_grad_()]
        for place in run:
            kept.append(place.block(kept[-1]))
        scored = loss(_rest(net, run[-1], kept[-1]), targets)
        *measured, last = torch.autograd.grad(scored, kept)
        return [
            _compared(run[l:], measured[l], last, kept[l].detach().requires_grad_())
            for l in range(len(run))
        ]


def _unrolled(net: nn.Module, stage: int) -> list[Place]:
    """The blocks of a stage behind its last projection, all of them x + F(x) or lambda x + F(x)."""
    found = places(net)
    count = len(network_of(net).spec.stages)
    if not 1 <= stage <= count:
        raise UserError(f"there is no stage {stage}: this network has 1 to {count}")
    run = [place for place in found if place.name.startswith(f"layer{stage}.")]
    projecting = [i for i, place in enumerate(run) if place.block.projects]
    run = run[projecting[-1] + 1 :] if projecting else run
    wrong = [p for p in run if p.block.merge != "add" or p.block.after or _factor(p) is None]
    if wrong or not run:
        raise UserError(
            "equation 5 holds for x + F(x) with nothing behind the sum, as in preact_resnet56; "
            f"stage {stage} of this network "
            + (f"has {wrong[0].name} of another form" if wrong else "has nothing but a projection")
        )
    return run


def _factor(place: Place) -> float | None:
    """What the shortcut multiplies by; None where it does something else."""
    side = place.block.downsample
    if side is None:
        return 1.0
    scales = [each.value for each in side if isinstance(each, ConstantScale)]
    return math.prod(scales) if len(scales) == len(side) else None


def _compared(run: Sequence[Place], measured: Tensor, last: Tensor, x: Tensor) -> IdentityAt:
    """Equation 5 from the branches alone: their sum, derived with respect to x."""
    total, factor, flowing = torch.zeros_like(x), 1.0, x
    for place in run:
        block, scale = place.block, _factor(place) or 0.0
        branch = say(block, block.branch, say(block, block.lead, flowing))
        total, factor = scale * total + branch, scale * factor
        flowing = scale * flowing + branch
    (through,) = torch.autograd.grad(total, x, last, allow_unused=True, materialize_grads=True)
    expected = factor * last + through
    largest = float(expected.abs().max()) or 1.0
    return IdentityAt(
        run[0].name,
        norm_of(measured),
        norm_of(expected),
        float((measured - expected).abs().max()) / largest,
    )


def _rest(net: nn.Module, place: Place, x: Tensor) -> Tensor:
    """The logits, from what one block gives."""
    net = network_of(net)
    stage = int(place.name.removeprefix("layer").split(".")[0])
    for number in range(stage, len(net.spec.stages) + 1):
        if number > stage and net.spec.stages[number - 1].enter:
            x = getattr(net, f"enter{number}")(x)
        layer = getattr(net, f"layer{number}")
        for block in layer[place.index + 1 :] if number == stage else layer:
            x = block(x)
    logits: Tensor = net.fc(net.tail(x).flatten(1))
    return logits

"""A network taken apart for a study: its blocks in order, and what flows between them.

Nothing here leaves a trace: no hook, no statistic of batch norm, no mode, no drawn number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.grammar.arithmetic import FeatureShape, LayerContext, each_dimension, step
from plusx.grammar.words import parse
from plusx.nn.block import ResidualBlock, run_layers
from plusx.nn.network import Network


@dataclass(frozen=True, eq=False)
class BlockPosition:
    """A block and its position: `name` is its module's, `holder[index]` is the block.

    `flow` is what reaches it: channels and positions.
    """

    name: str
    block: ResidualBlock
    holder: nn.Sequential
    index: int
    flow: FeatureShape

    @property
    def has_shortcut(self) -> bool:
        return self.block.merge != "none"

    @property
    def changes_shape(self) -> bool:
        """Whether what leaves the block has another shape than what reaches it."""
        into, out = self.flow, self.block.shape_out
        return (into.channels, into.size) != (out.channels, out.size)


@dataclass(frozen=True, eq=False)
class BlockOutputs:
    """One pass: what reaches the first block, what each block gives, and the logits."""

    start: Tensor
    outputs: tuple[Tensor, ...]
    logits: Tensor


def require_network(net: nn.Module) -> Network:
    """The network. UserError: it is not built from a spec, or has no blocks."""
    if not isinstance(net, Network):
        raise UserError(
            f"{type(net).__name__} is an external module, not built of blocks: choose a network "
            "that is made of a spec"
        )
    if not net.spec.stages:
        raise UserError("the network has no blocks: its spec has no stages")
    return net


def block_positions(net: nn.Module) -> list[BlockPosition]:
    """Every block in order. UserError as `require_network`."""
    net = require_network(net)
    spec, one = net.spec, (1,) * net.spec.ndim
    flow = FeatureShape(spec.in_channels, each_dimension(spec.size, spec.ndim), one)
    for word in parse(spec.stem).branch:
        flow = step(flow, word, LayerContext(spec, spec.stem_width, one))
    positions = []
    for number, stage in enumerate(spec.stages, 1):
        if stage.enter:
            flow = getattr(net, f"enter{number}").shape_out
        holder = getattr(net, f"layer{number}")
        for index, block in enumerate(holder):
            positions.append(BlockPosition(f"layer{number}.{index}", block, holder, index, flow))
            flow = block.shape_out
    return positions


def run_blocks(net: nn.Module, inputs: Shaped[Tensor, "n ..."]) -> BlockOutputs:
    """Run the network and keep what flows between its blocks; the logits are those of `net(x)`."""
    net = require_network(net)
    x = start = run_layers(net, net.stem, inputs)
    outputs: list[Tensor] = []
    for module in body(net):
        x = module(x)
        if isinstance(module, ResidualBlock):
            outputs.append(x)
        elif not outputs:
            start = x
    return BlockOutputs(start, tuple(outputs), head(net, x))


def body(net: Network) -> list[nn.Module]:
    """What stands between the stem and the tail, in order: blocks, and the layers on entry to a
    stage."""
    modules: list[nn.Module] = []
    for number, stage in enumerate(net.spec.stages, 1):
        modules += [getattr(net, f"enter{number}")] if stage.enter else []
        modules += getattr(net, f"layer{number}")
    return modules


def head(net: Network, x: Tensor) -> Tensor:
    """The logits, from the output of the last block."""
    logits: Tensor = net.fc(net.tail(x).flatten(1))
    return logits


def shortcut_only(block: ResidualBlock, x: Tensor) -> Tensor:
    """A block whose branch is deleted: its shortcut, and the layers after the sum.

    The features that a block with `&` would have added are zero.
    """
    assert block.merge != "none"
    if block.merge == "concat":
        missing = block.shape_out.channels - x.shape[1]
        skip = torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], dim=1)
    else:
        y = run_layers(block, block.lead, x)
        # an activation behind the sum may overwrite it, and others hold x
        skip = (
            x.clone() if block.downsample is None else block.downsample(y if block.projects else x)
        )
    return run_layers(block, block.after, skip)


@contextmanager
def preserved(net: nn.Module) -> Iterator[None]:
    """Leave the network as it was: modes, buffers, what is frozen, and torch's generator."""
    modes = [(module, module.training) for module in net.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    required = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    cards = sorted({p.device.index for p, _ in required if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cards):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module, training in modes:
                module.training = training
            for parameter, requires in required:
                parameter.requires_grad_(requires)


def counted_depths(net: nn.Module, draws: int, seed: int = 0) -> list[int]:
    """How many blocks of a network with stochastic depth survive in each of `draws` training passes
    (Huang et al. 2016, section 3).

    The blocks decide as in a forward pass, but nothing is computed. UserError: the network is not
    made of blocks, or drops rows of a batch instead of whole blocks.
    """
    blocks = [position.block for position in block_positions(net)]
    if any(block.drop and block.drops_rows for block in blocks):
        raise UserError(
            "this network drops rows of a batch, so no block is ever skipped: it needs "
            'drop_mode = "batch"'
        )
    with preserved(net):
        net.train()
        torch.manual_seed(seed)
        return [sum(not block.dropped() for block in blocks) for _ in range(draws)]


def total_norm(*tensors: Tensor) -> float:
    """The Euclidean norm of all of them together.

    In float64, because in float32 the square of 1e-23 is 0.
    """
    return float(sum(float(t.detach().double().square().sum()) for t in tensors) ** 0.5)

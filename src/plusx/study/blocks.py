"""The blocks of a network in order, with the features between them.

No function here changes the network: hooks, statistics of batch norm, modes and random state stay
as they are.
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
    """A block and its position: `name` is its module's name, `holder[index]` is the block.
    `shape_in` is the shape of its input: channels and size."""

    name: str
    block: ResidualBlock
    holder: nn.Sequential
    index: int
    shape_in: FeatureShape

    @property
    def has_shortcut(self) -> bool:
        return self.block.merge != "none"

    @property
    def changes_shape(self) -> bool:
        """Whether input and output have different shapes."""
        into, out = self.shape_in, self.block.shape_out
        return (into.channels, into.size) != (out.channels, out.size)


@dataclass(frozen=True, eq=False)
class BlockOutputs:
    """One forward pass: the input of the first block, the output of each block, and the logits."""

    start: Tensor
    outputs: tuple[Tensor, ...]
    logits: Tensor


def require_network(net: nn.Module) -> Network:
    """Return the network. Raises UserError if it is not built from a spec or has no blocks."""
    if not isinstance(net, Network):
        raise UserError(
            f"{type(net).__name__} is an external module, not built of blocks: choose a network "
            "that is made of a spec"
        )
    if not net.spec.stages:
        raise UserError("the network has no blocks: its spec has no stages")
    return net


def block_positions(net: nn.Module) -> list[BlockPosition]:
    """Return every block in order. Raises UserError as `require_network` does."""
    net = require_network(net)
    spec, one = net.spec, (1,) * net.spec.ndim
    shape = FeatureShape(spec.in_channels, each_dimension(spec.size, spec.ndim), one)
    for word in parse(spec.stem).branch:
        shape = step(shape, word, LayerContext(spec, spec.stem_width, one))
    positions = []
    for number, stage in enumerate(spec.stages, 1):
        if stage.enter:
            shape = getattr(net, f"enter{number}").shape_out
        holder = getattr(net, f"layer{number}")
        for index, block in enumerate(holder):
            positions.append(BlockPosition(f"layer{number}.{index}", block, holder, index, shape))
            shape = block.shape_out
    return positions


def run_blocks(net: nn.Module, inputs: Shaped[Tensor, "n ..."]) -> BlockOutputs:
    """Run the network and return the outputs of its blocks; the logits equal `net(inputs)`."""
    net = require_network(net)
    x = start = run_layers(net, net.stem, inputs)
    outputs: list[Tensor] = []
    for module in stage_modules(net):
        x = module(x)
        if isinstance(module, ResidualBlock):
            outputs.append(x)
        elif not outputs:
            start = x
    return BlockOutputs(start, tuple(outputs), head(net, x))


def stage_modules(net: Network) -> list[nn.Module]:
    """Return the modules between stem and tail in order: blocks, and the layers on entry to a
    stage."""
    modules: list[nn.Module] = []
    for number, stage in enumerate(net.spec.stages, 1):
        modules += [getattr(net, f"enter{number}")] if stage.enter else []
        modules += getattr(net, f"layer{number}")
    return modules


def head(net: Network, x: Tensor) -> Tensor:
    """Return the logits for the output of the last block."""
    logits: Tensor = net.fc(net.tail(x).flatten(1))
    return logits


def shortcut_only(block: ResidualBlock, x: Tensor) -> Tensor:
    """Run a block without its branch: its shortcut, and the layers after the sum. The features that
    the branch of a block with `&` would add are zero."""
    assert block.merge != "none"
    if block.merge == "concat":
        missing = block.shape_out.channels - x.shape[1]
        skip = torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], dim=1)
    else:
        y = run_layers(block, block.lead, x)
        # clone: an in-place activation after the sum must not change x
        skip = (
            x.clone() if block.downsample is None else block.downsample(y if block.projects else x)
        )
    return run_layers(block, block.after, skip)


@contextmanager
def preserved(net: nn.Module) -> Iterator[None]:
    """Restore modes, buffers, requires_grad and torch's random state of a network at the end."""
    modes = [(module, module.training) for module in net.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    cuda_devices = sorted({p.device.index for p, _ in requires_grad if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda_devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module, training in modes:
                module.training = training
            for parameter, value in requires_grad:
                parameter.requires_grad_(value)


def sampled_depths(net: nn.Module, passes: int, seed: int = 0) -> list[int]:
    """Return the number of surviving blocks in each of `passes` training passes.

    For networks with stochastic depth (Huang et al. 2016, section 3). Blocks are dropped as in a
    forward pass, but not computed. Raises UserError if the network is not made of blocks, or drops
    rows of a batch instead of whole blocks.
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
        return [sum(not block.dropped() for block in blocks) for _ in range(passes)]


def total_norm(*tensors: Tensor) -> float:
    """Return the Euclidean norm of all tensors together. In float64: in float32 the square of 1e-23
    is 0."""
    return float(sum(float(t.detach().double().square().sum()) for t in tensors) ** 0.5)

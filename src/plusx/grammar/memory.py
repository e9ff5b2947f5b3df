"""Memory that training holds for the backward pass, by arithmetic on a spec. No torch.

`arithmetic` sums the bytes that layers save. A memory plan divides the network into regions (the
stem, stages, with "segments" also blocks), which store their inputs and the outputs of heavy
convolutions; the rest of a region exists only during its backward pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Literal

from plusx.grammar import arithmetic
from plusx.grammar.arithmetic import FLOAT, HEAVY, INDEX, FeatureShape, LayerContext, input_shape
from plusx.grammar.spec import Net
from plusx.grammar.words import parse


Plan = Literal["keep", "recompute", "segments"]
PLANS: tuple[Plan, ...] = ("keep", "recompute", "segments")
GROUP = 4  # blocks that "recompute" recomputes at a time
STORED_MULTIPLY_ADDS: dict[Plan, int] = {"recompute": HEAVY[0], "segments": HEAVY[1]}


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a network that a plan recomputes; bytes of one input."""

    enters: int  # its input
    saved: int  # with its input
    new: int  # without what is saved before it
    heavy: tuple[int, int]
    blocks: tuple["Region", ...] = ()


def saved_bytes(net: Net, plan: Plan = "keep", batch: int = 1) -> int:
    """Return the peak number of bytes held for the backward pass of a batch, in float32."""
    regions, tail = _regions(net)
    if plan == "keep":
        return batch * (sum(region.new for region in regions) + tail)
    plan_index = list(STORED_MULTIPLY_ADDS).index(plan)
    before, peak = 0, 0
    for region in _grouped(regions) if plan == "recompute" else regions:
        inside = region.saved
        if plan == "segments" and len(region.blocks) > 1:
            inside = region.heavy[plan_index]
            inside += max(
                sum(earlier.enters for earlier in region.blocks[:i])
                + block.saved
                - block.heavy[plan_index]
                for i, block in enumerate(region.blocks)
            )
        peak = max(peak, before + inside)
        before += region.enters + region.heavy[plan_index]
    return batch * max(peak, before + tail)


def _grouped(regions: tuple[Region, ...]) -> Iterator[Region]:
    """Yield the blocks of every stage in regions of GROUP blocks."""
    for region in regions:
        if not region.blocks:
            yield region
        for i in range(0, len(region.blocks), GROUP):
            blocks = region.blocks[i : i + GROUP]
            new = sum(block.new for block in blocks)
            heavy = sum(b.heavy[0] for b in blocks), sum(b.heavy[1] for b in blocks)
            first = blocks[0]
            yield Region(first.enters, new + first.saved - first.new, new, heavy)


@lru_cache(maxsize=64)
def _regions(net: Net) -> tuple[tuple[Region, ...], int]:
    """Return the regions of a network, first to last, and the bytes saved by its tail and head."""
    shape = replace(input_shape(net), is_saved=net.takes_tokens)
    stem = LayerContext.unstrided(net, net.stem_width)
    after = arithmetic.run(shape, parse(net.stem).branch, stem)
    regions = [_region(shape, after)]
    if net.takes_tokens:  # the input consists of token numbers, not of channels
        tokens = INDEX * prod(shape.size)
        regions[0] = replace(regions[0], enters=tokens, saved=regions[0].new + tokens)
    shape = after
    for stage in net.stages:
        enter = LayerContext.unstrided(net, shape.channels)
        after = arithmetic.run(shape, parse(stage.enter).branch, enter)
        if stage.enter:
            regions.append(_region(shape, after))
        pairs = list(arithmetic.block_shapes(after, stage, net))
        shape = pairs[-1][1]
        blocks = tuple(_region(block_input, block_output) for block_input, block_output in pairs)
        regions.append(_region(after, shape, blocks))
    end = LayerContext.unstrided(net, shape.channels)
    after = arithmetic.run(shape, parse(net.tail).branch, end)
    tail = after.saved - shape.saved
    if net.num_classes:  # the embedding, and the loss
        tail += FLOAT * (after.channels * prod(after.size) + net.num_classes)
    return tuple(regions), tail


def _region(before: FeatureShape, after: FeatureShape, blocks: tuple[Region, ...] = ()) -> Region:
    new = after.saved - before.saved
    saved = new + before.nbytes * before.is_saved
    heavy = (after.heavy[0] - before.heavy[0], after.heavy[1] - before.heavy[1])
    return Region(before.nbytes, saved, new, heavy, blocks)

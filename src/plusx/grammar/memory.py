"""What training holds for the backward pass, by arithmetic on a spec: no torch.

`shapes` sums the bytes that the layers save. A plan that saves memory divides the network into
regions (the stem, stages, with "segments" the blocks within), which keep their inputs and the
results of heavy convolutions; the rest of a region is there only while its backward pass runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Literal

from plusx.grammar import shapes
from plusx.grammar.sentence import parse
from plusx.grammar.shapes import FLOAT, HEAVY, INDEX, Flow, Setting, each_dimension
from plusx.grammar.spec import Block, Net


Plan = Literal["keep", "recompute", "segments"]
PLANS: tuple[Plan, ...] = ("keep", "recompute", "segments")
GROUP = 4  # blocks that "recompute" computes again at a time
KEPT_MULTIPLY_ADDS: dict[Plan, int] = {"recompute": HEAVY[0], "segments": HEAVY[1]}


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a network that a plan computes again: bytes of one input."""

    enters: int  # of its input
    saved: int  # its input included
    new: int  # of these, what is not saved before it
    heavy: tuple[int, int]
    blocks: tuple["Region", ...] = ()


def saved_bytes(net: Net, plan: Plan = "keep", batch: int = 1) -> int:
    """The most bytes that are held for the backward pass of a batch, in float32."""
    regions, tail = _regions(net)
    if plan == "keep":
        return batch * (sum(region.new for region in regions) + tail)
    which = list(KEPT_MULTIPLY_ADDS).index(plan)
    before, peak = 0, 0
    for region in _grouped(regions) if plan == "recompute" else regions:
        inside = region.saved
        if plan == "segments" and len(region.blocks) > 1:
            inside = region.heavy[which]
            inside += max(
                sum(earlier.enters for earlier in region.blocks[:i])
                + block.saved
                - block.heavy[which]
                for i, block in enumerate(region.blocks)
            )
        peak = max(peak, before + inside)
        before += region.enters + region.heavy[which]
    return batch * max(peak, before + tail)


def _grouped(regions: tuple[Region, ...]) -> Iterator[Region]:
    """The blocks of every stage, GROUP at a time as a region."""
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
    """The regions of a network, first to last, and what its tail and head save."""
    one = (1,) * net.ndim
    flow = Flow(net.in_channels, each_dimension(net.size, net.ndim), one)
    if net.stem.startswith("embed"):
        flow = replace(flow, is_saved=True)
    after = shapes.run(flow, parse(net.stem).branch, Setting(net, net.stem_width, one))
    regions = [_region(flow, after)]
    if net.stem.startswith("embed"):  # numbers of tokens, not a vocabulary of channels
        tokens = INDEX * prod(flow.size)
        regions[0] = replace(regions[0], enters=tokens, saved=regions[0].new + tokens)
    flow = after
    for stage in net.stages:
        after = shapes.run(flow, parse(stage.enter).branch, Setting(net, flow.channels, one))
        if stage.enter:
            regions.append(_region(flow, after))
        begin = flow = after
        blocks = []
        for before, flow in _blocks(begin, stage.blocks, net, stage.width, stage.stride):
            blocks.append(_region(before, flow))
        regions.append(_region(begin, flow, tuple(blocks)))
    after = shapes.run(flow, parse(net.tail).branch, Setting(net, flow.channels, one))
    tail = after.saved - flow.saved
    if net.num_classes:  # the embedding, and the loss
        tail += FLOAT * (after.channels * prod(after.size) + net.num_classes)
    return tuple(regions), tail


def _region(before: Flow, after: Flow, blocks: tuple[Region, ...] = ()) -> Region:
    new = after.saved - before.saved
    saved = new + before.nbytes * before.is_saved
    heavy = (after.heavy[0] - before.heavy[0], after.heavy[1] - before.heavy[1])
    return Region(before.nbytes, saved, new, heavy, blocks)


def _blocks(
    flow: Flow, blocks: tuple[Block, ...], net: Net, width: int, stride: int | tuple[int, ...]
) -> Iterator[tuple[Flow, Flow]]:
    """What enters and leaves each block of a stage; a deep stage repeats itself."""
    one = (1,) * net.ndim
    known: dict[tuple[Block, int, bool], Flow] = {}
    for position, block in enumerate(blocks):
        context = Setting(net, width, each_dimension(stride, net.ndim) if position == 0 else one)
        key = (block, flow.channels, flow.is_saved)
        if position == 0:
            after = shapes.block(flow, block, context)
        else:
            if key not in known:
                known[key] = shapes.block(replace(flow.free(), stride=one), block, context)
            after = shapes.follow(flow, known[key])
        yield flow, after
        flow = after

"""The networks of the zoo with the same sentences and fewer channels, to run in moments."""

import re
from dataclasses import replace

from plusx.grammar.spec import Net, Stage
from plusx.grammar.words import parse


def shrunken(net: Net, *, width: int = 64, depth: int | None = None) -> Net:
    """The net with its widest stage at no more than `width` channels, or the least that its words
    allow; a growth, which adds up, at a quarter of that.

    The widths keep their ratios, up to rounding: groups, heads and the hidden units of gates have
    to divide what is left. `depth` is the most blocks a stage.
    """
    step = least(net)
    widest = max(stage.width for stage in net.stages)
    joins = any(parse(b.body).merge == "concat" for stage in net.stages for b in stage.blocks)
    width = min(width // 4 if joins else width, widest)

    def narrow(channels: int) -> int:
        return max(round(channels * width / widest / step), 1) * step if channels else 0

    def shorter(stage: Stage) -> Stage:
        turns = stage.depth if depth is None else min(stage.depth, depth)
        return replace(stage, width=narrow(stage.width), depth=turns)

    return replace(
        net,
        stem_width=narrow(net.stem_width),
        stages=tuple(map(shorter, net.stages)),
        tail=re.sub(r"fc\d+", f"fc{width}", net.tail),
    )


def least(net: Net) -> int:
    """A number of channels that every word of the net can divide."""
    need = 4
    for block in (block for stage in net.stages for block in stage.blocks):
        for word in parse(block.body).words:
            share = word.ratio[1] if word.kind in ("conv", "attn") else 1
            if word.kind == "conv":
                need = max(need, share * max(word.groups, 1))
            elif word.kind in ("se", "cbam"):
                need = max(need, int(word.value or 1))
            elif word.kind == "attn":
                need = max(need, share * int(word.value or 1), 4 * int(word.value or 1))
    return need

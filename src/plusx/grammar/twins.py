"""Variants of a network: with another merge, without norms, with dropout, at another cost.

Each function returns a new spec of the same depth and, except with `&`, the same widths; `at_cost`
makes two networks equally expensive.
"""

from collections.abc import Callable
from dataclasses import replace

from plusx.errors import UserError
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.words import Merge, Sentence, Word, parse


_SHRINK = "norm act conv1/2 avgpool2s2"  # between the stages of a DenseNet (Huang et al. 2017)


def with_merge(net: Net, merge: Merge) -> Net:
    """Return the network whose blocks have another merge: + & ~ or none.

    If the shortcuts have no weights (option A), the plain twin has exactly the same parameters and
    multiply-adds. With `&` a block concatenates its input and its output, so stages cannot have a
    stride: from the second on they begin with a 1 x 1 convolution that halves the channels and an
    average pooling.
    """
    _require_sums(net, merge)
    if merge != "concat":
        return map_blocks(net, lambda block: replace(block, body=_merged(block.body, merge)))
    net = map_blocks(net, lambda block: replace(block, body=_concatenating(block.body)))
    stages = tuple(
        replace(stage, stride=1, enter=_SHRINK if position else "")
        for position, stage in enumerate(net.stages)
    )
    return replace(net, stages=stages, tail=_activated(net.tail))


def without_norm(net: Net) -> Net:
    """Return the network without norms; the convolution before each norm gets a bias."""

    def strip(text: str) -> str:
        sentence = parse(text)
        lead, branch, after = (
            _unnormed(words) for words in (sentence.lead, sentence.branch, sentence.after)
        )
        return str(Sentence(lead, branch, sentence.merge, after))

    def change_block(block: Block) -> Block:
        return Block(
            body=strip(block.body),
            shortcut=strip(block.shortcut),
            identity=strip(block.identity),
            gate=strip(block.gate),
        )

    stages = tuple(
        replace(map_stage_blocks(stage, change_block), enter=strip(stage.enter))
        for stage in net.stages
    )
    return replace(net, stem=strip(net.stem), stages=stages, tail=strip(net.tail))


def with_dropout(net: Net, rate: float) -> Net:
    """Return the network with dropout before the last convolution of every block, as in wide
    residual networks (Zagoruyko and Komodakis 2016, section 2.4)."""
    word = Word("drop", value=round(rate, 6))

    def change_block(block: Block) -> Block:
        sentence = parse(block.body)
        last = max(
            (i for i, candidate in enumerate(sentence.branch) if candidate.kind == "conv"),
            default=None,
        )
        if last is None:
            raise UserError(f"{block.body!r} has no convolution to put dropout before")
        branch = (*sentence.branch[:last], word, *sentence.branch[last:])
        return replace(block, body=str(replace(sentence, branch=branch)))

    return map_blocks(net, change_block)


def at_cost(net: Net, multiply_adds: int) -> Net:
    """Return the network with all widths scaled by one factor, as close to this number of
    multiply-adds as whole widths allow."""

    def scaled(factor: float) -> Net:
        def width(value: int) -> int:
            return max(1, round(value * factor))

        stages = tuple(replace(stage, width=width(stage.width)) for stage in net.stages)
        stem = width(net.stem_width) if net.stem_width else 0
        return replace(net, stem_width=stem, stages=stages)

    low, high = 0.02, 50.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        if measure(scaled(middle)).multiply_adds < multiply_adds:
            low = middle
        else:
            high = middle
    return min(
        (scaled(low), scaled(high)),
        key=lambda twin: abs(measure(twin).multiply_adds - multiply_adds),
    )


def _require_sums(net: Net, merge: Merge) -> None:
    """Raise UserError unless all blocks merge by `+`."""
    merges = {parse(block.body).merge for stage in net.stages for block in stage.blocks}
    if merges != {"add"}:
        others = "none" if merges == {"none"} else " and ".join(sorted(merges - {"add"}))
        raise UserError(
            f"a twin with merge {merge!r} is made from a network whose blocks all add their "
            f"shortcut (+); this one has blocks that merge by {others}"
        )


def _merged(body: str, merge: Merge) -> str:
    sentence = parse(body)
    if merge == "none":
        return str(Sentence((), (*sentence.lead, *sentence.branch), "none", sentence.after))
    return str(replace(sentence, merge=merge))


def _concatenating(body: str) -> str:
    """Return the sentence with `&`, nothing after it, no stride, and no norm at the end of its
    branch. Layers after a `+` would be applied to the accumulated features again in every block."""
    sentence = parse(body)
    words = (*sentence.lead, *sentence.branch)
    if any(word.kind in ("norm", "act") for word in sentence.after) or words[-1].kind == "norm":
        # post-activation as pre-activation: norm act conv ... norm act conv &
        body_words = [word for word in words if word.kind not in ("norm", "act")]
        words = tuple(layer for word in body_words for layer in (*parse("norm act").branch, word))
    unstrided = tuple(
        replace(word, stride=1) if word.kind == "conv" and word.stride is None else word
        for word in words
    )
    return str(Sentence((), unstrided, "concat", ()))


def _activated(tail: str) -> str:
    """Return the tail for blocks that do not end in `norm act`."""
    return tail if tail.startswith("norm act") else f"norm act {tail}".strip()


def _unnormed(words: tuple[Word, ...]) -> tuple[Word, ...]:
    remaining: list[Word] = []
    for position, word in enumerate(words):
        if word.kind == "norm":
            continue
        follows = words[position + 1].kind if position + 1 < len(words) else ""
        if follows == "norm" and word.kind == "conv" and not word.bias:
            word = replace(word, bias=True)
        remaining.append(word)
    return tuple(remaining)


def map_blocks(net: Net, change: Callable[[Block], Block]) -> Net:
    """Return the network with every block changed."""
    return replace(net, stages=tuple(map_stage_blocks(stage, change) for stage in net.stages))


def map_stage_blocks(stage: Stage, change: Callable[[Block], Block]) -> Stage:
    """Return the stage with every block changed."""
    block = (
        tuple(change(block) for block in stage.block)
        if isinstance(stage.block, tuple)
        else change(stage.block)
    )
    return replace(stage, block=block, first=None if stage.first is None else change(stage.first))

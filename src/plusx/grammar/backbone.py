"""A network as the backbone of a head: its features alone, and dilation in place of stride.

All of it is a spec to a spec, so that what is counted of a network holds for its backbone too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plusx.errors import UserError
from plusx.grammar import arithmetic
from plusx.grammar.arithmetic import FeatureShape, LayerContext, Size, each_dimension
from plusx.grammar.heads import Head
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.twins import map_stage_blocks
from plusx.grammar.words import Sentence, Word, parse


# words of a tail that make one vector of the map, and with it the end of what a head can stand on
ENDS = ("pool", "maxpool", "avgpool", "blur", "top", "fc")
POOLINGS = ("maxpool", "avgpool", "blur")


@dataclass(frozen=True)
class StemMap:
    """What the stem's word at `position` gives, before the next word has a stride."""

    position: int
    channels: int
    stride: Size


def backbone_of(net: Net, head: Head) -> Net:
    """The network without its linear head and what pools before it, dilated as `head` says."""
    bare = replace(net, tail=_kept(net.tail), num_classes=0)
    return dilated(bare, head.stride) if head.dilates else bare  # type: ignore[union-attr]


def dilated(net: Net, stride: int) -> Net:
    """The network whose stages have at most this stride: what was strided is dilated instead.

    What follows a stride that is taken away sees its input as far apart as before (Chen et al.
    2017, section 3.1; torchvision's replace_stride_with_dilation). Every weight stays as it is, so
    the weights of the network fit. Poolings that stride are left out; they have no weights.
    Raises UserError where the stem strides more, or a convolution cannot keep the size.
    """
    one = (1,) * net.ndim
    shape = FeatureShape(net.in_channels, each_dimension(net.size, net.ndim), one)
    shape = arithmetic.run(shape, parse(net.stem).branch, LayerContext(net, net.stem_width, one))
    if max(shape.stride) > stride:
        raise UserError(
            f"the stem {net.stem!r} has a stride of {max(shape.stride)} already, more than {stride}"
        )
    taken, rate, stages = shape.stride, 1, []
    befores = (shape.channels, *arithmetic.measure(net).widths)
    for stage, before, after in zip(net.stages, befores, befores[1:]):
        enter = one
        for word in parse(stage.enter).branch:
            enter = _product(enter, each_dimension(word.stride or 1, net.ndim))
        inside = each_dimension(stage.stride, net.ndim)
        later = _product(_product(taken, enter), inside)
        if max(later) <= stride:
            taken = later
            stages.append(stage if rate == 1 else _at_rate(stage, rate))
            continue
        if len(set(enter)) > 1 or len(set(inside)) > 1:
            raise UserError(f"a stage of stride {stage.stride} in {net.ndim} dimensions stays")
        enter_text = _open(stage.enter, rate)
        rate *= enter[0]
        stays = _behind(stage.enter, before, net) == after
        stages.append(_dilated(replace(stage, enter=enter_text), inside[0], rate, stays))
        rate *= inside[0]
    return replace(net, stages=tuple(stages))


def stem_maps(net: Net) -> list[StemMap]:
    """Where the stem's maps are finer than the first stage's, the last of each resolution."""
    one = (1,) * net.ndim
    shape = FeatureShape(net.in_channels, each_dimension(net.size, net.ndim), one)
    coarsest = each_dimension(arithmetic.measure(net).strides[0], net.ndim)
    context, maps = LayerContext(net, net.stem_width, one), {}
    for position, word in enumerate(parse(net.stem).branch):
        shape = arithmetic.step(shape, word, context)
        if shape.stride != coarsest:
            maps[shape.stride] = StemMap(position, shape.channels, shape.stride)
    return list(maps.values())


def _kept(tail: str) -> str:
    """The words of a tail before its first pooling."""
    words: list[str] = []
    for word in parse(tail).branch:
        if word.kind in ENDS:
            break
        words.append(str(word))
    return " ".join(words)


def _product(one: Size, other: Size) -> Size:
    return tuple(a * b for a, b in zip(one, other, strict=True))


def _behind(enter: str, channels: int, net: Net) -> int:
    """Channels behind what is said on entry to a stage."""
    one = (1,) * net.ndim
    shape = FeatureShape(channels, (1 << 16,) * net.ndim, one)
    return arithmetic.run(shape, parse(enter).branch, LayerContext(net, channels, one)).channels


def _dilated(stage: Stage, stride: int, rate: int, stays: bool) -> Stage:
    """The stage without its stride, behind strides of `rate` that were taken away before.

    stays: the first block hands on as many channels as it is given.
    """
    first, *rest = stage.blocks
    begin = _block(first, rate, stride)
    pads = any(word.kind == "pad" for word in parse(first.shortcut).words)
    if stays and stride > 1 and not pads:
        # where the stride was all that made the shortcut a projection, it stays one
        begin = replace(begin, identity=begin.shortcut)
    later = _at_rate(stage, rate * stride)
    turn = stage.block if isinstance(stage.block, tuple) else (stage.block,)
    assert len(rest) + 1 == len(turn) * stage.depth
    return replace(later, stride=1, enter=stage.enter, first=begin)


def _at_rate(stage: Stage, rate: int) -> Stage:
    """The stage with every filter's positions `rate` times as far apart."""
    stage = map_stage_blocks(stage, lambda block: _block(block, rate, 1))
    return replace(stage, enter=_side(stage.enter, rate, 1))


def _block(block: Block, rate: int, stride: int) -> Block:
    """A block whose stride is taken away: the filters behind it are that much further apart."""
    sentence = parse(block.body)
    lead, rate_behind = _words(sentence.lead, rate, stride)
    branch, rate_behind = _words(sentence.branch, rate_behind, stride)
    after, _ = _words(sentence.after, rate * stride, 1)
    body = str(Sentence(tuple(lead), tuple(branch), sentence.merge, tuple(after)))
    return Block(
        body=body,
        shortcut=_side(block.shortcut, rate, stride),
        identity=_side(block.identity, rate, 1),
        gate=_side(block.gate, rate, stride),
    )


def _side(text: str, rate: int, stride: int) -> str:
    words, _ = _words(parse(text).branch, rate, stride)
    return " ".join(map(str, words))


def _words(words: Sequence[Word], rate: int, stride: int) -> tuple[list[Word], int]:
    """The words, dilated, and the rate behind the one that took the stride."""
    changed = []
    for word in words:
        changed.append(_spread(word, rate))
        if word.stride is None:
            rate *= stride
    return changed, rate


def _spread(word: Word, rate: int) -> Word:
    """A convolution with its filter's positions `rate` times as far apart."""
    if rate == 1 or word.kind != "conv" or max(word.kernel) == 1:
        return word
    if any(size % 2 == 0 for size in word.kernel):
        raise UserError(f"{word} has an even kernel, which cannot be dilated and keep the size")
    return replace(word, dilation=word.dilation * rate)


def _open(enter: str, rate: int) -> str:
    """What is said on entry to a stage, without its stride."""
    words = []
    for word in parse(enter).branch:
        strides = word.stride not in (1, None)
        if strides and word.kind in POOLINGS:
            continue
        if strides:
            if word.kind != "conv" or any(size % 2 == 0 for size in word.kernel):
                raise UserError(f"{word} in {enter!r} cannot keep the size, so it keeps its stride")
            word = replace(word, stride=1)
        words.append(str(_spread(word, rate)))
    return " ".join(words)

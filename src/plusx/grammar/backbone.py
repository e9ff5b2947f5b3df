"""A network as a backbone: without its linear head, with dilation instead of stride.

All functions map specs to specs, so that counts of a network hold for its backbone too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plusx.errors import UserError
from plusx.grammar import arithmetic
from plusx.grammar.arithmetic import FeatureShape, LayerContext, Size, each_dimension, input_shape
from plusx.grammar.heads import Head
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.twins import map_stage_blocks
from plusx.grammar.words import Sentence, Word, parse


# words of a tail that reduce the map to a vector: a head uses the map before them
ENDS = ("pool", "maxpool", "avgpool", "blur", "top", "fc")
POOLINGS = ("maxpool", "avgpool", "blur")


@dataclass(frozen=True)
class StemMap:
    """The output of the stem's word at `position`, before the next word with a stride."""

    position: int
    channels: int
    stride: Size


def backbone_of(net: Net, head: Head) -> Net:
    """Return the network without its linear head and the pooling before it, dilated as `head`
    requires."""
    bare = replace(net, tail=_before_pooling(net.tail), num_classes=0)
    return dilated(bare, head.stride) if head.dilates else bare  # type: ignore[union-attr]


def dilated(net: Net, stride: int) -> Net:
    """Return the network whose stages have at most this stride, with dilation instead.

    Layers after a removed stride are dilated so that they see their input at the same distances
    (Chen et al. 2017, section 3.1; torchvision's replace_stride_with_dilation). All weights keep
    their shapes, so weights of the network can be loaded. Strided poolings are removed; they have
    no weights. Raises UserError if the stem has a larger stride, or a convolution cannot keep the
    size.
    """
    stem = LayerContext.unstrided(net, net.stem_width)
    shape = arithmetic.run(input_shape(net), parse(net.stem).branch, stem)
    if max(shape.stride) > stride:
        raise UserError(
            f"the stem {net.stem!r} has a stride of {max(shape.stride)}, more than {stride}"
        )
    total, rate, stages = shape.stride, 1, []
    widths = (shape.channels, *arithmetic.measure(net).widths)
    for stage, width_before, width_after in zip(net.stages, widths, widths[1:]):
        enter = stem.stride
        for word in parse(stage.enter).branch:
            enter = _product(enter, each_dimension(word.stride or 1, net.ndim))
        stage_stride = each_dimension(stage.stride, net.ndim)
        next_total = _product(_product(total, enter), stage_stride)
        if max(next_total) <= stride:
            total = next_total
            stages.append(stage if rate == 1 else _at_rate(stage, rate))
            continue
        if len(set(enter)) > 1 or len(set(stage_stride)) > 1:
            raise UserError(
                f"a stage of stride {stage.stride} in {net.ndim} dimensions cannot be dilated"
            )
        entry = _without_stride(stage.enter, rate)
        rate *= enter[0]
        keeps_width = _channels_after(stage.enter, width_before, net) == width_after
        stages.append(
            _dilate_stage(replace(stage, enter=entry), stage_stride[0], rate, keeps_width)
        )
        rate *= stage_stride[0]
    return replace(net, stages=tuple(stages))


def stem_maps(net: Net) -> list[StemMap]:
    """Return the stem's maps that are finer than the first stage, the last of each resolution."""
    shape, context = input_shape(net), LayerContext.unstrided(net, net.stem_width)
    coarsest = each_dimension(arithmetic.measure(net).strides[0], net.ndim)
    maps = {}
    for position, word in enumerate(parse(net.stem).branch):
        shape = arithmetic.step(shape, word, context)
        if shape.stride != coarsest:
            maps[shape.stride] = StemMap(position, shape.channels, shape.stride)
    return list(maps.values())


def embedding_map(net: Net) -> StemMap | None:
    """Return the stem's map of token embeddings, before the first word that changes their width;
    None if the input does not consist of tokens."""
    if not net.takes_tokens:
        return None
    words = parse(net.stem).branch
    end = next((i for i, word in enumerate(words) if word.kind in ("conv", "attn", "glu")), None)
    return StemMap(len(words[:end]) - 1, int(words[0].value or 1), (1,) * net.ndim)


def _before_pooling(tail: str) -> str:
    """Return the words of a tail before its first pooling."""
    words: list[str] = []
    for word in parse(tail).branch:
        if word.kind in ENDS:
            break
        words.append(str(word))
    return " ".join(words)


def _product(first: Size, second: Size) -> Size:
    return tuple(a * b for a, b in zip(first, second, strict=True))


def _channels_after(enter: str, channels: int, net: Net) -> int:
    """Return the channels after the layers on entry to a stage."""
    context = LayerContext.unstrided(net, channels)
    shape = FeatureShape(channels, (1 << 16,) * net.ndim, context.stride)
    return arithmetic.run(shape, parse(enter).branch, context).channels


def _dilate_stage(stage: Stage, stride: int, rate: int, keeps_width: bool) -> Stage:
    """Return the stage without its stride, after removed strides of `rate` in total.

    keeps_width: the first block has as many output as input channels.
    """
    first = stage.blocks[0]
    first_block = _dilate_block(first, rate, stride)
    pads = any(word.kind == "pad" for word in parse(first.shortcut).words)
    if keeps_width and stride > 1 and not pads:
        # the shortcut was a projection only because of the stride, and must remain one
        first_block = replace(first_block, identity=first_block.shortcut)
    dilated_stage = _at_rate(stage, rate * stride)
    return replace(dilated_stage, stride=1, enter=stage.enter, first=first_block)


def _at_rate(stage: Stage, rate: int) -> Stage:
    """Return the stage with all filters dilated by `rate`."""
    stage = map_stage_blocks(stage, lambda block: _dilate_block(block, rate, 1))
    return replace(stage, enter=_dilate_text(stage.enter, rate, 1))


def _dilate_block(block: Block, rate: int, stride: int) -> Block:
    """Return a block without its stride; the filters after it are dilated accordingly."""
    sentence = parse(block.body)
    lead, rate_after = _dilate_words(sentence.lead, rate, stride)
    branch, _ = _dilate_words(sentence.branch, rate_after, stride)
    after, _ = _dilate_words(sentence.after, rate * stride, 1)
    body = str(Sentence(tuple(lead), tuple(branch), sentence.merge, tuple(after)))
    return Block(
        body=body,
        shortcut=_dilate_text(block.shortcut, rate, stride),
        identity=_dilate_text(block.identity, rate, 1),
        gate=_dilate_text(block.gate, rate, stride),
    )


def _dilate_text(text: str, rate: int, stride: int) -> str:
    words, _ = _dilate_words(parse(text).branch, rate, stride)
    return " ".join(map(str, words))


def _dilate_words(words: Sequence[Word], rate: int, stride: int) -> tuple[list[Word], int]:
    """Return the dilated words, and the rate after the word that had the stride."""
    changed = []
    for word in words:
        changed.append(_dilate_word(word, rate))
        if word.stride is None:
            rate *= stride
    return changed, rate


def _dilate_word(word: Word, rate: int) -> Word:
    """Return a convolution dilated by `rate`."""
    if rate == 1 or word.kind != "conv" or max(word.kernel) == 1:
        return word
    if any(size % 2 == 0 for size in word.kernel):
        raise UserError(f"{word} has an even kernel, which cannot be dilated and keep the size")
    return replace(word, dilation=word.dilation * rate)


def _without_stride(enter: str, rate: int) -> str:
    """Return the layers on entry to a stage without their stride."""
    words = []
    for word in parse(enter).branch:
        strides = word.stride not in (1, None)
        if strides and word.kind in POOLINGS:
            continue
        if strides:
            if word.kind != "conv" or any(size % 2 == 0 for size in word.kernel):
                raise UserError(
                    f"{word} in {enter!r} cannot keep the size, so its stride cannot be removed"
                )
            word = replace(word, stride=1)
        words.append(str(_dilate_word(word, rate)))
    return " ".join(words)

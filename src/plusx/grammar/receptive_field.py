"""The receptive field of a network's outputs in one dimension, by arithmetic on the spec."""

from collections.abc import Iterable
from dataclasses import dataclass

from plusx.errors import UserError
from plusx.grammar.spec import Block, Net
from plusx.grammar.words import Word, parse


# words whose output at a position depends on the input at that position alone
_POINTWISE = ("norm", "act", "drop", "scale", "shift", "pad", "embed", "gate", "glu")


@dataclass(frozen=True)
class ReceptiveField:
    """Output j depends on the inputs from j * stride - before to j * stride + after."""

    before: int = 0
    after: int = 0
    stride: int = 1


def receptive_field(net: Net) -> ReceptiveField:
    """Return the receptive field of a network whose tail has no pooling.

    Raises UserError if the network has another number of dimensions than one, or a layer whose
    outputs depend on the whole sequence.
    """
    if net.ndim != 1:
        raise UserError(f"a receptive field along time: the network has {net.ndim} dimensions")
    if net.norm not in ("batch", "layer"):
        raise UserError(f'norm = "{net.norm}" depends on the whole sequence')
    field = _run(ReceptiveField(), parse(net.stem).branch, 1)
    for stage in net.stages:
        assert isinstance(stage.stride, int)
        field = _run(field, parse(stage.enter).branch, 1)
        for number, block in enumerate(stage.blocks):
            field = _block(field, block, stage.stride if number == 0 else 1)
    return _run(field, parse(net.tail).branch, 1)


def _block(field: ReceptiveField, block: Block, stride: int) -> ReceptiveField:
    """Return the field after a block; all its paths end at the same stride."""
    sentence = parse(block.body)
    lead = _run(field, sentence.lead, stride)
    paths = [_run(lead, sentence.branch, stride)]
    if sentence.merge != "none":
        for text in (block.shortcut, block.identity):
            paths += [_run(start, parse(text).branch, stride) for start in (field, lead)]
    if sentence.merge == "gate":
        paths.append(_run(field, parse(block.gate).branch, stride))
    widest = ReceptiveField(
        max(path.before for path in paths), max(path.after for path in paths), paths[0].stride
    )
    return _run(widest, sentence.after, 1)


def _run(field: ReceptiveField, words: Iterable[Word], stride: int) -> ReceptiveField:
    for word in words:
        field = _step(field, word, stride)
    return field


def _step(field: ReceptiveField, word: Word, stage_stride: int) -> ReceptiveField:
    if word.kind in _POINTWISE:
        stride = stage_stride if word.kind == "pad" else 1
        return ReceptiveField(field.before, field.after, field.stride * stride)
    if word.kind not in ("conv", "maxpool", "avgpool", "blur"):
        raise UserError(f"{str(word)!r} depends on the whole sequence")
    stride = word.stride if isinstance(word.stride, int) else stage_stride
    if word.kind != "conv" and word.stride is None and stage_stride == 1:
        return field  # an identity at stride 1
    (kernel,) = word.kernel
    padded = kernel % 2 and word.kind != "avgpool"
    padding = word.dilation * (kernel // 2) if padded else 0
    reach = word.dilation * (kernel - 1) - padding
    return ReceptiveField(
        field.before + field.stride * padding,
        field.after + field.stride * reach,
        field.stride * stride,
    )

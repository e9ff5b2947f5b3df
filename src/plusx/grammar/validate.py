"""The rules for valid specs, each with an error that quotes the sentence."""

from typing import get_args

from plusx.errors import UserError
from plusx.grammar.arithmetic import each_dimension, measure
from plusx.grammar.spec import Activation, Net, Norm, Stage
from plusx.grammar.words import PLACES, Word, parse


CHOICES = {
    "ndim": (1, 2, 3),
    "norm": get_args(Norm),
    "act": get_args(Activation),
    "drop_mode": ("batch", "row"),
}
MAX_DEPTH = 10_000  # blocks of a stage; arithmetic and build visit every block


def validate(net: Net) -> None:
    """Raise UserError unless `net` can be built."""
    _check_fields(net)
    _check_places("stem", net.stem)
    for stage in net.stages:
        _check_stage(stage, net)
    _check_places("tail", net.tail)
    measure(net)


def _check_fields(net: Net) -> None:
    for field, allowed in CHOICES.items():
        if (value := getattr(net, field)) not in allowed:
            options = ", ".join(map(str, allowed))
            raise UserError(f"{field} is {value!r}; allowed are {options}")
    if not 0 <= net.drop_path < 1:
        raise UserError(
            f"drop_path is {net.drop_path}; it must be a probability, from 0 to below 1"
        )
    if net.in_channels < 1 or net.num_classes < 0 or net.stem_width < 0:
        raise UserError(
            f"in_channels {net.in_channels}, num_classes {net.num_classes}, "
            f"stem_width {net.stem_width}: channels from 1, classes and width from 0"
        )
    if min(each_dimension(net.size, net.ndim)) < 1:
        raise UserError(f"size is {net.size}; every dimension needs at least one position")
    if not net.stages:
        raise UserError("a net needs at least one stage")
    if any(word.kind == "conv" for word in parse(net.stem).words) and net.stem_width < 1:
        raise UserError(f"the stem {net.stem!r} needs a stem_width")


def _check_places(role: str, text: str) -> None:
    """Check a sentence that is not a body: no marks, and only words that are allowed there."""
    sentence = parse(text)
    if sentence.merge != "none":
        raise UserError(f"the {role} {text!r} has a mark; + & ~ | are allowed in a body only")
    for i, word in enumerate(sentence.words):
        _check_place(role, text, word, i)
        if word.stride is None and role in ("stem", "enter", "tail"):
            raise UserError(
                f"{word} in the {role} {text!r} takes a stage's stride, which is not defined "
                f"there: write the number, like {word}2"
            )


def _check_place(role: str, text: str, word: Word, position: int) -> None:
    allowed = PLACES.get(word.kind, role)
    if allowed != role:
        raise UserError(f"{word} in the {role} {text!r}: it is allowed in a {allowed} only")
    if word.kind == "embed" and position:
        raise UserError(f"{word} in the {role} {text!r}: it must be the first word")


def _check_stage(stage: Stage, net: Net) -> None:
    if stage.depth < 1 or stage.width < 1:
        raise UserError(
            f"a stage of depth {stage.depth} and width {stage.width}: both must be at least 1"
        )
    if stage.depth > MAX_DEPTH:
        raise UserError(f"a stage of depth {stage.depth:,}: at most {MAX_DEPTH:,}")
    stride = each_dimension(stage.stride, net.ndim)
    if min(stride) < 1:
        raise UserError(f"a stage has stride {stage.stride}; it must be at least 1")
    _check_places("enter", stage.enter)
    blocks = stage.blocks
    if not blocks:
        raise UserError("a stage has an empty tuple of blocks")
    for spec in dict.fromkeys(blocks):
        sentence = parse(spec.body)
        if not sentence.branch:
            raise UserError(f"the body {spec.body!r} has no words before its mark")
        for i, word in enumerate(sentence.words):
            _check_place("body", spec.body, word, i)
        for word in sentence.after:
            if word.stride is None:
                raise UserError(f"{word} in {spec.body!r}: the stride is taken before the mark")
        _check_places("shortcut", spec.shortcut)
        _check_places("identity", spec.identity)
        _check_places("gate", spec.gate)
    if max(stride) > 1:
        _check_stride(blocks[0].body, stage)


def _check_stride(body: str, stage: Stage) -> None:
    sentence = parse(body)
    if sentence.merge == "concat":
        raise UserError(f"{body!r} concatenates its input (`&`), so its stage cannot have a stride")
    strided = [str(word) for word in (*sentence.lead, *sentence.branch) if word.stride is None]
    if len(strided) != 1:
        number = "none does" if not strided else f"{' and '.join(strided)} do"
        raise UserError(
            f"{body!r} begins a stage of stride {stage.stride}, so exactly one word must take it "
            f"with `s`; {number}"
        )

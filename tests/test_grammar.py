"""The language: what is said is what is read, counted and built; nonsense is refused."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plusx.grammar.arithmetic import FeatureShape, LayerContext, measure, step
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.toml import from_dict, from_toml, to_dict, to_toml
from plusx.grammar.validate import validate
from plusx.grammar.words import VOCABULARY, parse
from sentences import EVERY_WORD, plans, sentences


BASIC = Block(body="conv3s norm act conv3 norm + act")


def net(body: str = BASIC.body, **fields: object) -> Net:
    """A small net with one thing changed: a field of the block, the second stage or the net."""
    block = {k: fields.pop(k) for k in ("shortcut", "identity", "gate") if k in fields}
    stage = {k: fields.pop(k) for k in ("enter", "stride", "depth", "width") if k in fields}
    blocks = replace(BASIC, body=body, **block)
    first = Stage(block=BASIC, depth=1, width=16)
    second = Stage(**{"block": blocks, "depth": 2, "width": 16, **stage})
    whole = {"stem": "conv3 norm act", "stem_width": 16, "size": 8, "num_classes": 10}
    return Net(**{**whole, "stages": (first, second), **fields})


def forced(spec: Net, field: str, value: object) -> Net:
    """A value that the checks of types in the tests would not let through."""
    object.__setattr__(spec, field, value)
    return spec


@given(sentences())
def test_printed_sentences_parse_to_the_same(text: str) -> None:
    assert parse(str(parse(text))) == parse(text)
    assert str(parse(str(parse(text)))) == str(parse(text))


def test_words_take_their_parts() -> None:
    word = parse("conv(1,3,5)/4s(1,2,2)d2g8b").branch[0]
    assert (word.kernel, word.ratio, word.stride) == ((1, 3, 5), (1, 4), (1, 2, 2))
    assert (word.dilation, word.groups, word.bias) == (2, 8, True)
    assert parse("conv3s").branch[0].stride is None
    assert parse("conv7dw").branch[0].groups == 0
    assert not parse("scale.5").branch[0].learned
    assert parse("scale0").branch[0].learned
    assert parse("conv3 scale.5 +") != parse("conv3 scale5e-1 +")
    pre = parse("norm act | conv3s norm act conv3 +")
    assert [len(pre.lead), len(pre.branch), pre.merge, pre.after] == [2, 4, "add", ()]


def test_the_vocabulary_stays_small() -> None:
    assert len(VOCABULARY) <= 21
    assert {parse(word).branch[0].kind for word in EVERY_WORD} == set(VOCABULARY)


@pytest.mark.parametrize(
    ("text", "token", "hint"),
    [
        ("conv3s nrom act", "nrom", "did you mean 'norm'"),
        ("conv3s norm atc", "atc", "did you mean 'act'"),
        ("conv norm", "conv", "conv3"),
        ("conv0", "conv0", "conv3"),
        ("conv3s0", "conv3s0", "conv3"),
        ("conv99999999", "conv99999999", "conv3"),
        ("drop3", "drop3", "drop.3"),
        ("se16", "se16", "se/16"),
        ("conv3 + act + act", "+", "at most one"),
        ("conv3 | act | conv3 +", "|", "at most one"),
        ("conv3 + act | conv3", "|", "before the mark"),
        ("conv3 relu", "relu", "'act'"),
        ("conv3 batchnorm", "batchnorm", "'norm'"),
        ("xyzzy", "xyzzy", "the words are"),
        ("__import__('os')", "__import__('os')", "the words are"),
    ],
)
def test_an_error_quotes_points_and_suggests(text: str, token: str, hint: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    message = str(caught.value)
    assert repr(text) in message
    assert repr(token) in message
    assert hint in message
    assert "\n" not in message


@given(st.text(max_size=40) | st.text("cnormvact123|+&~/*s(),. ", max_size=40))
@settings(max_examples=300)
def test_arbitrary_text_raises_only_value_errors(text: str) -> None:
    try:
        assert parse(str(parse(text))) == parse(text)
    except ValueError as error:
        assert "\n" not in str(error)


def test_a_very_long_sentence_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="at most 2,000"):
        parse("conv3 " * 100_000)


ILLEGAL = {
    "a mark in a stem": (lambda: net(stem="conv3 + act"), "'conv3 + act'"),
    "a mark in a shortcut": (lambda: net(shortcut="conv1 +"), "'conv1 +'"),
    "a mark in a gate": (lambda: net(gate="conv1 & act"), "'conv1 & act'"),
    "s in a stem": (lambda: net(stem="conv3s"), "conv3s"),
    "s on entry": (lambda: net(enter="avgpool2s"), "avgpool2s"),
    "s in a tail": (lambda: net(tail="avgpool2s pool"), "avgpool2s"),
    "s behind the mark": (lambda: net("conv3s norm + conv3s"), "before the mark"),
    "nobody takes the stride": (lambda: net("conv3 norm + act", stride=2), "none does"),
    "two take the stride": (lambda: net("conv3s conv3s + act", stride=2), "conv3s and conv3s do"),
    "pool in a body": (lambda: net("conv3 pool + act"), "tail only"),
    "top in a stem": (lambda: net(stem="conv3 top8"), "tail only"),
    "fc on entry": (lambda: net(enter="fc8"), "tail only"),
    "pad in a body": (lambda: net("conv3 pad + act"), "shortcut only"),
    "embed in a tail": (lambda: net(tail="embed16 pool"), "stem only"),
    "embed not first": (lambda: net(stem="conv3 embed16"), "first"),
    "& with a stride": (lambda: net("conv3s &", stride=2), "stride"),
    "& that changes the size": (lambda: net("conv2 &"), "size"),
    "heads that do not divide": (lambda: net("attn3 conv1 +"), "heads"),
    "groups that do not divide": (lambda: net("conv3g3 norm +"), "groups"),
    "nothing left of the size": (lambda: net(stem="conv3 avgpool16s2"), "nothing remains"),
    "nothing left of the width": (lambda: net("conv3/32 conv1 +"), "nothing remains"),
    "nothing left of se": (lambda: net("conv3 se/32 +"), "leaves none"),
    "a gated unit of an odd width": (lambda: net("conv1 conv3/16 glu conv1 +"), "no halves"),
    "branch and shortcut disagree": (lambda: net("conv2 norm +"), "'conv2 norm +'"),
    "branch and gate disagree": (lambda: net("conv3 ~", gate="conv1/2"), "'conv1/2'"),
    "pad to fewer": (lambda: net(shortcut="pad", width=8, stride=2), "pad"),
    "an empty branch": (lambda: net("norm | +"), "before its mark"),
    "no depth": (lambda: net(depth=0), "depth 0"),
    "too deep": (lambda: net(depth=10**9), "at most 10,000"),
    "no width": (lambda: net(width=0), "width 0"),
    "three strides in two dimensions": (lambda: net(stride=(1, 2, 2)), "3 numbers"),
    "three kernels in two dimensions": (lambda: net("conv(1,3,3) +"), "3 numbers"),
    "a stem without width": (lambda: net(stem_width=0), "stem_width"),
    "no stages": (lambda: net(stages=()), "at least one stage"),
    "an unknown norm": (lambda: forced(net(), "norm", "bach"), "batch"),
    "an unknown activation": (lambda: forced(net(), "act", "swish"), "silu"),
    "four dimensions": (lambda: forced(net(), "ndim", 4), "1, 2, 3"),
    "a sure drop": (lambda: net(drop_path=1.0), "probability"),
    "no channels": (lambda: net(in_channels=0), "in_channels 0"),
    "no size": (lambda: net(size=0), "size is 0"),
    "the largest in order in two dimensions": (lambda: net(tail="top4"), "for one dimension"),
    "an even blur": (lambda: net("conv3 blur2s norm +", stride=2), "odd"),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_every_rule_of_validation_refuses(name: str) -> None:
    make, message = ILLEGAL[name]
    with pytest.raises(ValueError) as caught:
        validate(make())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_net_that_the_invalid_ones_vary_is_valid() -> None:
    for legal in (net(), net(stride=2)):
        validate(legal)
        assert measure(legal).parameters > 0


def test_a_sentence_is_read_when_a_spec_is_made() -> None:
    with pytest.raises(ValueError, match="did you mean 'norm'"):
        Block(body="conv3 nrom")
    with pytest.raises(ValueError, match="no such word"):
        Net(stem="convolve", stages=())


@given(plans())
def test_specs_survive_toml(plan: dict[str, object]) -> None:
    spec = from_dict(plan)
    assert from_toml(to_toml(spec)) == spec
    assert from_dict(to_dict(spec)) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem_widht": 3}, "did you mean stem_width"),
        ({"stages": []}, None),
        ({"stages": 3}, "list of tables"),
        ({"stages": [{"block": "conv3 +", "depth": 1}]}, "lacks the field 'width'"),
        ({"stages": [{"block": {"bdy": "conv3"}, "depth": 1, "width": 1}]}, "'bdy'"),
        ({"stages": [{"block": 3, "depth": 1, "width": 1}]}, "a table or a sentence"),
        ({"stem_width": "16"}, "type int"),
        ({"affine": 1}, "type bool"),
        ({"size": [3, "4"]}, "size"),
    ],
)
def test_errors_in_a_mapping_are_named(change: dict[str, object], message: str | None) -> None:
    mapping = {**to_dict(net()), **change}
    if message is None:
        assert from_dict(mapping).stages == ()
    else:
        with pytest.raises(ValueError, match=message):
            from_dict(mapping)


def test_option_a_is_free_and_bottlenecks_measure_as_published() -> None:
    plain = net(BASIC.body.replace("+ ", ""), width=32, stride=2)
    option_a = net(shortcut="pad", width=32, stride=2)
    assert measure(plain).parameters == measure(option_a).parameters
    assert measure(plain).multiply_adds == measure(option_a).multiply_adds


def test_depth_counts_weighted_layers() -> None:
    assert measure(net()).depth == 1 + 2 + 2 * 2 + 1


def test_the_grammar_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, plusx.grammar.toml, plusx.grammar.validate, plusx.zoo;"
        "known = sys.stdlib_module_names | {'plusx'};"
        "print({m.split('.')[0] for m in sys.modules} - known - set(sys.builtin_module_names))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name for name in eval(run.stdout) if not name.startswith(("_", "sitecustomize"))}
    assert not loaded & {"torch", "numpy", "pydantic", "rich", "cyclopts"}


def test_a_bare_stride_has_the_output_size_of_a_convolution() -> None:
    strided = LayerContext(net(), 8, (2, 2))
    for size in (55, 56, 57):
        flow = FeatureShape(8, (size, size), (1, 1))
        sizes = {
            text: step(flow, parse(text).branch[0], strided).size
            for text in ("conv3s", "maxpool3s", "maxpool5s", "avgpool2s", "blur3s")
        }
        assert len(set(sizes.values())) == 1, sizes

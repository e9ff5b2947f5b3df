"""Hypothesis strategies: sentences, and small nets in 1, 2 and 3 dimensions."""

from typing import Any

from hypothesis import strategies as st


EVERY_WORD = [
    "conv3", "conv(1,3)", "conv1/4", "conv3*2s", "conv3s2", "conv3s(1,2)d2g4b", "conv7dwb", "norm",
    "act", "glu", "maxpool3s2", "maxpool2s", "avgpool2s", "blur3s", "pool", "pool7", "fc16", "top8",
    "drop.3", "se/16", "eca", "cbam/16", "attn4", "attn12b", "attn1/2b", "scale", "scale1e-4",
    "scale0", "scale1", "scale.5", "shift", "gate", "pad", "pad/2", "embed16", "pos",
]  # fmt: skip

words = st.lists(st.sampled_from(EVERY_WORD), min_size=1, max_size=8).map(" ".join)


@st.composite
def sentences(draw: st.DrawFn) -> str:
    """Anything that can be parsed, legal in a network or not."""
    mark = draw(st.sampled_from(["+", "&", "~", ""]))
    lead = f"{draw(words)} | " if mark in ("+", "~") and draw(st.booleans()) else ""
    after = draw(st.one_of(st.just(""), words)) if mark else ""
    return " ".join(f"{lead}{draw(words)} {mark} {after}".split())


# words that leave the shape as it is, whatever the net
STEADY = [
    "norm", "act", "drop.3", "scale", "scale.5", "se/2", "eca", "cbam/2", "gate", "attn2", "attn4b",
    "conv3dw", "pos",
]  # fmt: skip
INNER = [*STEADY, "conv1", "conv3", "conv3d2", "conv3g2b", "conv3/2", "conv5*2", "conv3*2 glu"]
STRIDED = ["conv3s", "conv1s", "avgpool2s conv1", "conv1 maxpool3s", "conv3 blur3s"]


@st.composite
def bodies(draw: st.DrawFn, mark: str) -> str:
    """A body whose branch ends with the stage's width."""
    some = st.lists(st.sampled_from(INNER), max_size=3)
    lead = ""
    if mark in ("+", "~"):
        lead = draw(st.sampled_from(["", "", "norm act |", "act |", "norm |"]))
    strided = draw(st.sampled_from(STRIDED))
    end = draw(st.sampled_from(["", "norm", "act", "norm act"]))
    after = draw(st.lists(st.sampled_from(STEADY), max_size=2)) if mark else []
    words = [lead, *draw(some), strided, *draw(some), "conv1", end, mark, *after]
    return " ".join(" ".join(words).split())


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """A legal net of two small stages, as a mapping for `from_dict`.

    A mapping, since the checks of types at run time use the random module when a Net is made,
    which hypothesis forbids inside a strategy.
    """
    ndim = draw(st.sampled_from([1, 2, 2, 3]))
    mark = draw(st.sampled_from(["+", "+", "+", "&", "~", ""]))
    shortcuts = ["conv1s norm", "conv1s", "pad", "pad/2"]
    identities = ["", "", "scale.5", "drop.5", "conv1 norm", "gate"]
    block = {
        "body": draw(bodies(mark)),
        "shortcut": draw(st.sampled_from(shortcuts)),
        "identity": draw(st.sampled_from(identities)),
    }
    stride = 1 if mark == "&" else draw(st.sampled_from([1, 2]))
    return {
        "stem": draw(st.sampled_from(["conv3 norm act", "conv3", "conv3 act"])),
        "stem_width": 8,
        "stages": [
            {"block": block, "depth": 2, "width": 8},
            {"block": block, "depth": 2, "width": 16, "stride": stride},
        ],
        "tail": draw(st.sampled_from(["pool", "norm act pool", "pool2"])),
        "ndim": ndim,
        "in_channels": 2,
        "num_classes": 3,
        "size": 7 if ndim < 3 else 5,
        "norm": draw(st.sampled_from(["batch", "layer", "group", "instance"])),
        "affine": draw(st.sampled_from([True, True, False])),
        "act": draw(st.sampled_from(["relu", "gelu", "silu", "sigmoid", "tanh", "leaky"])),
    }

"""Channels, sizes, parameters and multiply-adds of a spec, by arithmetic: no torch.

Multiply-adds count convolutions, linear layers and the two products of attention; not bias,
normalisation, pooling, blur or embedding. This is what torchvision states for its networks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, gcd, log2, prod

from plusx.errors import UserError
from plusx.grammar.sentence import Word, parse
from plusx.grammar.spec import Block, Net, Stride


Size = tuple[int, ...]

FLOAT, INDEX = 4, 8  # bytes of a number and of a position
# Plans that save memory keep the results of convolutions of more multiply-adds a value than this:
# "recompute" those of more than the first, "segments" of more than the second.
HEAVY = (128, 600)


@dataclass(frozen=True, slots=True)
class Flow:
    """What runs through a network at one point, and what it has cost to get there."""

    channels: int
    size: Size  # positions a dimension
    stride: Size  # positions of the input a step, a dimension
    parameters: int = 0
    multiply_adds: int = 0
    depth: int = 0  # weighted layers on the way
    saved: int = 0  # bytes that the backward pass of one input needs, in float32
    # of these, the results of convolutions of more multiply-adds a value than each of HEAVY
    heavy: tuple[int, int] = (0, 0)
    is_saved: bool = False  # whether this tensor is among the saved ones

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in float32."""
        return FLOAT * self.channels * prod(self.size)

    def free(self) -> "Flow":
        """The same tensor with no cost yet: where a shortcut starts."""
        return replace(self, parameters=0, multiply_adds=0, depth=0, saved=0, heavy=(0, 0))

    def pay(self, parameters: int, multiply_adds: int = 0, saved: int = 0) -> "Flow":
        return replace(
            self,
            parameters=self.parameters + parameters,
            multiply_adds=self.multiply_adds + multiply_adds,
            saved=self.saved + saved,
        )

    def save(self) -> "Flow":
        """The backward pass needs this tensor; it counts once, however often it is needed."""
        return self if self.is_saved else replace(self.pay(0, 0, self.nbytes), is_saved=True)


@dataclass(frozen=True, slots=True)
class Setting:
    """Where words are said: the net, the reference width and the stride that `s` takes."""

    net: Net
    width: int
    stride: Size


@dataclass(frozen=True)
class StageShape:
    """One stage as it is built; `size` and `stride` are at its end."""

    name: str
    blocks: int
    channels: int
    size: Size
    stride: Size
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Measure:
    """What arithmetic says of a net. `depth` counts weighted layers along the branches."""

    parameters: int
    multiply_adds: int
    depth: int
    embed_width: int
    stages: tuple[StageShape, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(stage.channels for stage in self.stages)

    @property
    def strides(self) -> tuple[Stride, ...]:
        return tuple(
            stage.stride[0] if len(set(stage.stride)) == 1 else stage.stride
            for stage in self.stages
        )


def each_dimension(value: Stride, ndim: int) -> Size:
    """One number for every dimension, or one each."""
    numbers = value if isinstance(value, tuple) else (value,)
    if len(numbers) not in (1, ndim):
        raise UserError(f"{value} has {len(numbers)} numbers for {ndim} dimensions")
    return numbers * ndim if len(numbers) == 1 else numbers


def padding(kernel: Size, dilation: int = 1) -> Size:
    """Odd kernels are padded to keep the size, even ones not at all."""
    return tuple(dilation * (k // 2) if k % 2 else 0 for k in kernel)


def pooling(word: Word, setting: Setting) -> tuple[Size, Size]:
    """Kernel and stride of a pooling or blur. Where `s` is 1 it does nothing in that dimension."""
    ndim = setting.net.ndim
    kernel = each_dimension(word.kernel, ndim)
    if word.stride is not None:
        return kernel, each_dimension(word.stride, ndim)
    kernel = tuple(k if s > 1 else 1 for k, s in zip(kernel, setting.stride))
    return kernel, setting.stride


def rounds_size_up(word: Word, kernel: Size) -> bool:
    """Whether a pooling that takes the stage's stride rounds its size up, as `conv3s` does.

    With a padded odd kernel it comes out so without rounding.
    """
    padded = word.kind in ("maxpool", "blur") and all(k % 2 for k in kernel)
    return word.stride is None and not padded


def eca_kernel(channels: int) -> int:
    """Wang et al. 2020, eq. 12 with gamma 2 and b 1; never under 3."""
    nearest = int(abs(log2(channels) + 1) / 2)
    return max(nearest if nearest % 2 else nearest + 1, 3)


def step(flow: Flow, word: Word, setting: Setting) -> Flow:
    """The tensor behind one word, and what it has cost so far."""
    return ARITHMETIC[word.kind](flow, word, setting)


def run(flow: Flow, words: Iterable[Word], setting: Setting) -> Flow:
    """What words said in turn make of the flow."""
    for word in words:
        flow = step(flow, word, setting)
        if flow.channels < 1 or min(flow.size) < 1:
            left = f"{flow.channels} channels at {_by(flow.size)} positions"
            raise UserError(f"nothing is left after {word}: {left}")
    return flow


def block(flow: Flow, spec: Block, setting: Setting) -> Flow:
    """What a block makes of the flow. Raises UserError where branch and shortcut disagree."""
    said = parse(spec.body)
    lead = run(flow, said.lead, setting)
    y = run(lead, said.branch, setting)
    if said.merge == "concat":
        if y.size != flow.size:
            raise UserError(f"{spec.body!r} changes the size, so `&` cannot join it to its input")
        y = replace(y, channels=flow.channels + y.channels, is_saved=False)
    elif said.merge in ("add", "gate"):
        # a tensor that the branch saves is not saved again by a shortcut
        start = _saved_by(flow, (*said.lead, *said.branch), setting)
        fork = _saved_by(lead, said.branch, setting) if said.lead else start
        sides = {"shortcut": side_path(start, fork, y, spec, setting)}
        if said.merge == "gate":
            sides["gate"] = run(start.free(), parse(spec.gate).branch, setting)
            y = y.save().pay(0, 0, 2 * y.nbytes)
            sides["shortcut"] = sides["shortcut"].save()
        y = replace(y, is_saved=False)
        for name, side in sides.items():
            if (side.channels, side.size) != (y.channels, y.size):
                raise UserError(
                    f"the branch of {spec.body!r} ends with {y.channels} channels at "
                    f"{_by(y.size)}, its {name} {_text(name, spec, flow, y, setting)!r} "
                    f"with {side.channels} at {_by(side.size)}"
                )
            y = _with_cost(y, side)
    return run(y, said.after, replace(setting, stride=(1,) * setting.net.ndim))


def _saved_by(flow: Flow, words: Sequence[Word], setting: Setting) -> Flow:
    """The tensor, known as saved where the first of the words saves its input."""
    if not words or flow.is_saved:
        return flow
    first = words[0]
    saves = first.kind not in ("act", "drop", "pool", "pad", "pos", "embed")
    if first.kind == "act":
        saves = setting.net.act in ("gelu", "silu", "leaky")
    return replace(flow, is_saved=saves and first.learned)


def _with_cost(flow: Flow, other: Flow) -> Flow:
    """The tensor with the cost of another one on top, but for its depth."""
    paid = flow.pay(other.parameters, other.multiply_adds, other.saved)
    return replace(paid, heavy=(flow.heavy[0] + other.heavy[0], flow.heavy[1] + other.heavy[1]))


def projects(flow: Flow, y: Flow, setting: Setting) -> bool:
    """Whether the shape changes between a block's input and its merge."""
    return y.channels != flow.channels or max(setting.stride) > 1


def side_path(flow: Flow, lead: Flow, y: Flow, spec: Block, setting: Setting) -> Flow:
    """The shortcut: from behind the lead where it projects, from the block's input otherwise."""
    if projects(flow, y, setting):
        return run(lead.free(), parse(spec.shortcut).branch, setting)
    return run(flow.free(), parse(spec.identity).branch, setting)


@lru_cache(maxsize=1024)  # specs are frozen, and are measured wherever they are checked
def measure(net: Net) -> Measure:
    """Count a whole network at its own input size. Raises UserError where shapes do not fit."""
    one = (1,) * net.ndim
    flow = Flow(net.in_channels, each_dimension(net.size, net.ndim), one)
    flow = run(flow, parse(net.stem).branch, Setting(net, net.stem_width, one))
    stages = []
    for i, stage in enumerate(net.stages, 1):
        before = flow
        flow = run(flow, parse(stage.enter).branch, Setting(net, flow.channels, one))
        first = Setting(net, stage.width, each_dimension(stage.stride, net.ndim))
        rest = Setting(net, stage.width, one)
        known: dict[tuple[Block, int, Size, bool], Flow] = {}  # depth repeats itself
        for j, spec in enumerate(stage.blocks):
            key = (spec, flow.channels, flow.size, flow.is_saved)
            if j == 0:
                flow = block(flow, spec, first)
            elif key in known:
                flow = follow(flow, known[key])
            else:
                known[key] = block(replace(flow.free(), stride=one), spec, rest)
                flow = follow(flow, known[key])
        stages.append(
            StageShape(
                f"layer{i}",
                len(stage.blocks),
                flow.channels,
                flow.size,
                flow.stride,
                flow.parameters - before.parameters,
                flow.multiply_adds - before.multiply_adds,
            )
        )
    flow = run(flow, parse(net.tail).branch, Setting(net, flow.channels, one))
    width = flow.channels * prod(flow.size)
    if net.num_classes:
        flow = flow.pay((width + 1) * net.num_classes, width * net.num_classes)
        flow = replace(flow, depth=flow.depth + 1)
    return Measure(flow.parameters, flow.multiply_adds, flow.depth, width, tuple(stages))


def follow(flow: Flow, known: Flow) -> Flow:
    """The tensor behind a block whose own cost and shape are `known`."""
    stride = tuple(a * b for a, b in zip(flow.stride, known.stride))
    behind = replace(_with_cost(flow, known), depth=flow.depth + known.depth)
    return replace(
        behind, channels=known.channels, size=known.size, stride=stride, is_saved=known.is_saved
    )


def _times(flow: Flow, setting: Setting, stride: Size | None = None) -> Size:
    return tuple(a * b for a, b in zip(flow.stride, stride or setting.stride))


def _by(size: Size) -> str:
    return " x ".join(map(str, size))


def _text(name: str, spec: Block, flow: Flow, y: Flow, setting: Setting) -> str:
    if name == "gate":
        return spec.gate
    return spec.shortcut if projects(flow, y, setting) else spec.identity


def _hidden(channels: int, word: Word) -> int:
    assert word.value is not None
    hidden = channels // int(word.value)
    if hidden < 1:
        raise UserError(f"{word} leaves nothing of {channels} channels")
    return hidden


def out_channels(channels: int, word: Word, setting: Setting) -> int:
    """Channels behind a `conv` or `attn`: a share of the reference width, unless they stay."""
    if word.groups == 0 or (word.kind == "attn" and word.ratio == (1, 1)):
        return channels
    return setting.width * word.ratio[0] // word.ratio[1]


def _conv(flow: Flow, word: Word, setting: Setting) -> Flow:
    ndim = setting.net.ndim
    kernel = each_dimension(word.kernel, ndim)
    stride = setting.stride if word.stride is None else each_dimension(word.stride, ndim)
    size = tuple(
        (n + 2 * p - word.dilation * (k - 1) - 1) // s + 1
        for n, p, k, s in zip(flow.size, padding(kernel, word.dilation), kernel, stride)
    )
    out, groups = out_channels(flow.channels, word, setting), word.groups or flow.channels
    if flow.channels % groups or out % groups:
        raise UserError(f"{word}: {groups} groups do not divide {flow.channels} and {out} channels")
    per_value = flow.channels // groups * prod(kernel)
    weights = out * per_value
    paid = flow.save().pay(weights + out * word.bias, weights * prod(size) if min(size) > 0 else 0)
    made = replace(
        paid,
        channels=out,
        size=size,
        stride=_times(flow, setting, stride),
        depth=flow.depth + 1,
        is_saved=False,
    )
    first, second = (made.nbytes * (per_value > limit) for limit in HEAVY)
    return replace(made, heavy=(flow.heavy[0] + first, flow.heavy[1] + second))


def _pool(flow: Flow, word: Word, setting: Setting) -> Flow:
    kernel, stride = pooling(word, setting)
    pad = padding(kernel) if word.kind in ("maxpool", "blur") else (0,) * len(kernel)
    if word.kind == "blur":
        for n, k, p in zip(flow.size, kernel, pad):
            if k % 2 == 0 or p >= n:
                raise UserError(f"{word} needs an odd kernel and more than {p} positions, not {n}")
    rounds_up = rounds_size_up(word, kernel)
    size = []
    for n, k, s, p in zip(flow.size, kernel, stride, pad):
        out = (ceil((n + 2 * p - k) / s) if rounds_up else (n + 2 * p - k) // s) + 1
        # rounding up never starts a window beyond the input and its padding on the left
        size.append(out - 1 if rounds_up and (out - 1) * s >= n + p else out)
    if word.stride is None and max(stride) == 1:
        return flow
    made = replace(
        flow.save(), size=tuple(size), stride=_times(flow, setting, stride), is_saved=False
    )
    if word.kind == "maxpool":
        return made.pay(0, 0, INDEX * made.channels * prod(size))
    if word.kind == "blur":
        padded = prod(n + 2 * p for n, p in zip(flow.size, pad))
        return made.pay(0, 0, FLOAT * flow.channels * padded)
    return made


def _attention(flow: Flow, word: Word, setting: Setting) -> Flow:
    out, positions = out_channels(flow.channels, word, setting), prod(flow.size)
    assert word.value is not None
    if out % int(word.value):
        raise UserError(f"{word}: {int(word.value)} heads do not divide {out} channels")
    weights = 3 * out * flow.channels
    products = 2 * out * positions**2
    saved = FLOAT * (3 * out * positions + int(word.value) * positions)
    paid = flow.save().pay(weights + 3 * out * word.bias, weights * positions + products, saved)
    made = replace(paid, channels=out, depth=flow.depth + 1, is_saved=False)
    heavy = FLOAT * 3 * out * positions
    first, second = (heavy * (flow.channels > limit) for limit in HEAVY)
    return replace(made, heavy=(flow.heavy[0] + first, flow.heavy[1] + second)).save()


def _act(flow: Flow, word: Word, setting: Setting) -> Flow:
    if setting.net.act in ("gelu", "silu", "leaky"):  # their backward pass needs the input
        return _new(flow.save())
    return _new(flow).save()


def _drop(flow: Flow, word: Word, setting: Setting) -> Flow:
    return _new(flow.pay(0, 0, flow.nbytes))  # the mask


def _norm(flow: Flow, word: Word, setting: Setting) -> Flow:
    net, c = setting.net, flow.channels
    statistics = {"layer": 2 * prod(flow.size), "group": 2 * gcd(32, c), "instance": 4 * c}
    saved = FLOAT * statistics.get(net.norm, 0)
    return _new(flow.save().pay(2 * c if net.affine else 0, 0, saved))


def _global_pool(flow: Flow, word: Word, setting: Setting) -> Flow:
    count = int(word.value or 1)
    made = flow.save() if count > 1 else flow
    return replace(_new(made), size=(count,) * setting.net.ndim)


def _top(flow: Flow, word: Word, setting: Setting) -> Flow:
    positions, count = prod(flow.size), int(word.value or 1)
    if setting.net.ndim != 1:
        raise UserError(f"{word} is for one dimension; the network has {setting.net.ndim}")
    if positions < count:
        raise UserError(f"{word} of only {positions} positions")
    saved = flow.save().pay(0, 0, (INDEX + FLOAT) * flow.channels * positions)
    return replace(_new(saved), size=(count,))


def _fc(flow: Flow, word: Word, setting: Setting) -> Flow:
    count = int(word.value or 1)
    cost = count * flow.channels * prod(flow.size)
    made = replace(_new(flow.save().pay(cost + count, cost)), channels=count)
    return replace(made, size=(1,) * setting.net.ndim, depth=flow.depth + 1)


def _pad(flow: Flow, word: Word, setting: Setting) -> Flow:
    if setting.width < flow.channels:
        raise UserError(f"{word} cannot go from {flow.channels} channels to {setting.width}")
    size = tuple((n - 1) // s + 1 for n, s in zip(flow.size, setting.stride))
    made = replace(_new(flow), channels=setting.width, size=size)
    return replace(made, stride=_times(flow, setting))


def _se(flow: Flow, word: Word, setting: Setting) -> Flow:
    c, hidden = flow.channels, _hidden(flow.channels, word)
    weights = 2 * c * hidden
    return _new(flow.save().pay(weights + hidden + c, weights, FLOAT * (2 * c + hidden)))


def _eca(flow: Flow, word: Word, setting: Setting) -> Flow:
    c, kernel = flow.channels, eca_kernel(flow.channels)
    return _new(flow.save().pay(kernel, kernel * c, FLOAT * 2 * c))


def _cbam(flow: Flow, word: Word, setting: Setting) -> Flow:
    c, hidden, positions = flow.channels, _hidden(flow.channels, word), prod(flow.size)
    spatial, pair = 2 * 7**setting.net.ndim, 2 * c * hidden
    saved = flow.nbytes + FLOAT * (3 * c + 2 * hidden + 5 * positions)
    parameters, multiply_adds = pair + hidden + c + spatial + 2, 2 * pair + spatial * positions
    return _new(flow.save().pay(parameters, multiply_adds, saved))


def _scale(flow: Flow, word: Word, setting: Setting) -> Flow:
    if not word.learned:
        return _new(flow)
    return _new(flow.save().pay(1 if word.value == 0 else flow.channels))


def _gate(flow: Flow, word: Word, setting: Setting) -> Flow:
    c = flow.channels
    return _new(flow.save().pay(c * c + c, c * c * prod(flow.size), 2 * flow.nbytes))


def _embed(flow: Flow, word: Word, setting: Setting) -> Flow:
    width = int(word.value or 1)
    return replace(flow.pay(flow.channels * width), channels=width)


def _pos(flow: Flow, word: Word, setting: Setting) -> Flow:
    return _new(flow.pay(flow.channels * prod(flow.size)))


def _new(flow: Flow) -> Flow:
    """A tensor that nothing has saved yet."""
    return replace(flow, is_saved=False)


# kind of a word: what it makes of a tensor
ARITHMETIC: dict[str, Callable[[Flow, Word, Setting], Flow]] = {
    "conv": _conv,
    "norm": _norm,
    "act": _act,
    "maxpool": _pool,
    "avgpool": _pool,
    "blur": _pool,
    "pool": _global_pool,
    "fc": _fc,
    "top": _top,
    "drop": _drop,
    "se": _se,
    "eca": _eca,
    "cbam": _cbam,
    "attn": _attention,
    "scale": _scale,
    "gate": _gate,
    "pad": _pad,
    "embed": _embed,
    "pos": _pos,
}

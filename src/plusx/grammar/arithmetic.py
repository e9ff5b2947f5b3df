"""Channels, sizes, parameters and MACs of a spec, by arithmetic. No torch.

MACs (multiply-adds) count convolutions, linear layers and the two products of attention; not bias,
normalisation, pooling, blur or embedding. torchvision counts its networks in the same way.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, gcd, log2, prod

from plusx.errors import UserError
from plusx.grammar.spec import Block, Net, Stage, Stride
from plusx.grammar.words import Word, parse


Size = tuple[int, ...]

FLOAT, INDEX = 4, 8  # bytes of a value and of an index
# Memory plans store the outputs of convolutions with more multiply-adds per value than this: the
# first limit is for "recompute", the second for "segments".
HEAVY = (128, 600)


@dataclass(frozen=True, slots=True)
class FeatureShape:
    """The features at one point of a network, and the cost up to there."""

    channels: int
    size: Size  # positions per dimension
    stride: Size  # input positions per step, per dimension
    parameters: int = 0
    multiply_adds: int = 0
    depth: int = 0  # layers with weights up to here
    saved: int = 0  # bytes that the backward pass of one input needs, in float32
    # of these, outputs of convolutions with more multiply-adds per value than each of HEAVY
    heavy: tuple[int, int] = (0, 0)
    is_saved: bool = False  # whether this tensor is saved for the backward pass

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in float32."""
        return FLOAT * self.channels * prod(self.size)

    def without_cost(self) -> "FeatureShape":
        """Return the same features without cost, as the start of a shortcut."""
        return replace(self, parameters=0, multiply_adds=0, depth=0, saved=0, heavy=(0, 0))

    def add_cost(
        self,
        parameters: int,
        multiply_adds: int = 0,
        saved: int = 0,
        *,
        is_saved: bool | None = None,
    ) -> "FeatureShape":
        """Return the same features at a higher cost; `is_saved` replaces theirs."""
        return FeatureShape(  # much faster than dataclasses.replace, and called often
            self.channels,
            self.size,
            self.stride,
            self.parameters + parameters,
            self.multiply_adds + multiply_adds,
            self.depth,
            self.saved + saved,
            self.heavy,
            self.is_saved if is_saved is None else is_saved,
        )

    def save(self) -> "FeatureShape":
        """Return the features as saved for the backward pass; they count once, however often they
        are needed."""
        return self if self.is_saved else self.add_cost(0, 0, self.nbytes, is_saved=True)


@dataclass(frozen=True, slots=True)
class LayerContext:
    """The context of a word: the net, the reference width and the stride that `s` takes."""

    net: Net
    width: int
    stride: Size

    @classmethod
    def unstrided(cls, net: Net, width: int) -> "LayerContext":
        """Return a context whose stride is 1 in every dimension."""
        return cls(net, width, (1,) * net.ndim)


@dataclass(frozen=True)
class StageShape:
    """One stage; `size` and `stride` are at its end."""

    name: str
    blocks: int
    channels: int
    size: Size
    stride: Size
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Measure:
    """Counts and shapes of a net. `depth` counts layers with weights along the branches."""

    parameters: int
    multiply_adds: int
    depth: int
    embed_width: int
    stages: tuple[StageShape, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at the end of each stage."""
        return tuple(stage.channels for stage in self.stages)

    @property
    def strides(self) -> tuple[Stride, ...]:
        """Input positions per step at the end of each stage."""
        return tuple(
            stage.stride[0] if len(set(stage.stride)) == 1 else stage.stride
            for stage in self.stages
        )


def each_dimension(value: Stride, ndim: int) -> Size:
    """Return one number for each dimension."""
    numbers = value if isinstance(value, tuple) else (value,)
    if len(numbers) not in (1, ndim):
        raise UserError(f"{value} has {len(numbers)} numbers for {ndim} dimensions")
    return numbers * ndim if len(numbers) == 1 else numbers


def input_shape(net: Net) -> FeatureShape:
    """Return the features of an input of the net's own size."""
    return FeatureShape(net.in_channels, each_dimension(net.size, net.ndim), (1,) * net.ndim)


def padding(kernel: Size, dilation: int = 1) -> Size:
    """Return the padding: odd kernels keep the size, even ones are not padded."""
    return tuple(dilation * (k // 2) if k % 2 else 0 for k in kernel)


def pooling(word: Word, context: LayerContext) -> tuple[Size, Size]:
    """Return kernel and stride of a pooling or blur. Where `s` is 1 it has no effect in that
    dimension."""
    ndim = context.net.ndim
    kernel = each_dimension(word.kernel, ndim)
    if word.stride is not None:
        return kernel, each_dimension(word.stride, ndim)
    kernel = tuple(k if s > 1 else 1 for k, s in zip(kernel, context.stride))
    return kernel, context.stride


def rounds_size_up(word: Word, kernel: Size) -> bool:
    """Whether a pooling with the stage's stride rounds its size up, as `conv3s` does. A padded odd
    kernel has this size without rounding."""
    padded = word.kind in ("maxpool", "blur") and all(k % 2 for k in kernel)
    return word.stride is None and not padded


def eca_kernel(channels: int) -> int:
    """Return the kernel size of Wang et al. 2020, eq. 12 with gamma 2 and b 1, at least 3."""
    nearest = int(abs(log2(channels) + 1) / 2)
    return max(nearest if nearest % 2 else nearest + 1, 3)


def step(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    """Return the features after one word, with their cost."""
    return ARITHMETIC[word.kind](shape, word, context)


def run(shape: FeatureShape, words: Iterable[Word], context: LayerContext) -> FeatureShape:
    """Return the features after several words."""
    for word in words:
        shape = step(shape, word, context)
        if shape.channels < 1 or min(shape.size) < 1:
            rest = f"{shape.channels} channels at {_by(shape.size)} positions"
            raise UserError(f"nothing remains after {word}: {rest}")
    return shape


def block(shape: FeatureShape, spec: Block, context: LayerContext) -> FeatureShape:
    """Return the features after a block. Raises UserError if branch and shortcut disagree in
    shape."""
    sentence = parse(spec.body)
    after_lead = run(shape, sentence.lead, context)
    y = run(after_lead, sentence.branch, context)
    if sentence.merge == "concat":
        if y.size != shape.size:
            raise UserError(
                f"{spec.body!r} changes the size, so `&` cannot concatenate it with its input"
            )
        y = replace(y, channels=shape.channels + y.channels, is_saved=False)
    elif sentence.merge in ("add", "gate"):
        # a tensor that the branch saves is not saved again by a shortcut
        start = _saved_by(shape, (*sentence.lead, *sentence.branch), context)
        fork_input = _saved_by(after_lead, sentence.branch, context) if sentence.lead else start
        paths = {"shortcut": _shortcut(start, fork_input, y, spec, context)}
        if sentence.merge == "gate":
            paths["gate"] = run(start.without_cost(), parse(spec.gate).branch, context)
            y = y.save().add_cost(0, 0, 2 * y.nbytes)
            paths["shortcut"] = paths["shortcut"].save()
        y = replace(y, is_saved=False)
        for name, path in paths.items():
            if (path.channels, path.size) != (y.channels, y.size):
                raise UserError(
                    f"the branch of {spec.body!r} ends with {y.channels} channels at "
                    f"{_by(y.size)}, its {name} {_text(name, spec, shape, y, context)!r} "
                    f"with {path.channels} at {_by(path.size)}"
                )
            y = _with_cost(y, path)
    return run(y, sentence.after, LayerContext.unstrided(context.net, context.width))


def _saved_by(shape: FeatureShape, words: Sequence[Word], context: LayerContext) -> FeatureShape:
    """Return the features, as saved if the first of the words saves its input."""
    if not words or shape.is_saved:
        return shape
    first = words[0]
    saves = first.kind not in ("act", "drop", "pool", "pad", "pos", "embed")
    if first.kind == "act":
        saves = context.net.act in ("gelu", "silu", "leaky")
    return replace(shape, is_saved=saves and first.learned)


def _with_cost(shape: FeatureShape, other: FeatureShape) -> FeatureShape:
    """Return the features with the cost of another path added, except for its depth."""
    total = shape.add_cost(other.parameters, other.multiply_adds, other.saved)
    return replace(total, heavy=(shape.heavy[0] + other.heavy[0], shape.heavy[1] + other.heavy[1]))


def projects(shape: FeatureShape, y: FeatureShape, context: LayerContext) -> bool:
    """Whether the shape changes between a block's input and its merge."""
    return y.channels != shape.channels or max(context.stride) > 1


def _shortcut(
    shape: FeatureShape, lead: FeatureShape, y: FeatureShape, spec: Block, context: LayerContext
) -> FeatureShape:
    """Return the features after the shortcut, which starts after the lead if it projects, else at
    the block's input."""
    if projects(shape, y, context):
        return run(lead.without_cost(), parse(spec.shortcut).branch, context)
    return run(shape.without_cost(), parse(spec.identity).branch, context)


@lru_cache(maxsize=1024)  # specs are frozen, and measured often
def measure(net: Net) -> Measure:
    """Measure a whole network at its own input size. Raises UserError if shapes do not match."""
    stem = LayerContext.unstrided(net, net.stem_width)
    shape = run(input_shape(net), parse(net.stem).branch, stem)
    stages = []
    for i, stage in enumerate(net.stages, 1):
        stage_input = shape
        enter = LayerContext.unstrided(net, shape.channels)
        shape = run(shape, parse(stage.enter).branch, enter)
        shape = list(block_shapes(shape, stage, net))[-1][1]
        stages.append(
            StageShape(
                f"layer{i}",
                len(stage.blocks),
                shape.channels,
                shape.size,
                shape.stride,
                shape.parameters - stage_input.parameters,
                shape.multiply_adds - stage_input.multiply_adds,
            )
        )
    shape = run(shape, parse(net.tail).branch, LayerContext.unstrided(net, shape.channels))
    width = shape.channels * prod(shape.size)
    if net.num_classes:
        shape = shape.add_cost((width + 1) * net.num_classes, width * net.num_classes)
        shape = replace(shape, depth=shape.depth + 1)
    return Measure(shape.parameters, shape.multiply_adds, shape.depth, width, tuple(stages))


def block_shapes(
    shape: FeatureShape, stage: Stage, net: Net
) -> Iterator[tuple[FeatureShape, FeatureShape]]:
    """Yield the features before and after each block of a stage; repeated blocks are computed
    once."""
    first = LayerContext(net, stage.width, each_dimension(stage.stride, net.ndim))
    rest = LayerContext.unstrided(net, stage.width)
    by_key: dict[tuple[Block, int, Size, bool], FeatureShape] = {}
    for index, spec in enumerate(stage.blocks):
        if index == 0:
            after = block(shape, spec, first)
        else:
            key = (spec, shape.channels, shape.size, shape.is_saved)
            if key not in by_key:
                by_key[key] = block(replace(shape.without_cost(), stride=rest.stride), spec, rest)
            after = add_block(shape, by_key[key])
        yield shape, after
        shape = after


def add_block(shape: FeatureShape, added: FeatureShape) -> FeatureShape:
    """Return the features after a block whose own shape and cost are `added`."""
    stride = tuple(a * b for a, b in zip(shape.stride, added.stride))
    return FeatureShape(
        added.channels,
        added.size,
        stride,
        shape.parameters + added.parameters,
        shape.multiply_adds + added.multiply_adds,
        shape.depth + added.depth,
        shape.saved + added.saved,
        (shape.heavy[0] + added.heavy[0], shape.heavy[1] + added.heavy[1]),
        added.is_saved,
    )


def _times(shape: FeatureShape, context: LayerContext, stride: Size | None = None) -> Size:
    return tuple(a * b for a, b in zip(shape.stride, stride or context.stride))


def _by(size: Size) -> str:
    return " x ".join(map(str, size))


def _text(
    name: str, spec: Block, shape: FeatureShape, y: FeatureShape, context: LayerContext
) -> str:
    if name == "gate":
        return spec.gate
    return spec.shortcut if projects(shape, y, context) else spec.identity


def _hidden(channels: int, word: Word) -> int:
    assert word.value is not None
    hidden = channels // int(word.value)
    if hidden < 1:
        raise UserError(f"{word} leaves none of {channels} channels")
    return hidden


def out_channels(channels: int, word: Word, context: LayerContext) -> int:
    """Return the channels after a `conv` or `attn`: a fraction of the reference width, or
    unchanged."""
    if word.groups == 0 or (word.kind == "attn" and word.ratio == (1, 1)):
        return channels
    return context.width * word.ratio[0] // word.ratio[1]


def _conv(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    ndim = context.net.ndim
    kernel = each_dimension(word.kernel, ndim)
    stride = context.stride if word.stride is None else each_dimension(word.stride, ndim)
    size = tuple(
        (n + 2 * p - word.dilation * (k - 1) - 1) // s + 1
        for n, p, k, s in zip(shape.size, padding(kernel, word.dilation), kernel, stride)
    )
    out, groups = out_channels(shape.channels, word, context), word.groups or shape.channels
    if shape.channels % groups or out % groups:
        raise UserError(
            f"{word}: {groups} groups do not divide {shape.channels} and {out} channels"
        )
    per_value = shape.channels // groups * prod(kernel)
    weights = out * per_value
    saved = shape.save().add_cost(
        weights + out * word.bias, weights * prod(size) if min(size) > 0 else 0
    )
    nbytes = FLOAT * out * prod(size)
    first, second = (nbytes * (per_value > limit) for limit in HEAVY)
    return replace(
        saved,
        channels=out,
        size=size,
        stride=_times(shape, context, stride),
        depth=shape.depth + 1,
        heavy=(shape.heavy[0] + first, shape.heavy[1] + second),
        is_saved=False,
    )


def _pool(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    kernel, stride = pooling(word, context)
    pad = padding(kernel) if word.kind in ("maxpool", "blur") else (0,) * len(kernel)
    if word.kind == "blur":
        for n, k, p in zip(shape.size, kernel, pad):
            if k % 2 == 0 or p >= n:
                raise UserError(f"{word} needs an odd kernel and more than {p} positions, not {n}")
    rounds_up = rounds_size_up(word, kernel)
    size = []
    for n, k, s, p in zip(shape.size, kernel, stride, pad):
        out = (ceil((n + 2 * p - k) / s) if rounds_up else (n + 2 * p - k) // s) + 1
        # rounding up must not start a window beyond the input and its left padding
        size.append(out - 1 if rounds_up and (out - 1) * s >= n + p else out)
    if word.stride is None and max(stride) == 1:
        return shape
    after = replace(
        shape.save(), size=tuple(size), stride=_times(shape, context, stride), is_saved=False
    )
    if word.kind == "maxpool":
        return after.add_cost(0, 0, INDEX * after.channels * prod(size))
    if word.kind == "blur":
        padded = prod(n + 2 * p for n, p in zip(shape.size, pad))
        return after.add_cost(0, 0, FLOAT * shape.channels * padded)
    return after


def _attention(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    out, positions = out_channels(shape.channels, word, context), prod(shape.size)
    assert word.value is not None
    if out % int(word.value):
        raise UserError(f"{word}: {int(word.value)} heads do not divide {out} channels")
    weights = 3 * out * shape.channels
    products = 2 * out * positions**2
    saved = FLOAT * (3 * out * positions + int(word.value) * positions)
    with_cost = shape.save().add_cost(
        weights + 3 * out * word.bias, weights * positions + products, saved
    )
    after = replace(with_cost, channels=out, depth=shape.depth + 1, is_saved=False)
    heavy = FLOAT * 3 * out * positions
    first, second = (heavy * (shape.channels > limit) for limit in HEAVY)
    return replace(after, heavy=(shape.heavy[0] + first, shape.heavy[1] + second)).save()


def _act(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    if context.net.act in ("gelu", "silu", "leaky"):  # their backward pass needs the input
        return _new(shape.save())
    return _new(shape).save()


def _glu(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    if shape.channels % 2:
        raise UserError(
            f"{word} multiplies one half of the channels by the sigmoid of the other; "
            f"{shape.channels} channels have no halves"
        )
    return replace(_new(shape.save()), channels=shape.channels // 2)


def _drop(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    return _new(shape.add_cost(0, 0, shape.nbytes))  # the mask


def _norm(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    net, c = context.net, shape.channels
    statistics = {"layer": 2 * prod(shape.size), "group": 2 * gcd(32, c), "instance": 4 * c}
    saved = FLOAT * statistics.get(net.norm, 0)
    return _new(shape.save().add_cost(2 * c if net.affine else 0, 0, saved))


def _global_pool(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    count = int(word.value or 1)
    after = shape.save() if count > 1 else shape
    return replace(_new(after), size=(count,) * context.net.ndim)


def _top(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    positions, count = prod(shape.size), int(word.value or 1)
    if context.net.ndim != 1:
        raise UserError(f"{word} is for one dimension; the network has {context.net.ndim}")
    if positions < count:
        raise UserError(f"{word} needs {count} positions; there are {positions}")
    saved = shape.save().add_cost(0, 0, (INDEX + FLOAT) * shape.channels * positions)
    return replace(_new(saved), size=(count,))


def _fc(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    count = int(word.value or 1)
    cost = count * shape.channels * prod(shape.size)
    after = replace(_new(shape.save().add_cost(cost + count, cost)), channels=count)
    return replace(after, size=(1,) * context.net.ndim, depth=shape.depth + 1)


def _pad(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    if context.width < shape.channels:
        raise UserError(f"{word} cannot go from {shape.channels} channels to {context.width}")
    size = tuple((n - 1) // s + 1 for n, s in zip(shape.size, context.stride))
    after = replace(_new(shape), channels=context.width, size=size)
    return replace(after, stride=_times(shape, context))


def _se(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    c, hidden = shape.channels, _hidden(shape.channels, word)
    weights = 2 * c * hidden
    return _new(shape.save().add_cost(weights + hidden + c, weights, FLOAT * (2 * c + hidden)))


def _eca(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    c, kernel = shape.channels, eca_kernel(shape.channels)
    return _new(shape.save().add_cost(kernel, kernel * c, FLOAT * 2 * c))


def _cbam(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    c, hidden, positions = shape.channels, _hidden(shape.channels, word), prod(shape.size)
    spatial, pair = 2 * 7**context.net.ndim, 2 * c * hidden
    saved = shape.nbytes + FLOAT * (3 * c + 2 * hidden + 5 * positions)
    parameters, multiply_adds = pair + hidden + c + spatial + 2, 2 * pair + spatial * positions
    return _new(shape.save().add_cost(parameters, multiply_adds, saved))


def _scale(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    if not word.learned:
        return _new(shape)
    return _new(shape.save().add_cost(1 if word.value in (0, 1) else shape.channels))


def _shift(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    return _new(shape.add_cost(1))


def _gate(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    c = shape.channels
    return _new(shape.save().add_cost(c * c + c, c * c * prod(shape.size), 2 * shape.nbytes))


def _embed(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    width = int(word.value or 1)
    return replace(shape.add_cost(shape.channels * width), channels=width)


def _pos(shape: FeatureShape, word: Word, context: LayerContext) -> FeatureShape:
    return _new(shape.add_cost(shape.channels * prod(shape.size)))


def _new(shape: FeatureShape) -> FeatureShape:
    """Return the features as not saved yet."""
    return shape.add_cost(0, is_saved=False) if shape.is_saved else shape


# kind of a word: the features after it
ARITHMETIC: dict[str, Callable[[FeatureShape, Word, LayerContext], FeatureShape]] = {
    "conv": _conv,
    "norm": _norm,
    "act": _act,
    "glu": _glu,
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
    "shift": _shift,
    "gate": _gate,
    "pad": _pad,
    "embed": _embed,
    "pos": _pos,
}

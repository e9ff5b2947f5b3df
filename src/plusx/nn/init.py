"""Initialisation of parameters by the rules of the papers."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.grammar.words import parse
from plusx.nn.block import ResidualBlock
from plusx.nn.dims import CONVOLUTIONS
from plusx.nn.gates import ShortcutGate
from plusx.nn.layers import Attention


GATE_BIAS = -2.0

Rule = Callable[[nn.Module], None]


def _weights(fill: Callable[[Tensor], object], heads: bool, module: nn.Module) -> None:
    """Initialise convolutions, with `heads` also linear layers; biases are 0."""
    if isinstance(module, (*CONVOLUTIONS, nn.Linear) if heads else CONVOLUTIONS):
        fill(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _unchanged(module: nn.Module) -> None:
    """Keep PyTorch's initialisation."""


def _delta_orthogonal(weight: Tensor, gain: float) -> None:
    """Make the middle of the kernels a matrix with orthogonal rows or columns, and the rest 0, so
    that a convolution keeps the norm of its input, times `gain`."""
    nn.init.zeros_(weight)
    middle = weight.data
    for size in weight.shape[2:]:
        middle = middle[:, :, size // 2]
    nn.init.orthogonal_(middle, gain)


he_normal = partial(nn.init.kaiming_normal_, nonlinearity="relu")

RULES: dict[str, Rule] = {
    # He et al. 2015 (delving), eq. 14 and 10; linear layers as in PyTorch
    "he": partial(_weights, partial(he_normal, mode="fan_out"), False),
    "he_fan_in": partial(_weights, partial(he_normal, mode="fan_in"), False),
    # Krizhevsky et al. 2012, section 5
    "normal0.01": partial(_weights, partial(nn.init.normal_, std=0.01), True),
    # Dosovitskiy et al. 2021 and Liu et al. 2022
    "truncated": partial(_weights, partial(nn.init.trunc_normal_, std=0.02), True),
    "pytorch": _unchanged,
    # Xiao et al. 2018, section 4; the gain for ReLU is He's
    "orthogonal": partial(_weights, partial(_delta_orthogonal, gain=1.0), False),
    "orthogonal_relu": partial(_weights, partial(_delta_orthogonal, gain=2**0.5), False),
    # Zhang et al. 2019, section 3; the branches are then changed by `_fixup`
    "fixup": partial(_weights, partial(he_normal, mode="fan_out"), False),
}


def initialise(
    net: nn.Module,
    rule: str | None = None,
    zero_last_gamma: bool = False,
    gate_bias: float = GATE_BIAS,
) -> None:
    """Initialise a network's parameters from torch's generator.

    rule: a name of RULES; None is "he", "truncated" for networks with layer norm, and "fixup" for
        those whose blocks have the word `shift`
    zero_last_gamma: make every residual block the identity at the start: the weight of the last
        norm of each branch before a `+` is 0 (Goyal et al. 2017, section 5.1). Branches without a
        norm are unchanged
    gate_bias: initial bias of the gates of `~` and of the word `gate`. A negative one carries the
        input at first (Srivastava et al. 2015, section 2.2; He et al. 2016, section 3.1, tries 0 to
        -10)

    Raises UserError for an unknown rule.
    """
    if rule is None:
        rule = _default_rule(getattr(net, "spec", None))
    if rule not in RULES:
        raise UserError(f"unknown initialisation {rule!r}; allowed are {', '.join(RULES)}")
    for module in net.modules():
        RULES[rule](module)
    for module in net.modules():
        if isinstance(module, Attention) and rule == "he":
            # fan-out would shrink the three projections by sqrt(3)
            weight = module.qkv.weight
            assert isinstance(weight, Tensor)
            nn.init.xavier_uniform_(weight.flatten(1))
        if zero_last_gamma and isinstance(module, ResidualBlock) and module.merge == "add":
            norms = [name for name in module.branch if name.startswith(("bn", "norm"))]
            last = getattr(module, norms[-1]) if norms else None
            gamma = getattr(last, "weight", None)
            if gamma is not None:
                nn.init.zeros_(gamma)
        if rule == "pytorch":
            continue
        if isinstance(module, ResidualBlock) and module.gate is not None:
            bias = getattr(module.gate[-1], "bias", None)
            if bias is not None:
                nn.init.constant_(bias, gate_bias)
        if isinstance(module, ShortcutGate):
            nn.init.constant_(module.get_parameter("conv.bias"), gate_bias)
    if rule == "fixup":
        _fixup(net)


def _default_rule(spec: Net | None) -> str:
    if spec is None:
        return "he"
    if spec.norm == "layer":
        return "truncated"
    blocks = {block.body for stage in spec.stages for block in stage.blocks}
    has_shift = any(word.kind == "shift" for body in blocks for word in parse(body).words)
    return "fixup" if has_shift else "he"


def _fixup(net: nn.Module) -> None:
    """Rules 1 and 2 of Fixup (Zhang et al. 2019, section 3): the head and the last convolution of
    every branch are 0; the others are scaled by L ** (-1 / (2 m - 2)), with L branches of m
    convolutions each."""
    blocks = [
        module
        for module in net.modules()
        if isinstance(module, ResidualBlock) and module.merge == "add"
    ]
    for block in blocks:
        layers = [block.get_submodule(name) for name in (*block.lead, *block.branch)]
        convolutions = [layer for layer in layers if isinstance(layer, CONVOLUTIONS)]
        for layer in convolutions[:-1]:
            layer.weight.data.mul_(len(blocks) ** (-1 / (2 * len(convolutions) - 2)))
        for layer in convolutions[-1:]:
            nn.init.zeros_(layer.weight)
    head = getattr(net, "fc", None)
    if isinstance(head, nn.Linear):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)

"""Claims about counts, checked by arithmetic on the specs and, without --quick, on built networks
on the meta device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from plusx.evidence.claim import Claim, spec
from plusx.evidence.verdict import Check, Options, Outcome
from plusx.grammar.arithmetic import each_dimension, measure
from plusx.grammar.memory import saved_bytes
from plusx.grammar.reversible import reversible_bytes
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.words import parse
from plusx.models import create_model
from plusx.study.consistency import network_count
from plusx.zoo import ZOO
from plusx.zoo.blocks import BASIC, BOTTLENECK


_WORDS = {"parameters": "parameters", "multiply_adds": "multiply-adds", "depth": "layers"}
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)  # He 2015, table 6


def build_on_meta(network: str, num_classes: int | None = None) -> nn.Module:
    """Return the network on the meta device."""
    with torch.device("meta"):
        net: nn.Module = create_model(network, num_classes=num_classes)
    return net


def parameters(claim: Claim, options: Options) -> Outcome:
    """The number of parameters, by arithmetic and in the built network."""
    count = network_count(claim.network, "parameters", classes=claim.num_classes)
    shown = [f"{name}: {network_count(name, 'parameters'):,} parameters" for name in claim.beside]
    if options.quick:
        return _count(count, shown, "arithmetic alone, no network is built")
    _agree(
        claim.network, "parameters", count, _numel(build_on_meta(claim.network, claim.num_classes))
    )
    return _count(count, [*shown, f"arithmetic and the built network: {count:,}"])


def multiply_adds(claim: Claim, options: Options) -> Outcome:
    """The MACs of one input, by arithmetic and by torch's FLOP counter."""
    count = network_count(claim.network, "multiply_adds")
    if options.quick:
        return _count(count, [], "arithmetic alone, no network is built")
    net = spec(claim.network)
    size = each_dimension(net.size, net.ndim)
    model = build_on_meta(claim.network).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, net.in_channels, *size, device="meta"))
    _agree(claim.network, "multiply-adds", count, counter.get_total_flops() // 2)
    return _count(count, [f"arithmetic and torch's counter of operations: {count:,}"])


def auxiliary_heads(claim: Claim, options: Options) -> Outcome:
    """The parameters of GoogLeNet for training, with its two auxiliary heads, as torchvision builds
    it."""
    from torchvision.models.googlenet import GoogLeNet

    with torch.device("meta"):
        net = GoogLeNet(init_weights=False)
    without_heads = network_count(claim.network, "parameters")
    return _count(_numel(net), [f"without auxiliary heads: {without_heads:,}"])


def twins(claim: Claim, options: Options) -> Outcome:
    """The largest difference in counts between plain networks and residual ones with shortcut A."""
    pairs = [(f"plain{depth}", f"resnet{depth}") for depth in CIFAR_DEPTHS]
    pairs += [("plain34", "resnet34_a")]
    shown, largest = [], 0
    for plain, residual in pairs:
        plain_costs, costs = measure(spec(plain)), measure(spec(residual))
        largest = max(
            largest,
            abs(plain_costs.parameters - costs.parameters),
            abs(plain_costs.multiply_adds - costs.multiply_adds),
        )
        shown.append(
            f"{plain} {plain_costs.parameters:,} parameters, {plain_costs.multiply_adds:,} "
            f"multiply-adds; {residual} {costs.parameters:,} and {costs.multiply_adds:,}"
        )
    return _count(largest, shown)


def option_b_minus_a(claim: Claim, options: Options) -> Outcome:
    """The parameters of projections at every depth; the value furthest from the claim decides."""
    more = {
        depth: network_count(f"resnet{depth}_b", "parameters")
        - network_count(f"resnet{depth}", "parameters")
        for depth in CIFAR_DEPTHS
    }
    worst = max(more.values(), key=lambda count: abs(count - claim.value))
    return _count(worst, [f"ResNet-{depth}: {count:,}" for depth, count in more.items()])


def networks_with_more(claim: Claim, options: Options) -> Outcome:
    """The number of compared networks with more parameters."""
    count = network_count(claim.network, "parameters")
    more = [name for name in claim.beside if network_count(name, "parameters") > count]
    names = (claim.network, *claim.beside)
    return _count(len(more), [f"{name}: {network_count(name, 'parameters'):,}" for name in names])


def compare_two(quantity: str, combine: Callable[[int, int], float]) -> Check:
    """Return a check that combines a quantity of two networks; those in `beside` are shown too."""

    def check(claim: Claim, options: Options) -> Outcome:
        first, second = (_quantity(name, quantity) for name in (claim.network, claim.against))
        quantities = list(dict.fromkeys(("parameters", "multiply_adds", "depth", quantity)))
        shown = tuple(
            f"{name}: " + ", ".join(f"{_quantity(name, q):,} {_WORDS[q]}" for q in quantities)
            for name in (claim.network, claim.against, *claim.beside)
        )
        return Outcome(values=(float(combine(first, second)),), shown=shown)

    return check


def _quantity(name: str, quantity: str) -> int:
    """Return a quantity of a network; layers as its paper counts them."""
    depth = ZOO[name].depth if quantity == "depth" else None
    return depth or network_count(name, quantity)


def additions(claim: Claim, options: Options) -> Outcome:
    """The operations that a residual network has and its plain twin has not: an addition for every
    element of a block's output."""
    residual, plain = measure(spec(claim.network)), measure(spec(claim.against))
    more = residual.parameters - plain.parameters + residual.multiply_adds - plain.multiply_adds
    count = sum(
        stage.blocks * stage.channels * stage.size[0] * stage.size[1] for stage in residual.stages
    )
    return _count(
        count,
        [
            f"{claim.network}: {residual.multiply_adds:,} multiply-adds",
            f"additions of the skips: {count / residual.multiply_adds:.2%} of them",
            f"parameters and multiply-adds beyond those of {claim.against}: {more:,}",
        ],
    )


def layers(claim: Claim, options: Options) -> Outcome:
    """The number of networks in `beside` whose layers with weights, along the branches, are not
    those of their name."""
    depths = {name: network_count(name, "depth") for name in claim.beside}
    wrong = [name for name, depth in depths.items() if not name.endswith(f"resnet{depth}")]
    return _count(len(wrong), [f"{name}: {depth:,} layers" for name, depth in depths.items()])


def blocks_of(kernels: tuple[int, ...]) -> Check:
    """Return a check of the number of blocks with convolutions of these sizes, in this order; the
    others are shown."""

    def check(claim: Claim, options: Options) -> Outcome:
        orders = [
            tuple(word.kernel[0] for word in parse(block.body).words if word.kind == "conv")
            for stage in spec(claim.network).stages
            for block in stage.blocks
        ]
        return _count(
            orders.count(kernels),
            [
                f"{claim.network}: {orders.count(order)} blocks of "
                + ", ".join(f"{kernel} x {kernel}" for kernel in order)
                for order in sorted(set(orders))
            ],
        )

    return check


def stored_ratio(claim: Claim, options: Options) -> Outcome:
    """The bytes that training stores for an image, of one network over another."""
    first, second = (_stored(name) for name in (claim.network, claim.against))
    shown = tuple(
        f"{name}: {stored:,} bytes for an image"
        for name, stored in ((claim.network, first), (claim.against, second))
    )
    return Outcome(values=(first / second,), shown=shown)


def _stored(name: str) -> int:
    net = ZOO[name].net
    if isinstance(net, Net):
        return saved_bytes(net)
    assert net.reversible is not None, name
    return reversible_bytes(net.reversible, reverses=True)


def bottleneck(claim: Claim, options: Options) -> Outcome:
    """Figure 5 of He 2015: a basic block of 64 channels and a bottleneck of 256, at 56 x 56."""

    def cost(block: Block, width: int) -> int:
        stage = Stage(block=block, depth=1, width=width)
        net = Net(stem="", stages=(stage,), in_channels=width, size=56, num_classes=0)
        return measure(net).stages[0].multiply_adds

    basic_64, basic_256, bottleneck_256 = cost(BASIC, 64), cost(BASIC, 256), cost(BOTTLENECK, 256)
    shown = (
        f"basic block of 64 channels: {basic_64:,} multiply-adds",
        f"bottleneck of 256 channels: {bottleneck_256:,}",
        f"basic block of 256 channels: {basic_256:,}",
    )
    return Outcome(values=(bottleneck_256 / basic_64,), shown=shown)


def merges(claim: Claim, options: Options) -> Outcome:
    """The number of blocks that add their input, concatenate it or have no skip."""
    kinds = [
        parse(block.body).merge for stage in spec(claim.network).stages for block in stage.blocks
    ]
    words = {"add": "add their input", "concat": "concatenate it", "none": "have no skip"}
    shown = [
        f"{kinds.count(merge)} blocks {words.get(merge, merge)}" for merge in sorted(set(kinds))
    ]
    return _count(kinds.count("add"), [f"{claim.network}: {', '.join(shown)}"])


def convolutions_per_block(claim: Claim, options: Options) -> Outcome:
    """The number of convolutions in the branch of the blocks, of the network and those in `beside`;
    the number furthest from the claim decides."""

    def convolutions(name: str) -> list[int]:
        blocks = {block.body for stage in spec(name).stages for block in stage.blocks}
        return sorted(sum(word.kind == "conv" for word in parse(body).words) for body in blocks)

    counts = {name: convolutions(name) for name in (claim.network, *claim.beside)}
    worst = max(
        (count for numbers in counts.values() for count in numbers),
        key=lambda count: abs(count - claim.value),
    )
    shown = [
        f"{name}: {', '.join(map(str, numbers))} convolutions a block"
        for name, numbers in counts.items()
    ]
    return _count(worst, shown)


def dilated_shortcuts(claim: Claim, options: Options) -> Outcome:
    """The number of dilated convolutions in the shortcuts of all networks whose blocks add."""
    nets = [entry.net for entry in ZOO.values() if isinstance(entry.net, Net)]
    blocks = {block for net in nets for stage in net.stages for block in stage.blocks}
    adding = [block for block in blocks if parse(block.body).merge == "add"]
    words = [word for block in adding for text in (block.shortcut, block.identity)
             for word in parse(text).words]  # fmt: skip
    dilated = sum(word.dilation > 1 for word in words)
    bodies = sum(any(word.dilation > 1 for word in parse(block.body).words) for block in adding)
    return _count(
        dilated,
        [
            f"{len(adding)} kinds of residual block in the zoo, none with a dilated shortcut",
            f"{bodies} of them have a dilated convolution in F, as in res15, for its width alone",
        ],
    )


def _count(count: int, shown: list[str], smaller: str = "") -> Outcome:
    return Outcome(values=(float(count),), shown=tuple(shown), smaller=smaller)


def _numel(net: Any) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _agree(network: str, quantity: str, count: int, built: int) -> None:
    if count != built:
        raise RuntimeError(
            f"{network}: arithmetic gives {count:,} {quantity}, the built network has {built:,}"
        )

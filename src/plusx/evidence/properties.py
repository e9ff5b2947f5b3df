"""Claims that follow from the definitions, checked on networks and tensors.

Values that are equal on paper are compared in float64, exact claims bit by bit. Every check uses
random weights, statistics and inputs from a fixed seed.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, stdev

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.evidence.claim import Claim, spec
from plusx.evidence.verdict import Options, Outcome
from plusx.grammar.arithmetic import FeatureShape, LayerContext
from plusx.grammar.spec import Block, Net, Stage
from plusx.models import create_model
from plusx.nn.block import ResidualBlock, run_layers
from plusx.nn.layers import ZeroPad
from plusx.study.blocks import block_positions, counted_depths, preserved, run_blocks
from plusx.study.gradients import shortcut_identity
from plusx.zoo.blocks import BASIC, BASIC_A, BOTTLENECK, PREACT, PREACT_BOTTLENECK, attended


SEED = 0


def zero_residual(claim: Claim, options: Options) -> Outcome:
    """Blocks whose last norm (or, before activation, last convolution) is 0, in both modes."""
    blocks = {
        "basic": BASIC,
        "bottleneck": BOTTLENECK,
        "basic with squeeze and excitation": attended(BASIC, "se/16"),
        "pre-activation": PREACT,
        "pre-activation bottleneck": PREACT_BOTTLENECK,
    }
    shown, wrong = [], 0
    for name, spec_of_block in blocks.items():
        block = _block(spec_of_block, 64)
        _last_weights(block).data.zero_()
        x = torch.randn(4, 64, 8, 8)
        if block.after:  # a block that ends in ReLU is the identity of values that are not negative
            x = x.relu()
        differ = 0
        for training in (True, False):
            block.train(training)
            differ += int((_bits(block(x.clone())) != _bits(x)).sum())
        wrong += differ
        shown.append(f"{name}: {differ} of {2 * x.numel():,} values differ")
    return Outcome(values=(float(wrong),), shown=tuple(shown))


def unrolling(claim: Claim, options: Options) -> Outcome:
    """Equation 4 within the last stage, and the formula of nested functions beside it."""
    net, x, _ = _perturbed(spec(claim.network))
    run = [position for position in block_positions(net) if position.name.startswith("layer3.")][1:]
    with torch.no_grad():
        first = len(block_positions(net)) - len(run)
        at = run_blocks(net, x).outputs[first - 1]
        flowing, total, nested = at, torch.zeros_like(at), at
        for position in run:
            block = position.block
            branch = run_layers(block, block.branch, run_layers(block, block.lead, flowing))
            flowing, total = block(flowing), total + branch
            nested = run_layers(block, block.branch, run_layers(block, block.lead, nested))
        error = _relative(flowing - at, total)
        other = _relative(nested + at, flowing)
    return Outcome(
        values=(error,),
        shown=(
            f"{len(run)} blocks: x_L - x_l and the sum of F(x_i) differ by {error:.1e}",
            f"F_L(... F_l(x)) + x, which is no residual network, differs from x_L by {other:.2g}",
        ),
    )


def gradient_identity(claim: Claim, options: Options) -> Outcome:
    """Equation 5 at every block of every stage."""
    net, x, targets = _perturbed(spec(claim.network))
    blocks = [
        identity
        for stage in (1, 2, 3)
        for identity in shortcut_identity(net, x, targets, stage=stage)
    ]
    worst = max(blocks, key=lambda identity: identity.difference)
    shown = (
        f"{len(blocks)} blocks; the worst is {worst.name}: {worst.difference:.1e} of the largest "
        f"value; norm {worst.measured:.6g} by autograd, {worst.expected:.6g} by the equation"
    )
    return Outcome(values=(worst.difference,), shown=(shown,))


def gradient_equal(claim: Claim, options: Options) -> Outcome:
    """Equation 5 with F = 0: the gradient at the blocks of a stage, compared to the bit."""
    given = _gradients_without_branch(spec(claim.network))
    differ = sum(int((_bits(gradient) != _bits(given[-1])).sum()) for gradient in given)
    return Outcome(
        values=(float(differ),), shown=(f"the gradient at {len(given)} depths of the last stage",)
    )


def gradient_scaled(claim: Claim, options: Options) -> Outcome:
    """Equation 8 with F = 0: each block multiplies the gradient by lambda."""
    worst, shown = 0.0, []
    for text, factor in (("scale.5", 0.5), ("scale.9", 0.9)):
        net = spec(claim.network)
        stages = tuple(_with_identity(stage, text) for stage in net.stages)
        given = _gradients_without_branch(replace(net, stages=stages))
        last = len(given) - 1
        errors = [
            _relative(gradient, factor ** (last - l) * given[-1])
            for l, gradient in enumerate(given)
        ]
        worst = max(worst, *errors)
        ratio = float(given[0].norm() / given[-1].norm())
        shown.append(
            f"lambda {factor}: over {last} blocks the norm is multiplied by {ratio:.6g}, "
            f"lambda^{last} = {factor**last:.6g}"
        )
    return Outcome(values=(worst,), shown=tuple(shown))


def expected_depth(claim: Claim, options: Options) -> Outcome:
    """The sum of the blocks' survival probabilities, and the blocks computed in random passes."""
    net = create_model(claim.network, seed=SEED)
    blocks = [position.block for position in block_positions(net)]
    passes = 200 if options.quick else 4_000
    counts = counted_depths(net, passes, SEED)
    middle, error = mean(counts), stdev(counts) / passes**0.5
    return Outcome(
        values=(sum(1 - block.drop for block in blocks),),
        shown=(
            f"{len(blocks)} blocks, drop rates {blocks[0].drop:.4f} to {blocks[-1].drop:.4f}",
            f"in {passes:,} random passes {middle:.2f} were computed (standard error {error:.2f})",
        ),
        smaller=f"{passes} random passes in place of 4,000" if options.quick else "",
    )


def skipped_blocks(claim: Claim, options: Options) -> Outcome:
    """Training passes: which blocks had a gradient and new statistics, and which were dropped."""
    count = 1 if options.quick else 4
    wrong = skipped = computed = 0
    for seed in range(count):
        net = create_model(claim.network, seed=seed).train()
        blocks = [position.block for position in block_positions(net)]
        with preserved(net):
            torch.manual_seed(seed)
            net.train()
            survived = [not block.dropped() for block in blocks]
        before = [_statistics(block) for block in blocks]
        torch.manual_seed(seed)
        net(
            torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        ).sum().backward()
        for block, alive, old in zip(blocks, survived, before):
            weight = block.get_parameter(f"{block.branch[0]}.weight")
            moved = not all(map(torch.equal, old, _statistics(block)))
            learnt = weight.grad is not None and bool(weight.grad.any())
            wrong += moved != alive or learnt != alive
            computed, skipped = computed + alive, skipped + (not alive)
    return Outcome(
        values=(float(wrong),),
        shown=(f"{count} passes: {skipped} blocks were skipped and {computed} computed",),
        smaller="1 pass in place of 4" if options.quick else "",
    )


def survival_in_evaluation(claim: Claim, options: Options) -> Outcome:
    """Every block in evaluation: relu(x + p F(x)), where p is its survival probability."""
    net, x, _ = _perturbed(spec(claim.network))
    worst = 0.0
    positions = block_positions(net)
    with torch.no_grad():
        passed = run_blocks(net, x)
        starts = [passed.start, *passed.outputs[:-1]]
        for position, start, output in zip(positions, starts, passed.outputs):
            block = position.block
            skip = start if block.downsample is None else block.downsample(start)
            survival = 1 - block.drop
            branch = run_layers(block, block.branch, start)
            worst = max(worst, _relative((skip + survival * branch).relu(), output))
    return Outcome(values=(worst,), shown=(f"{len(positions)} blocks",))


def option_a(claim: Claim, options: Options) -> Outcome:
    """The shortcut of ResNet-20's second stage on a random input."""
    block = _block(BASIC_A, 32, channels=16, stride=2)
    x = torch.randn(4, 16, 8, 8)
    assert block.downsample is not None
    side = block.downsample
    expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(4, 16, 4, 4)], dim=1)
    differ = int((side(x) != expected).sum())
    parameters = sum(parameter.numel() for parameter in side.parameters())
    half = ZeroPad(16, (2, 2), True)(x)
    other = torch.equal(half[:, 8:24], x[:, :, ::2, ::2])
    return Outcome(
        values=(float(differ + parameters),),
        shown=(
            f"{differ} of {expected.numel():,} values differ; {parameters} parameters; zeros last",
            f"pad/2 puts half of the zeros in front, as others do: {other}",
        ),
    )


def grad_cam_identity(claim: Claim, options: Options) -> Outcome:
    """Grad-CAM at the pooled tensor against w . A / (H W), computed here from the maps."""
    from plusx.explain.grad_cam import grad_cam

    every = ("resnet20", "preact_resnet20", "se_resnet20", "densenet40_12", "wrn16_4",
             "resnet20_b", "vgg16_cifar", "resnet18", "resnet50", "resnext50_32x4d",
             "densenet121", "preact_resnet18")  # fmt: skip
    names = every[:3] if options.quick else every
    shown, worst = [], 0.0
    for name in names:
        net = create_model(name, seed=SEED).double().eval()
        x = torch.randn(2, 3, 72, 72, dtype=torch.float64)
        classes = [1, 3]
        maps = _pooled(net, x)
        cam = torch.einsum("nc,nchw->nhw", net.fc.weight[classes], maps)
        cam = cam / (maps.shape[2] * maps.shape[3])
        error = _relative(grad_cam(net, x, classes), cam)
        worst = max(worst, error)
        shown.append(f"{name}: {error:.1e}")
    return Outcome(
        values=(worst,),
        shown=tuple(shown),
        smaller=f"{len(names)} networks in place of 12" if options.quick else "",
    )


def identity_branch(claim: Claim, options: Options) -> Outcome:
    """A block whose branch is the identity, and one whose branch is zero."""
    block = _block(Block(body="conv3 +"), 16)
    weight = block.get_parameter("conv1.weight")
    x = torch.randn(4, 16, 8, 8)
    with torch.no_grad():
        nn.init.dirac_(weight)
        doubled = float((block(x.clone()) / x).mean())
        weight.zero_()
        unchanged = float((block(x.clone()) / x).mean())
    return Outcome(
        values=(doubled,), shown=(f"F(x) = x: y / x = {doubled:g}", f"F = 0: y / x = {unchanged:g}")
    )


def projection(claim: Claim, options: Options) -> Outcome:
    """The block of ResNet-18 that opens its second stage, with and without its projection."""
    block = _block(BASIC, 128, channels=64, stride=2).double().eval()
    plain = _block(Block(body="conv3s norm act conv3 norm act"), 128, channels=64, stride=2)
    plain.double().eval().load_state_dict(block.state_dict(), strict=False)
    x = torch.randn(2, 64, 8, 8, dtype=torch.float64)
    assert block.downsample is not None
    side = block.downsample
    with torch.no_grad():
        branch = run_layers(block, block.branch, x)
        both = float((block(x) - (branch + side(x)).relu()).abs().max())
        alone = float((block(x) - plain(x)).abs().max())
    conv, first = side[0], block.get_parameter("conv1.weight")
    parameters = sum(parameter.numel() for parameter in side.parameters())
    return Outcome(
        values=(alone,),
        shown=(
            f"the projection: 1 x 1, stride {conv.stride}, {parameters:,} parameters beside F",
            f"the strided convolution in F: 3 x 3, {first.numel():,} parameters",
            f"block(x) and relu(F(x) + projection(x)) differ by {both:.1e}",
        ),
    )


def _block(
    block_spec: Block, width: int, *, channels: int | None = None, stride: int = 1
) -> ResidualBlock:
    """One block with random weights and statistics, for inputs of 8 x 8."""
    torch.manual_seed(SEED)
    stage = Stage(block=block_spec, depth=1, width=width, stride=stride)
    net = Net(stem="", stages=(stage,), in_channels=channels or width, size=8, num_classes=0)
    flow = FeatureShape(channels or width, (8, 8), (1, 1))
    block = ResidualBlock(block_spec, flow, LayerContext(net, width, (stride, stride)), 0.0)
    _shake(block)
    return block


def _shake(module: nn.Module) -> None:
    """Random weights and statistics of norms, which are initialised to 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)


def _perturbed(net: Net) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in float64 and evaluation mode, four random images and their targets."""
    model = create_model(net, seed=SEED).double().eval()
    torch.manual_seed(SEED)
    _shake(model)
    x = torch.randn(4, net.in_channels, 32, 32, dtype=torch.float64)
    return model, x, torch.tensor([0, 1, 2, 3])


def _gradients_without_branch(net: Net) -> list[Tensor]:
    """With every F = 0: the gradient of the loss at the blocks' outputs of the last stage."""
    model, x, targets = _perturbed(net)
    for position in block_positions(model):
        _last_weights(position.block).data.zero_()
    passed = run_blocks(model, x)
    outputs = passed.outputs[-net.stages[-1].depth :]
    return list(torch.autograd.grad(F.cross_entropy(passed.logits, targets), outputs))


def _with_identity(stage: Stage, text: str) -> Stage:
    assert isinstance(stage.block, Block)
    return replace(stage, block=replace(stage.block, identity=text))


def _last_weights(block: ResidualBlock) -> Tensor:
    """The weight that makes the branch zero when it is zero: of the last norm, else of the last
    convolution. The norm's bias is set to 0.
    """
    words = [word for word in block.branch if word.startswith(("bn", "conv"))]
    last = block.get_submodule(words[-1])
    if isinstance(last, nn.BatchNorm2d):
        nn.init.zeros_(last.bias)
    weight = last.weight
    assert isinstance(weight, Tensor)
    return weight


def _statistics(block: ResidualBlock) -> list[Tensor]:
    return [buffer.clone() for buffer in block.buffers()]


def _pooled(net: nn.Module, x: Tensor) -> Tensor:
    """The tensor that is pooled: the output of the tail's words before `pool`."""
    maps = net.features(x, out=[-1])[0]  # type: ignore[operator]
    tail = net.tail
    names: Sequence[str] = tail.names  # type: ignore[assignment, union-attr]
    before = [name for name in names if not name.startswith("pool")]
    with torch.no_grad():
        return run_layers(tail, before, maps)  # type: ignore[arg-type]


def _relative(first: Tensor, second: Tensor) -> float:
    """The largest difference over the largest value; infinite if that is not finite."""
    with torch.no_grad():
        ratio = float((first - second).abs().max() / second.abs().max())
    return ratio if math.isfinite(ratio) else math.inf


def _bits(x: Tensor) -> Tensor:
    """The bits, which differ for 0.0 and -0.0 too."""
    return x.detach().contiguous().view(torch.uint8)

"""Claims that follow from the definitions, checked on networks and tensors.

Equal values are compared in float64, exact claims bit by bit. Weights, statistics and inputs are
random with a fixed seed.
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
from plusx.study.blocks import block_positions, preserved, run_blocks, sampled_depths
from plusx.study.gradients import shortcut_identity
from plusx.zoo.blocks import BASIC, BASIC_A, BOTTLENECK, PREACT, PREACT_BOTTLENECK, attended


SEED = 0


def zero_residual(claim: Claim, options: Options) -> Outcome:
    """Blocks whose last norm (in pre-activation blocks the last convolution) is 0, in both
    modes."""
    blocks = {
        "basic": BASIC,
        "bottleneck": BOTTLENECK,
        "basic with squeeze and excitation": attended(BASIC, "se/16"),
        "pre-activation": PREACT,
        "pre-activation bottleneck": PREACT_BOTTLENECK,
    }
    shown, total = [], 0
    for name, block_spec in blocks.items():
        block = _block(block_spec, 64)
        _last_weights(block).data.zero_()
        x = torch.randn(4, 64, 8, 8)
        if block.after:  # a block that ends in ReLU is the identity for non-negative values
            x = x.relu()
        num_different = 0
        for training in (True, False):
            block.train(training)
            num_different += int((_bits(block(x.clone())) != _bits(x)).sum())
        total += num_different
        shown.append(f"{name}: {num_different} of {2 * x.numel():,} values differ")
    return Outcome(values=(float(total),), shown=tuple(shown))


def unrolling(claim: Claim, options: Options) -> Outcome:
    """Equation 4 within the last stage."""
    blocks, error, _ = _unrolled(claim)
    shown = f"{blocks} blocks: x_L - x_l and the sum of F(x_i) differ by {error:.1e}"
    return Outcome(values=(error,), shown=(shown,))


def nested_functions(claim: Claim, options: Options) -> Outcome:
    """F_L(... F_l(x)) + x within the last stage of a residual network, against its output x_L."""
    blocks, error, nested_error = _unrolled(claim)
    return Outcome(
        values=(nested_error,),
        shown=(
            f"{blocks} blocks: F_L(... F_l(x)) + x differs from x_L by {nested_error:.2g} of it",
            f"x_l + the sum of F(x_i) differs from x_L by {error:.1e} of it",
        ),
    )


def _unrolled(claim: Claim) -> tuple[int, float, float]:
    """Return the number of blocks in the last stage, and how far from its output the sum over the
    blocks and the nested functions are, relatively."""
    net, x, _ = _perturbed(spec(claim.network))
    last_stage = [
        position for position in block_positions(net) if position.name.startswith("layer3.")
    ][1:]
    with torch.no_grad():
        first = len(block_positions(net)) - len(last_stage)
        start = run_blocks(net, x).outputs[first - 1]
        state, total, nested = start, torch.zeros_like(start), start
        for position in last_stage:
            block = position.block
            branch = run_layers(block, block.branch, run_layers(block, block.lead, state))
            state, total = block(state), total + branch
            nested = run_layers(block, block.branch, run_layers(block, block.lead, nested))
        return len(last_stage), _relative(state - start, total), _relative(nested + start, state)


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
    """Equation 5 with F = 0: the gradients at the blocks of a stage are equal bit by bit."""
    gradients = _gradients_without_branch(spec(claim.network))
    num_different = sum(
        int((_bits(gradient) != _bits(gradients[-1])).sum()) for gradient in gradients
    )
    return Outcome(
        values=(float(num_different),),
        shown=(f"the gradient at {len(gradients)} depths of the last stage",),
    )


def gradient_scaled(claim: Claim, options: Options) -> Outcome:
    """Equation 8 with F = 0: each block multiplies the gradient by lambda."""
    worst, shown = 0.0, []
    for text, factor in (("scale.5", 0.5), ("scale.9", 0.9)):
        net = spec(claim.network)
        stages = tuple(_with_identity(stage, text) for stage in net.stages)
        gradients = _gradients_without_branch(replace(net, stages=stages))
        last = len(gradients) - 1
        errors = [
            _relative(gradient, factor ** (last - l) * gradients[-1])
            for l, gradient in enumerate(gradients)
        ]
        worst = max(worst, *errors)
        ratio = float(gradients[0].norm() / gradients[-1].norm())
        shown.append(
            f"lambda {factor}: over {last} blocks the norm is multiplied by {ratio:.6g}, "
            f"lambda^{last} = {factor**last:.6g}"
        )
    return Outcome(values=(worst,), shown=tuple(shown))


def expected_depth(claim: Claim, options: Options) -> Outcome:
    """The sum of the blocks' survival probabilities, and the mean number of blocks in random
    passes."""
    net = create_model(claim.network, seed=SEED)
    blocks = [position.block for position in block_positions(net)]
    passes = 200 if options.quick else 4_000
    counts = sampled_depths(net, passes, SEED)
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
    passes = 1 if options.quick else 4
    wrong = skipped = computed = 0
    for seed in range(passes):
        net = create_model(claim.network, seed=seed).train()
        blocks = [position.block for position in block_positions(net)]
        with preserved(net):
            torch.manual_seed(seed)
            net.train()
            computed_blocks = [not block.dropped() for block in blocks]
        statistics_before = [_statistics(block) for block in blocks]
        torch.manual_seed(seed)
        net(
            torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        ).sum().backward()
        for block, computed_block, statistics in zip(blocks, computed_blocks, statistics_before):
            weight = block.get_parameter(f"{block.branch[0]}.weight")
            updated = not all(map(torch.equal, statistics, _statistics(block)))
            has_gradient = weight.grad is not None and bool(weight.grad.any())
            wrong += updated != computed_block or has_gradient != computed_block
            computed, skipped = computed + computed_block, skipped + (not computed_block)
    return Outcome(
        values=(float(wrong),),
        shown=(f"{passes} passes: {skipped} blocks were skipped and {computed} computed",),
        smaller="1 pass in place of 4" if options.quick else "",
    )


def survival_in_evaluation(claim: Claim, options: Options) -> Outcome:
    """Every block in evaluation: relu(x + p F(x)), where p is its survival probability."""
    net, x, _ = _perturbed(spec(claim.network))
    worst = 0.0
    positions = block_positions(net)
    with torch.no_grad():
        forward = run_blocks(net, x)
        block_inputs = [forward.start, *forward.outputs[:-1]]
        for position, block_input, output in zip(positions, block_inputs, forward.outputs):
            block = position.block
            skip = block_input if block.downsample is None else block.downsample(block_input)
            survival = 1 - block.drop
            branch = run_layers(block, block.branch, block_input)
            worst = max(worst, _relative((skip + survival * branch).relu(), output))
    return Outcome(values=(worst,), shown=(f"{len(positions)} blocks",))


def option_a(claim: Claim, options: Options) -> Outcome:
    """The shortcut of ResNet-20's second stage on a random input."""
    block = _block(BASIC_A, 32, channels=16, stride=2)
    x = torch.randn(4, 16, 8, 8)
    assert block.downsample is not None
    shortcut = block.downsample
    expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(4, 16, 4, 4)], dim=1)
    differ = int((shortcut(x) != expected).sum())
    parameters = sum(parameter.numel() for parameter in shortcut.parameters())
    centred = ZeroPad(16, (2, 2), True)(x)
    is_centred = torch.equal(centred[:, 8:24], x[:, :, ::2, ::2])
    return Outcome(
        values=(float(differ + parameters),),
        shown=(
            f"{differ} of {expected.numel():,} values differ; {parameters} parameters; zeros last",
            f"pad/2 puts half of the zeros in front, as others do: {is_centred}",
        ),
    )


def grad_cam_identity(claim: Claim, options: Options) -> Outcome:
    """Grad-CAM at the pooled tensor and w . A / (H W), computed here from the feature maps."""
    from plusx.explain.grad_cam import grad_cam

    all_names = ("resnet20", "preact_resnet20", "se_resnet20", "densenet40_12", "wrn16_4",
             "resnet20_b", "vgg16_cifar", "resnet18", "resnet50", "resnext50_32x4d",
             "densenet121", "preact_resnet18")  # fmt: skip
    names = all_names[:3] if options.quick else all_names
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


def _block(
    block_spec: Block, width: int, *, channels: int | None = None, stride: int = 1
) -> ResidualBlock:
    """Return one block with random weights and statistics, for inputs of 8 x 8."""
    torch.manual_seed(SEED)
    stage = Stage(block=block_spec, depth=1, width=width, stride=stride)
    net = Net(stem="", stages=(stage,), in_channels=channels or width, size=8, num_classes=0)
    shape = FeatureShape(channels or width, (8, 8), (1, 1))
    block = ResidualBlock(block_spec, shape, LayerContext(net, width, (stride, stride)), 0.0)
    _randomise_norms(block)
    return block


def _randomise_norms(module: nn.Module) -> None:
    """Set random weights and statistics of batch norms, which are initialised to 1 and 0."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)


def _perturbed(net: Net) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network in float64 and evaluation mode, four random images and their targets."""
    model = create_model(net, seed=SEED).double().eval()
    torch.manual_seed(SEED)
    _randomise_norms(model)
    x = torch.randn(4, net.in_channels, 32, 32, dtype=torch.float64)
    return model, x, torch.tensor([0, 1, 2, 3])


def _gradients_without_branch(net: Net) -> list[Tensor]:
    """Return the loss gradients at the block outputs of the last stage, with every F = 0."""
    model, x, targets = _perturbed(net)
    for position in block_positions(model):
        _last_weights(position.block).data.zero_()
    forward = run_blocks(model, x)
    outputs = forward.outputs[-net.stages[-1].depth :]
    return list(torch.autograd.grad(F.cross_entropy(forward.logits, targets), outputs))


def _with_identity(stage: Stage, text: str) -> Stage:
    assert isinstance(stage.block, Block)
    return replace(stage, block=replace(stage.block, identity=text))


def _last_weights(block: ResidualBlock) -> Tensor:
    """Return the weight whose zero makes the branch zero: of the last norm, else of the last
    convolution. The bias of the norm is set to 0."""
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
    """Return the tensor that is pooled: the output of the tail's layers before `pool`."""
    maps = net.features(x, out=[-1])[0]  # type: ignore[operator]
    tail = net.tail
    names: Sequence[str] = tail.names  # type: ignore[assignment, union-attr]
    layers = [name for name in names if not name.startswith("pool")]
    with torch.no_grad():
        return run_layers(tail, layers, maps)  # type: ignore[arg-type]


def _relative(first: Tensor, second: Tensor) -> float:
    """Return the largest difference over the largest value; infinite if it is not finite."""
    with torch.no_grad():
        ratio = float((first - second).abs().max() / second.abs().max())
    return ratio if math.isfinite(ratio) else math.inf


def _bits(x: Tensor) -> Tensor:
    """Return the bytes, which differ for 0.0 and -0.0 too."""
    return x.detach().contiguous().view(torch.uint8)

"""Gradients block by block, the identity of residual gradients, and the responses of layers."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.grammar.spec import Activation, Block, Net, Stage
from plusx.models import create_model
from plusx.nn.block import ResidualBlock
from plusx.nn.network import Network
from plusx.study.blocks import block_positions, run_blocks
from plusx.study.gradients import (
    BlockGradient,
    block_gradients,
    course,
    gradient_ratio,
    shortcut_identity,
    verdict,
)
from plusx.study.responses import responses
from plusx.study.thousand import deep_step


BASIC = Block(body="conv3s norm act conv3 norm + act")
PLAIN = Block(body="conv3s norm act conv3 norm act")
PRE_ACTIVATION = Block(body="norm act | conv3s norm act conv3 +", shortcut="conv1s")


def small(
    block: Block, depth: int = 3, tail: str = "pool", size: int = 6, act: Activation = "relu"
) -> Net:
    stages = (
        Stage(block=block, depth=depth, width=4),
        Stage(block=block, depth=depth, width=6, stride=2),
    )
    return Net(
        stem="conv3", stem_width=4, stages=stages, tail=tail, size=size, num_classes=3,
        in_channels=2, act=act,
    )  # fmt: skip


def built(spec: Net, seed: int = 0) -> Network:
    net = create_model(spec, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return net


def some_batch(n: int = 5, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 2, size, size, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (n,), generator=generator)


def state_of(net: nn.Module) -> list[object]:
    """All that a study must leave as it was."""
    return [
        [(name, t.detach().clone().tolist()) for name, t in net.state_dict().items()],
        [module.training for module in net.modules()],
        [p.requires_grad for p in net.parameters()],
        [None if p.grad is None else p.grad.tolist() for p in net.parameters()],
        [len(m._forward_hooks) + len(m._backward_hooks) for m in net.modules()],
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("block", [BASIC, PLAIN, PRE_ACTIVATION])
def test_the_block_by_block_forward_equals_that_of_the_network(block: Block) -> None:
    net = built(small(block)).eval()
    inputs, _ = some_batch()
    passed = run_blocks(net, inputs)
    assert torch.equal(passed.logits, net(inputs))
    assert [position.name for position in block_positions(net)][:4] == [
        "layer1.0",
        "layer1.1",
        "layer1.2",
        "layer2.0",
    ]
    for position, output in zip(block_positions(net), passed.outputs, strict=True):
        assert output.shape[1:] == (
            position.block.shape_out.channels,
            *position.block.shape_out.size,
        )
    assert [position.changes_shape for position in block_positions(net)].index(True) == 3


def test_gradients_are_those_of_a_training_step_in_every_block() -> None:
    net = built(small(BASIC)).train()
    inputs, targets = some_batch()
    before = state_of(net)
    gradients = block_gradients(net, inputs, targets)
    assert state_of(net) == before
    F.cross_entropy(net(inputs), targets).backward()
    for position, gradient in zip(block_positions(net), gradients, strict=True):
        weights = [p.grad for p in position.block.parameters() if p.ndim > 1 and p.grad is not None]
        expected = torch.cat([grad.flatten() for grad in weights]).norm().item()
        assert gradient.name == position.name
        assert gradient.weights == pytest.approx(expected, rel=1e-9)
    # the last block's output reaches the loss through pooling and the head alone
    head = net.fc.weight.detach()
    net.eval()
    evaluated = block_gradients(net, inputs, targets, training=False)
    passed = run_blocks(net, inputs)
    share = passed.logits.detach().softmax(1) - F.one_hot(targets, 3)
    exact = (share @ head / len(inputs) / 9).norm() * 3  # 9 positions share a pooled gradient
    assert evaluated[-1].outputs == pytest.approx(float(exact), rel=1e-9)


def test_gradients_whose_squares_underflow_are_measured() -> None:
    net = create_model(small(BASIC), seed=0)
    inputs, targets = some_batch()
    tiny = block_gradients(
        net, inputs.float(), targets, loss=lambda x, y: F.cross_entropy(x, y) * 1e-25
    )
    usual = block_gradients(net, inputs.float(), targets)
    for small_one, other in zip(tiny, usual, strict=True):
        assert small_one.weights * 1e25 == pytest.approx(other.weights, rel=1e-3)


def test_frozen_and_dropped_blocks_are_measured_and_unchanged() -> None:
    spec = replace(small(replace(BASIC, shortcut="pad"), depth=4), drop_path=0.9)
    net = create_model(spec, seed=0).requires_grad_(False).eval()
    inputs, targets = some_batch()
    before = state_of(net)
    gradients = block_gradients(net, inputs.float(), targets, seed=4)
    assert state_of(net) == before
    assert 0 < sum(gradient.weights == 0 for gradient in gradients) < len(gradients)
    assert gradients == block_gradients(net, inputs.float(), targets, seed=4)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(None, "vanish"), (0.0, "vanish"), (0.0099, "vanish"), (0.011, "steady"), (99.0, "steady"),
     (101.0, "explode"), (math.inf, "explode"), (math.nan, "explode")],
)  # fmt: skip
def test_ratios_are_classified_by_thresholds(ratio: float | None, expected: str) -> None:
    assert verdict(ratio) == expected


def test_a_ratio_is_of_the_first_block_to_the_last() -> None:
    def between(first: float, last: float) -> float | None:
        return gradient_ratio([BlockGradient("a", 1.0, first), BlockGradient("b", 4.0, last)])

    assert between(6.0, 2.0) == 3
    assert between(0.0, 2.0) == 0
    assert between(6.0, 0.0) == math.inf
    assert between(0.0, 0.0) is None
    both = [BlockGradient("a", 1.0, 6.0), BlockGradient("b", 4.0, 2.0)]
    assert gradient_ratio(both, "weights") == 0.25


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([5e3, 40.0, 2.7], "explode at the start (5,000 times) and settle by the end (2.7 times)"),
        ([1e-25, 1e-5], "vanish from the start (10⁻²⁵ times) to the end (10⁻⁵ times)"),
        ([0.3], "are steady at the start (0.3 times)"),
        ([None, 0.0], "vanish from the start (no gradient at all) to the end (0 times)"),
        (
            [2.0, 0.001, 3.0],
            "are steady from the start (2 times) to the end (3 times), though between they vanish",
        ),
        ([2.0, 0.001], "are steady at the start (2 times) and vanish by the end (0.001 times)"),
    ],
)
def test_the_finding_describes_the_gradients(ratios: list[float | None], expected: str) -> None:
    assert course(ratios) == expected


@pytest.mark.slow
@settings(max_examples=15)
@given(
    act=st.sampled_from(["relu", "tanh", "sigmoid", "gelu"]),
    identity=st.sampled_from(["", "scale.5", "scale.9"]),
    lead=st.sampled_from(["norm act |", "act |", ""]),
    seed=st.integers(0, 99),
    stage=st.sampled_from([1, 2]),
)
def test_the_identity_of_equation_5_holds_to_float64(
    act: Activation, identity: str, lead: str, seed: int, stage: int
) -> None:
    body = f"{lead} conv3s norm act conv3 +".strip()
    block = Block(body=body, shortcut="conv1s", identity=identity)
    net = built(small(block, tail="norm act pool", act=act), seed)
    inputs, targets = some_batch()
    for at_block in shortcut_identity(net, inputs, targets, stage=stage):
        assert at_block.difference < 1e-12
        assert at_block.measured == pytest.approx(at_block.expected, rel=1e-12)


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.9])
def test_without_branches_the_gradient_falls_by_the_factor_alone(factor: float) -> None:
    identity = "" if factor == 1 else f"scale{factor}".replace("0.", ".")
    block = replace(PRE_ACTIVATION, identity=identity)
    net = built(small(block, depth=6, tail="norm act pool"))
    before = state_of(net)
    inputs, targets = some_batch()
    identities = shortcut_identity(net, inputs, targets, branches=False)
    assert state_of(net) == before
    assert len(identities) == 6
    last = identities[-1].measured / factor
    for depth, at_block in enumerate(identities):
        assert at_block.measured == pytest.approx(last * factor ** (6 - depth), rel=1e-12)
        assert at_block.difference < 1e-14
    assert shortcut_identity(net, inputs, targets)[0].measured != pytest.approx(last, rel=1e-3)


@pytest.mark.parametrize("block", [BASIC, PLAIN, replace(PRE_ACTIVATION, identity="conv1")])
def test_the_identity_is_refused_where_it_does_not_hold(block: Block) -> None:
    net = built(small(block))
    with pytest.raises(ValueError, match="equation 5 holds for"):
        shortcut_identity(net, *some_batch())
    with pytest.raises(ValueError, match="no stage 3: this network has 1 to 2"):
        shortcut_identity(net, *some_batch(), stage=3)


def test_an_external_module_has_no_blocks_to_measure() -> None:
    with pytest.raises(ValueError, match="Linear is an external module"):
        block_gradients(nn.Linear(2, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("block", [BASIC, PLAIN, PRE_ACTIVATION])
def test_responses_are_of_every_layer_behind_its_norm(block: Block) -> None:
    net = built(small(block, tail="norm act pool"))
    inputs, _ = some_batch(7)
    before = state_of(net)
    stds = {response.name: response.std for response in responses(net, inputs.split(3))}
    assert state_of(net) == before
    # the first convolution of a block has its norm behind it in each of them, the second in two
    words = ("bn2", "conv2") if block is PRE_ACTIVATION else ("bn1", "bn2")
    assert list(stds)[1:] == [
        f"{position.name}.{word}" for position in block_positions(net) for word in words
    ]
    assert next(iter(stds)) == "conv1"
    with torch.no_grad():
        net.eval()
        stem = net.conv1(inputs)
        first: ResidualBlock = net.layer1[0]
        if block is not PRE_ACTIVATION:
            after = first.bn1(first.conv1(stem))
            assert stds["layer1.0.bn1"] == pytest.approx(after.std(correction=0).item(), rel=1e-9)
            after = first.bn2(first.conv2(after.relu()))
            assert stds["layer1.0.bn2"] == pytest.approx(after.std(correction=0).item(), rel=1e-9)
    assert stds["conv1"] == pytest.approx(stem.std(correction=0).item(), rel=1e-9)


def test_responses_need_a_layer_and_an_input() -> None:
    net = built(small(Block(body="conv1s norm act conv1 norm + act")))
    net.conv1 = nn.Conv2d(2, 4, 1)
    with pytest.raises(ValueError, match="no 3 x 3 layer"):
        responses(net, [some_batch()[0]])
    with pytest.raises(ValueError, match="no inputs"):
        responses(built(small(BASIC)), [])


def noise(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % 10


@pytest.mark.slow
@pytest.mark.parametrize(("name", "blocks"), [("preact_resnet1001", 333), ("resnet1202", 600)])
def test_a_thousand_layers_build_and_train_a_step(name: str, blocks: int) -> None:
    trained = deep_step(create_model(name, seed=0), *noise(2))
    assert trained.finite
    assert trained.reached == len(trained.gradients) == blocks
    assert trained.after != trained.loss


@pytest.mark.slow
def test_a_vanished_gradient_is_counted() -> None:
    trained = deep_step(create_model("resnet20", seed=0), *noise(2))
    assert (trained.reached, trained.finite) == (9, True)
    cut = replace(
        trained, gradients=(BlockGradient("a", 0.0, 1.0), BlockGradient("b", 1.0, math.inf))
    )
    assert (cut.reached, cut.finite) == (1, False)


@pytest.mark.slow
def test_a_deep_plain_network_explodes_with_batch_norm_and_not_without() -> None:
    """As measured for 32 images of noise: thousands of times, and less than ten without norms."""
    from plusx.grammar.twins import without_norm
    from plusx.zoo import find

    inputs = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(32) % 10
    spec = find("plain56")
    assert isinstance(spec, Net)
    with_norm = block_gradients(create_model(spec, seed=0), inputs, targets)
    bare = block_gradients(create_model(without_norm(spec), seed=0), inputs, targets)
    exploded, steady = gradient_ratio(with_norm), gradient_ratio(bare)
    assert exploded is not None
    assert steady is not None
    assert exploded > 1000
    assert 0.01 < steady < 10

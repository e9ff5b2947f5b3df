"""The one block and the one network: the arithmetic's counts, the papers' properties."""

from dataclasses import fields, replace
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn

import plusx
from plusx.grammar.arithmetic import each_dimension, measure
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.toml import from_dict
from plusx.grammar.validate import validate
from plusx.grammar.words import parse
from plusx.nn import layers
from plusx.nn.block import ResidualBlock
from plusx.nn.init import RULES, initialise
from plusx.nn.network import Network
from sentences import plans


BASIC = Block(body="conv3s norm act conv3 norm + act")
PRE_ACTIVATION = Block(body="norm act | conv3s norm act conv3 +", shortcut="conv1s")


def small(block: Block = BASIC, depth: int = 2, **changes: Any) -> Net:
    stages = (
        Stage(block=block, depth=depth, width=8),
        Stage(block=block, depth=depth, width=16, stride=2),
    )
    spec = {"stem": "conv3 norm act", "stem_width": 8, "stages": stages, "size": 8}
    return Net(**{**spec, "num_classes": 4, "in_channels": 3, **changes})


def made(spec: Net, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(spec)


def some_input(spec: Net, n: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = each_dimension(spec.size, spec.ndim)
    return torch.randn(n, spec.in_channels, *size, generator=generator, dtype=dtype)


def legal(plan: dict[str, Any]) -> Net:
    spec = from_dict(plan)
    try:
        validate(spec)
    except ValueError:
        assume(False)
    return spec


def perturbed(net: nn.Module, seed: int = 0) -> nn.Module:
    """Batch-norm statistics and weights that no fresh network has."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.2, generator=generator)
                nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    return net


@settings(max_examples=25)
@given(plans())
def test_built_networks_equal_the_arithmetic(plan: dict[str, Any]) -> None:
    spec = legal(plan)
    net, expected = made(spec).eval(), measure(spec)
    counted = []
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(
                lambda m, _, y: counted.append(m.weight.numel() * prod(y.shape[2:]))
            )
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, _, y: counted.append(m.weight.numel()))
        elif isinstance(module, layers.Attention):
            module.register_forward_hook(
                lambda m, _, y: counted.append(2 * y.shape[1] * prod(y.shape[2:]) ** 2)
            )
    with torch.no_grad():
        y = net(some_input(spec, 1))
    multiply_adds = sum(counted)
    with torch.no_grad():
        maps = net.features(some_input(spec, 1))
    assert sum(p.numel() for p in net.parameters()) == expected.parameters
    assert y.shape == (1, 3)
    assert net.widths == tuple(m.shape[1] for m in maps) == expected.widths
    assert [tuple(m.shape[2:]) for m in maps] == [stage.size for stage in expected.stages]
    assert multiply_adds == expected.multiply_adds


@pytest.mark.slow
@settings(max_examples=25)
@given(plans())
def test_overwriting_changes_nothing_and_gradients_reach_everything(plan: dict[str, Any]) -> None:
    spec = legal(plan)
    net, careful = made(spec), made(spec)
    for module in careful.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
        if isinstance(module, ResidualBlock):
            module.overwrites = False
    inputs = [some_input(spec).requires_grad_(), some_input(spec).requires_grad_()]
    for mode in (False, True):
        outputs = []
        for model, x in zip((net, careful), inputs):
            model.train(mode)
            torch.manual_seed(2)
            outputs.append(model(x))
        assert torch.equal(*outputs)
    for y in outputs:
        (y.square().sum() + y[:, 0].sum()).backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-6)
    # a group of one channel that attention made equal everywhere has a gradient of 0, and small
    # factors that no skip passes by can leave one that float32 cannot hold
    sentence = parse(plan["stages"][0]["block"]["body"])
    passed = sentence.words if sentence.merge == "none" else sentence.after
    if spec.norm in ("batch", "layer") and not any(word.kind == "scale" for word in passed):
        assert inputs[0].grad.abs().sum() > 0
    assert not [name for name, p in net.named_parameters() if p.grad is None]


@settings(max_examples=15)
@given(plans())
def test_evaluation_is_deterministic_and_independent_of_the_batch(plan: dict[str, Any]) -> None:
    spec = legal(plan)
    net = perturbed(made(spec)).double().eval()
    x = some_input(spec, 3, torch.float64)
    with torch.no_grad():
        together, alone = net(x), torch.cat([net(row) for row in x.split(1)])
        assert torch.equal(together, net(x))
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-8)


# every field of Net, and a change of it that must show in what the network computes
CHANGES: dict[str, dict[str, Any]] = {
    "stem": {"stem": "conv5 norm act"},
    "stem_width": {"stem_width": 12},
    "stages": {"stages": small(depth=1).stages},
    "tail": {"tail": "norm pool"},
    "ndim": {"ndim": 1},
    "in_channels": {"in_channels": 5},
    "num_classes": {"num_classes": 7},
    "size": {"size": 9},
    "norm": {"norm": "group"},
    "affine": {"affine": False},
    "act": {"act": "silu"},
    "drop_path": {"drop_path": 0.5},
    "drop_mode": {"drop_mode": "row", "drop_path": 0.5},
}


def test_every_field_of_the_spec_changes_the_network() -> None:
    assert set(CHANGES) == {field.name for field in fields(Net)}
    # the size matters where positions are counted, so the base has learned positions
    base = small(stem="conv3 norm act pos")
    texts = {"base": str(made(base)), "drop": str(made(replace(base, drop_path=0.5)))}
    for name, change in CHANGES.items():
        change = {"stem": "conv3 norm act pos", **change} if name != "stem" else change
        net = made(replace(base, **change))
        if name == "drop_path":
            drops = [m.drop for m in net.modules() if isinstance(m, ResidualBlock)]
            assert drops == [0.125, 0.25, 0.375, 0.5]
        elif name == "drop_mode":
            assert all(m.drops_rows for m in net.modules() if isinstance(m, ResidualBlock))
        else:
            shapes = [tuple(p.shape) for p in net.parameters()]
            same = shapes == [tuple(p.shape) for p in made(base).parameters()]
            assert not same or str(net) != texts["base"], name


@pytest.mark.parametrize("field", ["norm", "act", "affine"])
def test_a_field_reaches_every_block(field: str) -> None:
    changed = {"norm": "instance", "act": "tanh", "affine": False}[field]
    net = made(small(**{field: changed}))
    kinds = [type(module) for module in net.modules()]
    if field == "norm":
        assert nn.BatchNorm2d not in kinds
        assert kinds.count(nn.InstanceNorm2d) == 1 + 4 * 2 + 1
    elif field == "act":
        assert nn.ReLU not in kinds
        assert kinds.count(nn.Tanh) == 1 + 4 * 2
    else:
        assert not [name for name, _ in net.named_parameters() if "bn" in name]


# closed-form properties


def zero_the_branch(net: Network) -> None:
    """The last norm before the + to zero, or the last convolution where there is none."""
    for module in net.modules():
        if isinstance(module, ResidualBlock):
            last = getattr(module, module.branch[-1])
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)


@pytest.mark.parametrize("block", [BASIC, PRE_ACTIVATION])
def test_a_block_whose_branch_is_zero_is_the_identity_bit_for_bit(block: Block) -> None:
    net = made(small(block, depth=3))
    zero_the_branch(net)
    x = torch.randn(2, 8, 8, 8).relu()  # after activation a block's input is not negative
    for mode in (True, False):
        net.train(mode)
        for module in net.layer1:
            assert torch.equal(module(x), x)


def test_zero_last_gamma_starts_at_the_identity() -> None:
    net = made(small(depth=3))
    initialise(net, zero_last_gamma=True)
    x = torch.randn(2, 8, 8, 8).relu()
    assert all(torch.equal(block(x), x) for block in net.layer1)


def test_a_pre_activation_stage_unrolls_into_a_sum() -> None:
    """x_L = x_l + the sum of F_i(x_i), He et al. 2016, eq. 4; F_N(...F_1(x)) + x is not."""
    spec = small(replace(PRE_ACTIVATION, shortcut="conv1s"), depth=5, tail="norm act pool")
    net = perturbed(made(spec)).double().eval()
    with torch.no_grad():
        x = start = torch.randn(2, 8, 8, 8, dtype=torch.float64)
        total, nested = torch.zeros_like(x), x
        for block in net.layer1:
            branch = block(x) - x
            total, nested = total + branch, block(nested) - nested
            x = x + branch
        torch.testing.assert_close(x, start + total, rtol=0, atol=1e-12)
        torch.testing.assert_close(net.layer1(start), start + total, rtol=0, atol=1e-12)
        assert (nested + start - x).abs().max() > 0.01


def test_the_gradient_is_one_plus_that_of_the_branches() -> None:
    """dL/dx_l = dL/dx_L (1 + d/dx_l sum F), He et al. 2016, eq. 5, in float64."""
    net = perturbed(made(small(PRE_ACTIVATION, depth=4, tail="norm act pool"))).double().eval()
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    weight = torch.randn(1, 8, 4, 4, dtype=torch.float64)

    def gradient(function: Any) -> Tensor:
        at = x.clone().requires_grad_()
        (function(at) * weight).sum().backward()
        assert at.grad is not None
        return at.grad

    whole = gradient(net.layer1)
    branches = gradient(lambda at: net.layer1(at) - at)
    torch.testing.assert_close(whole, weight + branches, rtol=1e-10, atol=1e-12)


def test_without_branches_the_gradient_is_equal_at_every_depth() -> None:
    net = made(small(PRE_ACTIVATION, depth=6, tail="norm act pool")).double()
    zero_the_branch(net)
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    features, y = [], x
    for block in net.layer1:
        features.append(y)
        y = block(y)
    weight = torch.randn_like(y)
    for gradient in torch.autograd.grad((y * weight).sum(), features):
        assert torch.equal(gradient, weight)


@pytest.mark.parametrize("factor", [0.5, 0.9])
def test_a_scaled_shortcut_gives_powers_of_its_factor(factor: float) -> None:
    """lambda^(L - l), He et al. 2016, eq. 7."""
    text = f"scale{factor}".replace("0.", ".")
    block = replace(PRE_ACTIVATION, identity=text)
    net = made(small(block, depth=6, tail="norm act pool")).double()
    zero_the_branch(net)
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    features, y = [], x
    for module in net.layer1:
        features.append(y)
        y = module(y)
    weight = torch.randn_like(y)
    for l, gradient in enumerate(torch.autograd.grad((y * weight).sum(), features)):
        torch.testing.assert_close(gradient, weight * factor ** (6 - l), rtol=1e-12, atol=0)


SHORTCUTS = ["pad", "pad/2", "conv1s", "conv1s norm", "avgpool2s conv1 norm", "pad gate"]
SHORTCUTS += ["pad drop.5", "pad scale.5", "maxpool2s conv1", "blur3s conv1"]


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_every_shortcut_lets_the_gradient_through(shortcut: str) -> None:
    net = made(small(replace(BASIC, shortcut=shortcut), depth=1))
    zero_the_branch(net)
    block = net.layer2[0]
    block.after = ()  # an activation would hide some of it
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    block(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_option_a_subsamples_and_appends_zeros_and_its_half_centres_them() -> None:
    x = torch.randn(1, 4, 5, 5)
    behind = layers.ZeroPad(4, (2, 2), half=False)(x)
    centred = layers.ZeroPad(4, (2, 2), half=True)(x)
    subsampled, zeros = x[:, :, ::2, ::2], torch.zeros(1, 4, 3, 3)
    assert torch.equal(behind, torch.cat([subsampled, zeros], 1))
    assert torch.equal(centred, torch.cat([zeros[:, :2], subsampled, zeros[:, :2]], 1))


def test_a_blur_is_a_binomial_filter() -> None:
    blur = layers.Blur((3, 5), (1, 1))
    torch.testing.assert_close(
        blur.kernel,
        torch.outer(torch.tensor([1, 2, 1]) / 4, torch.tensor([1, 4, 6, 4, 1]) / 16),
    )
    assert torch.allclose(blur(torch.ones(1, 2, 6, 6)), torch.ones(1, 2, 6, 6))


def test_attention_equals_its_equation() -> None:
    """softmax(q k' / sqrt(d)) v a head, Vaswani et al. 2017, eq. 1."""
    attention = layers.Attention(6, 8, heads=2, ndim=2, bias=True).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    q, k, v = attention.qkv(x).flatten(2).reshape(2, 3, 2, 4, 12).unbind(1)
    weights = (torch.einsum("nhcp,nhcq->nhpq", q, k) / 2).softmax(-1)
    expected = torch.einsum("nhpq,nhcq->nhcp", weights, v).reshape(2, 8, 3, 4)
    torch.testing.assert_close(attention(x), expected)


def test_a_highway_block_is_its_equation() -> None:
    block = Block(body="conv3b act ~", gate="conv3b")
    spec = small(block).stages[0]
    net = made(small(stages=(spec,)))
    module = net.layer1[0]
    x = torch.randn(2, 8, 8, 8)
    t = module.gate(x).sigmoid()
    torch.testing.assert_close(module(x), t * module.conv1(x).relu() + (1 - t) * x)


# stochastic depth


def stochastic(mode: str, rate: float = 0.5, depth: int = 2) -> Network:
    return made(small(replace(BASIC, shortcut="pad"), depth, drop_path=rate, drop_mode=mode))


def test_fifty_four_blocks_at_a_half_leave_40_25() -> None:
    """p_l = 1 - l / L (1 - p_L), Huang et al. 2016, eq. 4: (3 L - 1) / 4 on average."""
    spec = small(replace(BASIC, shortcut="pad"), 27, drop_path=0.5)
    with torch.device("meta"):
        blocks = [m for m in Network(spec).modules() if isinstance(m, ResidualBlock)]
    assert [b.drop for b in blocks] == pytest.approx([l / 54 * 0.5 for l in range(1, 55)])
    assert sum(1 - b.drop for b in blocks) == pytest.approx(40.25)


def test_a_dropped_block_does_no_work_and_keeps_its_statistics() -> None:
    net = stochastic("batch")
    block = net.layer2[1]
    block.drop = 1.0
    calls = []
    block.conv1.register_forward_hook(lambda *_: calls.append(1))
    before = {k: v.clone() for k, v in block.state_dict().items()}
    x = torch.randn(2, 16, 4, 4, requires_grad=True)
    copied = x.detach().clone()
    y = block.train()(x)
    y.sum().backward()
    assert not calls
    assert torch.equal(x, copied)
    assert torch.equal(y, x.relu())
    assert all(p.grad is None for p in block.parameters())
    assert all(torch.equal(before[k], v) for k, v in block.state_dict().items())


def test_in_evaluation_a_branch_counts_as_often_as_it_survived() -> None:
    net = stochastic("batch").eval()
    block = net.layer2[1]
    x = torch.randn(2, 16, 4, 4)
    always = stochastic("batch").eval().layer2[1]
    always.load_state_dict(block.state_dict())
    always.drop = 0.0
    always.after = block.after = ()
    torch.testing.assert_close(block(x) - x, (always(x) - x) * (1 - block.drop))


def test_rows_are_dropped_and_the_others_rescaled() -> None:
    block = stochastic("row", 0.8).layer2[1]
    always = stochastic("row", 0.8).layer2[1]
    always.load_state_dict(block.state_dict())
    always.drop = 0.0
    always.after = block.after = ()
    x = torch.randn(64, 16, 4, 4)
    torch.manual_seed(0)
    y, full = block(x) - x, always(x) - x
    dropped = y.flatten(1).abs().sum(1) == 0
    assert 40 < dropped.sum() < 60
    torch.testing.assert_close(y[~dropped], full[~dropped] * 5, rtol=1e-4, atol=1e-4)
    assert torch.equal(block.eval()(x), always.eval()(x))


# the interface


def test_features_are_computed_up_to_the_last_requested_stage() -> None:
    net = made(small()).eval()
    calls = []
    net.layer2.register_forward_hook(lambda *_: calls.append(1))
    x = some_input(net.spec)
    first, both = net.features(x, out=[0]), net.features(x)
    assert len(calls) == 1
    assert [m.shape for m in both] == [(3, 8, 8, 8), (3, 16, 4, 4)]
    assert torch.equal(first[0], both[0])
    assert torch.equal(net.features(x, out=[-1])[0], both[1])
    assert net.strides == (1, 2)
    with pytest.raises(ValueError, match="no stage 2"):
        net.features(x, out=[2])


def test_embed_returns_the_input_of_the_head_which_can_be_replaced() -> None:
    net = made(small()).eval()
    x = some_input(net.spec)
    assert torch.equal(net.fc(net.embed(x)), net(x))
    net.reset_head(9)
    assert net(x).shape == (3, 9)
    assert net.spec.num_classes == 9
    net.reset_head(0)
    assert torch.equal(net(x), net.embed(x))


@pytest.mark.parametrize("rule", RULES)
def test_every_initialisation_rule_runs(rule: str) -> None:
    net = made(small())
    before = net.layer1[0].conv1.weight.clone()
    initialise(net, rule)
    assert torch.equal(before, net.layer1[0].conv1.weight) == (rule == "pytorch")
    assert net(some_input(net.spec)).isfinite().all()
    with pytest.raises(ValueError, match="he_fan_in"):
        initialise(net, "hee")


@pytest.mark.parametrize(("rule", "gain"), [("orthogonal", 1.0), ("orthogonal_relu", 2**0.5)])
def test_orthogonal_convolutions_keep_the_norm_of_their_input(rule: str, gain: float) -> None:
    net = made(small())
    initialise(net, rule)
    convolution = net.layer1[0].conv2
    assert convolution.in_channels == convolution.out_channels
    x = torch.randn(2, convolution.in_channels, 8, 8)
    assert convolution(x).norm().item() == pytest.approx(gain * x.norm().item(), rel=1e-5)


def test_he_fan_out_has_the_variance_of_its_equation() -> None:
    net = made(small(stem_width=64))
    initialise(net)
    weight = net.conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_text_goes_through_an_embedding() -> None:
    stage = Stage(block=BASIC, depth=1, width=8)
    spec = Net(
        stem="embed6 conv3", stem_width=8, stages=(stage,), ndim=1, in_channels=20, size=16,
        tail="top4 fc5 act", num_classes=2,
    )  # fmt: skip
    net = made(spec).eval()
    tokens = torch.randint(0, 20, (3, 16))
    assert net(tokens).shape == (3, 2)
    assert sum(p.numel() for p in net.parameters()) == measure(spec).parameters


@pytest.mark.parametrize("body", [PRE_ACTIVATION.body, "conv3s norm act conv3 norm se/2 + act"])
def test_zero_last_gamma_finds_the_last_norm_of_the_branch(body: str) -> None:
    net = made(small(Block(body=body, shortcut="conv1s"), depth=3, tail="norm act pool"))
    initialise(net, zero_last_gamma=True)
    x = torch.randn(2, 8, 8, 8).relu()
    assert all(torch.equal(block(x), x) for block in net.layer1)


def test_gates_start_by_carrying() -> None:
    gated = Stage(block=Block(body="conv3b act ~", gate="conv3b"), depth=1, width=8)
    net = made(small(stages=(gated,)))
    initialise(net)
    assert torch.equal(net.layer1[0].gate[-1].bias, torch.full((8,), -2.0))


def test_x12_a_reversible_network_trains_in_half_precision_and_names_sizes_that_do_not_divide():
    net = plusx.create_model("revnet38", num_classes=2, seed=0)
    task = plusx.prepare(plusx.Classify(net), device="cpu", precision="bfloat16")
    state = plusx.State(task, plusx.make_optimizer(task, "sgd"))
    batch = plusx.Batch(torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 0, 1]))
    losses = [report.loss for report in plusx.fit(state, [batch] * 4, lr=0.05)]
    assert losses[-1] < losses[0]
    with pytest.raises(plusx.UserError, match=r"images of 16 x 18: revnet38 .* multiples of 4"):
        net(torch.rand(1, 3, 16, 18))

"""What every network of the zoo keeps: one list of laws, on small inputs and shrunken widths."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.nn.external import EXTERNAL
from plusx.nn.init import initialise
from plusx.nn.network import Network
from plusx.zoo import External, find, names
from zoo_digest import inputs, small
from zoo_shrunken import shrunken


# networks that differ from one of these in depth or width only; the second half is left to
# `make test-all`, because its words stand in the first as well
QUICK = [
    *("resnet18", "resnet34_a", "resnet34_c", "resnet50", "resnet50_d", "resnetblur50"),
    *("preact_resnet18", "preact_resnet50", "resnext50_32x4d", "nonlocal_resnet50", "botnet50"),
    *("convnext_tiny", "vit_base_patch16_gap", "resnet20", "plain20", "resnet110_constant"),
    *("resnet110_exclusive_gate", "resnet110_shortcut_gate", "resnet110_dropout_shortcut"),
    *("resnet110_sd", "wrn16_4", "densenet40_12", "se_resnet20", "eca_resnet20", "cbam_resnet20"),
    *("highway19", "vgg16_cifar", "res8", "res15", "resnet18_1d", "vdcnn9", "r3d_18"),
    *("convs2s_small_encoder", "transformer_small_encoder", "resnet5_text"),
    *("tc_resnet8", "resnet14_speech", "iresnet50", "axial_resnet20"),
    *("resnet110_one_layer", "preact_resnet110_one_layer"),
]
LATER = [
    *("plain18", "resnet50_v1", "wide_resnet50_2", "densenet121", "se_resnet50", "eca_resnet50"),
    *("cbam_resnet50", "vgg11", "vgg11_bn", "resnet20_b", "resnet20_c", "preact_resnet20"),
    *("preact_resnet20_b", "resnet164", "preact_resnet164", "resnet110_constant_shortcut"),
    *("resnet110_norm_after", "resnet110_act_before", "resnet110_act_only"),
    *("resnet164_norm_after", "resnet164_act_before", "resnet164_act_only", "resnext29_8x64d"),
    *("densenet_bc100_12", "resnet50_cifar", "res26", "quartznet15x5"),
]
REPRESENTATIVE = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LATER)]
DEEPEST = 2  # blocks a stage, where one after another says the same


def spec_of(name: str) -> Net:
    spec = small(find(name))
    assert isinstance(spec, Net)
    return shrunken(spec, width=32, depth=DEEPEST)


def network(spec: Net) -> Network:
    torch.manual_seed(0)
    net = Network(spec)
    initialise(net)
    return net


def given(spec: Net | External, batch: int) -> Tensor:
    x = inputs(spec, batch)
    return x if x.dtype == torch.long else x.float()


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_evaluation_is_deterministic_and_independent_of_the_batch(name: str) -> None:
    spec = spec_of(name)
    net, x, measured = network(spec).double(), inputs(spec, 3), measure(spec)
    with torch.no_grad():
        net.train()(x)  # statistics that are not fresh
        together, repeated = net.eval()(x), net(x)
        alone = torch.cat([net(image) for image in x.split(1)])
        maps, embedded = net.features(x), net.embed(x)
        last, first = net.features(x, out=[-1, 0])
    assert together.shape == (3, spec.num_classes)
    assert torch.equal(together, repeated)
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-9)
    assert [tuple(y.shape[1:]) for y in maps] == [(s.channels, *s.size) for s in measured.stages]
    assert torch.equal(last, maps[-1])
    assert torch.equal(first, maps[0])
    assert embedded.shape == (3, measured.embed_width)
    assert torch.equal(net.fc(embedded), together)
    assert net.widths == measured.widths
    assert net.strides == measured.strides


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_gradients_reach_the_input_and_every_parameter(name: str) -> None:
    spec = replace(spec_of(name), drop_path=0.0)
    net, x = network(spec).train(), given(spec, 4)
    reached = x if x.is_floating_point() else net.embed1.weight
    reached.requires_grad_()
    logits = net(x)
    (logits.square().sum() + logits[:, 0].sum()).backward()
    assert reached.grad is not None
    assert reached.grad.abs().sum() > 0
    unreached = [key for key, p in net.named_parameters() if p.grad is None]
    assert unreached == []
    zero = [key for key, p in net.named_parameters() if not p.grad.abs().sum() > 0]
    assert all(cancelled(key, spec) for key in zero)


def cancelled(key: str, spec: Net) -> bool:
    """Whether a parameter has no influence where statistics of the batch take its effect away."""
    return key.endswith("bias") or (spec.stem.startswith("conv16") and "qkv" in key)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "revnet110")) for n in EXTERNAL]
)
def test_external_modules_are_deterministic_too(name: str) -> None:
    spec = find(name)
    torch.manual_seed(0)
    net = EXTERNAL[name](spec.num_classes, spec.in_channels).eval()
    x = torch.randn(2, spec.in_channels, 64, 64)
    with torch.no_grad():
        maps = net.features(x)
        assert net(x).shape == (2, spec.num_classes)
        torch.testing.assert_close(net(x[:1]), net(x)[:1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net.fc(net.embed(x)), net(x))
    assert tuple(y.shape[1] for y in maps) == net.widths
    net.reset_head(0)
    assert torch.equal(net(x), net.embed(x))


@pytest.mark.parametrize("name", ["resnet20", "densenet40_12", "vit_base_patch16_gap", "vdcnn9"])
def test_a_head_can_be_left_out_or_replaced(name: str) -> None:
    spec = spec_of(name)
    net = network(replace(spec, num_classes=0)).eval()
    x = given(spec, 2)
    with torch.no_grad():
        assert torch.equal(net(x), net.embed(x))
        net.reset_head(7)
        assert net(x).shape == (2, 7)
    assert isinstance(net.fc, nn.Linear)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("name", ["resnet20", "preact_resnet20", "densenet40_12", "se_resnet20"])
def test_siblings_in_one_two_and_three_dimensions(name: str, ndim: int) -> None:
    spec = replace(spec_of(name), ndim=ndim, size=8)
    net, x = network(spec), given(spec, 2)
    net(x).sum().backward()
    assert sum(p.numel() for p in net.parameters()) == measure(spec).parameters


def test_every_sentence_of_the_zoo_is_represented() -> None:
    def sentences(name: str) -> set[tuple[str, str, str]]:
        spec = find(name)
        if isinstance(spec, External):
            return set()
        turns = {*(stage.block for stage in spec.stages), *(stage.first for stage in spec.stages)}
        blocks = {
            block for turn in turns for block in (turn if isinstance(turn, tuple) else [turn])
        }
        return {(block.body, block.shortcut, block.identity) for block in blocks if block}

    covered = set().union(*map(sentences, (*QUICK, *LATER)))
    rest = {
        name
        for name in names()
        if sentences(name) - covered and not name.startswith(("resnext", "wrn"))
    }
    # these differ by a letter from one that is there: another number of groups or no dropout,
    # option A of a bottleneck, a gate in a basic block, another rate of dropout, no mark;
    # darknet53 is tested with its heads, and networks without norms in test_norm_free
    assert rest == {
        *("resnet50_a", "resnet101_a", "resnet152_a", "se_resnet18", "eca_resnet18"),
        *("cbam_resnet18", "darknet53", "convs2s_encoder", "convs2s_plain_encoder"),
        *("convs2s_small_plain_encoder", "transformer_small_plain_encoder"),
        *("plain5_text", "tc_plain8", "plain14_speech"),
        *(f"{kind}_resnet{depth}" for kind in ("rezero", "skipinit") for depth in (20, 56, 110)),
        *(f"fixup_resnet{depth}" for depth in (20, 56, 110)),
    }

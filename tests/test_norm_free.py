"""Networks without norms: the words shift and scale1, Fixup's initialisation, ReZero, SkipInit."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import plusx
from plusx.grammar.arithmetic import measure
from plusx.grammar.words import parse
from plusx.nn.block import ResidualBlock
from plusx.nn.init import initialise
from plusx.nn.layers import Scale, Shift
from plusx.recipe import load_recipe
from plusx.recipe.studies import Degradation
from plusx.study.degradation import DEGRADATION
from plusx.zoo import find


def residual_blocks(net: nn.Module) -> list[ResidualBlock]:
    return [module for module in net.modules() if isinstance(module, ResidualBlock)]


@pytest.mark.parametrize("word", ["shift", "scale1", "scale0", "scale1e-4", "scale.5"])
def test_words_print_as_they_are_written(word: str) -> None:
    sentence = f"conv3 {word} +"
    assert str(parse(sentence)) == sentence


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_scale1_and_shift_are_one_number_each(ndim: int) -> None:
    spec = plusx.Net(
        stem="conv3 scale1 shift act",
        stem_width=4,
        stages=(plusx.Stage(block=plusx.Block(body="conv3 shift +"), depth=1, width=4),),
        num_classes=2,
        size=8,
        ndim=ndim,
    )
    net = plusx.create_model(spec, seed=0)
    assert measure(spec).parameters == sum(p.numel() for p in net.parameters())
    shifts = [m for m in net.modules() if isinstance(m, Shift)]
    scales = [m for m in net.modules() if isinstance(m, Scale)]
    assert [m.beta.item() for m in shifts] == [0, 0]
    assert [m.gamma.item() for m in scales] == [1]


def test_a_block_of_fixup_is_that_of_the_authors() -> None:
    """Zhang et al. 2019, figure 1, and their code: every convolution has a number before and after
    it, the shortcut starts after the first number where the shape changes."""
    net = plusx.create_model("fixup_resnet20", seed=0).double()
    for index, parameter in enumerate(net.parameters()):
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.add_(0.1 * noise)
    same, changing = residual_blocks(net)[0], residual_blocks(net)[3]
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    for block, stride in ((same, 1), (changing, 2)):
        a1, b1, a2, b2 = (block.get_parameter(f"shift{i}.beta") for i in (1, 2, 3, 4))
        y = F.conv2d(x + a1, block.conv1.weight, stride=stride, padding=1)
        y = F.conv2d((y + b1).relu() + a2, block.conv2.weight, padding=1)
        y = y * block.scale1.gamma + b2
        skip = x
        if stride == 2:
            skip = (x + a1)[:, :, ::2, ::2]
            skip = torch.cat([skip, torch.zeros_like(skip)], dim=1)
        torch.testing.assert_close(block(x), (y + skip).relu())


def test_fixup_initialises_by_its_rules() -> None:
    net = plusx.create_model("fixup_resnet110", seed=0)
    blocks = residual_blocks(net)
    assert len(blocks) == 54
    assert not net.fc.weight.any()
    for block in blocks:
        assert not block.conv2.weight.any()
    weight = blocks[-1].conv1.weight.detach()
    expected = (2 / (64 * 9)) ** 0.5 * 54**-0.5  # m = 2: L ** (-1 / 2)
    assert float(weight.std()) == pytest.approx(expected, rel=0.03)
    other = plusx.create_model("resnet20", seed=0)
    initialise(other, "fixup")
    assert not other.fc.weight.any()


@pytest.mark.parametrize("name", ["rezero_resnet110", "skipinit_resnet110", "fixup_resnet110"])
def test_branches_are_0_at_the_start_and_learn(name: str) -> None:
    """However deep, the network is that of its stem and shortcuts, and its gradient is finite."""
    net = plusx.create_model(replace(find(name), size=8), seed=0)
    x = torch.randn(4, 3, 8, 8)
    for block in residual_blocks(net):
        branch = {}
        hook = block.get_submodule(block.branch[-1]).register_forward_hook(
            lambda module, args, out, branch=branch: branch.update(out=out)
        )
        width = block.get_submodule("conv1").in_channels
        block(torch.randn(1, width, 8, 8))
        hook.remove()
        assert not branch["out"].any()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(net(x), torch.tensor([0, 1, 2, 3]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_recipe_compares_them_at_110_layers() -> None:
    study = load_recipe("norm-free").study
    assert isinstance(study, Degradation)
    assert study.norms == ("none",)
    for kind in study.kinds:
        for depth in study.depths:
            assert find(f"{kind}{depth}")


def test_at_one_depth_every_kind_is_compared_with_plain() -> None:
    def row(kind: str, *errors: float) -> dict:
        return {
            "name": f"{kind}110",
            "kind": kind,
            "norm": "none",
            "depth": 110,
            "train_error": {"mean": sum(errors) / len(errors), "seeds": list(errors)},
        }

    rows = [row("plain", 0.9, 0.91, 0.89), row("fixup_resnet", 0.0, 0.01, 0.0)]
    assert "fixup_resnet110 is better than plain110" in DEGRADATION.finding(rows)
    assert DEGRADATION.finding(rows[1:]).endswith("at one depth: fixup_resnet110 0.3 %.")

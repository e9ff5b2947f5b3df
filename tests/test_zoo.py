"""The zoo as data: its names, its sources, and its counts by arithmetic. No torch."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plusx.describe import describe_network, description, list_networks
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Block, Net
from plusx.grammar.toml import from_toml, to_toml
from plusx.zoo import PAPERS, ZOO, Entry, External, find, names
from plusx.zoo.blocks import BASIC, BASIC_A, BASIC_C, BOTTLENECK, PLAIN
from plusx.zoo.cifar import net as cifar_net
from plusx.zoo.image import resnet


GOLDEN = json.loads((Path(__file__).parent / "golden" / "zoo_counts.json").read_text())
PROMISED = """
resnet18 resnet34 resnet50 resnet101 resnet152 resnet50_v1 resnet101_v1 resnet152_v1 resnet34_a
resnet34_c resnet50_a resnet101_a resnet152_a plain18 plain34 resnet50_d preact_resnet18
preact_resnet50 preact_resnet101 preact_resnet152 preact_resnet200 wide_resnet50_2
wide_resnet101_2 resnext50_32x4d resnext101_32x4d resnext101_32x8d resnext101_64x4d densenet121
densenet161 densenet169 densenet201 se_resnet18 se_resnet50 eca_resnet18 eca_resnet50
cbam_resnet18 cbam_resnet50 vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn alexnet
googlenet convnext_tiny botnet50 vit_base_patch16_gap r3d_18 resnet18_1d
resnet20 resnet32 resnet44 resnet56 resnet110 resnet1202 resnet20_b resnet32_b resnet44_b
resnet56_b resnet110_b resnet1202_b resnet20_c resnet32_c resnet44_c resnet56_c resnet110_c
resnet1202_c plain20 plain32 plain44 plain56 plain110 plain1202 preact_resnet20 preact_resnet56
preact_resnet110 preact_resnet20_b preact_resnet56_b preact_resnet110_b preact_resnet164
preact_resnet1001 resnet164 resnet110_sd wrn16_4 wrn16_8 wrn28_10 wrn40_4 wrn40_10
resnext29_4x64d resnext29_8x64d resnext29_16x64d densenet40_12 densenet100_12 densenet100_24
densenet_bc100_12 densenet_bc250_24 densenet_bc190_40 se_resnet20 eca_resnet20 cbam_resnet20
highway19 vgg16_cifar resnet18_cifar resnet34_cifar resnet50_cifar resnet101_cifar
resnet152_cifar resnet8_keras revnet38 revnet110 res8 res15 res26 res8_narrow res15_narrow
res26_narrow vdcnn9 vdcnn17 vdcnn29
"""
TURNS = st.integers(3, 200)


def paper(entry: Entry) -> str:
    return " ".join(entry.source.split()[:2]).rstrip(",")


def sentence_net(name: str) -> Net:
    net = find(name)
    assert isinstance(net, Net)
    return net


def parameters(net: Net | External) -> int:
    return net.parameters if isinstance(net, External) else measure(net).parameters


def multiply_adds(net: Net | External) -> int:
    return net.multiply_adds if isinstance(net, External) else measure(net).multiply_adds


def test_every_required_name_exists() -> None:
    assert set(PROMISED.split()) <= set(names())


def test_every_network_is_valid_and_has_a_source() -> None:
    for name, entry in ZOO.items():
        assert isinstance(entry, Entry)
        assert find(name) == entry.net
        assert paper(entry) in PAPERS, name


def test_every_paper_is_used() -> None:
    assert {paper(entry) for entry in ZOO.values()} == set(PAPERS)


def test_parameters_by_arithmetic() -> None:
    counted = {}
    for name, counts in GOLDEN["parameters"].items():
        net = find(name)
        assert str(net.num_classes) in counts, name
        counted[name] = {
            classes: parameters(replace(net, num_classes=int(classes))) for classes in counts
        }
    assert counted == GOLDEN["parameters"]


def test_multiply_adds_by_arithmetic() -> None:
    counted = {name: multiply_adds(find(name)) for name in GOLDEN["multiply_adds"]}
    assert counted == GOLDEN["multiply_adds"]


def test_depths_are_as_the_papers_count() -> None:
    rows = {row["name"]: row for row in list_networks()}
    for name in names("wrn*"):
        assert rows[name]["depth"] == int(name[3:5])
        # Zagoruyko 2016 counts the three projections, but not the head
        assert rows[name]["layers"] == rows[name]["depth"] - 3 + 1
    for name in (*names("iresnet*"), *names("axial_resnet*"), *names("*one_layer")):
        assert rows[name]["depth"] == rows[name]["layers"] == int(re.findall(r"\d+", name)[0])
    assert "28 as the paper counts; 26 layers" in description(describe_network("wrn28_10"))
    assert "20 layers with weights" in description(describe_network("resnet20"))


@pytest.mark.parametrize("name", ["resnet110_one_layer", "preact_resnet110_one_layer"])
def test_skips_over_one_layer_have_no_cost(name: str) -> None:
    ours, usual = measure(sentence_net(name)), measure(sentence_net("resnet110"))
    assert (ours.parameters, ours.multiply_adds) == (usual.parameters, usual.multiply_adds)
    assert [stage.blocks for stage in ours.stages] == [36, 36, 36]


@pytest.mark.parametrize("depth", [50, 101, 152, 200])
def test_improved_residual_networks_have_the_parameters_of_residual_ones(depth: int) -> None:
    # the norms are moved, and there are as many
    net = sentence_net(f"iresnet{depth}")
    blocks = tuple(map(len, (stage.blocks for stage in net.stages)))
    usual = resnet(BOTTLENECK, blocks, (256, 512, 1024, 2048))
    assert measure(net).parameters == measure(usual).parameters


@given(TURNS)
@settings(max_examples=20)
def test_a_plain_twin_has_the_count_of_option_a(turns: int) -> None:
    plain, residual = measure(cifar_net(PLAIN, turns)), measure(cifar_net(BASIC_A, turns))
    assert plain.parameters == residual.parameters
    assert plain.multiply_adds == residual.multiply_adds
    assert plain.depth == residual.depth == 6 * turns + 2


@pytest.mark.slow
@given(TURNS)
@settings(max_examples=20)
def test_option_b_costs_2752_parameters_at_every_depth(turns: int) -> None:
    a, b, c = (measure(cifar_net(block, turns)) for block in (BASIC_A, BASIC, BASIC_C))
    assert b.parameters - a.parameters == 2_752
    # C projects in every block: 1x1 convolutions with their norms
    assert c.parameters - b.parameters == turns * (288 + 1_088 + 4_224) - (1_088 + 4_224)


def test_plain_networks_are_the_residual_ones_without_their_marks() -> None:
    for name in names("plain*"):
        plain = sentence_net(name)
        twin = sentence_net(name.replace("plain", "resnet"))
        for ours, theirs in zip(plain.stages, twin.stages, strict=True):
            assert isinstance(ours.block, Block)
            assert isinstance(theirs.block, Block)
            assert ours.block.body == theirs.block.body.replace(" +", "")
            assert (ours.depth, ours.width, ours.stride) == (
                theirs.depth,
                theirs.width,
                theirs.stride,
            )


def test_preactivation_at_164_layers_with_the_stride_on_the_3x3() -> None:
    net = sentence_net("preact_resnet164")
    block = Block(body="norm act | conv1/4 norm act conv3/4s norm act conv1 +", shortcut="conv1s")
    moved = replace(net, stages=tuple(replace(stage, block=block) for stage in net.stages))
    assert measure(moved).multiply_adds == 247_646_720
    assert measure(moved).parameters == measure(net).parameters


def test_preactivation_at_50_layers_has_three_definitions() -> None:
    bare = sentence_net("preact_resnet50")
    both = replace(bare, stem="conv7s2 norm act maxpool3s2")
    opener = Block(body="conv1/4 norm act conv3/4s norm act conv1 +", shortcut="conv1s")
    first = replace(both, stages=(replace(both.stages[0], first=opener), *both.stages[1:]))
    assert measure(bare).parameters == measure(first).parameters == 25_549_352
    assert measure(both).parameters == 25_549_480


@pytest.mark.parametrize("row", ["norm_after", "act_before", "act_only"])
def test_the_orders_of_2016_cost_the_same(row: str) -> None:
    order, original = measure(sentence_net(f"resnet110_{row}")), measure(sentence_net("resnet110"))
    assert order.parameters == original.parameters
    assert order.multiply_adds == original.multiply_adds


def test_every_network_survives_toml() -> None:
    nets = {name: entry.net for name, entry in ZOO.items() if isinstance(entry.net, Net)}
    assert {name: from_toml(to_toml(net)) for name, net in nets.items()} == nets


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("resnet5O", "resnet50"),
        ("ResNet50", "resnet50"),
        ("resnet_50", "resnet50"),
        ("wrn_28_10", "wrn28_10"),
        ("preresnet110", "preact_resnet110"),
        ("densenet12", "densenet121"),
    ],
)
def test_an_unknown_name_suggests_close_ones(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown network '{typed}'.*did you mean.*\b{meant}\b"):
        find(typed)


def test_an_unknown_name_points_to_the_list_of_names() -> None:
    with pytest.raises(ValueError, match="`plusx models` lists all names"):
        find("!")


def test_names_keep_the_order_of_the_zoo_and_filter_by_pattern() -> None:
    assert names() == list(ZOO)
    assert names("resnet*_b") == [
        "resnet20_b",
        "resnet32_b",
        "resnet44_b",
        "resnet56_b",
        "resnet110_b",
        "resnet1202_b",
    ]
    assert names("nothing*") == []


def test_the_zoo_imports_the_standard_library_only() -> None:
    # -S: an environment's own .pth files import what they like
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import plusx.zoo; "
        "print({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert set(ast.literal_eval(done.stdout)) - {"__main__"} == {"plusx"}

"""A block deleted: what is left is its shortcut, and everything is put back."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from plusx.grammar.spec import Block
from plusx.nn.network import Network
from plusx.study.blocks import block_positions
from plusx.study.experiment import spec
from plusx.study.lesion import deletions, lesions, undeletable, without
from test_gradient_study import BASIC, PLAIN, PRE_ACTIVATION, made, small, some_batch, state_of


def evaluate(net: nn.Module) -> float:
    """Any number that depends on all of what the network computes."""
    assert not torch.is_grad_enabled()
    assert not any(module.training for module in net.modules())
    return float(net(some_batch()[0]).square().sum())


def zero_the_branch(block: nn.Module) -> None:
    for parameter in getattr(block, block.branch[-1]).parameters():
        nn.init.zeros_(parameter)


@pytest.mark.parametrize("block", [BASIC, PRE_ACTIVATION, replace(BASIC, shortcut="pad")])
def test_a_deleted_branch_is_a_branch_of_zero(block: Block) -> None:
    net = made(small(block, tail="norm act pool")).train()
    before = state_of(net)
    found = lesions(net, evaluate)
    assert state_of(net) == before
    assert [each.name for each in found] == [place.name for place in block_positions(net)]
    for position, each in enumerate(found):
        zeroed = made(small(block, tail="norm act pool")).eval()
        zero_the_branch(block_positions(zeroed)[position].block)
        with torch.no_grad():
            assert each.error == pytest.approx(evaluate(zeroed), rel=1e-12)
            assert each.error != pytest.approx(evaluate(made(small(block)).eval()), rel=1e-3)


def test_a_plain_block_is_left_out_where_the_shape_allows_it() -> None:
    net = made(small(PLAIN))
    blocks = [place.block for place in block_positions(net)]
    before = state_of(net)
    found = lesions(net, evaluate)
    assert state_of(net) == before
    assert [place.block for place in block_positions(net)] == blocks
    assert [each.error is None for each in found] == [False, False, False, True, False, False]
    assert "4 channels of 6 x 6 would reach layers for 6 of 3 x 3" in found[3].why
    shorter = made(small(PLAIN)).eval()
    del shorter.layer2[1]
    with torch.no_grad():
        assert found[4].error == pytest.approx(evaluate(shorter), rel=1e-12)


@pytest.mark.parametrize("block", [
    Block(body="conv3 norm act &"),
    Block(body="conv3s norm ~ act", gate="conv1sb"),
    replace(BASIC, identity="conv1 norm"),
])  # fmt: skip
def test_every_shortcut_can_be_passed(block: Block) -> None:
    said = small(block, tail="norm act pool")
    if "&" in block.body:
        first, second = said.stages
        said = replace(said, stages=(first, replace(second, stride=1)))
    net = made(said)
    before = state_of(net)
    assert all(each.error is not None for each in lesions(net, evaluate))
    assert state_of(net) == before


def test_blocks_are_put_back_when_an_evaluation_fails() -> None:
    net = made(small(BASIC)).train()
    before, blocks = state_of(net), [place.block for place in block_positions(net)]

    def fails(_net: nn.Module) -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        lesions(net, fails)
    assert state_of(net) == before
    assert [place.block for place in block_positions(net)] == blocks


def test_shared_tensors_are_not_overwritten() -> None:
    """The activation behind the sum works in place, and the shortcut is the input itself."""
    net = made(small(BASIC)).eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    kept: Tensor = x.clone()
    with without(net, ["layer1.1"]):
        assert torch.equal(net.layer1[1](x), kept.relu())
    assert torch.equal(x, kept)


def test_several_deleted_blocks_depend_on_the_seed() -> None:
    net = made(small(PLAIN, depth=5))
    before = state_of(net)
    found = deletions(net, evaluate, [0, 2, 9], draws=4, seed=7)
    assert state_of(net) == before
    with torch.no_grad():
        whole = evaluate(net.eval())
    assert found[0].errors == pytest.approx([whole] * 4)
    assert [each.count for each in found] == [0, 2, 9]
    assert len(set(found[1].errors)) > 1
    assert found[2].errors == pytest.approx([found[2].errors[0]] * 4)  # all that can be deleted
    assert found == deletions(net, evaluate, [0, 2, 9], draws=4, seed=7)
    assert found[1] != deletions(net, evaluate, [2], draws=4, seed=8)[0]
    with pytest.raises(ValueError, match=r"10 blocks cannot be deleted at once: it must be 0 to 9"):
        deletions(net, evaluate, [10])


def test_blocks_that_cannot_be_deleted_are_refused() -> None:
    net = made(small(PLAIN))
    with (
        pytest.raises(ValueError, match=r"layer2\.0 cannot be deleted: without it"),
        without(net, ["layer2.0"]),
    ):
        pass
    with pytest.raises(ValueError, match=r"no block layer9\.0"), without(net, ["layer9.0"]):
        pass
    with pytest.raises(ValueError, match="Linear is an external module"):
        lesions(nn.Linear(1, 1), evaluate)


def test_only_blocks_of_vgg_that_keep_the_shape_are_deleted() -> None:
    with torch.device("meta"):
        found = block_positions(Network(spec("vgg16_cifar")))
    assert [place.name for place in found if undeletable(place)] == [
        "layer1.0", "layer2.0", "layer3.0", "layer4.0",
    ]  # fmt: skip

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
from test_gradient_study import BASIC, PLAIN, PRE_ACTIVATION, built, small, some_batch, state_of


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
    net = built(small(block, tail="norm act pool")).train()
    before = state_of(net)
    results = lesions(net, evaluate)
    assert state_of(net) == before
    assert [result.name for result in results] == [
        block_position.name for block_position in block_positions(net)
    ]
    for position, result in enumerate(results):
        zeroed = built(small(block, tail="norm act pool")).eval()
        zero_the_branch(block_positions(zeroed)[position].block)
        with torch.no_grad():
            assert result.error == pytest.approx(evaluate(zeroed), rel=1e-12)
            assert result.error != pytest.approx(evaluate(built(small(block)).eval()), rel=1e-3)


def test_a_plain_block_is_left_out_where_the_shape_allows_it() -> None:
    net = built(small(PLAIN))
    blocks = [position.block for position in block_positions(net)]
    before = state_of(net)
    results = lesions(net, evaluate)
    assert state_of(net) == before
    assert [position.block for position in block_positions(net)] == blocks
    assert [result.error is None for result in results] == [False, False, False, True, False, False]
    assert "4 channels of 6 x 6 would reach layers for 6 of 3 x 3" in results[3].why
    shorter = built(small(PLAIN)).eval()
    del shorter.layer2[1]
    with torch.no_grad():
        assert results[4].error == pytest.approx(evaluate(shorter), rel=1e-12)


@pytest.mark.parametrize("block", [
    Block(body="conv3 norm act &"),
    Block(body="conv3s norm ~ act", gate="conv1sb"),
    replace(BASIC, identity="conv1 norm"),
])  # fmt: skip
def test_every_shortcut_can_be_passed(block: Block) -> None:
    spec = small(block, tail="norm act pool")
    if "&" in block.body:
        first, second = spec.stages
        spec = replace(spec, stages=(first, replace(second, stride=1)))
    net = built(spec)
    before = state_of(net)
    assert all(result.error is not None for result in lesions(net, evaluate))
    assert state_of(net) == before


def test_blocks_are_put_back_when_an_evaluation_fails() -> None:
    net = built(small(BASIC)).train()
    before, blocks = state_of(net), [position.block for position in block_positions(net)]

    def fails(_net: nn.Module) -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        lesions(net, fails)
    assert state_of(net) == before
    assert [position.block for position in block_positions(net)] == blocks


def test_shared_tensors_are_not_overwritten() -> None:
    """The activation behind the sum works in place, and the shortcut is the input itself."""
    net = built(small(BASIC)).eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    copied: Tensor = x.clone()
    with without(net, ["layer1.1"]):
        assert torch.equal(net.layer1[1](x), copied.relu())
    assert torch.equal(x, copied)


def test_several_deleted_blocks_depend_on_the_seed() -> None:
    net = built(small(PLAIN, depth=5))
    before = state_of(net)
    results = deletions(net, evaluate, [0, 2, 9], draws=4, seed=7)
    assert state_of(net) == before
    with torch.no_grad():
        whole = evaluate(net.eval())
    assert results[0].errors == pytest.approx([whole] * 4)
    assert [result.count for result in results] == [0, 2, 9]
    assert len(set(results[1].errors)) > 1
    assert results[2].errors == pytest.approx([results[2].errors[0]] * 4)  # all that can be deleted
    assert results == deletions(net, evaluate, [0, 2, 9], draws=4, seed=7)
    assert results[1] != deletions(net, evaluate, [2], draws=4, seed=8)[0]
    with pytest.raises(ValueError, match=r"10 blocks cannot be deleted at once: it must be 0 to 9"):
        deletions(net, evaluate, [10])


def test_blocks_that_cannot_be_deleted_are_refused() -> None:
    net = built(small(PLAIN))
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
        positions = block_positions(Network(spec("vgg16_cifar")))
    assert [position.name for position in positions if undeletable(position)] == [
        "layer1.0", "layer2.0", "layer3.0", "layer4.0",
    ]  # fmt: skip

"""Stochastic depth as Huang et al. 2016 have it: how deep on average, and what a skip costs."""

import importlib
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import plusx
from plusx import store
from plusx.grammar.spec import Block, Net
from plusx.models import create_model
from plusx.nn.network import Network
from plusx.study.blocks import block_positions, sampled_depths
from plusx.study.experiment import spec
from plusx.train.optim import make_optimizer
from test_gradient_study import BASIC, small, some_batch, state_of


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OPTION_A = replace(BASIC, shortcut="pad")


def stochastic(depth: int, block: Block = OPTION_A) -> Net:
    return replace(small(block, depth), drop_path=0.5)


def survivals(blocks: int, last: float) -> list[float]:
    """Equation 4: p_l = 1 - (l / L) (1 - p_L), how likely each of L blocks is to survive."""
    return [1 - number / blocks * (1 - last) for number in range(1, blocks + 1)]


def test_resnet110_has_40_25_of_its_54_blocks_on_average() -> None:
    assert sum(survivals(54, 0.5)) == pytest.approx((3 * 54 - 1) / 4)
    with torch.device("meta"):
        net = Network(spec("resnet110_sd"))
    assert [1 - position.block.drop for position in block_positions(net)] == pytest.approx(
        survivals(54, 0.5)
    )


def test_counting_comes_to_the_closed_form() -> None:
    with torch.device("meta"):
        net = Network(stochastic(27))
    counts = sampled_depths(net, passes=600, seed=0)
    mean, error = statistics.mean(counts), statistics.stdev(counts) / len(counts) ** 0.5
    assert error < 0.2
    assert abs(mean - 40.25) < 4 * error
    # independent of each other: the variance is the sum of p (1 - p)
    variance = sum(p * (1 - p) for p in survivals(54, 0.5))
    assert error * len(counts) ** 0.5 == pytest.approx(variance**0.5, rel=0.1)
    assert counts[:50] == sampled_depths(net, passes=50, seed=0)
    assert counts[:50] != sampled_depths(net, passes=50, seed=1)


def test_rows_that_drop_skip_no_block() -> None:
    with pytest.raises(ValueError, match="drops rows of a batch"):
        sampled_depths(Network(replace(stochastic(2), drop_mode="row")), 10)
    assert sampled_depths(Network(small(BASIC)).eval(), 3) == [6, 6, 6]


def test_a_skipped_block_calls_none_of_its_branch_and_keeps_its_statistics() -> None:
    net = create_model(stochastic(6), seed=0).train()
    inputs, targets = some_batch()
    calls: dict[str, int] = {}
    for position in block_positions(net):
        for word in position.block.branch:
            getattr(position.block, word).register_forward_hook(
                lambda *_, name=position.name: calls.update({name: calls.get(name, 0) + 1})
            )
    before = {name: t.clone() for name, t in net.state_dict().items()}
    torch.manual_seed(3)
    nn.functional.cross_entropy(net(inputs.float()), targets).backward()
    ran = set(calls)
    assert 3 < len(ran) < 12
    for position in block_positions(net):
        assert calls.get(position.name, 0) in (0, len(position.block.branch))
        for name, now in position.block.state_dict().items():
            if "running" in name or "batches" in name:
                same = torch.equal(now, before[f"{position.name}.{name}"])
                assert same == (position.name not in ran)
        for parameter in position.block.parameters():
            assert (parameter.grad is None) == (position.name not in ran)


def test_counting_leaves_the_network_and_the_generator_alone() -> None:
    net = create_model(stochastic(2), seed=0).eval()
    before = state_of(net)
    sampled_depths(net, 50)
    assert state_of(net) == before


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars", "lamb"])
def test_blocks_that_the_first_steps_drop_are_trained_by_later_ones(kind: str) -> None:
    net = create_model(replace(stochastic(3), drop_path=0.9), seed=0)
    task = plusx.Classify(net)
    state = plusx.State(task, make_optimizer(task, kind, lr=0.01))
    inputs, targets = some_batch()
    batches = [plusx.Batch(inputs.float(), targets)] * 30
    torch.manual_seed(0)
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    first = dict(before)
    for number, _ in enumerate(plusx.fit(state, batches, lambda step: 0.01)):
        if number == 0:
            first = {name: p.detach().clone() for name, p in task.named_parameters()}
    unmoved = [name for name, p in first.items() if torch.equal(p, before[name])]
    assert unmoved, "no block was dropped in the first step"
    assert not [name for name, p in task.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.slow
def test_the_benchmark_compares_the_same_network_with_and_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("stochastic_depth")
    threads = torch.get_num_threads()
    out = tmp_path / "stochastic_depth.json"
    assert benchmark.main(["--tiny", "--out", str(out)]) == 0
    assert torch.get_num_threads() == threads
    assert "stochastic depth / constant depth" in capsys.readouterr().out
    result = store.read_json(out)
    (name,) = result["value"]
    low, high = result["spread"][name]
    assert 0 < low <= result["value"][name] <= high
    assert result["rows"][0]["expected_share"] == pytest.approx(40.25 / 54)

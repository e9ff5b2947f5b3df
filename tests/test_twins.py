"""Laws of a network's twins: other merges, no norms, dropout, and one cost for all."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.grammar.twins import at_cost, with_dropout, with_merge, without_norm
from plusx.grammar.validate import validate
from plusx.grammar.words import parse
from plusx.nn.network import Network
from plusx.statistics import difference, differences, mean_interval, share_interval, wilson
from plusx.study.ablation import agreement, max_tau_with_ties
from plusx.study.degradation import DEGRADATION
from plusx.zoo import find


ADDING = ["resnet20", "resnet56_b", "resnet164", "preact_resnet20", "preact_resnet164", "resnet18"]


def net_of(name: str) -> Net:
    net = find(name)
    assert isinstance(net, Net)
    return net


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_the_plain_twin_of_option_a_has_its_count_and_its_sentences(depth: int) -> None:
    residual, plain = net_of(f"resnet{depth}"), net_of(f"plain{depth}")
    twin = with_merge(residual, "none")
    assert measure(twin).parameters == measure(residual).parameters
    assert measure(twin).multiply_adds == measure(residual).multiply_adds
    bodies = [
        [block.body for stage in net.stages for block in stage.blocks] for net in (twin, plain)
    ]
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("name", ADDING)
@pytest.mark.parametrize("merge", ["none", "gate", "concat"])
def test_every_twin_is_valid_and_has_its_merge_and_cost(name: str, merge: str) -> None:
    net = replace(net_of(name), size=32)
    twin = with_merge(net, merge)  # type: ignore[arg-type]
    validate(twin)
    merges = {parse(block.body).merge for stage in twin.stages for block in stage.blocks}
    assert merges == {merge}
    equal = at_cost(twin, measure(net).multiply_adds)
    validate(equal)
    assert measure(equal).multiply_adds == pytest.approx(measure(net).multiply_adds, rel=0.05)


def test_a_network_without_shortcuts_has_no_twin_with_others() -> None:
    with pytest.raises(ValueError, match=r"merge by none"):
        with_merge(net_of("plain20"), "gate")
    with pytest.raises(ValueError, match=r"merge by concat"):
        with_merge(net_of("densenet40_12"), "none")


@pytest.mark.parametrize("name", ["plain20", "resnet20_b", "preact_resnet20", "se_resnet20"])
def test_norms_are_removed_and_replaced_by_biases(name: str) -> None:
    bare = without_norm(net_of(name))
    validate(bare)
    built = Network(bare)
    kinds = {type(module).__name__ for module in built.modules()}
    assert not any("Norm" in kind for kind in kinds)
    stem = built.get_parameter("conv1.bias")
    assert stem.shape == (16,)
    assert built(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_dropout_is_before_the_last_convolution() -> None:
    first = with_dropout(net_of("resnet20"), 0.25).stages[0].blocks[0]
    assert first.body == "conv3s norm act drop.25 conv3 norm + act"
    assert measure(with_dropout(net_of("resnet56"), 0.3)) == measure(net_of("resnet56"))


shares = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=8, unique=True)


@settings(max_examples=50)
@given(shares, shares)
def test_x11_a_difference_is_welchs_interval(first: list[float], second: list[float]) -> None:
    interval = difference(first, second)
    assert interval is not None
    assert -1 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.low < interval.high
    theirs = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert (interval.low, interval.high) == pytest.approx(
        (max(theirs.low, -1), min(theirs.high, 1))
    )
    wider = difference(first, second, comparisons=5, bounds=(-math.inf, math.inf))
    theirs = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.99)
    assert wider is not None
    assert (wider.low, wider.high) == pytest.approx(tuple(theirs))


def test_one_seed_has_no_difference() -> None:
    assert difference([0.5], [0.1, 0.2]) is None


@pytest.mark.parametrize("values", [(0.02, 0.02), (0.0, 0.0, 0.0), (1.0, 1.0)])
def test_x11_seeds_that_do_not_differ_have_no_interval(values: tuple[float, ...]) -> None:
    """They say nothing of how far seeds lie apart, and two are too few for a permutation test."""
    assert difference(values, (0.5, 0.5)) is None
    assert mean_interval(values) is None
    row = {"name": "a", "kind": "plain", "norm": "batch", "depth": 20,
           "train_error": {"seeds": [0.5, 0.5], "mean": 0.5}, "ratio_end": 1.0}  # fmt: skip
    deep = {**row, "name": "b", "depth": 56, "train_error": {"seeds": values, "mean": values[0]}}
    finding = DEGRADATION.finding([row, deep])
    assert "b is not known to differ from a" in finding
    assert "with every seed, p = 0." in finding


def test_x11_no_interval_of_a_share_leaves_what_is_possible() -> None:
    interval = difference([0.9, 0.1], [0.3, 0.5])
    assert interval is not None
    assert (interval.low, interval.high) == (-1.0, 1.0)
    assert mean_interval([0.99, 0.9], bounds=(0.0, 1.0)) == (pytest.approx(0.3732, abs=1e-3), 1.0)
    low, high = share_interval([1.0, 1.0], 10)
    assert 0 < low < high == 1.0


def test_several_comparisons_hold_together() -> None:
    """Of twenty networks that are alike one is not called worse by chance alone."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        groups = random.normal(0.5, 0.01, (21, 3)).tolist()
        intervals = differences([(interval, groups[0]) for interval in groups[1:]])
        wrong += any(
            interval is not None and not interval.low <= 0 <= interval.high
            for interval in intervals
        )
    assert wrong / 200 < 0.1


def test_holm_tests_the_smallest_p_value_first_and_stops_at_the_first_failure() -> None:
    base = [0.10, 0.11, 0.12]
    clear, near, constant = [0.50, 0.51, 0.52], [0.15, 0.16, 0.17], [0.2, 0.2, 0.2]
    intervals = differences([(near, base), (clear, base), (constant, constant)])
    assert intervals[2] is None  # nothing varies: it is no test, and counts as none
    assert intervals[1] == difference(clear, base, comparisons=2)
    assert intervals[0] == difference(near, base, comparisons=1)
    noisy = [[0.10, 0.11, 0.13], [0.09, 0.12, 0.16]]
    doubts = differences([(noisy[0], base), (noisy[1], base)])
    assert doubts == [difference(group, base, comparisons=2) for group in noisy]


@pytest.mark.slow
def test_agreement_with_the_papers_order() -> None:
    paper = [0.06, 0.07, 0.08, 0.2]
    same = [[value + 0.1 + seed / 1000 for seed in range(3)] for value in paper]
    assert agreement(same, paper) == (1.0, None)  # no draw has another order
    assert agreement(same[::-1], paper)[0] == -1.0
    assert agreement([values[:1] for values in same], paper) == (1.0, None)
    noisy = [[0.3, 0.1], [0.1, 0.3], [0.2, 0.25], [0.22, 0.2]]
    middle, interval = agreement(noisy, paper)
    assert interval is not None
    assert interval[0] < middle < interval[1]


def test_ties_of_the_paper_leave_an_order_without_ties_below_1() -> None:
    paper = [0.06, 0.07, 0.2, 0.2]
    middle, _ = agreement([[0.1], [0.2], [0.3], [0.4]], paper)
    assert middle == pytest.approx(max_tau_with_ties(paper))
    assert max_tau_with_ties(paper) < max_tau_with_ties([0.06, 0.07, 0.08]) == 1.0


def test_an_order_is_no_more_certain_than_its_differences() -> None:
    """No draw of these seeds with replacement turns them round, yet three seeds do not decide."""
    errors = [[0.10, 0.11, 0.12], [0.125, 0.13, 0.135]]
    apart = difference(errors[1], errors[0])
    assert apart is not None
    assert apart.low < 0 < apart.high
    assert agreement(errors, [0.06, 0.07]) == (1.0, (-1.0, 1.0))


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (3, 7), (90, 100), (4999, 5000)])
def test_wilsons_interval_is_that_of_scipy(hits: int, count: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)

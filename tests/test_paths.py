"""A residual network as the sum of its paths."""

from dataclasses import replace
from itertools import combinations
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from plusx.grammar.spec import Activation, Block
from plusx.study.blocks import run_blocks, total_norm
from plusx.study.paths import (
    PathBackward,
    PathGradient,
    contributions,
    effective_lengths,
    length_fractions,
    path_gradients,
)
from test_gradient_study import BASIC, PLAIN, PRE_ACTIVATION, built, small, some_batch, state_of


def test_lengths_are_binomial() -> None:
    shares = length_fractions(54)
    assert sum(shares) == pytest.approx(1)
    assert sum(length * share for length, share in enumerate(shares)) == pytest.approx(27)
    assert shares[3] * 2**54 == comb(54, 3)


@settings(max_examples=10)
@given(
    body=st.sampled_from([BASIC.body, PRE_ACTIVATION.body, "norm act | conv3s + norm act"]),
    shortcut=st.sampled_from(["pad", "conv1s norm"]),
    identity=st.sampled_from(["", "scale.5", "conv1"]),
    act=st.sampled_from(["relu", "tanh"]),
    seed=st.integers(0, 9),
)
def test_the_gradients_of_all_paths_add_up_to_the_gradient(
    body: str, shortcut: str, identity: str, act: Activation, seed: int
) -> None:
    block = Block(body=body, shortcut=shortcut, identity=identity)
    net = built(small(block, depth=2, tail="norm act pool", act=act), seed)
    inputs, targets = some_batch()
    before = state_of(net)
    paths = PathBackward(net, inputs, targets, F.cross_entropy)
    total = sum(
        paths.along(set(chosen)) for length in range(5) for chosen in combinations(range(4), length)
    )
    assert state_of(net) == before
    net.eval()
    passed = run_blocks(net, inputs)
    (whole,) = torch.autograd.grad(F.cross_entropy(passed.logits, targets), passed.start)
    torch.testing.assert_close(total, whole, rtol=1e-9, atol=1e-14)


def test_stages_that_are_entered_through_words_lie_on_every_path() -> None:
    spec = small(BASIC, depth=1)
    first, second = spec.stages
    second = replace(second, stride=1, enter="norm act conv1 avgpool2s2")
    net = built(replace(spec, stages=(replace(first, enter="conv1"), second)))
    inputs, targets = some_batch()
    paths = PathBackward(net, inputs, targets, F.cross_entropy)
    total = sum(paths.along(set(chosen)) for chosen in ((), (0,), (1,), (0, 1)))
    net.eval()
    passed = run_blocks(net, inputs)
    (whole,) = torch.autograd.grad(F.cross_entropy(passed.logits, targets), passed.start)
    torch.testing.assert_close(total, whole, rtol=1e-9, atol=1e-14)


def test_a_linear_network_has_the_product_of_its_factors() -> None:
    spec = replace(small(Block(body="conv1 +")), stages=small(Block(body="conv1 +"), 5).stages[:1])
    net = built(spec)
    factors = [0.5, 0.1, 2.0, 0.3, 0.7]
    for block, factor in zip(net.layer1, factors, strict=True):
        nn.init.dirac_(block.conv1.weight)
        block.conv1.weight.data.mul_(factor)
    inputs, targets = some_batch()
    paths = PathBackward(net, inputs, targets, F.cross_entropy)
    none = total_norm(paths.along(set()))
    for chosen in ({0}, {1, 3}, {0, 1, 2, 3, 4}):
        product = torch.tensor([factors[i] for i in chosen]).prod().item()
        assert total_norm(paths.along(chosen)) == pytest.approx(none * product, rel=1e-6)
    # with equal factors a path's gradient falls by its length alone
    for block in net.layer1:
        nn.init.dirac_(block.conv1.weight)
        block.conv1.weight.data.mul_(0.5)
    gradients = path_gradients(net, inputs, targets, samples=6)
    means = [gradient.mean for gradient in gradients]
    assert [means[i] / means[0] for i in range(6)] == pytest.approx([0.5**i for i in range(6)])
    assert [len(gradient.norms) for gradient in gradients] == [1, 5, 6, 6, 5, 1] or all(
        len(gradient.norms) <= comb(5, gradient.length) for gradient in gradients
    )
    # weighted by their number: (1 + f)^n term by term
    expected = [comb(5, k) * 0.5**k / 1.5**5 for k in range(6)]
    assert contributions(gradients) == pytest.approx(expected)


def test_sampling_is_by_the_seed_and_leaves_the_network_alone() -> None:
    net = built(small(BASIC)).float().train()
    inputs, targets = some_batch()
    before = state_of(net)
    gradients = path_gradients(net, inputs.float(), targets, lengths=[2, 5], samples=3, seed=1)
    assert state_of(net) == before
    repeated = path_gradients(net, inputs.float(), targets, lengths=[2, 5], samples=3, seed=1)
    other = path_gradients(net, inputs.float(), targets, lengths=[2, 5], samples=3, seed=2)
    assert gradients == repeated
    assert gradients != other
    assert [(gradient.length, gradient.paths) for gradient in gradients] == [
        (2, 15 / 64),
        (5, 6 / 64),
    ]


def test_effective_lengths_are_the_shortest_range_that_carries_enough() -> None:
    def of(*weights: float) -> list[PathGradient]:
        return [PathGradient(i, weight, (1.0,)) for i, weight in enumerate(weights)]

    assert effective_lengths(of(0.02, 0.5, 0.46, 0.01, 0.01), 0.95) == (1, 2)
    assert effective_lengths(of(0.0, 0.0, 1.0), 0.95) == (2, 2)
    assert effective_lengths(of(0.25, 0.25, 0.25, 0.25), 0.95) == (0, 3)
    assert effective_lengths(of(0.0, 0.0), 0.95) == (0, 1)  # no gradient arrives at all


def test_paths_need_residual_blocks_and_possible_lengths() -> None:
    inputs, targets = some_batch()
    with pytest.raises(ValueError, match=r"layer1.0 is not x \+ F\(x\)"):
        path_gradients(built(small(PLAIN)), inputs, targets)
    with pytest.raises(ValueError, match="no path is 7 long: through 6 blocks 0 to 6"):
        path_gradients(built(small(BASIC)), inputs, targets, lengths=[7])

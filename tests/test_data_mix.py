"""MixUp and CutMix: the equations, and draws that depend on the seed and the step alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plusx.data.batch import Batch
from plusx.data.mix import cutmix, mixup


def ones_of_a_kind(count: int = 16, size: int = 16) -> Batch:
    """Image i is the constant i, and its class is i."""
    labels = torch.arange(count)
    return Batch(labels.float()[:, None, None, None].expand(-1, 3, size, size).clone(), labels)


@settings(max_examples=30)
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.sampled_from([0.2, 1.0, 5.0]))
def test_mixup_mixes_inputs_and_targets_with_one_weight(seed: int, step: int, alpha: float) -> None:
    batch = ones_of_a_kind()
    mixed = mixup(alpha)(batch, seed, step, 16)
    assert torch.allclose(mixed.targets.sum(1), torch.ones(16))
    numbers = torch.arange(16.0)
    assert torch.allclose(mixed.inputs[:, 0, 0, 0], mixed.targets @ numbers, atol=1e-4)
    weights = mixed.targets.diagonal()
    others = weights[weights < 1]
    assert len(others) == 0 or torch.allclose(others, others[0].expand_as(others), atol=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 2**40), st.integers(0, 10**6))
def test_cutmix_takes_as_much_of_the_target_as_of_the_pixels(seed: int, step: int) -> None:
    batch = ones_of_a_kind()
    mixed = cutmix(1.0)(batch, seed, step, 16)
    for index, (image, target) in enumerate(zip(mixed.inputs, mixed.targets)):
        kept_share = (image[0] == index).float().mean()
        assert float(target[index]) == pytest.approx(float(kept_share), abs=1e-6)
        assert len(image.unique()) <= 2
        foreign = image[0] != index
        area = foreign.any(1).sum() * foreign.any(0).sum()
        assert int(foreign.sum()) == int(area)
    assert torch.allclose(mixed.targets.sum(1), torch.ones(16))


@pytest.mark.parametrize("mix", [mixup(1.0), cutmix(1.0)], ids=["mixup", "cutmix"])
def test_a_mix_is_a_function_of_the_seed_and_the_step(mix: object) -> None:
    assert callable(mix)
    batch = ones_of_a_kind()
    before = batch.inputs.clone()
    state = torch.get_rng_state()
    first, repeated, later, other = (
        mix(batch, seed, step, 16).inputs for seed, step in ((0, 5), (0, 5), (0, 6), (1, 5))
    )
    assert torch.equal(first, repeated)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)
    assert torch.equal(batch.inputs, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_mixup_weights_follow_the_beta_distribution() -> None:
    batch = ones_of_a_kind(2, 1)
    mix = mixup(0.5)
    shares = []
    for step in range(600):
        target = mix(batch, 0, step, 2).targets
        if target[0, 0] not in (0.0, 1.0):
            shares.append(float(target[0, 0]))
    weights = torch.tensor(shares)
    # Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1))
    assert abs(float(weights.mean()) - 0.5) < 0.06
    assert abs(float(weights.var()) - 1 / 8) < 0.025


def test_several_labels_are_mixed_too() -> None:
    batch = Batch(torch.randn(6, 3, 8, 8), torch.eye(6)[:, :4].contiguous())
    for mix in (mixup(1.0), cutmix(1.0)):
        mixed = mix(batch, 0, 3, 4)
        assert mixed.targets.shape == (6, 4)
        assert float(mixed.targets.sum()) == pytest.approx(4, abs=1e-5)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1000.0])
def test_an_invalid_alpha_is_refused(alpha: float) -> None:
    for mix in (mixup, cutmix):
        with pytest.raises(ValueError, match="alpha"):
            mix(alpha)

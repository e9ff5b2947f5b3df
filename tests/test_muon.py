"""Muon: what the iteration does to singular values, the update against NumPy, and going on."""

from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.tasks.classify import Classify
from plusx.train.loop import fit
from plusx.train.muon import COEFFICIENTS, Muon, make_muon, orthogonal, orthogonal_flops
from plusx.train.schedule import cosine
from plusx.train.state import State


def matrix(rows: int, columns: int, values: list[float], seed: int) -> Tensor:
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    sides = [
        torch.linalg.qr(torch.randn(n, len(values), generator=generator, dtype=torch.float64)).Q
        for n in (rows, columns)
    ]
    return sides[0] @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ sides[1].T


def polynomial(value: np.ndarray, steps: int) -> np.ndarray:
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        value = a * value + b * value**3 + c * value**5
    return value


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**16))


@settings(max_examples=40)
@given(shapes, st.data(), st.integers(1, 6))
def test_the_iteration_acts_on_singular_values_alone(
    shape: tuple[int, int, int], data: st.DataObject, steps: int
) -> None:
    rows, columns, seed = shape
    rank = min(rows, columns)
    values = data.draw(st.lists(st.floats(0.1, 10), min_size=rank, max_size=rank))
    given_, result = matrix(rows, columns, values, seed), None
    result = orthogonal(given_, steps)
    share = np.array(values) / (np.linalg.norm(values) + 1e-7)
    # the vectors stay: the result times the input's transpose is symmetric, of their products
    expected = np.sort(polynomial(share, steps) * np.array(values))
    product = (result @ given_.T).numpy()
    # the map multiplies an error by its slope at 0, 3.4445, in each step: 1e3 times 1e-16 of 10
    assert product == pytest.approx(product.T, abs=1e-9)
    assert np.linalg.eigvalsh(product)[-rank:] == pytest.approx(expected, rel=1e-8, abs=1e-9)


@settings(max_examples=40)
@given(shapes, st.data(), st.sampled_from([(3, 0.02), (5, 0.003)]))
def test_singular_values_end_near_one(
    shape: tuple[int, int, int], data: st.DataObject, promised: tuple[int, float]
) -> None:
    rows, columns, seed = shape
    steps, least = promised
    rank = min(rows, columns)
    # none below the promised share of the norm, which is at most 3
    values = data.draw(st.lists(st.floats(3 * least, 1), min_size=rank, max_size=rank))
    singular_values = torch.linalg.svdvals(orthogonal(matrix(rows, columns, values, seed), steps))[
        :rank
    ]
    assert float(singular_values.min()) >= 0.68
    assert float(singular_values.max()) <= 1.21


def test_a_zero_matrix_stays_zero_and_the_cost_is_counted() -> None:
    assert not orthogonal(torch.zeros(3, 5)).any()
    # two products a step of the smaller square, r r c and r r r, and one of r r c
    assert orthogonal_flops((2, 3, 1, 1), 1) == 2 * (2 * 2 * 3 + 2 * 2 * 2 + 2 * 2 * 3)
    assert orthogonal_flops((3, 2), 4) == orthogonal_flops((2, 3), 4)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.bn1(self.conv1(x)).relu()).mean((2, 3)))


def state(seed: int = 0, **options: float) -> State:
    torch.manual_seed(seed)
    task = Classify(Small())
    return State(task, make_muon(task, lr=0.05, **options), seed)


def batches(count: int, first: int = 0) -> list[Batch]:
    made_batches = []
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        targets = torch.randint(2, (16,), generator=generator)
        images = torch.randn(16, 3, 6, 6, generator=generator)
        made_batches.append(Batch(images + (2.0 * targets - 1)[:, None, None, None], targets))
    return made_batches


def test_groups_have_their_own_rates_and_the_schedule_scales_them_all() -> None:
    filters, heads, flat = make_muon(
        Classify(Small()), lr=0.2, head_lr=0.5, bias_lr=0.1, weight_decay=0.01
    ).param_groups
    assert [len(group["params"]) for group in (filters, heads, flat)] == [2, 1, 4]
    rates = [group["lr"] for group in (filters, heads, flat)]
    assert rates == pytest.approx([0.2, 0.5, 0.1])
    assert [group["orthogonal"] for group in (filters, heads, flat)] == [True, False, False]
    assert [group["weight_decay"] for group in (filters, heads, flat)] == [0, 0.01, 0]


def test_two_updates_are_those_of_the_equations() -> None:
    filters = nn.Parameter(torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 3, 1, 2) ** 3)
    bias = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    groups = [
        {"params": [filters], "orthogonal": True, "momentum": 0.6},
        {"params": [bias], "lr": 0.15, "momentum": 0.9, "weight_decay": 0.1},
    ]
    muon = Muon(groups, 0.3)
    w, b = filters.detach().numpy().reshape(4, 6).copy(), bias.detach().numpy().copy()
    kept_w, kept_b = np.zeros_like(w), np.zeros_like(b)
    for step in range(2):
        g = np.cos(np.arange(24.0) + step).reshape(4, 6)
        h = np.array([0.5, 1.0 + step])
        filters.grad = torch.from_numpy(g.reshape(4, 3, 1, 2))
        bias.grad = torch.from_numpy(h)
        muon.step()
        kept_w = 0.6 * kept_w + g
        u, s, v = np.linalg.svd(g + 0.6 * kept_w, full_matrices=False)
        turned = u @ np.diag(polynomial(s / (np.linalg.norm(s) + 1e-7), 3)) @ v
        w = w * sqrt(4) / np.linalg.norm(w) - 0.3 * turned
        h = h + 0.1 * b
        kept_b = 0.9 * kept_b + h
        b = b - 0.3 * 0.5 * (h + 0.9 * kept_b)
    assert filters.detach().numpy().reshape(4, 6) == pytest.approx(w, abs=1e-12)
    assert bias.detach().numpy() == pytest.approx(b, abs=1e-12)


def test_the_loss_falls_and_a_run_resumes_bit_for_bit() -> None:
    schedule, data = cosine(0.05, 12), batches(12)
    whole = state(weight_decay=1e-3)
    losses = [report.loss for report in fit(whole, data, schedule)]
    assert losses[-1] < losses[0] / 2
    begun = state(weight_decay=1e-3)
    for _ in fit(begun, data[:5], schedule):
        pass
    tensors, values = begun.state_dict()
    resumed = state(seed=9, weight_decay=1e-3)
    resumed.load_state_dict(
        {
            part: {name: t.clone() for name, t in by_name.items()}
            for part, by_name in tensors.items()
        },
        values,
    )
    rest = [report.loss for report in fit(resumed, data[5:], schedule)]
    assert rest == losses[5:]
    for left, right in zip(whole.task.parameters(), resumed.task.parameters(), strict=True):
        assert torch.equal(left, right)


def test_parameters_without_gradients_stay_and_layouts_agree() -> None:
    one, other = state(), state()
    for parameter in other.task.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    other.optimizer = make_muon(other.task, lr=0.05)
    one.task.net.conv2.weight.requires_grad_(False)
    still = one.task.net.conv2.weight.clone()
    for _ in fit(one, batches(2), cosine(0.05, 12)):
        pass
    assert torch.equal(one.task.net.conv2.weight, still)
    plain = state()
    for trained in (plain, other):
        for _ in fit(trained, batches(3), cosine(0.05, 12)):
            pass
    for left, right in zip(plain.task.parameters(), other.task.parameters(), strict=True):
        # sums in another order, in float32
        assert torch.allclose(left, right, atol=1e-4)


def test_a_network_without_filters_is_refused() -> None:
    with pytest.raises(ValueError, match="filters of convolutions"):
        make_muon(Classify(nn.Linear(3, 2)), lr=0.1)
    with pytest.raises(ValueError, match="iterations"):
        make_muon(Classify(Small()), lr=0.1, iterations=0)

"""The rate at every boundary, against its closed form."""

from math import cos, pi

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from plusx.train.patience import Patience
from plusx.train.report import Report
from plusx.train.schedule import WarmupUntil, constant, cosine, one_cycle, steps, warmup


def values_of(step: int, error: float) -> Report:
    return Report(step=step, lr=0.0, loss=1.0, scalars={"error": error})


def test_the_papers_schedule_at_every_boundary():
    rate = steps(0.1, [32000, 48000])
    assert [rate(s) for s in (0, 31999, 32000, 47999, 48000, 64000)] == [
        0.1, 0.1, 0.01, 0.01, 0.001, 0.001,
    ]  # fmt: skip


def test_the_rate_after_the_warm_up_is_the_full_one_exactly():
    for schedule in (constant(0.1), steps(0.1, [50, 80]), cosine(0.1, 100, begin=5)):
        rate = warmup(schedule, 5)
        assert [rate(s) for s in range(5)] == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08])
        assert rate(5) == 0.1
        assert [rate(s) for s in (50, 80, 100)] == [schedule(s) for s in (50, 80, 100)]


def test_a_warm_up_starts_at_its_rate_and_may_be_empty():
    assert warmup(constant(0.1), 4, start=0.02)(0) == 0.02
    assert warmup(constant(0.1), 4, start=0.02)(2) == pytest.approx(0.06)
    assert warmup(constant(0.1), 0)(0) == 0.1


@given(st.integers(1, 500), st.integers(0, 200), st.floats(0.001, 1), st.floats(0, 0.001))
def test_a_cosine_holds_falls_and_ends_exactly(length, start, rate, end):
    at = cosine(rate, start + length, begin=start, end=end)
    assert at(0) == at(start) == rate
    assert at(start + length) == at(start + length + 99) == end
    between = [at(start + s) for s in range(length + 1)]
    assert between == sorted(between, reverse=True)
    expected = [end + (rate - end) / 2 * (1 + cos(pi * s / length)) for s in range(length + 1)]
    assert between == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("total", [10, 50, 200])
def test_one_cycle_is_torchs(total):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.4, total_steps=total, cycle_momentum=False
    )
    at = one_cycle(0.4, total)
    for step in range(total):
        assert at(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-9), step
        optimizer.step()
        if step < total - 1:
            reference.step()
    assert max(at(step) for step in range(total)) == 0.4
    assert at(total) == at(total - 1)


def test_one_batch_neither_ends_nor_restarts_the_warm_up():
    rate = WarmupUntil(steps(0.1, [100]), window=3)
    rates = []
    for step, error in enumerate([0.7, 0.9, 0.9, 0.9, 0.81, 0.8, 0.79, 0.79, 1.0, 1.0, 1.0]):
        rate.observe(values_of(step + 1, error))
        rates.append(rate(step + 1))
    assert rates == [0.01] * 7 + [0.1] * 4
    assert rate(100) == 0.01  # the schedule's own hundredth step, in absolute steps


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_resumed_warm_up_gives_the_same_rates(cut):
    errors = [0.7, 0.9, 0.9, 0.9, 0.81, 0.8, 0.79, 0.79, 1.0, 1.0, 1.0]

    def rates(schedule, start, end):
        out = []
        for step in range(start, end):
            out.append(schedule(step))
            schedule.observe(values_of(step + 1, errors[step]))
        return out

    whole = rates(WarmupUntil(constant(0.1), window=3), 0, len(errors))
    first, second = WarmupUntil(constant(0.1), window=3), WarmupUntil(constant(0.1), window=3)
    head = rates(first, 0, cut)
    second.load_state_dict(first.state_dict())
    assert head + rates(second, cut, len(errors)) == whole


def test_patience_runs_out_and_is_kept_as_plain_values():
    patience = Patience(2)
    assert [patience.observe(a) for a in (0.5, 0.4, 0.6, 0.6)] == [False] * 4
    restored = Patience(**vars(patience))
    assert restored.observe(0.1)
    assert (restored.best, restored.waited) == (0.6, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: constant(0.0), "rate is 0.0"),
        (lambda: constant(float("nan")), "rate is nan"),
        (lambda: steps(0.1, [5, 5]), "must increase"),
        (lambda: steps(0.1, [0]), "must increase"),
        (lambda: cosine(0.1, 5, begin=5), "begin < total"),
        (lambda: cosine(0.1, 5, end=1.0), "end is 1.0"),
        (lambda: one_cycle(0.1, 1), "total = 1 "),
        (lambda: warmup(constant(0.1), -1), "-1 steps"),
        (lambda: WarmupUntil(constant(0.1), window=0), "window"),
        (lambda: WarmupUntil(constant(0.1)).observe(Report(1, 0.1, 1.0, {})), "reports an error"),
    ],
)
def test_invalid_schedules_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()

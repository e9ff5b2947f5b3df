"""Areas under ROC curves and their intervals, against scikit-learn and against drawing anew."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from plusx.data.batch import Batch
from plusx.data.prediction import ClassProbabilities
from plusx.metrics.classification import ClassificationMeter, MultiLabelMeter
from plusx.metrics.roc import areas


def _scored(seed: int, n: int, k: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    answers = random.random((n, k)) < 0.3
    scores = random.standard_normal((n, k)) + shift * answers
    return scores, answers


@pytest.mark.slow
@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), ties=st.booleans(), n=st.integers(2, 40))
def test_areas_are_those_of_scikit_learn_and_lie_in_their_intervals(
    seed: int, ties: bool, n: int
) -> None:
    scores, answers = _scored(seed, n, 3, 0.7)
    scores = np.round(scores) if ties else scores
    per_class, mean = areas(scores, answers)
    expected = []
    for column, yes, area in zip(scores.T, answers.T, per_class, strict=True):
        if yes.all() or not yes.any():
            assert area.value is None
            assert area.interval is None
            continue
        expected.append(roc_auc_score(yes, column))
        assert area.value == pytest.approx(expected[-1], abs=1e-12)
        if area.interval is not None:
            low, high = area.interval
            assert 0 <= low <= area.value <= high <= 1
            assert low < high
    assert mean.value == (pytest.approx(np.mean(expected), abs=1e-12) if expected else None)


def test_one_class_has_the_interval_of_its_mean() -> None:
    """Both ways to the variance differ by a share of one in the number of yeses alone."""
    scores, answers = _scored(0, 4000, 1, 1.0)
    per_class, mean = areas(scores, answers)
    assert per_class[0].interval == pytest.approx(mean.interval, abs=1e-4)


def test_a_perfect_ranking_has_an_interval() -> None:
    """Of ten yeses none was out of order: a share of which ten trials saw no exception."""
    scores = np.arange(40.0)[:, None]
    ((area,), _) = areas(scores, scores >= 30)
    assert area.value == 1
    assert area.interval == [pytest.approx(0.025**0.1), 1.0]
    ((worst,), _) = areas(-scores, scores >= 30)
    assert worst.interval == [0.0, pytest.approx(1 - 0.025**0.1)]


@pytest.mark.slow
def test_intervals_have_their_nominal_coverage() -> None:
    """Of 400 draws about 20 intervals of 95 % miss; more than 40 has a chance below 1e-4."""
    truth = 0.5 * (1 + float(torch.erf(torch.tensor(0.5))))  # of normals one deviation apart
    missed, missed_mean = 0, 0
    for seed in range(400):
        per_class, mean = areas(*_scored(seed, 300, 2, 1.0))
        low, high = per_class[0].interval or [0.0, 0.0]
        missed += not low <= truth <= high
        low, high = mean.interval or [0.0, 0.0]
        missed_mean += not low <= truth <= high
    assert missed <= 40
    assert missed_mean <= 40


def test_dependent_samples_are_not_counted_twice() -> None:
    """A question that is asked twice tells no more than once: the interval is as wide."""
    scores, answers = _scored(1, 500, 1, 1.0)
    _, once = areas(scores, answers)
    _, twice = areas(np.repeat(scores, 2, 1), np.repeat(answers, 2, 1))
    assert once.interval == pytest.approx(twice.interval)


def test_meters_report_the_area_of_every_class() -> None:
    scores, answers = _scored(2, 60, 3, 1.0)
    probabilities = torch.from_numpy(1 / (1 + np.exp(-scores)))
    meter = MultiLabelMeter(("a", "b", "c"))
    targets = torch.from_numpy(answers.astype(np.float32))
    meter.update(ClassProbabilities(probabilities, True), Batch(targets, targets))
    figures = meter.compute()
    assert [row["label"] for row in figures["per_class"]] == ["a", "b", "c"]
    assert figures["auroc"] == pytest.approx(np.mean([r["auroc"] for r in figures["per_class"]]))
    assert figures["auroc_interval"][0] < figures["auroc"] < figures["auroc_interval"][1]
    single = ClassificationMeter(("a", "b"))
    probabilities, targets = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1])
    single.update(ClassProbabilities(probabilities), Batch(targets, targets))
    (first, _) = single.compute()["per_class"]
    assert (first["auroc"], first["auroc_interval"]) == (1.0, None)


def test_equal_scores_have_no_interval() -> None:
    answers = (np.arange(40) % 2 == 0)[:, None]
    ((area,), mean) = areas(np.full((40, 1), 0.3), answers)
    assert area.value == mean.value == 0.5
    assert area.interval is None
    assert mean.interval is None

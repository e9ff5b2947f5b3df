"""Figures equal to scikit-learn's, and to their definitions where it has none."""

import json
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from plusx.data.batch import Batch
from plusx.data.prediction import ClassProbabilities
from plusx.metrics.calibration import calibration_error
from plusx.metrics.classification import ClassificationMeter, MultiLabelMeter


def draw(n: int, k: int, seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, k, n)
    logits = generator.normal(size=(n, k)) + 1.5 * np.eye(k)[targets]
    if ties:
        logits = logits.round()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.astype(np.float32), targets


def update(meter, predictions, targets) -> None:
    meter.update(ClassProbabilities(predictions), Batch(targets, targets))


def judge(meter, predictions, targets, batch: int = 7) -> dict:
    for i in range(0, len(targets), batch):
        update(
            meter,
            torch.from_numpy(predictions[i : i + batch]),
            torch.tensor(targets[i : i + batch]),
        )
    return meter.compute()


@given(st.integers(1, 60), st.integers(2, 9), st.integers(0, 999), st.booleans())
@settings(max_examples=30)
def test_multiclass_metrics_equal_those_of_scikit_learn(n, k, seed, ties):
    probabilities, targets = draw(n, k, seed, ties)
    figures = judge(ClassificationMeter(), probabilities, targets)
    predicted = probabilities.argmax(1)
    labels = list(range(k))

    assert figures["count"] == n
    assert figures["averaging"] == "macro"
    assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert (
        figures["confusion"] == metrics.confusion_matrix(targets, predicted, labels=labels).tolist()
    )
    macro = metrics.precision_recall_fscore_support(
        targets, predicted, average="macro", zero_division=0.0
    )
    assert [figures[key] for key in ("precision", "recall", "f1")] == pytest.approx(macro[:3])
    rows = metrics.precision_recall_fscore_support(
        targets, predicted, labels=labels, zero_division=0.0
    )
    for key, column in zip(("precision", "recall", "f1", "count"), rows):
        assert [row[key] for row in figures["per_class"]] == pytest.approx(column)
    exact = probabilities.astype(np.float64)
    loss = metrics.log_loss(targets, exact / exact.sum(1, keepdims=True), labels=labels)
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    if k > 5:
        # With ties scikit-learn keeps the higher class; a stable order keeps the lower.
        if not ties:
            best = metrics.top_k_accuracy_score(targets, probabilities, k=5, labels=labels)
            assert figures["top5"] == pytest.approx(best)
    else:
        assert "top5" not in figures


@given(st.integers(2, 60), st.integers(2, 9), st.integers(0, 999), st.booleans())
@settings(max_examples=30)
def test_areas_under_the_curve_are_those_of_scikit_learn(n, k, seed, ties):
    probabilities, targets = draw(n, k, seed, ties)
    areas = [
        metrics.roc_auc_score(targets == c, probabilities[:, c])
        for c in range(k)
        if 0 < (targets == c).sum() < n
    ]
    auroc = judge(ClassificationMeter(), probabilities, targets)["auroc"]
    assert auroc == (pytest.approx(np.mean(areas)) if areas else None)
    if len(areas) == k > 2:
        whole = metrics.roc_auc_score(targets, probabilities.astype(np.float64), multi_class="ovr")
        assert auroc == pytest.approx(whole)


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 999))
@settings(max_examples=30)
def test_multilabel_metrics_equal_those_of_scikit_learn(n, k, seed):
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 2, (n, k))
    probabilities = generator.random((n, k)).round(2).astype(np.float32) * 0.8 + 0.2 * targets
    probabilities = probabilities.astype(np.float32)
    figures = judge(MultiLabelMeter(), probabilities, targets.astype(np.float32))
    predicted = (probabilities >= 0.5).astype(int)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a figure divides by zero
        # One column of labels is to scikit-learn a classifier of two classes.
        right = targets if k > 1 else targets[:, 0]
        answers = predicted if k > 1 else predicted[:, 0]
        assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(right, answers))
        assert figures["label_accuracy"] == pytest.approx(1 - metrics.hamming_loss(right, answers))
        matrices = metrics.multilabel_confusion_matrix(targets, predicted, labels=list(range(k)))
        assert k == 1 or figures["confusion"] == matrices.tolist()
        if k > 1:
            macro = metrics.precision_recall_fscore_support(
                targets, predicted, average="macro", zero_division=0.0
            )
            assert [figures[key] for key in ("precision", "recall", "f1")] == pytest.approx(
                macro[:3]
            )
        areas = [
            metrics.roc_auc_score(targets[:, c], probabilities[:, c])
            for c in range(k)
            if 0 < targets[:, c].sum() < n
        ]
    assert figures["auroc"] == (pytest.approx(np.mean(areas)) if areas else None)
    if len(areas) == k > 1:
        assert figures["auroc"] == pytest.approx(
            metrics.roc_auc_score(targets, probabilities, average="macro")
        )
    losses = torch.nn.functional.binary_cross_entropy(
        torch.from_numpy(probabilities), torch.from_numpy(targets).float()
    )
    assert figures["loss"] == pytest.approx(float(losses), rel=1e-4)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80))
@settings(max_examples=60)
def test_the_calibration_error_is_the_sum_over_bins_of_its_definition(pairs):
    confidences, hits = np.array([p for p, _ in pairs]), np.array([h for _, h in pairs])
    edges = np.linspace(0, 1, 16)
    expected = 0.0
    for m, (low, high) in enumerate(pairwise(edges)):
        inside = (confidences > low) & (confidences <= high)
        if m == 0:
            inside |= confidences == 0
        if inside.any():
            gap = abs(hits[inside].mean() - confidences[inside].mean())
            expected += inside.mean() * gap
    assert calibration_error(confidences, hits) == pytest.approx(expected, abs=1e-12)


def test_the_calibration_error_of_a_hand_made_case():
    # 0.61 and 0.65 share a bin (0.6 to 0.667), half of them right; 0.99 is alone and right.
    error = calibration_error(np.array([0.61, 0.65, 0.99]), np.array([True, False, True]))
    assert error == pytest.approx((2 * abs(0.5 - 0.63) + abs(1 - 0.99)) / 3)


def test_macro_recall_is_the_accuracy_of_a_balanced_set():
    probabilities, _ = draw(60, 6, 0)
    figures = judge(ClassificationMeter(), probabilities, np.arange(60) % 6)
    assert figures["recall"] == pytest.approx(figures["accuracy"])


def test_metrics_round_trip_through_json_with_class_names():
    names = ["cat", "dog", "eel", "fox", "gnu", "hen"]
    figures = judge(ClassificationMeter(names), *draw(40, 6, 1))
    assert json.loads(json.dumps(figures)) == figures
    assert [row["label"] for row in figures["per_class"]] == names
    rows = judge(MultiLabelMeter(names[:2]), np.full((3, 2), 0.5, np.float32), np.ones((3, 2)))
    assert json.loads(json.dumps(rows)) == rows


def test_a_probability_of_zero_costs_much_but_not_infinity():
    figures = judge(ClassificationMeter(), np.array([[1.0, 0.0]], np.float32), np.array([1]))
    assert figures["loss"] == pytest.approx(-np.log(np.finfo(np.float32).tiny))


@pytest.mark.parametrize(
    ("meter", "predictions", "targets", "words"),
    [
        (ClassificationMeter(), torch.rand(3, 4), torch.tensor([0, 1, 4]), "0 to 3"),
        (ClassificationMeter(), torch.rand(3, 4), torch.tensor([0, 1, -100]), "-100"),
        (ClassificationMeter(["a"]), torch.rand(3, 4), torch.tensor([0, 1, 2]), "1 names"),
        (ClassificationMeter(), torch.rand(3, 4), torch.rand(3, 4), "class numbers"),
        (MultiLabelMeter(), torch.rand(3, 4), torch.tensor([0, 1, 2]), "shape"),
        (MultiLabelMeter(), torch.rand(3, 4), torch.full((3, 4), 2.0), "zeros and ones"),
    ],
)
def test_invalid_predictions_are_refused(meter, predictions, targets, words):
    with pytest.raises(ValueError, match=words):  # noqa: PT012 - either may be the one to refuse
        update(meter, predictions, targets)
        meter.compute()


def test_nan_predictions_are_refused():
    predictions = np.array([[0.5, 0.5], [np.nan, np.nan]], np.float32)
    with pytest.raises(FloatingPointError, match="of 1 of 2 inputs"):
        judge(ClassificationMeter(), predictions, np.array([0, 1]))


def test_evaluating_nothing_is_refused():
    with pytest.raises(ValueError, match="there was no batch"):
        ClassificationMeter().compute()

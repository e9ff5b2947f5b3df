"""`plusx assess`: calibration against hand-computed values, the table, two runs, bad input."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import small_run
from page_reader import Page
from plusx import cli
from plusx.bench.assessment import MEASURES
from plusx.data.loader import batches
from plusx.metrics.calibration import calibration_error, reliability, temperature
from plusx.recipe import parse_recipe
from plusx.run import train
from plusx.run.folder import load_run
from plusx.run.forgetting import after_second_task
from plusx.run.probing import train_and_evaluated
from plusx.statistics import difference_of_intervals, wilson
from plusx.train.loop import evaluating


def test_calibration_error_by_hand():
    # two bins: 4 samples at 0.9 of which 3 are right, 2 at 0.55 of which none is
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.55, 0.55])
    correct = np.array([True, True, True, False, False, False])
    expected = 4 / 6 * abs(0.9 - 0.75) + 2 / 6 * 0.55
    assert calibration_error(confidence, correct) == pytest.approx(expected)
    rows = reliability(confidence, correct)
    assert [row["count"] for row in rows] == [2, 4]
    assert rows[1]["accuracy"] == 0.75
    assert calibration_error(np.ones(5), np.ones(5, bool)) == 0


@settings(max_examples=20, deadline=None)
@given(st.floats(0.3, 4.0), st.integers(0, 5))
def test_the_temperature_of_scaled_logits_is_found(factor, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4000, 5, generator=generator)
    labels = torch.distributions.Categorical(logits=logits).probs.multinomial(
        1, generator=generator
    )[:, 0]
    assert temperature((factor * logits).log_softmax(1), labels) == pytest.approx(factor, rel=0.12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 100), st.integers(0, 100))
def test_the_interval_of_a_difference_is_newcombes(first, second):
    """For two proportions, MOVER is Newcombe's hybrid score interval (1998, method 10)."""
    (a, b), count = (first / 100, second / 100), 100
    one, two = wilson(a, count), wilson(b, count)
    difference = difference_of_intervals((a, one.low, one.high), (b, two.low, two.high))
    assert difference.low <= a - b <= difference.high
    assert difference.low == pytest.approx(a - b - math.hypot(a - one.low, two.high - b))
    assert -1 <= difference.low <= difference.high <= 1
    swapped = difference_of_intervals((b, two.low, two.high), (a, one.low, one.high))
    assert swapped.low == pytest.approx(-difference.high)


def test_newcombes_published_example():
    # 56 of 70 against 48 of 80: 0.20 (0.0524 to 0.3339), Newcombe 1998, table II, example a
    one, two = wilson(56 / 70, 70), wilson(48 / 80, 80)
    difference = difference_of_intervals((0.8, one.low, one.high), (0.6, two.low, two.high))
    assert difference.low == pytest.approx(0.0524, abs=5e-5)
    assert difference.high == pytest.approx(0.3339, abs=5e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A trained and a hardly trained run on the digits."""
    folder = tmp_path_factory.mktemp("assess")
    for name, steps in (("long", 80), ("short", 4)):
        text = small_run.recipe(steps, 64).replace("pad1 crop flip", "").replace("drop.2 ", "")
        text = text.replace("every_steps = 1", "every_steps = 0")
        train(parse_recipe(text), folder / name, progress=False)
    return [folder / "long", folder / "short"]


def assess(*words: object, capsys: pytest.CaptureFixture[str]) -> dict:
    assert cli.run(["assess", *map(str, words), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_two_runs_side_by_side(runs, capsys, tmp_path):
    out = tmp_path / "out"
    words = ("--images", 12, "--steps", 3, "--out", out)
    result = assess(*runs, *words, capsys=capsys)
    for one in (result, result["other"]):
        for measure in MEASURES:
            value = measure.value(one)
            assert value is not None
            if "low" in value:
                assert value["low"] <= value["value"] <= value["high"], measure
        assert one["size_bytes"]["value"] > 4 * one["parameters"]
        assert one["memory_bytes"]["value"] > 4 * one["parameters"]
        assert one["latency_ms"]["low"] > 0
    assert [row["measure"] for row in result["differences"]] == [row.title for row in MEASURES]
    clean = result["differences"][0]
    assert clean["difference"] == pytest.approx(
        result["clean"]["value"] - result["other"]["clean"]["value"]
    )
    assert clean["low"] > 0  # the longer training is better
    assert "better in accuracy" in result["finding"]
    assert json.loads((out / "assess.json").read_text())["clean"] == result["clean"]
    page = Page((out / "assess.html").read_text())
    assert "Accuracy on attacked images" in page.text


def test_a_second_task_costs_accuracy_and_leaves_the_run_alone(runs):
    trained = load_run(runs[0])
    before = {name: value.clone() for name, value in trained.task.state_dict().items()}
    train, evaluated, _ = train_and_evaluated(trained, None, "validation", "error")
    task = after_second_task(trained, train, steps=30)
    repeated = after_second_task(trained, train, steps=30)
    for name, value in trained.task.state_dict().items():
        assert torch.equal(value, before[name]), name
    after = task.state_dict()
    for name, value in repeated.state_dict().items():
        assert torch.equal(value, after[name]), name
    assert torch.equal(after["net.fc.weight"], before["net.fc.weight"])
    first = next(name for name in before if name.endswith("weight"))
    assert not torch.equal(after[first], before[first])
    batch = next(iter(batches(evaluated, batch_size=len(evaluated))))
    accuracies = []
    for one in (trained.task, task):
        with evaluating(one), torch.no_grad():
            predicted = one.predict(batch).probabilities.argmax(1)
        accuracies.append(float((predicted == batch.targets).float().mean()))
    assert accuracies[0] > accuracies[1] + 0.1


def test_the_test_set_is_recorded(runs, capsys, tmp_path):
    before = (runs[1] / "test_uses.jsonl").exists()
    words = ("--split", "test", "--images", 4, "--steps", 2, "--out", tmp_path)
    assess(runs[1], *words, capsys=capsys)
    assert not before
    lines = (runs[1] / "test_uses.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("by") == "assess" for line in lines)


def test_bad_input_is_one_line(runs, capsys, tmp_path):
    onnx = tmp_path / "net.onnx"
    assert cli.run(["export", str(runs[1]), "--out", str(onnx)]) == 0
    capsys.readouterr()
    for words, message in (
        ([str(onnx)], "without gradients"),
        ([str(runs[0]), "--eps", "-1"], "--eps -1"),
        ([str(runs[0]), "--images", "0"], "images = 0"),
        ([str(tmp_path / "none")], "no such run"),
    ):
        assert cli.run(["assess", *words]) == 2
        assert message in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused_before_the_work(runs, capsys, tmp_path):
    text = small_run.recipe(2, 64, data="validation = 100")
    other = parse_recipe(text.replace("pad1 crop flip", "").replace("drop.2 ", ""))
    train(other, tmp_path / "other", progress=False)
    capsys.readouterr()
    for words, message in (
        ([str(runs[1]), str(tmp_path / "other")], "would be assessed on other images"),
        ([str(runs[1]), "--split", "train"], "allowed are validation and test"),
        ([str(runs[1]), "--eps", "1/255,2/255"], "a single size"),
        ([str(runs[1]), "--steps", "0"], "steps = 0"),
        ([str(runs[1]), "--second-steps", "-1"], "second_steps = -1"),
    ):
        assert cli.run(["assess", *words]) == 2
        err = capsys.readouterr().err
        assert message in err, words
        assert "accuracy and calibration" not in err

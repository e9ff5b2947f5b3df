"""What is said of a comparison follows from its numbers, and from nothing else."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plusx.recipe import load_recipe
from plusx.report.text_table import study_tables
from plusx.statistics import share_interval, spread
from plusx.study.comparison import comparison_finding
from plusx.study.experiment import TrialResult, grouped
from plusx.study.figures import over_epochs
from plusx.study.progress import LogTail, Progress, RunProgress
from plusx.study.results import epochs_to, summarise
from plusx.study.trial import Trial
from study_results import DEGRADED, comparison, run


SHARES = st.lists(st.integers(0, 300).map(lambda right: right / 300), min_size=2, max_size=12)


@given(SHARES)
@settings(max_examples=60)
def test_spread_is_the_sample_standard_deviation(values: list[float]) -> None:
    result = spread(values)
    assert result["mean"] == pytest.approx(np.mean(values))
    assert result["std"] == pytest.approx(np.std(values, ddof=1))
    assert result["seeds"] == values


def test_one_seed_has_no_spread() -> None:
    assert spread([0.5]) == {"mean": 0.5, "std": None, "seeds": [0.5]}
    assert share_interval([0.5], 300) is None


@given(SHARES)
@settings(max_examples=60)
def test_an_interval_includes_uncertainty_of_seeds_and_samples(values: list[float]) -> None:
    interval = share_interval(values, 300)
    assert interval is not None
    assert 0 <= interval.low <= np.mean(values) + 1e-12
    assert np.mean(values) - 1e-12 <= interval.high <= 1
    students = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    p = (np.mean(values) * 300 + 2) / 304
    images = stats.norm.ppf(0.975) * math.sqrt(p * (1 - p) / 304)
    half = math.hypot(students, images)
    assert interval.low == pytest.approx(max(0, np.mean(values) - half), abs=1e-3)
    assert interval.high == pytest.approx(min(1, np.mean(values) + half), abs=1e-3)


def test_equal_seeds_still_have_an_interval() -> None:
    interval = share_interval([0.98, 0.98, 0.98], 300)
    assert interval is not None
    assert interval.high - interval.low > 0.02


def test_degradation_is_detected() -> None:
    assert comparison(DEGRADED)["finding"] == (
        "plain56 reaches 32 % validation accuracy where resnet56 reaches 98.0 %: depth hurts "
        "without skips."
    )


@pytest.mark.parametrize(
    ("accuracies", "finding"),
    [
        (
            {"plain56": (0.97, 0.98, 0.96), "resnet56": (0.98, 0.97, 0.98)},
            ("plain56 (97.0 %) and resnet56 (97.7 %) do not differ in validation accuracy by more "
            "than chance allows (resnet56 minus plain56: +0.7 points, -1.4 to +2.7)."),
        ),
        (
            {"plain56": (0.2, 0.9, 0.5), "resnet56": (0.98, 0.97, 0.98)},
            ("plain56 (53 %) and resnet56 (97.7 %) do not differ in validation accuracy by more "
            "than chance allows (resnet56 minus plain56: +44.3 points, -42.9 to +100.0)."),
        ),
        (
            {"plain56": (0.97, 0.98, 0.96), "resnet56": (0.48, 0.47, 0.48)},
            ("resnet56 reaches 48 % validation accuracy where plain56 reaches 97.0 %: here the "
            "skips did not help."),
        ),
        (
            {"plain56": (0.3, 0.31, 0.3), "resnet56": (0.98, 0.97, 0.98)},
            ("plain56 reaches 30 % validation accuracy where resnet56 reaches 97.7 %: at this "
            "depth the skips make the difference."),
        ),
        (
            {**DEGRADED, "plain20": (0.3, 0.31, 0.3)},
            ("plain56 reaches 32 % validation accuracy where resnet56 reaches 98.0 %: at this "
            "depth the skips make the difference."),
        ),
        (
            {**DEGRADED, "resnet56": (0.8, 0.81, 0.8)},
            ("plain56 reaches 32 % validation accuracy where resnet56 reaches 80 %: depth hurts "
            "without skips, and less with them."),
        ),
        (
            {
                "resnet20": (0.98, 0.97, 0.98),
                "wrn16_4": (0.985, 0.98, 0.98),
                "vgg11": (0.7, 0.71, 0.7),
            },
            (
                "wrn16_4 reaches 98.2 % validation accuracy; vgg11 (70 %) is behind; "
                "resnet20 (97.7 %) does not differ from it by more than chance allows."
            ),
        ),
        ({"resnet20": (0.98, 0.97)}, "resnet20 reaches 97.5 % validation accuracy."),
        (
            {"plain56": (0.3,), "resnet56": (0.98,)},
            ("One seed, validation accuracy: plain56 30 % and resnet56 98.0 %; how far seeds "
            "differ is not known."),
        ),
    ],
)  # fmt: skip
def test_overlapping_intervals_show_no_difference(
    accuracies: dict[str, tuple[float, ...]], finding: str
) -> None:
    assert comparison(accuracies)["finding"] == finding


def test_a_network_that_only_overfits_is_not_called_harder_to_train() -> None:
    """Degradation is worse training, not worse generalisation: He et al. 2015, figure 1."""
    rows = comparison(DEGRADED)["rows"]
    for row in rows:
        row["train_error"] = spread([0.0, 0.0, 0.0])
    assert "depth hurts" not in comparison_finding(rows)


def test_epochs_to_a_threshold() -> None:
    points = run("resnet20", 0, 0.96, epochs=6).points  # 0.16, 0.32, ... 0.96
    assert epochs_to(points, 0.5) == 4
    assert epochs_to(points, points[4].score or 0.0) == 5
    assert epochs_to(points, 0.97) is None


def test_a_row_counts_the_seeds_that_reached_the_threshold() -> None:
    runs = [run("resnet20", 0, 0.96), run("resnet20", 1, 0.5), run("resnet20", 2, 0.98)]
    row = summarise("resnet20", runs, 0.9)
    assert row["epochs_to_threshold"] == {
        "threshold": 0.9, "mean": 6.0, "std": 0.0, "seeds": [6, None, 6], "reached": 2
    }  # fmt: skip
    assert row["accuracy"]["seeds"] == [0.96, 0.5, 0.98]


def test_curves_are_means_between_lowest_and_highest() -> None:
    accuracy, *_ = comparison({"plain20": (0.6, 0.3)})["figures"]
    (line,) = accuracy["lines"]
    assert line["x"] == [1, 2, 3, 4, 5, 6]
    assert line["mean"][-1] == pytest.approx(0.45)
    assert line["low"][-1] == pytest.approx(0.3)
    assert line["high"][-1] == pytest.approx(0.6)


def test_curves_end_where_the_shortest_run_does() -> None:
    recipe = load_recipe("digits")
    runs = [run("plain20", 0, 0.6, epochs=4), run("plain20", 1, 0.3)]
    results = [
        TrialResult(
            trial=Trial(name="plain20", seed=run_folder.seed, recipe=recipe),
            folder=tmp,
            run=run_folder,
            values={},
        )
        for run_folder, tmp in zip(runs, (Path("a"), Path("b")), strict=True)
    ]
    (group,) = grouped(results)
    assert over_epochs(group, lambda point: point.score)["x"] == [1, 2, 3, 4]


def test_the_table_names_its_metrics() -> None:
    table = study_tables(comparison(DEGRADED))
    head, units, *_ = table.splitlines()
    columns = ("Parameters", "MACs", "Accuracy", "Precision", "Recall", "F1",
               "Train error", "Seconds", "Epochs")  # fmt: skip
    assert all(column in head for column in columns)
    assert "to 90 %" in units
    assert "not reached" in table
    (note,) = comparison(DEGRADED)["notes"]
    assert "validation split, 300 images" in note
    assert "macro averages" in note


def test_the_table_fits_a_terminal() -> None:
    lines = study_tables(comparison(DEGRADED), 80).split("\n\n")[0].splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["name", "plain20", "resnet20", "plain56", "resnet56"]


def test_a_log_is_read_incrementally_and_again_after_truncation(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    tail = LogTail(log)
    assert tail.lines() == []
    log.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in tail.lines()] == [1, 2]
    assert tail.lines() == []
    with log.open("a") as file:
        file.write('ep": 3}\n')
    assert [line["step"] for line in tail.lines()] == [3]
    log.write_text('{"step": 1}\n')
    assert [line["step"] for line in tail.lines()] == [1]


def test_plain_progress_lines_have_run_epoch_metric_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.jsonl"
    now = [0.0]
    monkeypatch.setattr("plusx.study.progress.time.monotonic", lambda: now[0])
    written = tmp_path / "output"
    with written.open("w") as stream, Progress(stream, runs=2, cost=20.0) as progress:
        progress.running.append(
            RunProgress("plain20 seed 1", LogTail(log), 10.0, epochs=4, steps=None, started=0.0)
        )
        for now[0] in (6.0, 11.5):  # nothing is printed twice
            progress.show()
        log.write_text('{"step": 1, "epoch": 1, "loss": 2.0}\n')
        now[0] = 12.0
        progress.show()
        end = {"step": 10, "epoch": 1, "train_loss": 1.0, "validation": {"accuracy": 0.25}}
        with log.open("a") as file:
            file.write(json.dumps(end) + "\n")
        now[0] = 18.0
        progress.show()
        progress.end("plain20 seed 1", "")
    lines = written.read_text().splitlines()
    assert lines[0] == "0 of 2 runs, 6 s: plain20 seed 1 starting"
    assert lines[1] == "0 of 2 runs, 12 s: plain20 seed 1 epoch 1/4"
    # An eighth of all took 6 s since the first step was seen; seven eighths are left.
    assert lines[2] == (
        "0 of 2 runs, 18 s, about 42 s left: plain20 seed 1 epoch 1/4, accuracy 25.0 %"
    )
    assert lines[3] == "plain20 seed 1: accuracy 25.0 %, 1 epoch in 18 s"


def test_progress_prints_a_metric_in_its_unit(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    run = RunProgress("translator", LogTail(log), 1.0, epochs=1, steps=None)
    end = {"step": 10, "epoch": 1, "train_loss": 1.0, "validation": {"bleu": 8.844, "loss": 3.0}}
    log.write_text(json.dumps(end) + "\n")
    run.update()
    assert run.score == "BLEU 8.84 points"

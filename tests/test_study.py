"""Studies as they are made: in real processes, interrupted, gone on with, and with odd runs."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plusx import cli, run
from plusx.recipe import load_recipe, to_toml
from plusx.run import build
from plusx.statistics import difference, spread
from plusx.study.catalogue import EXPERIMENTS, MEASURES
from plusx.study.experiment import compared
from plusx.study.gradients import aligned, depth_figure, measure_gradients, over_training
from plusx.study.runner import rows, study


SMALL = (
    "epochs=2",
    "data.train=64",
    "study.depths=[20]",
    "study.kinds=[plain,resnet]",
    "study.norms=[batch,none]",
    "study.seeds=[0,1]",
    "checkpoint.every_steps=1",
)


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("study") / "out"
    with (out.parent / "said").open("w") as stream:
        return out, study(load_recipe("degradation", SMALL), out, jobs=2, progress=stream)


@pytest.mark.slow
def test_a_study_has_question_settings_and_results(
    finished_study: tuple[Path, dict[str, Any]],
) -> None:
    out, result = finished_study
    names = ["plain20", "resnet20", "plain20 no norm", "resnet20 no norm"]
    assert [row["name"] for row in result["rows"]] == names
    keys = {column["key"] for column in result["columns"]}
    for row in result["rows"]:
        assert keys <= set(row)
        assert row["seeds"] == [0, 1]
        assert 0 <= row["train_error"]["mean"] <= 1
    assert result["marked"] == []
    assert {"command", "recipe", "versions", "machine", "date", "finding"} <= set(result)
    assert json.loads((out / "result.json").read_text()) == result
    page = (out / "report.html").read_text()
    assert page.count("<svg") == len(result["figures"]) == 4


@pytest.mark.slow
def test_gradients_are_measured_at_the_start_and_at_checkpoints(
    finished_study: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = finished_study
    folder = out / "runs" / "plain20-seed0"
    result = json.loads((folder / "gradients.json").read_text())
    assert result["steps"] == [0, 1, 2]
    assert len(result["blocks"]) == 9
    assert all(len(norms) == 9 for norms in result["outputs"])
    assert len(list((folder / "checkpoints").glob("step-*"))) == 1


@pytest.mark.slow
def test_interruptions_are_no_measured_checkpoints(tmp_path: Path) -> None:
    """Ctrl-C saves wherever a run is; here it is saved after each step, and every second is due."""
    overrides = ["steps=5", "data.train=64", "batch_size=8", "checkpoint.every_steps=1"]
    recipe = replace(load_recipe("degradation", [*overrides, "net.base=plain20"]), study=None)
    run.train(recipe, tmp_path / "run", progress=False)
    due = replace(recipe, checkpoint=replace(recipe.checkpoint, every_steps=2))
    assert measure_gradients(due, tmp_path / "run")["steps"] == [0, 2, 4, 5]


def test_seeds_are_compared_at_common_steps() -> None:
    def seen(*steps: int) -> dict[str, Any]:
        places = list(steps)
        norms = [[float(step)] for step in steps]
        return {"steps": places, "blocks": ["a"], "outputs": norms, "weights": norms,
                "ratio": [float(step) for step in steps]}  # fmt: skip

    assert aligned([seen(0, 2, 3, 4), seen(0, 2, 4)]) == [seen(0, 2, 4)] * 2
    assert over_training("net", aligned([seen(1, 2, 3), seen(1, 3)]))["x"] == [1, 3]


@pytest.mark.slow
def test_finished_trials_are_not_repeated(finished_study: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished_study
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/*.json")}
    recipe = load_recipe("degradation", SMALL)
    assert list(rows(recipe, out)) == result["rows"]
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/*.json")} == before
    assert json.loads((out / "result.json").read_text()) == result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "key", "value", "why"),
    [
        ("environment.json", "plusx", "0.0.1", "plusx 0.0.1, not "),
        ("environment.json", "processor", "Abacus", "processor Abacus, not "),
        ("data.json", "classes", ["a", "b"], "other data than the other runs"),
    ],
)
def test_an_incomparable_run_is_listed_and_in_no_mean(
    finished_study: tuple[Path, dict[str, Any]], file: str, key: str, value: object, why: str
) -> None:
    out, result = finished_study
    path = out / "runs" / "resnet20-seed1" / file
    text = path.read_text()
    path.write_text(json.dumps({**json.loads(text), key: value}))
    try:
        changed = study(load_recipe("degradation", SMALL), out)
    finally:
        path.write_text(text)
    row = changed["rows"][1]
    assert (row["name"], row["seeds"]) == ("resnet20", [0])
    assert row["train_error"]["std"] is None
    (odd,) = changed["marked"]
    assert odd["name"] == "resnet20"
    assert odd["seeds"] == [1]
    assert why in odd["why"]
    assert odd["why"] in (out / "report.html").read_text()
    assert study(load_recipe("degradation", SMALL), out)["rows"] == result["rows"]


@pytest.mark.slow
def test_a_terminated_study_resumes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "plusx", "study", "degradation", "--out", str(out), "--json"]
    command += ["--jobs", "1", "study.kinds=[resnet]", "study.depths=[20]", "study.seeds=[0,1,2]"]
    command += ["epochs=3", "data.train=256"]
    with (tmp_path / "said").open("w") as errors:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        for _ in range(3000):  # the processors may be shared with much else
            if list((out / "runs").glob("*/gradients.json")) or running.poll() is not None:
                break
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        assert running.wait(300) == 143
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/gradients.json")}
    assert 1 <= len(finished) < 3
    assert "run the same command again to resume" in (tmp_path / "said").read_text()
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "finished already; resuming" in resumed.stderr
    result = json.loads(resumed.stdout)
    assert result["rows"][0]["seeds"] == [0, 1, 2]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("degradation", ["study.depths=[21]"], "depths: 21: unknown network 'plain21'"),
        ("degradation", ["study.kinds=[vgg]"], "must be plain, resnet, preact_resnet, "),
        ("degradation", ["study.seeds=[1,1]"], "seeds: 1 is listed twice"),
        ("degradation", ["study.kind=degradaton"], "did you mean degradation?"),
        (
            "degradation",
            ["study.depth=20"],
            "belongs to kind = skips, ablation, attention or remedies",
        ),
        ("degradation", ["data.train=5000"], "1,200 images to train on"),
        ("degradation", ["data.validation=0"], "no validation set"),
        ("digits", [], r"table \[study\]"),
        ("ablation", ["study.variants=[orginal]"], "did you mean original?"),
        ("ablation", ["study.depth=5"], "at least 8"),
        ("skips", ["study.depth=5"], "at least 8"),
        ("generalisation", ["study.shares=[0.001]"], "less than one of each of 10 classes"),
        ("generalisation", ["data.augment="], "augmentation is data.augment"),
    ],
)
def test_invalid_studies_are_refused_before_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recipe: str,
    overrides: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert cli.run(["study", recipe, *overrides, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert re.search(message, captured.err), captured.err
    assert not out.exists()


def test_another_recipe_is_refused_in_a_studys_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(to_toml(load_recipe("degradation")))
    assert cli.run(["study", "degradation", "optim.lr=0.2", "--out", str(tmp_path)]) == 2
    assert "begun with another recipe (optim.lr: 0.05 -> 0.2)" in capsys.readouterr().err
    assert cli.run(["study", "skips", "--out", str(tmp_path)]) == 2
    assert "study.kind" in capsys.readouterr().err
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "recipe.toml").unlink()
    assert cli.run(["study", "skips", "--out", str(tmp_path)]) == 2
    assert "not the folder of a study: photo.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["skips", "ablation"])
def test_a_trial_of_another_depth_is_not_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """The depth is of [study], which may change between two starts, and is in no cell's name."""
    chosen = {"skips": ["study.blocks=[basic]", "study.merges=[add]"],
              "ablation": ["study.variants=[original]"]}[kind]  # fmt: skip
    overrides = [*chosen, "study.seeds=[0]", "study.depth=8"]
    recipe = load_recipe(kind, overrides)
    source = build.open_split(recipe, "train")
    (cell,) = EXPERIMENTS[kind].trials(recipe, recipe.study, source)
    cell = replace(cell, seed=0)
    folder = tmp_path / "runs" / cell.folder
    folder.mkdir(parents=True)
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    (folder / "recipe.toml").write_text(to_toml(build.resolved(cell.recipe, source)))
    (folder / "result.json").write_text("{}")
    other = [*overrides[:-1], "study.depth=14"]
    assert cli.run(["study", kind, *other, "--out", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert f"{cell.folder} has a run of another recipe (net" in errors
    assert (folder / "result.json").read_text() == "{}"


def test_the_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["study"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS)
    assert cli.run(["study", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["studies"]
    assert [row["kind"] for row in listed] == list(EXPERIMENTS)
    assert all(row["question"].endswith("?") for row in listed)
    assert MEASURES


def test_every_kind_of_study_has_a_recipe_of_its_name() -> None:
    for kind in EXPERIMENTS:
        settings = load_recipe(kind).study
        assert settings is not None
        assert settings.kind == kind


@pytest.mark.slow
def test_a_diverged_training_is_a_result(tmp_path: Path) -> None:
    """Batch norm bears any rate; without norms the weights are soon no numbers."""
    overrides = ["epochs=4", "data.train=64", "study.kinds=[resnet]", "study.depths=[20]"]
    overrides += ["study.seeds=[0]", "optim.lr=3.0", "study.norms=[batch,none]"]
    recipe = load_recipe("degradation", overrides)
    result = study(recipe, tmp_path / "out", jobs=2)
    assert [row["name"] for row in result["rows"]] == ["resnet20"]
    (lost,) = result["marked"]
    assert (lost["name"], lost["seeds"]) == ("resnet20 no norm", [0])
    assert "training diverged: step" in lost["why"]
    assert "in no mean: resnet20 no norm seed 0." in result["finding"]
    before = (tmp_path / "out" / "runs" / "resnet20-no-norm-seed0" / "diverged.json").stat()
    assert study(recipe, tmp_path / "out") == result
    after = (tmp_path / "out" / "runs" / "resnet20-no-norm-seed0" / "diverged.json").stat()
    assert after.st_mtime_ns == before.st_mtime_ns
    with pytest.raises(RuntimeError, match="1 of 1 runs failed"):
        study(load_recipe("degradation", [*overrides, "study.norms=[none]"]), tmp_path / "other")


def test_the_number_of_updates_is_in_the_unit_of_the_recipe() -> None:
    by_steps, by_epochs = (
        EXPERIMENTS["generalisation"].notes(recipe, recipe.study, [])
        for recipe in (
            load_recipe("generalisation"),
            load_recipe("generalisation", ["epochs=3"]),
        )
    )
    assert "the same number of updates" in by_steps
    assert "the same number of epochs, so those with fewer images make fewer updates" in by_epochs


@pytest.mark.parametrize(
    ("start", "expected"), [(3000.0, "have settled"), (0.3, "are steady"), (2.0, "are steady")]
)
def test_the_finding_distinguishes_start_and_end_of_training(start: float, expected: str) -> None:
    rows = [
        {"name": f"plain{depth}", "kind": "plain", "norm": "batch", "depth": depth,
         "train_error": spread(errors), "ratio_start": start, "ratio_end": 1.5}
        for depth, errors in ((20, [0.01, 0.02, 0.01]), (56, [0.4, 0.41, 0.42]))
    ]  # fmt: skip
    assert EXPERIMENTS["degradation"].finding(rows).endswith(f"while its gradients {expected}.")


def test_ties_for_the_first_place_are_reported() -> None:
    def row(name: str, epochs: list[float]) -> dict[str, Any]:
        spread = {"seeds": epochs, "mean": sum(epochs) / len(epochs)}
        return {"name": name, "seeds": [0, 1, 2], "reached": 3, "epochs": spread, "seconds": spread}

    rows = [
        row("slow", [30.0, 31.0, 32.0]),
        row("near", [10.0, 12.0, 14.0]),
        row("a", [9.0, 12.0, 12.0]),
    ]
    finding = EXPERIMENTS["convergence"].finding(rows)
    assert finding.startswith(
        "a needs the fewest epochs on average (11.0), not known to differ from near; "
    )
    assert "slow" not in finding
    alone = EXPERIMENTS["convergence"].finding([rows[0], rows[2]])
    assert "not known" not in alone


def test_x11_a_study_in_which_nothing_learned_says_so() -> None:
    rows = [
        {"name": f"plain{depth}", "kind": "plain", "norm": "none", "depth": depth, "chance": 0.9,
         "train_error": spread([0.9, 0.91, 0.9]), "ratio_start": 1.0, "ratio_end": 1.0}
        for depth in (20, 56)
    ]  # fmt: skip
    finding = EXPERIMENTS["degradation"].finding(rows)
    assert finding == (
        "Training error: plain56 and plain20 learned nothing (90.3% and 90.3%, chance 90.0%)."
    )


def test_x11_a_gradient_of_zero_is_drawn() -> None:
    answers = [{"blocks": ["a", "b", "c"], "outputs": [[0.0, 1e-3, 1.0]]}]
    (curve,) = depth_figure({"plain56": answers})["lines"]
    assert curve["mean"] == [0.0, pytest.approx(1e-3), 1.0]
    assert curve["x"] == [0.0, 0.5, 1.0]


def test_an_order_against_the_paper_that_the_seeds_do_not_show_is_inconclusive() -> None:
    def row(name: str, paper: float, seeds: list[float]) -> dict[str, Any]:
        error = {"mean": sum(seeds) / len(seeds), "seeds": seeds}
        return {"name": name, "table": 2, "paper": paper, "error": error}

    best = row("preact", 0.0637, [0.54, 0.52, 0.56])
    others = [row("original", 0.0661, [0.59, 0.58, 0.60]), row("norm-after", 0.08, [0.7, 0.7, 0.7])]
    unclear = row("act-only", 0.0671, [0.53, 0.51, 0.56])
    finding = EXPERIMENTS["ablation"].finding([*others, unclear, best])
    assert "act-only against preact, the paper's best: -0.7 points" in finding
    assert ": INCONCLUSIVE; these seeds show differences from " in finding
    assert "original against" not in finding
    clear = row("act-only", 0.0671, [0.30, 0.31, 0.30])
    assert "INCONCLUSIVE" not in EXPERIMENTS["ablation"].finding([*others, clear, best])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # of 2 n values from one distribution, the chance of two separate groups is 2 / C(2 n, n)
        (
            [0.1] * 2,
            [0.9] * 2,
            "a is not known to differ from b (-80.0 points with every seed, p = 0.33)",
        ),
        (
            [0.9] * 3,
            [0.1] * 3,
            "a is not known to differ from b (+80.0 points with every seed, p = 0.1)",
        ),
        ([0.1] * 4, [0.9] * 4, "a is better than b (-80.0 points with every seed, p = 0.029)"),
        ([0.9] * 5, [0.1] * 5, "a is worse than b (+80.0 points with every seed, p = 0.0079)"),
        ([0.0] * 3, [0.0] * 3, "a and b are equal (0.0 %, all 3 seeds)"),
        ([0.1], [0.9], "a 10.0 % and b 90.0 % (one seed: chance unknown)"),
    ],
)
def test_equal_values_of_all_seeds_are_compared_by_permutations(
    first: list[float], second: list[float], expected: str
) -> None:
    a, b = ({"name": name, "error": spread(v)} for name, v in (("a", first), ("b", second)))
    assert compared(a, b, "error", difference(first, second)) == expected

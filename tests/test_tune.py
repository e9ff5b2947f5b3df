"""`plusx tune`: the space, searches that are interrupted, pruned and failing, the rate finder."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import small_run
from page_reader import Page
from plusx import cli, store
from plusx.errors import UserError
from plusx.recipe import load_recipe, parse_recipe, to_toml
from plusx.run import load_run
from plusx.study import rate_finder, tuning
from plusx.study.search_space import default_values, distributions, with_values
from plusx.study.trial import Trial
from plusx.study.workers import Outcome, WorkerPool, run_job


optuna = pytest.importorskip("optuna")
TUNE = """
[tune]
trials = 4
startup_trials = 2

[tune.space]
"optim.lr" = { low = 0.01, high = 1.0, log = true }
"optim.nesterov" = { choices = [true, false] }
"""


def recipe(tune: str = TUNE, steps: int = 6) -> str:
    text = small_run.recipe(steps, 256).replace("every_steps = 1", "every_steps = 0")
    return text + tune


class Pool(WorkerPool):
    """A WorkerPool without processes: a run is trained when its end is asked for."""

    def __init__(self, size: int, runs: Path) -> None:
        self.size, self.runs, self.trials, self.stopped = size, runs, [], []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def busy(self) -> bool:
        return bool(self.trials)

    @property
    def free(self) -> int:
        return self.size - len(self.trials)

    def start(self, trial: Trial) -> None:
        self.trials.append(trial)

    def stop(self, trial: Trial) -> None:
        self.stopped.append(trial)

    def ended(self, timeout: float) -> list[tuple[Trial, Outcome]]:
        trial = self.trials.pop(0)
        job = {
            "name": str(trial),
            "folder": str(self.runs / trial.folder),
            "recipe": to_toml(trial.recipe),
            "split": trial.split,
            "train": True,
            "measurements": [],
        }
        return [(trial, run_job(job))]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "WorkerPool", Pool)


def search(text: str, out: Path, **options: Any) -> dict[str, Any]:
    with (out.parent / "progress").open("a") as stream:
        return tuning.tune(parse_recipe(text), out, jobs=1, progress=stream, **options)


SPACES = [
    ('"optim.lrr" = { low = 0.1, high = 1.0 }', ["optim.lrr", "did you mean optim.lr"]),
    ('"optimm.lr" = { low = 0.1, high = 1.0 }', ["optimm", "did you mean"]),
    ('"optim.lr" = { low = 1.0, high = 0.01 }', ["optim.lr", "low must be below high"]),
    ('"optim.lr" = { low = 0.1, high = 0.1 }', ["optim.lr", "empty"]),
    ('"optim.lr" = { low = 0, high = 1.0, log = true }', ["log = true", "above 0"]),
    ('"optim.lr" = { low = 0.1, hihg = 1.0 }', ["hihg", "did you mean high"]),
    ('"optim.lr" = { low = 0.1 }', ["optim.lr", "high is missing"]),
    ('"optim.lr" = { low = -1.0, high = 1.0 }', ["optim.lr", "above 0"]),
    ('"optim.lr" = { low = 0.2, high = 1.0 }', ["0.1 in the recipe is not in 0.2 to 1.0"]),
    ('"optim.lr" = 0.1', ["optim.lr", "low = ..."]),
    ('"optim.lr" = { choices = [0.1] }', ["at least two"]),
    ('"optim.lr" = { choices = [0.3, 0.2] }', ["0.1 in the recipe is none of"]),
    ('"optim.kind" = { choices = ["sgd", "adam"] }', ["optim.kind", "did you mean adamw"]),
    ('"seed" = { low = 0, high = 9 }', ["seed", "cannot be varied"]),
    ('"data.validation" = { low = 0.1, high = 0.9 }', ["data.validation", "same data"]),
    ('"optim.clip" = { low = 0.1, high = 9.0 }', ["optim.clip", "not set in the recipe"]),
    (
        'optim.kind = { choices = ["sgd", "adamw"] }\noptim.momentum = { low = 0.1, high = 0.9 }',
        ["optim.kind", "together with the other keys", "momentum"],
    ),
    ("", ["the space is empty"]),
]


@pytest.mark.parametrize(("space", "words"), SPACES)
def test_a_wrong_space_is_one_clear_line(space, words, tmp_path, capsys):
    file = tmp_path / "wrong.toml"
    file.write_text(recipe(f"[tune.space]\n{space}\n"))
    assert cli.run(["tune", str(file), "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(part in line for part in ["wrong.toml", "[tune.space]", *words])
    assert not (tmp_path / "out").exists()


def test_keys_without_quotes_and_overrides_of_the_space():
    text = recipe("[tune.space]\noptim.lr = { low = 0.01, high = 0.5 }\n")
    table = parse_recipe(text, ["tune.space.optim.lr.high=2.0"]).tune
    assert table is not None
    assert table.space["optim.lr"].high == 2.0
    assert parse_recipe(to_toml(parse_recipe(text))) == parse_recipe(text)


def test_values_of_a_trial_are_overrides_and_the_default_is_the_recipe():
    space = (
        '"batch_size" = { low = 64, high = 300, step = 64 }\n'
        '"optim.clip" = { choices = ["default", 1.0] }\n'
        '"schedule.warmup" = { low = 0, high = 0.5 }\n'
    )
    whole = parse_recipe(recipe(f"[tune.space]\n{space}"))
    assert whole.tune is not None
    defaults = default_values(whole, whole.tune.space)
    assert defaults == {"batch_size": 256, "optim.clip": "default", "schedule.warmup": 0.1}
    trial = with_values(whole, {"batch_size": 64, "optim.clip": 1.0})
    assert (trial.batch_size, trial.optim.clip, trial.tune) == (64, 1.0, None)
    assert with_values(whole, defaults) == with_values(whole, {})
    spaces = distributions(whole.tune.space, defaults)
    assert spaces["batch_size"].high == 256
    assert isinstance(spaces["schedule.warmup"], optuna.distributions.FloatDistribution)


def test_a_search_has_the_default_first_a_best_recipe_and_a_page(in_process, tmp_path):
    out = tmp_path / "out"
    result = search(recipe(TUNE.replace("trials = 4", "trials = 4\nconfirm = [7, 8]")), out)
    assert result == store.read_json(out / "tune.json")
    assert [row["number"] for row in result["trials"]] == [0, 1, 2, 3]
    assert result["trials"][0]["fields"] == {"optim.lr": 0.1, "optim.nesterov": True}
    assert result["split"] == "validation"
    for row in result["trials"]:
        run = load_run(out / "trials" / str(row["number"]))
        assert run.finished
        assert run.recipe.optim.lr == row["fields"]["optim.lr"]
        measured = store.read_json(run.path / "result.json")["validation"]["accuracy"]
        assert row["value"] == measured
    best = result["best"]
    assert best["value"] == max(row["value"] for row in result["trials"])
    written = load_recipe(result["recipe"])
    assert written.optim.lr == best["fields"]["optim.lr"]
    assert written.tune is None
    if best["trial"]:
        gap = result["confirmation"]["difference"]
        assert gap["low"] is None or gap["low"] <= gap["difference"] <= gap["high"]
    page = Page((out / "tune.html").read_text())
    assert result["finding"].partition(":")[0] in page.text
    assert result["importance"] == {}
    assert "from 10 finished trials or more" in page.text
    assert not any(out.rglob("test_uses.jsonl"))


def test_a_search_resumes_to_the_same_trials(in_process, tmp_path):
    whole = search(recipe(), tmp_path / "whole")
    search(recipe(), tmp_path / "parts", trials=2)
    # a trial that was running when the search was killed: values are chosen, nothing is trained
    with sqlite3.connect(tmp_path / "parts" / "study.db") as database:
        database.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 1")
        database.execute("DELETE FROM trial_values WHERE trial_id = 2")
    resumed = search(recipe(), tmp_path / "parts")
    keys = ("number", "state", "value", "fields")
    rows = [[{key: row[key] for key in keys} for row in r["trials"]] for r in (whole, resumed)]
    assert rows[0] == rows[1]
    repeated = search(recipe(), tmp_path / "parts")
    assert repeated["trials"] == resumed["trials"]
    more = search(recipe(), tmp_path / "parts", trials=5)
    assert more["trials"][:4] == resumed["trials"]
    assert len(more["trials"]) == 5


def test_several_seeds_a_pruner_and_metrics_where_less_is_better(in_process, tmp_path):
    table = "seeds = [1, 2]\npruner = { kind = 'median', startup_trials = 1, warmup_epochs = 1 }\n"
    text = recipe(TUNE.replace("trials = 4", f"trials = 5\n{table}"))
    text = text.replace("steps = 6", "epochs = 3").replace(
        "[checkpoint]", '[evaluate]\nmonitor = "loss"\n[checkpoint]'
    )
    result = search(text, tmp_path / "out")
    complete = [row for row in result["trials"] if row["state"] == "complete"]
    assert result["best"]["value"] == min(row["value"] for row in complete)
    stopped = [row for row in result["trials"] if row["state"] == "stopped"]
    assert stopped
    assert all(row["value"] is None for row in stopped)
    runs = [store.read_json(tmp_path / f"out/trials/0-seed{seed}/result.json") for seed in (1, 2)]
    losses = [run["validation"]["loss"] for run in runs]
    assert result["trials"][0]["value"] == pytest.approx(sum(losses) / 2)


def test_trials_that_fail_or_diverge_are_named_and_the_search_resumes(in_process, tmp_path):
    space = '[tune]\ntrials = 6\nsampler = "random"\n[tune.space]\n'
    text = recipe(space + '"optim.lr" = { low = 0.1, high = 1e30, log = true }\n')
    result = search(text, tmp_path / "out")
    assert len(result["trials"]) == 6
    assert result["trials"][0]["state"] == "complete"
    diverged = [row for row in result["trials"] if row["state"] == "diverged"]
    assert diverged
    assert all("diverged" in row["reason"] for row in diverged)
    assert "diverged" in (tmp_path / "out" / "tune.html").read_text()


def test_the_folder_of_another_search_run_or_database_is_refused(in_process, tmp_path, capsys):
    out = tmp_path / "out"
    search(recipe(), out, trials=1)
    before = (out / "study.db").read_bytes()
    for changed in (
        recipe().replace("high = 1.0", "high = 2.0"),
        recipe().replace("steps = 6", "steps = 7"),
        recipe().replace('"optim.nesterov" = { choices = [true, false] }', ""),
    ):
        with pytest.raises(UserError, match="was begun with another recipe or space"):
            search(changed, out, trials=1)
    assert (out / "study.db").read_bytes() == before
    with store.lock(out), pytest.raises(UserError, match="in use"):
        search(recipe(), out, trials=1)
    with pytest.raises(UserError, match="not the folder of a search"):
        search(recipe(), out / "trials" / "0", trials=1)
    (out / "study.db").write_text("something else that is not a database")
    with pytest.raises(UserError, match=r"study\.db is not an SQLite database"):
        search(recipe(), out, trials=1)
    other = tmp_path / "other"
    other.mkdir()
    optuna.create_study(storage=f"sqlite:///{other}/study.db", study_name="theirs")
    with pytest.raises(UserError, match="another study of optuna"):
        search(recipe(), other, trials=1)


def test_what_a_search_needs(tmp_path, monkeypatch, capsys):
    file = tmp_path / "r.toml"
    file.write_text(recipe(""))
    for words, part in (
        ([], "no table [tune]"),
        (["tune.space.optim.lr.low=.01", "tune.space.optim.lr.high=1.0", "data.validation=0"],
         "needs a validation set"),
        (["tune.space.optim.lr.low=.01", "tune.space.optim.lr.high=1.0", "tune.confirm=[3,4]"],
         "seed 3 is one of the trials"),
        (["--trials", "0", "tune.space.optim.lr.low=.01", "tune.space.optim.lr.high=1.0"],
         "--trials 0"),
        (["--epochs", "3"], "write epochs=3"),
        (["--rate", "--trials", "3"], "leave --trials"),
    ):  # fmt: skip
        assert cli.run(["tune", str(file), "--out", str(tmp_path / "out"), *words]) == 2
        assert part in capsys.readouterr().err
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    assert cli.run(["tune", str(file), "--out", str(tmp_path / "out")]) == 1
    assert "plusx[tune]" in capsys.readouterr().err


def test_the_rate_finder_suggests_a_rate_and_saves_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rate_finder, "STEPS", 60)
    file, out = tmp_path / "r.toml", tmp_path / "out"
    file.write_text(recipe("", steps=50).replace("drop.2 ", ""))
    results = []
    for _ in range(2):
        assert cli.run(["tune", str(file), "--rate", "--out", str(out), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    first, second = results
    assert first["losses"] == second["losses"]
    assert sorted(path.name for path in out.iterdir()) == ["rate.html", "rate.json"]
    rates = first["rates"]
    assert rates == sorted(rates)
    assert 1e-3 < first["suggested"] <= first["lowest"] < 10
    assert "Suggested learning rate" in Page((out / "rate.html").read_text()).text


def test_the_steepest_fall_is_found_and_no_fall_is_an_error():
    rates = [10 ** (-5 + index / 10) for index in range(60)]
    smoothed = [2.0 if rate < 1e-3 else 2.0 - 0.1 * rate for rate in rates]
    smoothed = [max(2.5 - 0.02 * i - 0.01 * max(i - 30, 0), 1.0) for i in range(60)]
    assert 30 <= rates.index(rate_finder.steepest(rates, smoothed)) < 60
    with pytest.raises(RuntimeError, match="does not fall"):
        rate_finder.steepest(rates, [1.0 + index for index in range(60)])


@pytest.mark.slow
def test_a_killed_search_resumes_its_trials_in_processes(tmp_path):
    """kill -9 in the middle of a trial: the run resumes, and the trials are those of a search that
    was not interrupted, whose runs are equal to the bit."""
    text = recipe(TUNE, steps=60).replace("every_steps = 0", "every_steps = 1")
    text = text.replace("trials = 4", "trials = 2")
    (tmp_path / "r.toml").write_text(text)
    command = [sys.executable, "-m", "plusx", "tune", "r.toml", "--jobs", "1", "--json", "--out"]
    first = subprocess.Popen([*command, "parts"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    log = tmp_path / "parts" / "trials" / "1" / "log.jsonl"
    end = time.monotonic() + 100
    while not (log.is_file() and log.read_bytes().count(b"\n") > 5):
        assert time.monotonic() < end
        time.sleep(0.02)
    with pytest.raises(UserError, match="is in use by process"):
        search(text, tmp_path / "parts")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(1.0)  # the worker saves and ends when its parent is gone
    resumed = subprocess.run([*command, "parts"], cwd=tmp_path, capture_output=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    whole = search(text, tmp_path / "whole")
    fields = [[row["fields"] for row in r["trials"]] for r in (whole, json.loads(resumed.stdout))]
    assert fields[0] == fields[1]
    for number in range(2):
        logs = [tmp_path / out / f"trials/{number}/log.jsonl" for out in ("whole", "parts")]
        assert logs[0].read_bytes() == logs[1].read_bytes()
    timing = (tmp_path / "parts/trials/1/timing.jsonl").read_text()
    assert timing.count('"begin"') == 2

"""Comparisons as they are made: runs in processes, interrupted, gone on with, failing alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from page_reader import Page
from plusx.grammar.spec import Net
from plusx.recipe import load_recipe
from plusx.run import load_run
from plusx.study.runner import compare, cost


NETWORKS = "compare.networks=[plain20,resnet20]"
QUICK = ("steps=2", NETWORKS, "compare.seeds=[3]")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("comparison") / "out"
    with (out.parent / "output").open("w") as stream:
        return out, compare(load_recipe("digits", QUICK), out, jobs=1, progress=stream)


def test_a_comparison_has_all_metrics_and_seeds(comparison: tuple[Path, dict[str, Any]]) -> None:
    out, result = comparison
    assert result["split"] == "validation"
    assert [row["name"] for row in result["rows"]] == ["plain20", "resnet20"]
    for row in result["rows"]:
        assert row["parameters"] == 269_434
        assert row["multiply_adds"] == 2_516_608
        for score in ("accuracy", "precision", "recall", "f1", "train_error"):
            assert set(row[score]) == {"mean", "std", "seeds"}
            assert 0 <= row[score]["mean"] <= 1
            assert len(row[score]["seeds"]) == 1
        assert row["seconds_per_epoch"]["mean"] > 0
        assert row["epochs_to_threshold"]["reached"] == 0
    assert {"command", "recipe", "versions", "machine", "date"} <= set(result)
    assert json.loads((out / "result.json").read_text()) == result
    assert "<svg" in (out / "report.html").read_text()


def test_every_run_is_an_ordinary_one(comparison: tuple[Path, dict[str, Any]]) -> None:
    out, result = comparison
    run = load_run(out / "runs" / "plain20-seed3")
    assert run.finished
    assert run.recipe is not None
    assert run.recipe.seed == 3
    scores = json.loads((run.path / "result.json").read_text())["validation"]
    assert result["rows"][0]["accuracy"]["seeds"] == [scores["accuracy"]]


def test_finished_runs_are_not_repeated(comparison: tuple[Path, dict[str, Any]]) -> None:
    out, result = comparison
    logs = sorted((out / "runs").glob("*/*"))
    before = [path.stat().st_mtime_ns for path in logs]
    with (out.parent / "output").open("w") as stream:
        assert compare(load_recipe("digits", QUICK), out, jobs=1, progress=stream) == result
    assert sorted((out / "runs").glob("*/*")) == logs
    assert [path.stat().st_mtime_ns for path in logs] == before
    assert (out.parent / "output").read_text() == ""


def test_remaining_time_weighs_epochs_and_steps() -> None:
    few = load_recipe("transfer-small", ["steps=300", "batch_size=50"])
    many = replace(few, epochs=4, steps=None)
    ratio = cost(many, 25_000) / cost(few, 250)
    assert ratio == pytest.approx(4 * 25_000 / (300 * 50))


_THREADS = """
import sys, torch
from plusx.recipe import load_recipe, to_toml
from plusx.study.workers import run_job
torch.set_num_threads(3)
recipe = to_toml(load_recipe("digits-resnet20", ["steps=1", "device.threads=1"]))
job = {"name": "resnet20", "folder": sys.argv[1], "recipe": recipe, "split": "test",
       "train": True, "measurements": []}
print(tuple(run_job(job)), torch.get_num_threads())
"""


@pytest.mark.slow
def test_a_run_is_also_evaluated_with_the_threads_of_its_recipe(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _THREADS, str(tmp_path / "run")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "('', False, False, False) 1"
    assert (tmp_path / "run" / "test.json").is_file()


@pytest.mark.parametrize(
    ("overrides", "jobs", "message"),
    [
        (("compare.networks=[plain20,resnet21]",), None, "unknown network 'resnet21'.*resnet20"),
        (("compare.networks=[plain20,plain20]",), None, "networks: plain20 is listed twice"),
        (("compare.seeds=[1,1]",), None, "seeds: 1 is listed twice"),
        (("data.validation=0",), None, "no validation set"),
        ((), 0, "jobs = 0"),
    ],
)
def test_an_invalid_comparison_is_refused_before_training(
    tmp_path: Path, overrides: tuple[str, ...], jobs: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(load_recipe("digits", overrides), tmp_path / "out", jobs=jobs)
    assert not (tmp_path / "out").exists()


NARROW = """
stem = "conv3 norm act"
stem_width = 8
stages = [{{ block = "{block}", depth = 1, width = 8 }}]
"""


def test_specs_of_files_are_compared_under_their_names(tmp_path: Path) -> None:
    twin, residual = tmp_path / "twin.toml", tmp_path / "residual.toml"
    twin.write_text(NARROW.format(block="conv3 norm act"))
    residual.write_text(NARROW.format(block="conv3 norm + act"))
    overrides = ("steps=2", f"compare.networks=[{twin},{residual},resnet20]", "compare.seeds=[3]")
    recipe = load_recipe("digits", (*overrides, "net.act=silu"))
    out = tmp_path / "out"
    result = compare(recipe, out, jobs=1)
    assert [row["name"] for row in result["rows"]] == ["twin", "residual", "resnet20"]
    stem, block, head = 8 * 9 + 16, 8 * 8 * 9 + 16, 8 * 10 + 10  # one channel, ten digits
    assert result["rows"][0]["parameters"] == stem + block + head
    run = load_run(out / "runs" / "residual-seed3")
    assert run.recipe is not None
    assert isinstance(run.recipe.net, Net)
    assert (run.recipe.net.in_channels, run.recipe.net.act) == (1, "silu")
    assert run.recipe.net.stages[0].blocks[0].body == "conv3 norm + act"
    assert compare(recipe, out, jobs=1)["rows"] == result["rows"]
    residual.write_text(NARROW.format(block="conv3 norm act conv3 norm + act"))
    with pytest.raises(
        ValueError, match=r"residual-seed3 has a run of another recipe \(net.stages"
    ):
        compare(recipe, out, jobs=1)


@pytest.mark.parametrize(
    ("networks", "override", "message"),
    [
        ("missing.toml", "epochs=1", r"missing\.toml: no such file"),
        ("wrong.toml", "epochs=1", r"wrong\.toml: .*widht"),
        ("fine.toml,other/fine.toml", "epochs=1", "two have the name fine"),
        ("fine.toml", "net.weights=x", r"\[net\] weights: for networks by name only"),
        ("fine.toml", "net.train=head", r"\[net\] train: for networks by name only"),
        ("fine.toml", "net.tail=linear", r"fine\.toml on digits: "),
    ],
)
def test_files_that_cannot_be_compared_are_named(
    networks: str,
    override: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fine.toml").write_text(NARROW.format(block="conv3 norm + act"))
    Path("wrong.toml").write_text(
        NARROW.format(block="conv3").replace("width = 8 }", "widht = 8 }")
    )
    with pytest.raises(ValueError, match=message):
        compare(load_recipe("digits", [f"compare.networks=[{networks}]", override]), "out")
    assert not Path("out").exists()


def test_a_recipe_that_compares_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[compare\] with networks"):
        compare(load_recipe("digits-resnet20"), tmp_path / "out")


def test_another_recipe_in_the_same_folder_is_refused(
    comparison: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = comparison
    with pytest.raises(ValueError, match=r"another recipe \(optim.lr: [\d.]+ -> 0.3\)"):
        compare(load_recipe("digits", (*QUICK, "optim.lr=0.3")), out)


def test_folders_of_something_else_are_refused(
    tmp_path: Path, comparison: tuple[Path, dict[str, Any]]
) -> None:
    recipe = load_recipe("digits", QUICK)
    with pytest.raises(ValueError, match="is not the folder of a comparison"):
        compare(recipe, comparison[0] / "runs" / "plain20-seed3")
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match=r"not the folder of a comparison: photo\.jpg"):
        compare(recipe, tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        compare(recipe, tmp_path / "photo.jpg")


def _start(out: Path, *overrides: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "plusx", "compare", "digits", *overrides, "--out", str(out)]
    # a shell that starts tests in the background has them ignore interrupts, and their children
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*command, "--jobs", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _going(out: Path, *overrides: str) -> "Iterator[subprocess.Popen[str]]":
    """A comparison of which each of two runs has made a few steps."""
    process = _start(out, *overrides)
    try:
        deadline = time.monotonic() + 200
        while sum(log.stat().st_size > 1000 for log in out.glob("runs/*/log.jsonl")) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _finish(out: Path, *overrides: str) -> tuple[int, str, str]:
    process = _start(out, *overrides)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def _workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def _gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


LONGER = ("epochs=3", NETWORKS, "compare.seeds=[0,1]")
on_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    code, output, errors = _finish(out, *LONGER)
    assert code == 0, errors
    assert "not differ" in output or "reaches" in output
    return out


def _figures(out: Path) -> list[bytes]:
    """All that a comparison comes to but for what the clock says."""
    logs = [path.read_bytes() for path in sorted((out / "runs").glob("*/log.jsonl"))]
    result = json.loads((out / "result.json").read_text())
    for row in result["rows"]:
        del row["seconds_per_epoch"]
    return [*logs, json.dumps([result["rows"], result["figures"], result["finding"]]).encode()]


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_an_interrupted_comparison_resumes_to_the_same_result(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    with _going(out, *LONGER) as process:
        workers = _workers(process.pid)
        assert len(workers) == 2
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == code
        assert "Traceback" not in errors
        if number is not signal.SIGKILL:
            assert "run the same command again to resume" in errors
        assert _gone(workers)
    assert list(out.glob("runs/*/checkpoints/*"))
    assert not (out / "result.json").exists()
    code, _, errors = _finish(out, *LONGER)
    assert code == 0, errors
    assert _figures(out) == _figures(uninterrupted)


@pytest.mark.slow
@on_linux
def test_a_process_that_dies_is_named_and_the_others_continue(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with _going(out, *LONGER) as process:
        os.kill(_workers(process.pid)[0], signal.SIGKILL)
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 1
    named = [f"{name} seed {seed}" for name in ("plain20", "resnet20") for seed in (0, 1)]
    failed = [
        name for name in named if f"{name} failed: its process was ended by SIGKILL" in errors
    ]
    assert len(failed) == 1
    assert f"1 of 4 runs failed: {failed[0]}" in errors
    result = json.loads((out / "result.json").read_text())  # of the others, and the failed named
    (marked,) = result["marked"]
    assert f"{marked['name']} seed {marked['seeds'][0]}" == failed[0]
    assert sum(len(row["seeds"]) for row in result["rows"]) == 3
    assert "ended by SIGKILL" in Page((out / "report.html").read_text()).text
    assert output == ""
    finished = list(out.glob("runs/*/result.json"))
    assert len(finished) == 3
    before = [path.stat().st_mtime_ns for path in finished]
    code, _, errors = _finish(out, *LONGER)
    assert code == 0
    assert "3 of 4 runs are finished already" in errors
    assert [path.stat().st_mtime_ns for path in finished] == before


@pytest.mark.slow
def test_a_run_that_fails_is_named_with_its_seed_and_the_others_are_kept(tmp_path: Path) -> None:
    code, output, errors = _finish(tmp_path / "out", *LONGER, "optim.lr=1e30", "schedule.warmup=0")
    assert code == 1
    assert output == ""
    assert "4 of 4 runs failed: " in errors
    for name in ("plain20", "resnet20"):
        for seed in (0, 1):
            assert f"{name} seed {seed} failed: step " in errors
    assert "the loss is" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_user_errors_within_runs_exit_with_2(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    overrides = ("data.kind=folder", f"data.path={missing}", *QUICK)
    code, output, errors = _finish(tmp_path / "out", *overrides)
    assert code == 2
    assert output == ""
    last = errors.splitlines()[-1]
    assert last.startswith("plusx: ")
    assert str(missing) in last


@pytest.mark.slow
def test_every_use_of_the_test_set_is_recorded_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        code, output, errors = _finish(out, *QUICK, "--split", "test")
        assert code == 0, errors
        assert "test split, 297 images" in output
    for run in out.glob("runs/*"):
        assert (run / "test_uses.jsonl").read_bytes().count(b"\n") == 1
    assert json.loads((out / "result.json").read_text())["split"] == "test"
    assert "the test set was not used" not in (out / "report.html").read_text()

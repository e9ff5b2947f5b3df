"""Runs of several seeds trained together are ordinary runs, whatever comes in between."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import plusx
from plusx import store
from plusx.recipe import Recipe, load_recipe, to_toml
from plusx.run import Stopped, evaluate, load_run, train
from plusx.run.seeds import train_together, why_apart
from plusx.run.trainer import Trainer
from plusx.study.compare import compare
from plusx.study.experiment import study
from plusx.tasks.task import Task
from plusx.train.report import Report
from zoo_shrunken import shrunken


SEEDS = (0, 1)
# at the recipe's own rate roundings grow a thousandfold in a few steps
LENGTH = ("steps=24", "optim.lr=1e-4", "schedule.warm_up=0", "device.threads=1")
LOST = r"seeds 0, 1 go on alone from their last checkpoints: "


def recipes() -> list[Recipe]:
    """Of a small network for a little more than an epoch of the digits."""
    net = replace(
        shrunken(plusx.find("resnet20"), width=16, depth=1),
        size=8, in_channels=1, num_classes=10,
    )  # fmt: skip
    said = load_recipe("digits", (*LENGTH, "checkpoint.every_steps=4"))
    return [replace(said, net=net, seed=seed, compare=None) for seed in SEEDS]


def folders(out: Path) -> list[Path]:
    return [out / f"seed{seed}" for seed in SEEDS]


def lines(folder: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def events(folder: Path) -> list[str]:
    return [line["event"] for line in lines(folder, "timing.jsonl")]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder) if "lr" in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = folders(tmp_path_factory.mktemp("alone"))
    for recipe, folder in zip(recipes(), out, strict=True):
        train(recipe, folder, progress=False)
    return out


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = folders(tmp_path_factory.mktemp("together"))
    train_together(recipes(), out)
    return out


def check_as(out: list[Path], other: list[Path], tolerance: float) -> None:
    for mine, theirs in zip(out, other, strict=True):
        assert losses(mine) == pytest.approx(losses(theirs), abs=tolerance)
        assert len(losses(mine)) == 24
        ours, known = (json.loads((each / "result.json").read_text()) for each in (mine, theirs))
        assert ours["validation"]["loss"] == pytest.approx(known["validation"]["loss"], abs=1e-3)
        assert {**ours, "validation": 0, "train": 0, "train_error": 0} == {
            **known, "validation": 0, "train": 0, "train_error": 0,
        }  # fmt: skip


def same_bytes(out: list[Path], other: list[Path]) -> bool:
    names = ("log.jsonl", "result.json", "model.safetensors", "recipe.toml", "data.json")
    return all(
        (mine / name).read_bytes() == (theirs / name).read_bytes()
        for mine, theirs in zip(out, other, strict=True)
        for name in names
    )


@pytest.mark.slow
def test_each_run_is_what_it_is_alone(alone: list[Path], together: list[Path]) -> None:
    check_as(together, alone, 1e-4)
    for folder in together:
        assert events(folder) == ["begin", "together", *2 * ["epoch", "evaluate"], "end"]
        assert sum(told.get("steps", 0) for told in lines(folder, "timing.jsonl")) == 24
        run = load_run(folder)
        assert run.finished
        result = json.loads((folder / "result.json").read_text())
        assert evaluate(run)["accuracy"] == result["validation"]["accuracy"]
    before = [path.stat().st_mtime_ns for folder in together for path in sorted(folder.iterdir())]
    train_together(recipes(), together)
    for recipe, folder in zip(recipes(), together, strict=True):
        train(recipe, folder, progress=False)
    paths = [path for folder in together for path in sorted(folder.iterdir())]
    assert [path.stat().st_mtime_ns for path in paths if path.name != "lock.json"] == before


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Have something done once, when the run of this seed has made so many steps."""

    def patch(seed: int, step: int, act: Callable[[], object]) -> None:
        take, done = Trainer.take, []

        def watched(self: Trainer, report: Report, display: Any) -> None:
            take(self, report, display)
            if self.recipe.seed == seed and report.step == step and not done:
                done.append(True)
                act()

        monkeypatch.setattr(Trainer, "take", watched)

    yield patch
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 19])  # 19: the last of the first epoch
def test_a_signal_stops_all_at_one_step_and_they_go_on_together(
    step: int, together: list[Path], tmp_path: Path, at_step: Callable[..., None]
) -> None:
    out = folders(tmp_path)
    # raised by the run itself, so it lands at this step and at no other
    at_step(0, step, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match=f"stopped by SIGTERM at step {step}; saved") as stopped:
        train_together(recipes(), out)
    assert stopped.value.signal_number == signal.SIGTERM
    for folder in out:
        assert not (folder / "result.json").exists()
        assert len(losses(folder)) == step
    train_together(recipes(), out)
    assert same_bytes(out, together)
    assert all(events(folder).count("together") == 2 for folder in out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])  # the epoch's end, the run's end, its result
def test_a_signal_while_one_is_evaluated_is_as_any_other(
    number: int, together: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, judged, seen = folders(tmp_path), Trainer._judged, []

    def watched(self: Trainer, task: Task, images: Any) -> dict[str, Any]:
        if self.recipe.seed == 1:
            seen.append(True)
            if len(seen) == number:
                signal.raise_signal(signal.SIGTERM)
        return judged(self, task, images)

    monkeypatch.setattr(Trainer, "_judged", watched)
    with pytest.raises(Stopped, match=f"at step {19 if number == 1 else 24}; saved"):
        train_together(recipes(), out)
    monkeypatch.undo()
    assert [(folder / "result.json").exists() for folder in out] == [number == 3, False]
    train_together(recipes(), out)
    for recipe, folder in zip(recipes(), out, strict=True):
        train(recipe, folder, progress=False)
    assert same_bytes(out, together)


class Killed(BaseException):
    """In the place of SIGKILL: nothing is saved behind it."""


@pytest.mark.slow
def test_one_that_is_behind_catches_up_alone(
    together: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, save = folders(tmp_path), Trainer.save

    def killed(self: Trainer) -> None:
        if self.recipe.seed == 1 and self.state.step == 12:
            raise Killed
        save(self)

    monkeypatch.setattr(Trainer, "save", killed)
    with pytest.raises(Killed):
        train_together(recipes(), out)
    monkeypatch.undo()
    train_together(recipes(), out)
    assert "catch up" not in events(out[0])
    (told,) = [told for told in lines(out[1], "timing.jsonl") if told["event"] == "catch up"]
    assert (told["step"], told["until"]) == (8, 12)
    check_as(out, together, 1e-4)


@pytest.mark.slow
def test_one_that_diverges_stops_no_other(
    alone: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, left = folders(tmp_path), Trainer.left

    def spoilt(self: Trainer, until: int) -> Iterator[plusx.Batch]:
        for batch in left(self, until):
            if self.recipe.seed == 1 and self.state.step == 2:
                batch = plusx.Batch(torch.full_like(batch.inputs, torch.nan), batch.targets)
            yield batch

    monkeypatch.setattr(Trainer, "left", spoilt)
    with pytest.warns(UserWarning, match=LOST + "step 3, .*seed 1 is not finite"):
        train_together(recipes(), out)
    assert all("apart" in events(folder) for folder in out)
    train(recipes()[0], out[0], progress=False)
    assert same_bytes(out[:1], alone[:1])
    with pytest.raises(FloatingPointError, match="step 3"):
        train(recipes()[1], out[1], progress=False)


@pytest.mark.slow
def test_a_comparison_trains_its_seeds_together(tmp_path: Path) -> None:
    said = ("compare.networks=[resnet20]", "compare.seeds=[0,1,2]", "compare.together=2")
    recipe = load_recipe("digits", (*LENGTH, "steps=3", *said))
    with (tmp_path / "said").open("w") as stream:
        result = compare(recipe, tmp_path / "out", jobs=1, progress=stream)
    assert result["jobs"] == "1 process of 1 thread, up to 2 seeds in each"
    (note,) = result["notes"]
    assert note.startswith("Seeds were trained together, as one network (resnet20 0, 1): ")
    assert "Seeds were trained together" in (tmp_path / "out" / "report.html").read_text()
    runs = [tmp_path / "out" / "runs" / f"resnet20-seed{seed}" for seed in range(3)]
    assert ["together" in events(run) for run in runs] == [True, True, False]
    for run in runs:
        again = load_run(run).recipe
        assert again is not None
        train(again, tmp_path / "alone" / run.name, progress=False)
        assert losses(run) == pytest.approx(losses(tmp_path / "alone" / run.name), abs=1e-4)


@pytest.mark.slow
def test_a_comparison_that_is_stopped_leaves_its_seeds_at_one_step(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = ("compare.networks=[plain20]", "compare.seeds=[0,1]", "compare.together=2")
    # so long that it cannot end before the signal comes
    command = ["compare", "digits", *said, "steps=1000000", "--jobs", "1", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "plusx", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300
        while sum(log.stat().st_size > 500 for log in out.glob("runs/*/log.jsonl")) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 143, errors
    assert "the same command goes on" in errors
    saved = [
        store.load_checkpoint(out / "runs" / f"plain20-seed{n}" / "checkpoints") for n in SEEDS
    ]
    steps = [0 if each is None else each.values["state"]["step"] for each in saved]
    assert steps[0] == steps[1] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("compare.networks=[densenet40_12]", "densenet40_12 cannot .*: layer1.0 concatenates"),
        ("net.drop_path=0.5", r"resnet20 cannot train together: layer1.0 is dropped at random"),
        ("optim.accumulate=2", r"\[optim\] accumulate = 2"),
        ("evaluate.patience=1", r"\[evaluate\] patience = 1"),
        ("schedule.warm_until=0.8", r"\[schedule\] warm_until = 0.8"),
        ("device.precision=bfloat16", r"\[device\] precision = \"bfloat16\""),
    ],
)
def test_what_cannot_train_together_is_refused_before_anything_begins(
    overrides: str, message: str, tmp_path: Path
) -> None:
    said = ("compare.together=2", "compare.networks=[resnet20]", overrides)
    with pytest.raises(ValueError, match=r"\[compare\] together = 2: .*" + message):
        compare(load_recipe("digits", said), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_refuses_it_too(tmp_path: Path) -> None:
    said = ("study.together=3", "study.networks=[densenet40_12]")
    recipe = load_recipe("convergence", said)
    with pytest.raises(ValueError, match=r"\[study\] together = 3: .*densenet40_12.* concatenates"):
        study(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_seeds_may_differ(tmp_path: Path) -> None:
    one, other = recipes()
    assert why_apart(one) == ""
    longer = load_recipe("digits", ("epochs=3",))
    with pytest.raises(ValueError, match="runs that train together differ in"):
        train_together([one, longer], folders(tmp_path))
    assert to_toml(other) != to_toml(one)
    assert not list(tmp_path.iterdir())

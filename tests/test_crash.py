"""A run that is killed, stopped, starved of disk or damaged ends as if nothing had happened.

Training has shuffling, augmentation, dropout, batch norm, momentum and averaged weights, and saves
after every step. What is compared are bytes: the newest checkpoint (weights, optimizer, average,
state), log.jsonl, result.json and model.safetensors.
"""

import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import small_run
from faults import flip
from plusx import store


pytestmark = pytest.mark.slow  # a server of runs starts first


RECIPE = small_run.recipe(24, 64, optim="ema = 0.9")
LINES = 24 + 2  # of the whole log: the steps and the epochs


class Server:
    """Runs plusx commands in forks of one process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "tiny.toml"
        self.recipe.write_text(RECIPE)
        self.output = folder / "output.txt"
        self.process = subprocess.Popen(
            [
                sys.executable,
                Path(__file__).with_name("crash_server.py"),
                self.recipe,
                folder / "0",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        )
        assert self._answer() == "ready"

    def train(
        self, out: Path, *extra: str, signals: list[tuple[int, float, int]] | None = None
    ) -> dict[str, Any]:
        order = {
            "arguments": ["train", str(self.recipe), *extra, "--out", str(out)],
            "output": str(self.output),
            "log": str(out / "log.jsonl"),
            "signals": signals or [],
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return {**self._answer(), "output": self.output.read_text()}

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 300)
        assert ready, "the server does not answer"
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()  # it holds nothing, and would take a while to unload everything
        self.process.wait(30)
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # In memory where there is such a place: killing a process does not test the disk, and flushing
    # would take most of the time.
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Server]:
    running = Server(folder)
    yield running
    running.close()


@pytest.fixture(scope="module")
def whole(server, folder) -> dict[str, Any]:
    """What an uninterrupted run leaves, and how long it took."""
    ended = server.train(folder / "whole")
    assert ended["exit"] == 0, ended["output"]
    assert "done" in ended["output"]
    repeated = server.train(folder / "again")
    assert outcome(folder / "again") == outcome(folder / "whole")
    return {"outcome": outcome(folder / "whole"), "seconds": repeated["seconds"]}


def newest(out: Path) -> Path:
    checkpoint = store.load_checkpoint(out / store.CHECKPOINTS, strict=True)
    assert checkpoint is not None
    return checkpoint.path


def outcome(out: Path) -> dict[str, bytes]:
    """All that must not depend on what happened on the way."""
    files = [out / name for name in ("log.jsonl", "result.json", "model.safetensors")]
    files += sorted(newest(out).iterdir())
    names = {path.name for path in files}
    assert {"weights.safetensors", "optimizer.safetensors", "ema.safetensors"} <= names
    leftovers = [path for path in out.glob("**/*") if path.name.startswith(".plusx")]
    assert not leftovers
    assert not (out / store.LOCK).exists()
    return {path.name: path.read_bytes() for path in files}


def assert_same(out: Path, whole: dict[str, Any]) -> None:
    actual = outcome(out)
    assert actual.keys() == whole["outcome"].keys()
    for name, data in whole["outcome"].items():
        assert actual[name] == data, name


def begun_at(out: Path) -> list[int]:
    """The steps that the run was begun or gone on with from."""
    lines = (out / "timing.jsonl").read_text().splitlines()
    return [record["step"] for line in lines if (record := json.loads(line))["event"] == "begin"]


def saved_step(out: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = store.load_checkpoint(out / store.CHECKPOINTS)
    return 0 if checkpoint is None else checkpoint.step


# --------------------------------------------------------------------------------------- kills


def moment(out: Path, span: float, draw: random.Random) -> tuple[int, float]:
    """A random moment: one in four any, from the start to the report; the others in training."""
    if not draw.randrange(4):
        return 0, draw.uniform(0, span)
    log = out / "log.jsonl"
    written = log.read_bytes().count(b"\n") if log.exists() else 0
    return draw.randint(min(written, LINES), LINES), draw.uniform(0, 0.03)


def kill_until_done(server: Server, out: Path, kills: int, span: float, draw: random.Random) -> int:
    """Kills a run at random moments, up to `kills` times, lets it finish; how many landed."""
    landed = 0
    for _ in range(kills):
        before = saved_step(out)
        ended = server.train(out, signals=[(*moment(out, span, draw), signal.SIGKILL)])
        assert ended["exit"] == (-signal.SIGKILL if ended["landed"] else 0), ended["output"]
        landed += len(ended["landed"])
        assert saved_step(out) >= before
        if not ended["landed"]:
            break
    before = saved_step(out)
    finished_before = (out / "result.json").exists()
    ended = server.train(out)
    assert ended["exit"] == 0, ended["output"]
    if not finished_before:
        assert begun_at(out)[-1] == before  # nothing that was committed is done again
    return landed


def survive(server: Server, folder: Path, whole: dict[str, Any], kills: int) -> tuple[int, int]:
    draw = random.Random(kills)
    landed = runs = 0
    while landed < kills:
        out = folder / f"killed-{kills}-{runs}"
        landed += kill_until_done(server, out, draw.randint(1, 4), whole["seconds"], draw)
        assert_same(out, whole)
        shutil.rmtree(out)
        runs += 1
        assert runs < 3 * kills, f"only {landed} kills landed in {runs} runs"
    return landed, runs


def test_fifty_kills_do_not_change_the_result(server, folder, whole):
    landed, runs = survive(server, folder, whole, 50)
    print(f"{landed} kills landed in {runs} runs, none of which differs")
    assert landed >= 50


# ------------------------------------------------------------------------------------- signals


LAST = 22  # the line after which a signal finds steps left to stop at


def stopped(
    server: Server, out: Path, draw: random.Random, signals: list[int], lines: tuple[int, int]
) -> dict[str, Any]:
    """A run that a signal found in training, between two lines of its log or a little later.

    One that came too late, on a busy machine, is sent anew.
    """
    for _ in range(20):
        at = [(draw.randint(*lines), draw.uniform(0, 0.01))]
        at += [(0, draw.uniform(0, 0.004)) for _ in signals[1:]]
        ended = server.train(out, signals=[(*when, n) for when, n in zip(at, signals)])
        if ended["landed"] and ended["landed"][0] <= LAST:
            return ended
        shutil.rmtree(out)
    raise AssertionError("no signal of 20 came in time")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("times", [1, 10])
def test_a_stopped_run_saves_and_resumes(server, folder, whole, number, times):
    draw = random.Random(number)
    for trial in range(times):
        out = folder / f"stopped-{number}-{times}-{trial}"
        ended = stopped(server, out, draw, [number], (1, 20))
        assert ended["exit"] == 128 + number, ended["output"]
        assert ended["seconds"] < 10
        assert "done" not in ended["output"]
        assert not (out / "result.json").exists()
        log = (out / "log.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in log]
        assert saved_step(out) == max(steps)
        assert f"{signal.Signals(number).name} at step {saved_step(out)}" in ended["output"]
        assert server.train(out)["exit"] == 0
        assert_same(out, whole)


def test_a_second_signal_ends_the_run_at_once_without_loss(server, folder, whole):
    draw = random.Random(2)
    for trial in range(10):
        out = folder / f"twice-{trial}"
        ended = stopped(server, out, draw, [signal.SIGTERM] * 2, (1, 20))
        assert ended["exit"] == 128 + signal.SIGTERM, ended["output"]
        assert "done" not in ended["output"]
        assert server.train(out)["exit"] == 0
        assert_same(out, whole)


# ------------------------------------------------------------------------------ what else fails


def test_a_full_disk_is_reported_and_survived(server, folder, whole):
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        out = disk / "run"
        ended = stopped(server, out, random.Random(0), [signal.SIGTERM], (12, 12))
        assert ended["exit"] == 143
        free = os.statvfs(disk)
        before = saved_step(out)
        assert before > 0
        (disk / "ballast").write_bytes(b"x" * (free.f_bavail * free.f_frsize - 40_000))
        ended = server.train(out)
        assert ended["exit"] == 1, ended["output"]
        line = ended["output"].strip().splitlines()[-1]
        assert re.search(r"the disk is full: [0-9,]+ bytes needed, [0-9,]+ free", line), line
        assert str(out) in line
        assert "Traceback" not in ended["output"]
        assert "done" not in ended["output"]
        assert saved_step(out) >= before
        assert not (out / "result.json").exists()
        assert not [path for path in out.glob("**/*") if path.is_file() and not path.stat().st_size]
        (disk / "ballast").unlink()
        assert server.train(out)["exit"] == 0
        assert_same(out, whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_in_use_is_refused_with_its_process(server, folder, whole):
    out = folder / "used"
    with store.lock(out):
        ended = server.train(out)
        assert ended["exit"] == 2, ended["output"]
        assert f"process {os.getpid()} on " in ended["output"]
        assert os.listdir(out) == [store.LOCK]
    assert server.train(out)["exit"] == 0
    assert_same(out, whole)


def test_a_loss_that_is_not_finite_ends_the_run_before_the_update(server, folder):
    out = folder / "diverged"
    ended = server.train(out, "optim.lr=1e19", "schedule.warmup=0")
    assert ended["exit"] == 1, ended["output"]
    message = ended["output"].strip().splitlines()[-1]
    assert re.search(r"step [0-9]+, rate [0-9.e+]+", message), message
    assert "Traceback" not in ended["output"]
    assert "done" not in ended["output"]
    assert not (out / "result.json").exists()
    saved = store.load_checkpoint(out / store.CHECKPOINTS, strict=True)
    assert saved is not None
    assert int(re.search(r"step ([0-9]+)", message)[1]) > saved.step  # type: ignore[index]
    for group in saved.tensors.values():
        for name, tensor in group.items():
            assert bool(torch.isfinite(tensor.double()).all()), name


def test_a_finished_run_does_not_change(server, folder, whole):
    out = folder / "again"

    def everything() -> dict[str, tuple[bytes, int]]:
        # The report is drawn anew from the rest.
        files = [p for p in out.glob("**/*") if p.is_file() and p.name != "report.html"]
        return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}

    before = everything()
    assert len(before) > 10
    ended = server.train(out)
    assert ended["exit"] == 0, ended["output"]
    assert "already complete" in ended["output"]
    assert everything() == before


def test_another_environment_is_a_warning_and_with_exact_an_error(server, folder, whole):
    out = folder / "moved"
    ended = stopped(server, out, random.Random(0), [signal.SIGTERM], (12, 12))
    assert ended["exit"] == 143
    result = store.read_json(out / "environment.json")
    store.write_json(out / "environment.json", {**result, "torch": "2.0.0", "threads": 7})
    ended = server.train(out, "--exact")
    assert ended["exit"] == 2, ended["output"]
    assert "torch 2.0.0 -> " in ended["output"]
    ended = server.train(out)
    assert ended["exit"] == 0, ended["output"]
    assert "not bit for bit" in ended["output"]
    assert "threads 7 -> 1" in ended["output"]
    assert_same(out, whole)


def test_another_recipe_is_refused(server, folder, whole):
    out = folder / "again"
    ended = server.train(out, "optim.lr=0.2")
    assert ended["exit"] == 2, ended["output"]
    assert "optim.lr" in ended["output"]
    assert_same(out, whole)


@pytest.mark.parametrize("every", [7, 0])
def test_the_checkpoint_interval_does_not_change_the_result(server, folder, whole, every):
    out = folder / f"every-{every}"
    ended = server.train(out, f"checkpoint.every_steps={every}", "checkpoint.keep=1")
    assert ended["exit"] == 0, ended["output"]
    assert_same(out, whole)


def test_a_corrupt_checkpoint_falls_back_with_a_warning(server, folder, whole):
    out = folder / "on_unreadable"
    ended = stopped(server, out, random.Random(0), [signal.SIGTERM], (15, 15))
    assert ended["exit"] == 143
    step = saved_step(out)
    path = newest(out) / "optimizer.safetensors"
    path.write_bytes(flip(path.read_bytes(), 4321))
    ended = server.train(out)
    assert ended["exit"] == 0, ended["output"]
    assert str(path) in ended["output"]
    assert begun_at(out)[-1] == step - 1
    assert_same(out, whole)


def test_200_of_200_flipped_bits_of_a_real_checkpoint_are_detected(folder, whole):
    out = shutil.copytree(folder / "again", folder / "flipped")
    draw = random.Random(7)
    files = sorted(newest(out).iterdir())
    assert len(files) == 5
    noticed = 0
    for trial in range(200):
        path = files[trial % len(files)]
        sound = path.read_bytes()
        path.write_bytes(flip(sound, draw.randrange(8 * len(sound))))
        with pytest.raises(ValueError, match=str(path)):
            store.load_checkpoint(out / store.CHECKPOINTS, strict=True)
        noticed += 1
        path.write_bytes(sound)
    assert noticed == 200
    assert_same(out, whole)

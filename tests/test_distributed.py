"""A run on several processes is the run on one, and ends as one, whatever befalls any of them.

The processes are real, and meet on the loopback. Most are forks of one that has imported all, with
the variables that torchrun sets; torch's own agent starts those of the last test.
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import small_run
from plusx import store
from plusx.data.loader import Loader
from plusx.recipe import load_recipe
from plusx.run import build, evaluate, load_run, optim, task_factory
from plusx.tasks.prepare import prepare
from plusx.train.loop import reseed
from plusx.train.optim import trained_parameters
from plusx.train.state import State


pytestmark = pytest.mark.slow

# 300 digits train, in batches of 63, so that two shares differ
RECIPE = small_run.recipe(12, 63, data="train = 300", device="timeout = 120.0")
PLAIN = RECIPE.replace(" drop.2", "").replace("size = 8\n", 'size = 8\nnorm = "group"\n', 1)
RECIPES = {"tiny": RECIPE, "plain": PLAIN}


class Server:
    """Runs plusx commands on several processes, forks of one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in RECIPES.items():
            (folder / f"{name}.toml").write_text(text)
        self.recipe = folder / "tiny.toml"
        self.process = subprocess.Popen(
            [
                sys.executable,
                Path(__file__).with_name("rank_server.py"),
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
        self,
        out: Path,
        *overrides: str,
        ranks: int = 2,
        recipe: str = "tiny",
        signals: list[tuple[int, int, int]] | None = None,
        faulty: int | None = None,
        hanging: int | None = None,
    ) -> dict[str, Any]:
        order = {
            "arguments": [
                "train",
                str(self.folder / f"{recipe}.toml"),
                *overrides,
                "--out",
                str(out),
            ],
            "ranks": ranks,
            "output": str(self.folder / "output"),
            "log": str(out / "log.jsonl"),
            "signals": signals or [],
            "faulty": faulty,
            "hanging": hanging,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        outputs = [(self.folder / f"output{rank}").read_text() for rank in range(ranks)]
        return {**answer, "output": outputs, "all": "".join(outputs)}

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 300)
        assert ready, "the server does not answer"
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.wait(60)
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    running = Server(folder)
    yield running
    running.close()


@pytest.fixture(scope="module")
def whole(server: Server, folder: Path) -> dict[str, bytes]:
    """What an uninterrupted run of two processes leaves."""
    ended = server.train(folder / "whole")
    assert ended["exits"] == [0, 0], ended["all"]
    assert "done" in ended["output"][0]
    assert ended["output"][1] == ""  # one speaks
    return outcome(folder / "whole")


def newest(out: Path) -> store.Checkpoint:
    checkpoint = store.load_checkpoint(out / store.CHECKPOINTS, strict=True)
    assert checkpoint is not None
    return checkpoint


def outcome(out: Path) -> dict[str, bytes]:
    """All that must not depend on what happened on the way."""
    files = [out / name for name in ("log.jsonl", "result.json", "model.safetensors")]
    files += sorted(newest(out).path.iterdir())
    assert not (out / store.LOCK).exists()
    return {path.name: path.read_bytes() for path in files}


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def assert_close(one: dict[str, Any], other: dict[str, Any], atol: float = 2e-6) -> None:
    """Equal but for rounding: twelve steps in float32, summed in another order."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=atol, msg=name)


# ---------------------------------------------------------------------------- what is computed


def shares_on_one(recipe: Path, *overrides: str, ranks: int) -> State:
    """One process that does what the ranks of a world do, one after another."""
    loaded = load_recipe(str(recipe), overrides)
    sets = build.open_sets(loaded)
    loaded = build.resolved(loaded, sets.train)
    net, _ = build.make_net(loaded)
    task = prepare(task_factory.make_training_task(loaded, net, sets.train), device="cpu")
    state = State(task, optim.optimizer_of(loaded, task), loaded.seed)
    rate = optim.schedule_of(loaded, loaded.steps or 0)
    loader = Loader(
        sets.train, augment=loaded.data.augment, batch_size=loaded.batch_size, seed=loaded.seed
    )
    epoch = 0
    while state.step < (loaded.steps or 0):
        for batch in loader.epoch(epoch):
            if state.step == loaded.steps:
                break
            state.optimizer.param_groups[0]["lr"] = rate(state.step)
            state.optimizer.zero_grad()
            task.train()
            for rank, share in enumerate(batch.split(ranks)):
                # an own stream of draws, and running statistics of which the first rank's are kept
                reseed(state.seed + (rank << 32), state.step, task.device)
                buffers = [buffer.clone() for buffer in task.buffers()]
                (task(share) * (len(share) / len(batch))).backward()
                if rank:
                    for buffer, before in zip(task.buffers(), buffers):
                        buffer.copy_(before)
            state.optimizer.step()
            state.step += 1
        epoch += 1
    assert trained_parameters(state.optimizer)
    return state


def test_two_processes_equal_one_that_accumulates_their_gradients(server, folder, whole):
    """With batch norm and dropout: each rank's own statistics and draws; rank 0's are kept."""
    expected = shares_on_one(server.recipe, ranks=2).task.state_dict()
    # measured: 8e-6, since DDP adds up gradients in buckets and this in turn
    assert_close(dict(expected), newest(folder / "whole").tensors["weights"], atol=2e-5)


def test_a_block_that_one_process_drops_and_another_does_not(server, folder):
    """Has the gradient of the one; a block that both drop has none, and does not move."""
    override = "net.drop_path=0.8"
    assert server.train(folder / "dropped", override)["exits"] == [0, 0]
    expected = shares_on_one(server.recipe, override, ranks=2).task.state_dict()
    assert_close(dict(expected), newest(folder / "dropped").tensors["weights"])


def test_without_batch_norm_two_processes_equal_one(server, folder):
    """Of batches of 63 shares have 32 and 31 samples, and are worked off in as many parts."""
    for name, ranks, *overrides in (
        ("one", 1),
        ("two", 2, "optim.accumulation_steps=2"),
        ("sharded", 2, "device.parallel=fsdp", "optim.accumulation_steps=32"),
    ):
        overrides += ["optim.clip=0.5", "steps=6"]  # the fifth batch, an epoch's last, is shorter
        ended = server.train(folder / name, *overrides, recipe="plain", ranks=ranks)
        assert ended["exits"] == [0] * ranks, ended["all"]
    one = newest(folder / "one").tensors
    assert {"weights", "optimizer"} <= one.keys()
    for name in ("two", "sharded"):
        assert losses(folder / name) == pytest.approx(losses(folder / "one"), rel=1e-5)
        for group, tensors in newest(folder / name).tensors.items():
            assert_close(one[group], tensors)


def test_distributed_evaluation_equals_that_of_one_process(folder, whole):
    run = load_run(folder / "whole")
    alone = evaluate(run, batch_size=63, device="cpu")
    together = json.loads(whole["result.json"])["validation"]
    assert together == {key: alone[key] for key in together}


# ------------------------------------------------------------------------------- it is stopped


def caught(server: Server, out: Path, *overrides: str, at: tuple[int, int, int]) -> dict[str, Any]:
    """A new run that a signal found in training. On a busy machine one may come late: again, then.

    at: lines of the log, rank, signal.
    """
    for _ in range(10):
        ended = server.train(out, *overrides, signals=[at])
        if ended["landed"] and ended["landed"][0] < 11:
            return ended
        shutil.rmtree(out)
    raise AssertionError("no signal of 10 came in time")


@pytest.mark.parametrize(("ranks", "overrides"), [(3, ()), (2, ("device.parallel=fsdp",))])
def test_a_signal_to_one_process_stops_all_and_the_run_resumes(server, folder, ranks, overrides):
    """To the bit; with three of them sums depend on the order in which they are made."""
    unbroken = folder / f"unbroken-{ranks}-{len(overrides)}"
    assert server.train(unbroken, *overrides, ranks=ranks)["exits"] == [0] * ranks
    out = folder / f"stopped-{ranks}-{len(overrides)}"
    for lines, rank in ((2, ranks - 1), (7, 0)):
        ended = server.train(out, *overrides, ranks=ranks, signals=[(lines, rank, signal.SIGTERM)])
        if ended["landed"] and ended["landed"][0] < 12:
            assert ended["exits"] == [143] * ranks, ended["all"]
            assert ended["all"].count("stopped by SIGTERM") == 1, ended["all"]
            assert len(losses(out)) == newest(out).step
    assert server.train(out, *overrides, ranks=ranks)["exits"] == [0] * ranks
    assert outcome(out) == outcome(unbroken)


def test_a_run_resumes_with_another_number_of_processes_and_a_warning(server, folder):
    out = folder / "fewer"
    ended = caught(server, out, at=(3, 0, signal.SIGTERM))
    assert ended["exits"] == [143, 143], ended["all"]
    ended = server.train(out, ranks=1)
    assert ended["exits"] == [0], ended["all"]
    assert "not bit for bit" in ended["all"]
    assert "processes 2 -> 1" in ended["all"]
    assert len(losses(out)) == 12


# ------------------------------------------------------------------------------- one of them dies


def test_a_killed_process_is_named_and_the_run_resumes(server, folder, whole):
    out = folder / "killed"
    first = caught(server, out, at=(2, 1, signal.SIGKILL))
    second = server.train(out, signals=[(6, 0, signal.SIGKILL)])
    for rank, ended in ((1, first), (0, second)):
        if ended["landed"] and ended["landed"][0] < 11:
            assert ended["exits"][rank] == -signal.SIGKILL
            assert ended["exits"][1 - rank] == 1
            assert f"rank {rank} ended" in ended["output"][1 - rank], ended["all"]
            assert "Traceback" not in ended["all"]
    assert server.train(out)["exits"] == [0, 0]
    assert outcome(out) == whole


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_is_named_within_the_timeout(server, folder, whole, rank):
    out = folder / f"still-{rank}"
    ended = caught(server, out, "device.timeout=20.0", at=(3, rank, signal.SIGSTOP))
    assert ended["exits"][1 - rank] == 1  # and the server did not have to end it
    assert f"rank {rank}" in ended["output"][1 - rank], ended["all"]
    assert newest(out).step < 12
    if rank:  # once is enough
        assert server.train(out)["exits"] == [0, 0]
        assert outcome(out) == whole


def test_a_hanging_process_is_named_within_the_timeout(server, folder):
    ended = server.train(folder / "hanging", "device.timeout=20.0", hanging=1)
    assert ended["exits"] == [1, 1]
    assert ended["all"].count("plusx:") == 1, ended["all"]
    assert "rank 1 ended or hangs: no response within 20 seconds" in ended["all"]
    assert newest(folder / "hanging").step == 4


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_is_printed_once_and_ends_all(server, folder, whole, rank):
    out = folder / f"faulty-{rank}"
    ended = server.train(out, faulty=rank)
    assert ended["exits"] == [2, 2], ended["all"]
    assert ended["all"] == "plusx: the images are upside down\n"
    assert ended["output"][rank]
    assert newest(out).step == 4


def test_an_error_of_all_processes_is_printed_once(server, folder, whole):
    ended = server.train(folder / "diverged", "optim.lr=1e19", "schedule.warmup=0")
    assert ended["exits"] == [1, 1], ended["all"]
    assert ended["all"].count("plusx:") == 1, ended["all"]
    assert re.search(r"step [0-9]+, rate [0-9.e+]+", ended["all"])
    with store.lock(folder / "used"):
        ended = server.train(folder / "used")
    assert ended["exits"] == [2, 2], ended["all"]
    assert ended["all"].count("plusx:") == 1, ended["all"]
    assert f"process {os.getpid()} on " in ended["all"]
    ended = server.train(folder / "whole")
    assert ended["exits"] == [0, 0], ended["all"]
    assert ended["all"].count("already complete") == 1
    assert outcome(folder / "whole") == whole


# ------------------------------------------------------------------------------ torch's own agent


def until(event: str, what: Callable[[], object]) -> None:
    end = time.monotonic() + 240
    while not what():
        assert time.monotonic() < end, f"waited in vain for {event}"
        time.sleep(0.005)


def children(pid: int) -> dict[int, int]:
    """The ranks that an agent has started, with their processes."""
    ranked = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [int(variable[5:]) for variable in variables if variable.startswith(b"RANK=")]
        if ranks:
            ranked[ranks[0]] = int(child)
    return ranked


def listening(pid: int) -> set[str]:
    """The addresses, in hexadecimal, at which a process listens."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}


def state_of(pid: int) -> str:
    """As /proc has it: T where it stands still, Z where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(f"process {pid} to stand still", lambda: state_of(pid) in "TZ")
    assert state_of(pid) == "T"


def test_x12_a_wrong_command_for_processes_has_one_message_and_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "plusx", "train", "digits-resnet20", "steps=2", "batch_size=2",
         "--processes", "3", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    (message,) = done.stderr.splitlines()
    assert message == "plusx: batch_size = 2: 3 processes cannot share so few samples"


def test_torchrun_restarts_processes_and_forwards_signals(server, folder):
    long = "steps=120"
    assert server.train(folder / "long", long)["exits"] == [0, 0]
    out, log_file = folder / "agent", folder / "agent.txt"
    log = out / "log.jsonl"

    def lines() -> int:
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def begun() -> int:
        return (out / "timing.jsonl").read_text().count('"begin"')

    def launch() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "plusx", "train", str(server.recipe), long]
        command += ["--out", str(out), "--processes", "2", "--restarts", "1"]
        with log_file.open("ab") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, cwd=folder)

    agent = launch()
    try:
        until("the first steps", lambda: lines() >= 3 or agent.poll() is not None)
        assert agent.poll() is None, log_file.read_text()
        ranks = children(agent.pid)
        for pid in (agent.pid, *ranks.values()):
            assert listening(pid) <= {"0100007F", "00000000000000000000000001000000"}
        assert listening(ranks[0])
        stop(ranks[1])  # who stands still has not finished meanwhile
        os.kill(ranks[1], signal.SIGKILL)
        until("a second beginning", lambda: begun() == 2 or agent.poll() is not None)
        assert agent.poll() is None, log_file.read_text()
        before = lines()
        until("more steps", lambda: lines() > before or agent.poll() is not None)
        ranks = children(agent.pid)
        stop(ranks[0])
        agent.terminate()
        os.kill(ranks[0], signal.SIGCONT)
        assert agent.wait(240) == 128 + signal.SIGTERM, log_file.read_text()
        assert len(losses(out)) == newest(out).step < 120
        assert "stopped by SIGTERM" in log_file.read_text()

        agent = launch()
        until("a third beginning", lambda: begun() == 3 or agent.poll() is not None)
        ranks = children(agent.pid)
        stop(ranks[0])
        agent.kill()
        agent.wait(240)
        os.kill(ranks[0], signal.SIGCONT)
        until("the end of all", lambda: all(state_of(pid) == "Z" for pid in ranks.values()))
    finally:
        agent.kill()
        agent.wait(240)
    assert server.train(out, long)["exits"] == [0, 0]
    assert outcome(out) == outcome(folder / "long")

"""A run on several processes is the run on one, and ends as one, whatever befalls any of them.

The processes are real, and meet on the loopback. Most are forks of one that has imported all, with
the variables that torchrun sets; torch's own agent starts those of the last test.
"""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plusx import store
from plusx.recipe import load_recipe
from plusx.run import evaluate, load_run, parts
from plusx.data.loader import Loader
from plusx.tasks.prepare import prepare
from plusx.train.loop import reseed
from plusx.train.optim import trained_parameters
from plusx.train.state import State


pytestmark = pytest.mark.slow

# 1,797 digits, of which 1,500 or so are trained on: batches of 63, so that two shares differ.
RECIPE = """
seed = 3
steps = 12
batch_size = 63

[net]
stem = "conv3 norm act"
stem_width = 8
size = 8
in_channels = 1
num_classes = 10

[[net.stages]]
depth = 1
width = 8
block = { body = "conv3s norm act drop.2 conv3 norm + act", shortcut = "pad" }

[[net.stages]]
depth = 1
width = 16
stride = 2
block = { body = "conv3s norm act conv3 norm + act", shortcut = "pad" }

[data]
kind = "digits"
augment = "pad1 crop flip"
train = 300

[optim]
kind = "sgd"
lr = 0.1
nesterov = true

[schedule]
kind = "cosine"
warm_up = 0.1

[device]
kind = "cpu"
threads = 1
timeout = 120.0

[checkpoint]
every_steps = 1
every_seconds = 0.0
"""
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
            "said": str(self.folder / "said"),
            "log": str(out / "log.jsonl"),
            "signals": signals or [],
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        said = [(self.folder / f"said{rank}").read_text() for rank in range(ranks)]
        return {**answer, "said": said, "all": "".join(said)}

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
    place = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(dir=place if os.access(place, os.W_OK) else None))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    made = Server(folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(server: Server, folder: Path) -> dict[str, bytes]:
    """What an uninterrupted run of two processes leaves."""
    ended = server.train(folder / "whole")
    assert ended["exits"] == [0, 0], ended["all"]
    assert "done" in ended["said"][0]
    assert ended["said"][1] == ""  # one speaks
    return outcome(folder / "whole")


def newest(out: Path) -> store.Checkpoint:
    found = store.load_checkpoint(out / store.CHECKPOINTS, strict=True)
    assert found is not None
    return found


def outcome(out: Path) -> dict[str, bytes]:
    """All that must not depend on what happened on the way."""
    files = [out / name for name in ("log.jsonl", "result.json", "model.safetensors")]
    files += sorted(newest(out).path.iterdir())
    assert not (out / store.LOCK).exists()
    return {path.name: path.read_bytes() for path in files}


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def assert_close(one: dict[str, Any], other: dict[str, Any], names: str = "") -> None:
    """Equal but for rounding: twelve steps in float32, summed in another order."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if re.search(names, name):
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5, msg=name)


# ---------------------------------------------------------------------------- what is computed


def shares_on_one(recipe: Path, *overrides: str, ranks: int) -> State:
    """One process that does what the ranks of a world do, one after another."""
    said = load_recipe(str(recipe), overrides)
    sets = parts.open_sets(said)
    said = parts.resolved(said, sets.train)
    net, _ = parts.make_net(said)
    task = prepare(parts.make_training_task(said, net, sets.train), device="cpu")
    state = State(task, parts.optimizer_of(said, task), said.seed)
    rate = parts.make_schedule(said, said.steps or 0)
    loader = Loader(
        sets.train, augment=said.data.augment, batch_size=said.batch_size, seed=said.seed
    )
    epoch = 0
    while state.step < (said.steps or 0):
        for batch in loader.epoch(epoch):
            if state.step == said.steps:
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


def test_two_processes_are_one_that_takes_their_shares_in_turn(server, folder, whole):
    """With batch norm and dropout: each rank's own statistics and draws; rank 0's are kept."""
    expected = shares_on_one(server.recipe, ranks=2).task.state_dict()
    assert_close(dict(expected), newest(folder / "whole").tensors["weights"])


def test_where_no_norm_looks_at_the_batch_they_are_one_process(server, folder):
    for name, ranks, *said in (("one", 1), ("two", 2), ("sharded", 2, "device.parallel=fsdp")):
        ended = server.train(folder / name, *said, recipe="plain", ranks=ranks)
        assert ended["exits"] == [0] * ranks, ended["all"]
    one = newest(folder / "one").tensors
    assert {"weights", "optimizer"} <= one.keys()
    for name in ("two", "sharded"):
        assert losses(folder / name) == pytest.approx(losses(folder / "one"), rel=1e-4)
        for group, tensors in newest(folder / name).tensors.items():
            assert_close(one[group], tensors)


def test_what_is_evaluated_in_shares_is_what_one_process_finds(folder, whole):
    run = load_run(folder / "whole")
    alone = evaluate(run, batch_size=63, device="cpu")
    together = json.loads(whole["result.json"])["validation"]
    assert together == {key: alone[key] for key in together}


# ------------------------------------------------------------------------------- it is stopped


@pytest.mark.parametrize("said", [(), ("device.parallel=fsdp", "device.channels_last=false")])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_signal_to_one_process_stops_all_and_the_run_goes_on(server, folder, ranks, said):
    """To the bit; with three of them sums depend on the order in which they are made."""
    unbroken = folder / f"unbroken-{ranks}-{len(said)}"
    assert server.train(unbroken, *said, ranks=ranks)["exits"] == [0] * ranks
    out = folder / f"stopped-{ranks}-{len(said)}"
    for lines, rank in ((2, ranks - 1), (7, 0)):
        ended = server.train(out, *said, ranks=ranks, signals=[(lines, rank, signal.SIGTERM)])
        if ended["landed"] and ended["landed"][0] < 12:
            assert ended["exits"] == [143] * ranks, ended["all"]
            assert ended["all"].count("stopped by SIGTERM") == 1, ended["all"]
            assert len(losses(out)) == newest(out).step
    assert server.train(out, *said, ranks=ranks)["exits"] == [0] * ranks
    assert outcome(out) == outcome(unbroken)

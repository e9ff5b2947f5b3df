"""Two processes with one thread each against one process with two, and the bytes exchanged.

    python benchmarks/scale.py

Speed: training steps of ResNet-20 on random images of 32 x 32, by DDP and FSDP2 with two processes
over gloo on the loopback interface, and by one process. Before anything is timed, the losses of the
processes have to equal those of one process that normalises the same halves of the same batches. A
ratio above 1 means that two processes are faster.

Bytes: the bytes received in a step, as the kernel counts them for the processes' sockets, and the
bytes that the algorithms need by arithmetic. The speed of 8 and 64 GPUs is computed from ASSUMED.

Writes results/benchmark_scale.json.
"""

import argparse
import multiprocessing
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import RESULTS, SEED, Estimate, in_turns, load, ratio, record

import plusx
from plusx.grammar.arithmetic import measure
from plusx.run.distributed import DistributedContext, join_processes
from plusx.run.engines import DdpEngine, FsdpEngine, Reducer
from plusx.train.optim import make_optimizer
from plusx.train.schedule import constant
from plusx.train.update import GradientStep


MODEL = "resnet20"
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4
ENGINES = ("ddp", "fsdp")
STEPS = 3  # per contender and round
TCP_INFO_SIZE, BYTES_RECEIVED = 232, 128  # of struct tcp_info in linux/tcp.h

# Assumptions of the projection. None of them was measured here.
ASSUMED = {
    "model": "resnet50",
    "images": 1_281_167,  # ImageNet's training images
    "epochs": 90,
    "batch_a_gpu": 256,
    "images_per_second": 3500.0,  # of one GPU of the H100's class, bfloat16, channels_last, eager
    "backward_share": 2 / 3,  # of a step, under which gradients can travel
    "gpus_a_node": 8,
    "bytes_per_second_in_a_node": 400e9,  # all-reduce bandwidth over NVLink, each way
    "bytes_per_second_between_nodes": 45e9,  # a 400 Gb/s network card per GPU
    "seconds_a_hop": 20e-6,
    "bucket_bytes": 25 * 2**20,  # DistributedDataParallel's
    "jpeg_bytes": 110_000.0,  # of an image of the training set, on average
    "jpegs_a_core": 210.0,  # decoded and cropped a second by Pillow
    "packed_a_core": 2000.0,  # read a second from a packed cache
}


def received(engine: str, parameter_bytes: int, world: int) -> float:
    """The bytes that one of `world` processes receives in a step, by arithmetic.

    A ring all-reduce moves (world - 1) / world of the gradients twice. FSDP2 gathers the parameters
    for the forward and for the backward pass, and scatters the gradients.
    """
    rounds = {"ddp": 2, "fsdp": 3}[engine]
    return rounds * (world - 1) / world * parameter_bytes


def projected(gpus: int, assumed: dict[str, Any] = ASSUMED) -> dict[str, float]:
    """The speed of DDP on ImageNet with `gpus` GPUs, under the assumptions."""
    gradient_bytes = _parameter_bytes(assumed["model"])
    step = assumed["batch_a_gpu"] / assumed["images_per_second"]
    moved = received("ddp", gradient_bytes, gpus)
    link = "in_a_node" if gpus <= assumed["gpus_a_node"] else "between_nodes"
    bandwidth = assumed[f"bytes_per_second_{link}"]
    buckets = -(-gradient_bytes // assumed["bucket_bytes"])
    latency = 2 * (gpus - 1) * assumed["seconds_a_hop"]  # of a bucket
    travel = moved / bandwidth + buckets * latency
    # the last bucket is complete when the backward pass is over
    last = travel / buckets
    hidden = max(travel - assumed["backward_share"] * step, last)
    rate = gpus * assumed["batch_a_gpu"] / (step + hidden)
    return {
        "gpus": gpus,
        "batch": gpus * assumed["batch_a_gpu"],
        "gradient_bytes": gradient_bytes,
        "received_bytes": moved,
        "step_seconds": step,
        "travel_seconds": travel,
        "images_per_second": rate,
        "efficiency": step / (step + hidden),
        "efficiency_without_overlap": step / (step + travel),
        "hours": assumed["images"] * assumed["epochs"] / rate / 3600,
        "jpeg_bytes_per_second": rate * assumed["jpeg_bytes"],
        "cores_for_jpegs": rate / assumed["jpegs_a_core"],
        "cores_for_packed": rate / assumed["packed_a_core"],
    }


def batch_of(size: int, pixels: int, number: int) -> plusx.Batch:
    random = torch.Generator().manual_seed(SEED + number)
    images = torch.randn(size, 3, pixels, pixels, generator=random)
    return plusx.Batch(images, torch.randint(10, (size,), generator=random))


def state_of() -> plusx.State:
    task = plusx.prepare(
        plusx.Classify(plusx.create_model(MODEL, seed=SEED)), device="cpu", precision="float32"
    )
    optimizer = make_optimizer(task, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    return plusx.State(task, optimizer, seed=SEED)


def rank(pipe: Connection, number: int, size: int, port: int, batch: int, pixels: int) -> None:
    """One of the processes: takes steps on request, and returns losses and bytes."""
    os.environ.update(
        RANK=str(number),
        LOCAL_RANK=str(number),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    with join_processes("cpu", 300.0) as world:
        engines = {name: _reports(name, world, batch, pixels) for name in ENGINES}
        pipe.send("ready")
        while (request := pipe.recv()) is not None:
            name, steps = request
            before = bytes_received()
            losses = [report.loss for report in islice(engines[name], steps)]
            world.barrier()  # until all have received everything
            pipe.send((losses, bytes_received() - before))


def _reports(name: str, world: DistributedContext, batch: int, pixels: int) -> Any:
    state = state_of()
    engine = DdpEngine(state.task, False) if name == "ddp" else FsdpEngine(state, world)
    shares = (
        batch_of(batch, pixels, number % 4).split(world.size)[world.rank] for number in count()
    )
    update = GradientStep(reducer=Reducer(world, engine, lambda step: batch))
    return plusx.fit(state, shares, constant(RATE), update)


def bytes_received() -> int:
    """The bytes received so far on this process's TCP connections, as counted by the kernel."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if connection.type == socket.SOCK_STREAM and connection.family != socket.AF_UNIX:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
                    total += struct.unpack_from("Q", info, BYTES_RECEIVED)[0]
        except OSError:
            continue
    return total


class Ranks:
    """The processes of one world; between their steps they wait without using the processor."""

    def __init__(self, size: int, batch: int, pixels: int) -> None:
        spawning = multiprocessing.get_context("spawn")
        with socket.socket() as reserved:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            port = reserved.getsockname()[1]
            self.pipes, self.processes = [], []
            for number in range(size):
                ours, theirs = spawning.Pipe()
                self.pipes.append(ours)
                arguments = (theirs, number, size, port, batch, pixels)
                self.processes.append(spawning.Process(target=rank, args=arguments, daemon=True))
                self.processes[-1].start()
                theirs.close()
            for pipe in self.pipes:
                pipe.recv()

    def steps(self, name: str, steps: int) -> tuple[list[float], float]:
        """Take `steps` steps; return their losses and the bytes that a process received in each."""
        for pipe in self.pipes:
            pipe.send((name, steps))
        replies = [pipe.recv() for pipe in self.pipes]
        return replies[0][0], float(np.mean([count for _, count in replies])) / steps

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(60)


def check_equal(ranks: Ranks, batch: int, pixels: int, steps: int) -> float:
    """The largest difference between the losses of the processes and of one process.

    Takes `steps` steps with every engine. Raises ValueError if the difference is above 1e-4.
    """
    batches = (batch_of(batch, pixels, number % 4) for number in count())
    halves = plusx.fit(state_of(), batches, constant(RATE), GradientStep(accumulation_steps=2))
    expected = [report.loss for report in islice(halves, steps)]
    largest = 0.0
    for name in ENGINES:
        losses, _ = ranks.steps(name, steps)
        largest = max(largest, *(abs(one - other) for one, other in zip(expected, losses)))
        if largest > 1e-4:
            raise ValueError(f"{name}: losses {losses}, of one process {expected}")
    return largest


def speed(ranks: Ranks, batch: int, pixels: int, rounds: int) -> dict[str, Any]:
    """Two processes with one thread each against one with two threads."""
    difference = check_equal(ranks, batch, pixels, 5)
    torch.set_num_threads(2)
    batches = (batch_of(batch, pixels, number % 4) for number in count())
    single = plusx.fit(state_of(), batches, constant(RATE))
    contenders: dict[str, Callable[[], object]] = {
        "one": lambda: [next(single) for _ in range(STEPS)],
        **{name: lambda name=name: ranks.steps(name, STEPS) for name in ENGINES},
    }
    contenders["one"]()
    times = in_turns(contenders, rounds)
    ratios = {name: ratio(times["one"].wall, times[name].wall) for name in ENGINES}
    return {
        "what": "speed",
        "model": MODEL,
        "batch_size": batch,
        "size": pixels,
        "rounds": rounds,
        "steps_a_round": STEPS,
        "apart": difference,
        "one_seconds": float(np.median(times["one"].wall)) / STEPS,
        "ratios": {name: asdict(each) for name, each in ratios.items()},
    }


def moved(ranks: Ranks, size: int) -> list[dict[str, Any]]:
    """The bytes of a step, counted and computed."""
    parameter_bytes = _parameter_bytes(MODEL)
    rows = []
    for name in ENGINES:
        ranks.steps(name, 2)  # opens connections and builds buckets
        _, counted = ranks.steps(name, 8)
        computed = received(name, parameter_bytes, size)
        rows.append(
            {
                "what": "bytes",
                "engine": name,
                "model": MODEL,
                "processes": size,
                "parameter_bytes": parameter_bytes,
                "computed": computed,
                "counted": counted,
            }
        )
    return rows


def _parameter_bytes(name: str) -> int:
    return 4 * measure(plusx.find(name)).parameters


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Several processes: speed and bytes exchanged.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_scale.json")
    parser.add_argument(
        "--tiny", action="store_true", help="two small rounds to check that it runs, no targets"
    )
    args = parser.parse_args(arguments)
    batch, pixels, rounds = (8, 8, 2) if args.tiny else (args.batch_size, 32, args.rounds)
    load_before, before = load(), torch.get_num_threads()
    rows = []
    for size in (2,) if args.tiny else (2, 4):
        ranks = Ranks(size, batch if size == 2 else 32, pixels)
        try:
            if size == 2:
                rows.append(speed(ranks, batch, pixels, rounds))
            rows += moved(ranks, size)
        finally:
            ranks.close()
            torch.set_num_threads(before)
    rows += [{"what": "projection", **projected(gpus)} for gpus in (1, 8, 64)]
    for row in rows:
        if row["what"] == "bytes":
            print(
                f"{row['engine']}, {row['processes']} processes: {row['counted']:,.0f} bytes "
                f"a step and process, computed {row['computed']:,.0f}"
            )
    estimates = {
        f"{name}, two processes / one": Estimate(**each) for name, each in rows[0]["ratios"].items()
    }
    for name, each in estimates.items():
        print(f"{name}: {each}")
    record(
        args.out,
        rows,
        estimates,
        recipe={"optimizer": "sgd", "lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}
        | {"rounds": rounds, "backend": "gloo", "compile": False, "assumed": ASSUMED},
        versions={},
        load_before=load_before,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

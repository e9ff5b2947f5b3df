"""What networks cost on this machine: an answer, a batch of answers, a training step, its memory.

Every round measures every network once, and who begins rotates, so that whatever else the machine
does meets all of them alike. A round that a signal cuts short is left out; the ones before it are
the result.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from plusx import store
from plusx.bench.known import known_accuracies
from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.grammar.legal import check
from plusx.grammar.shapes import each_dimension, measure
from plusx.grammar.spec import Net
from plusx.models import create_model
from plusx.nn.saved import SavedBytes
from plusx.report.bench import bench_page, figures
from plusx.run.environment import environment
from plusx.run.signals import Signals
from plusx.statistics import Median, median_interval
from plusx.tasks.classify import Classify
from plusx.tasks.prepare import find_device, prepare
from plusx.tasks.task import Task
from plusx.train.loop import fit
from plusx.train.optim import make_optimizer
from plusx.train.schedule import constant
from plusx.train.state import State
from plusx.zoo import Plain, find


# What is measured where nobody names a network: one family, small enough for any machine.
FAMILY = ("resnet20", "resnet32", "resnet44", "resnet56")
FEWEST = 3  # rounds, however long they take
CALLS = 3  # answers in turn, of which the one in the middle counts
LR = 1e-3  # of the measured training steps: it moves the weights, and changes no time
RESULT, PAGE = "bench.json", "bench.html"
UNKNOWN: dict[str, Any] = {"published": None, "measured": None}

Tell = Callable[[str], None]


@dataclass
class _Contender:
    """One network, ready for what is measured."""

    name: str
    spec: Net | Plain
    task: Task
    batch: Batch
    steps: Iterator[object]

    def answer(self, count: int) -> None:
        with torch.inference_mode():
            self.task.predict(Batch(self.batch.inputs[:count]))

    def step(self) -> None:
        next(self.steps)


def bench(
    names: Sequence[str],
    out: str | Path | None = None,
    *,
    size: int | None = None,
    batch: int = 32,
    threads: int = 0,
    device: str = "auto",
    seconds: int | float = 5.0,
    results: Path = Path("results"),
    command: str = "",
    tell: Tell = print,
) -> dict[str, Any]:
    """Measure networks of the zoo; with `out` bench.json and bench.html are written there.

    size: positions a dimension, in place of each network's own. batch: images at a time, for
    throughput and training. threads: of the CPU; 0 is torch's choice. seconds: for each network,
    in all; there are at least three rounds. results: the folder that measured accuracies are looked
    for in.

    A row has `latency_seconds` (one image), `batch_seconds`, `images_per_second` and
    `step_seconds` (forward, loss, backward, update by SGD), each with its median, `low` and `high`:
    an interval of 95 % from six rounds on (`interval`), before that the lowest and the highest. And
    `saved_bytes`: what the forward pass of a training step saves for the backward pass, of the
    whole batch, counted exactly.

    After SIGINT or SIGTERM the result has the whole rounds until then, and `stopped_by` says the
    signal. UserError: a name, size or number that cannot be. RuntimeError: a batch does not fit in
    memory, or a signal came before the first round was whole.
    """
    chosen = tuple(dict.fromkeys(names)) or FAMILY
    specs = {name: _sized(name, find(name), size) for name in chosen}
    for said, value, least in (("batch", batch, 2), ("threads", threads, 0)):
        if value < least:
            raise UserError(f"{said} = {value}: at least {least}")
    if not seconds > 0:
        raise UserError(f"seconds = {seconds}: it has to be above 0")
    if out is not None and Path(out).is_file():
        raise UserError(f"{out} is a file; the result needs a folder")
    where = find_device(device)
    with _threads(threads), Signals() as signals:
        begun = time.monotonic()
        rows, contenders = [], []
        for name, spec in specs.items():
            tell(f"{name} is built and counted")
            contender = _contender(name, spec, batch, where)
            rows.append(_counts(contender, batch, results))
            contenders.append(contender)
            if signals.received is not None:
                break
        times, rounds = _rounds(contenders, seconds, signals, tell)
        if not rounds:
            assert signals.received is not None
            raise Stopped(signals.received, 0)
        for row, contender in zip(rows, contenders, strict=True):
            row.update(_figures(times[contender.name], batch))
        result = {
            "kind": "bench",
            "rows": rows,
            "rounds": rounds,
            "batch": batch,
            "size": size,
            "finding": _finding(rows),
            "stopped_by": signals.received,
            "asked": list(chosen),
            "figures": figures(rows, batch),
            "machine": environment(where),
            "load_before": _load(),
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.monotonic() - begun,
        }
    if out is not None:
        store.make_folder(Path(out))
        store.write_json(Path(out) / RESULT, result)
        store.write_text(Path(out) / PAGE, bench_page(result))
    return result


def _sized(name: str, spec: Net | Plain, size: int | None) -> Net | Plain:
    """The spec with images of that size. UserError: the network cannot have it."""
    if size is None:
        return spec
    if isinstance(spec, Plain):
        raise UserError(f"size = {size}: {name} is a plain module of a size of its own")
    sized = replace(spec, size=size)
    try:
        check(sized)
    except ValueError as error:
        raise UserError(f"size = {size}: {name}: {error}") from error
    return sized


def _contender(name: str, spec: Net | Plain, batch: int, device: torch.device) -> _Contender:
    net = create_model(spec if isinstance(spec, Net) else name, seed=0)
    task = prepare(Classify(net), device=device, precision="float32")
    generator = torch.Generator().manual_seed(0)
    size = each_dimension(spec.size, spec.ndim if isinstance(spec, Net) else 2)
    if isinstance(spec, Net) and spec.stem.startswith("embed"):
        inputs = torch.randint(spec.in_channels, (batch, *size), generator=generator)
    else:
        inputs = torch.randn((batch, spec.in_channels, *size), generator=generator)
    targets = torch.randint(spec.num_classes, (batch,), generator=generator)
    data = Batch(inputs, targets).to(device)
    state = State(task, make_optimizer(task, lr=LR))
    return _Contender(name, spec, task, data, fit(state, repeat(data), constant(LR)))


def _counts(contender: _Contender, batch: int, results: Path) -> dict[str, Any]:
    """What is known of a network without a clock."""
    spec, name = contender.spec, contender.name
    counted = spec if isinstance(spec, Plain) else measure(spec)
    size = each_dimension(spec.size, spec.ndim if isinstance(spec, Net) else 2)
    with _fitting(name, batch):
        saved = saved_bytes(contender.task, contender.batch)
    return {
        "name": name,
        "parameters": counted.parameters,
        "multiply_adds": counted.multiply_adds,
        "depth": counted.depth,
        "input": [spec.in_channels, *size],
        # accuracies are of images of the network's own size
        **(known_accuracies(name, results) if spec == find(name) else UNKNOWN),
        "saved_bytes": saved,
        "saved_bytes_per_image": saved / batch,
    }


def saved_bytes(task: Task, batch: Batch) -> int:
    """The most bytes that one training step holds for its backward pass at a time.

    Every storage once, those of parameters and buffers not counted. Statistics of norms move as in
    any forward pass in training.
    """
    task.train()
    with SavedBytes(task) as saved:
        task(batch).backward()
    for parameter in task.parameters():
        parameter.grad = None
    return saved.peak


def _rounds(
    contenders: Sequence[_Contender], seconds: int | float, signals: Signals, tell: Tell
) -> tuple[dict[str, dict[str, list[float]]], int]:
    """Seconds a whole round of "one", "batch" and "step" for every network, and how many rounds."""
    times: dict[str, dict[str, list[float]]] = {
        each.name: {"one": [], "batch": [], "step": []} for each in contenders
    }
    begun, told, rounds = time.monotonic(), time.monotonic(), 0
    budget = seconds * len(contenders)
    while rounds <= FEWEST or time.monotonic() - begun < budget:
        first = rounds % len(contenders)
        taken = {}
        for each in (*contenders[first:], *contenders[:first]):
            if signals.received is not None:
                return times, max(rounds - 1, 0)
            taken[each.name] = _taken(each)
        if signals.received is not None:
            return times, max(rounds - 1, 0)
        if rounds:  # the first one warms up
            for name, seen in taken.items():
                for key, value in seen.items():
                    times[name][key].append(value)
        rounds += 1
        if time.monotonic() - told > 5:
            told = time.monotonic()
            share = min(1.0, (told - begun) / budget)
            tell(f"{rounds - 1} rounds, {share:.0%} of the time")
    return times, rounds - 1


def _taken(contender: _Contender) -> dict[str, float]:
    """Seconds of one answer, of a batch of answers and of a training step."""
    count = len(contender.batch)

    def timed(work: Callable[[], None]) -> float:
        began = time.perf_counter()
        with _fitting(contender.name, count):
            work()
            _settle(contender.task.device)
        return time.perf_counter() - began

    contender.task.eval()
    ones = sorted(timed(lambda: contender.answer(1)) for _ in range(CALLS))
    return {
        "one": ones[CALLS // 2],
        "batch": timed(lambda: contender.answer(count)),
        "step": timed(contender.step),
    }


def _settle(device: torch.device) -> None:
    """Wait for what the device has yet to do."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


@contextmanager
def _fitting(name: str, batch: int) -> Iterator[None]:
    """RuntimeError in our words where memory does not suffice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_full(error):
            raise
        raise RuntimeError(
            f"{name}: a batch of {batch} does not fit in memory; try --batch-size {batch // 2}"
        ) from error


def _is_full(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _figures(times: dict[str, list[float]], batch: int) -> dict[str, Any]:
    """The times of a row: medians with their ends, see `statistics.median_interval`."""
    whole = median_interval(times["batch"])
    rate = Median(batch / whole.median, batch / whole.high, batch / whole.low, whole.interval)
    return {
        "latency_seconds": median_interval(times["one"])._asdict(),
        "batch_seconds": whole._asdict(),
        "images_per_second": rate._asdict(),
        "step_seconds": median_interval(times["step"])._asdict(),
    }


def _finding(rows: Sequence[dict[str, Any]]) -> str:
    """The quickest and the slowest, in one sentence."""
    by_time = sorted(rows, key=lambda row: row["latency_seconds"]["median"])
    quick, slow = by_time[0], by_time[-1]
    one, other = (1e3 * row["latency_seconds"]["median"] for row in (quick, slow))
    if quick is slow:
        each = quick["images_per_second"]["median"]
        return f"{quick['name']} takes {one:.3g} ms for one image, and answers {each:.3g} a second."
    return f"{quick['name']} takes {one:.3g} ms for one image, {slow['name']} {other:.3g} ms."


class Stopped(RuntimeError):
    """A signal ended the measuring; the whole rounds before it are kept."""

    def __init__(self, signal_number: int, rounds: int) -> None:
        kept = f"the result has the whole rounds before it: {rounds}" if rounds else "no result"
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; {kept}")
        self.signal_number = signal_number


def _load() -> float | None:
    """How many processes wanted to run during the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

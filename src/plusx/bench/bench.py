"""Time and memory of networks on this machine: inference, training steps, activations.

Every round measures every network once, starting with another network each time, so that other load
on the machine affects all networks equally. An interrupted round is discarded; the result is the
rounds before it.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from plusx import store
from plusx.bench.accuracies import known_accuracies
from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.grammar.arithmetic import each_dimension, measure
from plusx.grammar.spec import Net
from plusx.grammar.validate import validate
from plusx.memory import SavedBytes
from plusx.models import create_model
from plusx.report import values
from plusx.report.figures import line, lines_figure
from plusx.report.result import result_page
from plusx.run.environment import environment, num_threads
from plusx.run.folder import now
from plusx.run.signals import Signals
from plusx.statistics import Median, median_interval
from plusx.tasks.classify import Classify
from plusx.tasks.prepare import find_device, prepare
from plusx.tasks.task import Task
from plusx.train.loop import fit
from plusx.train.optim import make_optimizer
from plusx.train.schedule import constant
from plusx.train.state import State
from plusx.zoo import External, find


# default networks: one family, small enough for any machine
FAMILY = ("resnet20", "resnet32", "resnet44", "resnet56")
MIN_ROUNDS = 3  # however long they take
CALLS = 3  # forward passes of one image per round; their median counts
LR = 1e-3  # of the measured training steps
RESULT, PAGE = "bench.json", "bench.html"
NOTE = (
    "One input and inputs per second are of predictions, without reading and preparing inputs. A "
    "training step is forward, loss, backward and an update by SGD. Accuracies are not measured "
    "here: published ones are those of papers, measured ones are from a folder of results. Fewer "
    "than six rounds have no 95 % interval: the lowest and the highest time are given."
)
UNKNOWN: dict[str, Any] = {"published": None, "measured": None}

Progress = Callable[[str], None]
Row = Mapping[str, Any]


@dataclass
class _Candidate:
    """A network, ready to be measured."""

    name: str
    spec: Net | External
    task: Task
    batch: Batch
    steps: Iterator[object]

    def predict(self, count: int) -> None:
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
    progress: Progress = print,
) -> dict[str, Any]:
    """Measure networks of the zoo; with `out`, write bench.json and bench.html there.

    size: positions along each dimension (default: each network's own size). batch: images per
    batch, for throughput and training. threads: CPU threads; 0 is torch's default. seconds:
    measuring time for each network, with at least three rounds. results: folder of measured
    accuracies. progress: called with a line of text.

    A row has `latency_seconds` (one image), `batch_seconds`, `images_per_second` and `step_seconds`
    (forward, loss, backward, update by SGD), each with its median, `low` and `high`: a 95 %
    interval from six rounds on (`interval`), else the lowest and the highest. `saved_bytes` is what
    the forward pass of a training step saves for the backward pass, for the whole batch, counted
    exactly.

    After SIGINT or SIGTERM the result has the complete rounds, and `stopped_by` is the signal.
    Raises UserError for an invalid name, size or number, and RuntimeError if a batch does not fit
    in memory or no round was complete.
    """
    requested = tuple(dict.fromkeys(names)) or FAMILY
    specs = {name: _sized(name, find(name), size) for name in requested}
    for option, value, minimum in (("batch", batch, 2), ("threads", threads, 0)):
        if value < minimum:
            raise UserError(f"{option} = {value}: it must be at least {minimum}")
    if not seconds > 0:
        raise UserError(f"seconds = {seconds}: it must be above 0")
    if out is not None and Path(out).is_file():
        raise UserError(f"{out} is a file; the result needs a folder")
    torch_device = find_device(device)
    with num_threads(threads), Signals() as signals:
        start = time.monotonic()
        rows, networks = [], []
        for name, spec in specs.items():
            progress(f"building {name}")
            network = _prepared(name, spec, batch, torch_device)
            rows.append(_counts(network, batch, results))
            networks.append(network)
            if signals.received is not None:
                break
        times, rounds = _rounds(networks, seconds, signals, progress)
        if not rounds:
            assert signals.received is not None
            raise Stopped(signals.received, 0)
        for row, network in zip(rows, networks, strict=True):
            row.update(_times(times[network.name], batch))
        result = {
            "kind": "bench",
            "rows": rows,
            "rounds": rounds,
            "batch": batch,
            "size": size,
            "finding": _finding(rows),
            "stopped_by": signals.received,
            "requested": list(requested),
            "figures": _figures(rows, batch),
            "machine": environment(torch_device),
            "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "command": command,
            "date": now(),
            "seconds": time.monotonic() - start,
        }
    if out is not None:
        store.make_folder(Path(out))
        store.write_json(Path(out) / RESULT, result)
        store.write_text(Path(out) / PAGE, bench_page(result))
    return result


def _sized(name: str, spec: Net | External, size: int | None) -> Net | External:
    """Return the spec with this image size. Raises UserError if the network does not allow it."""
    if size is None:
        return spec
    if isinstance(spec, External):
        raise UserError(f"size = {size}: {name} is an external module of fixed size")
    sized = replace(spec, size=size)
    try:
        validate(sized)
    except ValueError as error:
        raise UserError(f"size = {size}: {name}: {error}") from error
    return sized


def _prepared(name: str, spec: Net | External, batch: int, device: torch.device) -> _Candidate:
    net = create_model(spec if isinstance(spec, Net) else name, seed=0)
    task = prepare(Classify(net), device=device, precision="float32")
    data = random_batch(spec, batch).to(device)
    state = State(task, make_optimizer(task, lr=LR))
    return _Candidate(name, spec, task, data, fit(state, repeat(data), constant(LR)))


def _counts(network: _Candidate, batch: int, results: Path) -> dict[str, Any]:
    """Return the columns of a network that are not times."""
    spec, name = network.spec, network.name
    counts = spec if isinstance(spec, External) else measure(spec)
    size = each_dimension(spec.size, spec.ndim if isinstance(spec, Net) else 2)
    with _memory_errors(name, batch):
        saved = saved_bytes(network.task, network.batch)
    return {
        "name": name,
        "parameters": counts.parameters,
        "multiply_adds": counts.multiply_adds,
        "depth": counts.depth,
        "input": [spec.in_channels, *size],
        # accuracies are for images of the default size
        **(known_accuracies(name, results) if spec == find(name) else UNKNOWN),
        "saved_bytes": saved,
        "saved_bytes_per_image": saved / batch,
    }


def saved_bytes(task: Task, batch: Batch) -> int:
    """Return the peak number of bytes that one training step holds for its backward pass.

    Every storage counts once; parameters and buffers do not count. Statistics of norms are updated
    as in any training step.
    """
    task.train()
    with SavedBytes(task) as saved:
        task(batch).backward()
    for parameter in task.parameters():
        parameter.grad = None
    return saved.peak


def _rounds(
    networks: Sequence[_Candidate], seconds: int | float, signals: Signals, progress: Progress
) -> tuple[dict[str, dict[str, list[float]]], int]:
    """Return the seconds of "one", "batch" and "step" in every round for every network, and the
    number of rounds."""
    times: dict[str, dict[str, list[float]]] = {
        network.name: {"one": [], "batch": [], "step": []} for network in networks
    }
    start, last_progress, rounds = time.monotonic(), time.monotonic(), 0
    budget = seconds * len(networks)
    while rounds <= MIN_ROUNDS or time.monotonic() - start < budget:
        first = rounds % len(networks)
        seconds_of = {}
        for network in (*networks[first:], *networks[:first]):
            if signals.received is not None:
                return times, max(rounds - 1, 0)
            seconds_of[network.name] = _round_seconds(network)
        if signals.received is not None:
            return times, max(rounds - 1, 0)
        if rounds:  # the first round is the warm-up
            for name, values in seconds_of.items():
                for key, value in values.items():
                    times[name][key].append(value)
        rounds += 1
        if time.monotonic() - last_progress > 5:
            last_progress = time.monotonic()
            fraction = min(1.0, (last_progress - start) / budget)
            progress(f"{rounds - 1} rounds, {fraction:.0%} of the time")
    return times, rounds - 1


def _round_seconds(network: _Candidate) -> dict[str, float]:
    """Return the seconds for one image, for a batch and for a training step."""
    count, device = len(network.batch), network.task.device

    def timed(work: Callable[[], None]) -> float:
        start = time.perf_counter()
        with _memory_errors(network.name, count):
            work()
            if device.type != "cpu":
                torch.get_device_module(device).synchronize()
        return time.perf_counter() - start

    network.task.eval()
    ones = sorted(timed(lambda: network.predict(1)) for _ in range(CALLS))
    return {
        "one": ones[CALLS // 2],
        "batch": timed(lambda: network.predict(count)),
        "step": timed(network.step),
    }


@contextmanager
def _memory_errors(name: str, batch: int) -> Iterator[None]:
    """Raise RuntimeError with a hint if memory is insufficient."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not out_of_memory and "allocate memory" not in str(error):
            raise
        raise RuntimeError(
            f"{name}: a batch of {batch} does not fit in memory; try --batch-size {batch // 2}"
        ) from error


def _times(times: dict[str, list[float]], batch: int) -> dict[str, Any]:
    """Return the times of a row: medians with intervals, see `statistics.median_interval`."""
    batches = median_interval(times["batch"])
    rate = Median(
        batch / batches.median, batch / batches.high, batch / batches.low, batches.interval
    )
    return {
        "latency_seconds": median_interval(times["one"])._asdict(),
        "batch_seconds": batches._asdict(),
        "images_per_second": rate._asdict(),
        "step_seconds": median_interval(times["step"])._asdict(),
    }


def random_batch(spec: Net | External, count: int, size: int | None = None) -> Batch:
    """Return a fixed random batch of inputs and labels for a network; `size` replaces its own
    size."""
    sides = each_dimension(size or spec.size, spec.ndim if isinstance(spec, Net) else 2)
    random = torch.Generator().manual_seed(0)
    if isinstance(spec, Net) and spec.stem.startswith("embed"):
        inputs = torch.randint(spec.in_channels, (count, *sides), generator=random)
    else:
        inputs = torch.randn((count, spec.in_channels, *sides), generator=random)
    return Batch(inputs, torch.randint(max(spec.num_classes, 1), (count,), generator=random))


def bench_page(result: Mapping[str, Any]) -> str:
    """Return the HTML page of a bench.json."""
    early = " A signal ended it early." if result["stopped_by"] is not None else ""
    rows: Sequence[Row] = result["rows"]
    return result_page(
        {
            **result,
            "title": "Networks on this machine",
            "question": f"Medians of {result['rounds']} rounds, every network once in each.{early}",
            "columns": columns(rows, result["batch"]),
            "rows": [flat(row) for row in rows],
            "notes": [NOTE, *sources(rows)],
        }
    )


def columns(rows: Sequence[Row], batch: int) -> list[dict[str, str]]:
    """Return the columns of the table: keys of `flat` rows."""
    entries = (
        ("parameters", "Parameters", "", "count"),
        ("multiply_adds", "MACs", "", "count"),
        ("published", "Accuracy", "published", "share"),
        ("measured", "Accuracy", "measured", "share"),
        ("latency", "One input", "ms", "number"),
        ("latency_interval", _ends(rows).capitalize(), "ms", "text"),
        ("images_per_second", "Inputs", "per second", "number"),
        ("step", "Training step", "ms", "number"),
        ("saved", "Saved for backward", f"MB, {batch} inputs", "number"),
    )
    return [{"key": key, "title": title, "unit": unit, "kind": kind}
            for key, title, unit, kind in entries]  # fmt: skip


def flat(row: Row) -> dict[str, Any]:
    """Return a row with one plain value per column."""
    latency, low, high = _milliseconds(row)
    return {
        "name": row["name"],
        "parameters": row["parameters"],
        "multiply_adds": row["multiply_adds"],
        "published": row["published"] and row["published"]["accuracy"],
        "measured": row["measured"] and row["measured"]["accuracy"],
        "latency": latency,
        "latency_interval": f"{values.number(low)} to {values.number(high)}",
        "images_per_second": row["images_per_second"]["median"],
        "step": 1e3 * row["step_seconds"]["median"],
        "saved": row["saved_bytes"] / 1e6,
    }


def sources(rows: Sequence[Row]) -> list[str]:
    """Return the sources of the accuracies in the table, one per line."""
    lines: dict[str, list[str]] = {}
    for key in ("published", "measured"):
        for row in rows:
            if row[key]:
                source = f"{key}: {row[key]['data']}, {row[key]['source']}"
                lines.setdefault(source, []).append(row["name"])
    return [f"Accuracy {source} ({', '.join(names)})." for source, names in lines.items()]


def _ends(rows: Sequence[Row]) -> str:
    """Return the meaning of `low` and `high` of the times: an interval needs six rounds."""
    is_interval = all(row["latency_seconds"].get("interval", True) for row in rows)
    return "95 % interval" if is_interval else "lowest to highest"


def _milliseconds(row: Row) -> tuple[float, float, float]:
    """Return the time of one image: median, low and high."""
    times = row["latency_seconds"]
    return 1e3 * times["median"], 1e3 * times["low"], 1e3 * times["high"]


def _figures(rows: Sequence[Row], batch: int) -> list[dict[str, Any]]:
    """Return the figures: time over work, memory over work, accuracy over time; each network is a
    point."""
    work = {"title": "multiply-adds (MACs) of one input", "scale": "log"}
    latency = {"title": "ms for one input", "scale": "log"}
    times = {row["name"]: _milliseconds(row) for row in rows}
    figures = [
        lines_figure(
            "Time for one input",
            f"The median of the rounds, with its {_ends(rows)}.",
            [
                line(name, [row["multiply_adds"]], [median], low=[low], high=[high])
                for row, (name, (median, low, high)) in zip(rows, times.items(), strict=True)
            ],
            x=work,
            y=latency,
        ),
        lines_figure(
            "Memory of training",
            f"What the forward pass saves for the backward pass, of a batch of {batch}.",
            [line(row["name"], [row["multiply_adds"]], [row["saved_bytes"] / 1e6]) for row in rows],
            x=work,
            y={"title": "MB", "scale": "log"},
        ),
    ]
    for key in ("published", "measured"):
        for data in dict.fromkeys(row[key]["data"] for row in rows if row[key]):
            rows_with_accuracy = [row for row in rows if row[key] and row[key]["data"] == data]
            figures.append(
                lines_figure(
                    f"{key.capitalize()} accuracy on {data}",
                    "Over the time for one input on this machine.",
                    [
                        line(row["name"], [times[row["name"]][0]], [row[key]["accuracy"]])
                        for row in rows_with_accuracy
                    ],
                    x=latency,
                    y={"title": "accuracy", "scale": "share"},
                )
            )
    return figures


def _finding(rows: Sequence[dict[str, Any]]) -> str:
    by_time = sorted(rows, key=lambda row: row["latency_seconds"]["median"])
    fastest, slowest = by_time[0], by_time[-1]
    low, high = (
        values.number(1e3 * row["latency_seconds"]["median"]) for row in (fastest, slowest)
    )
    if fastest is slowest:
        rate = values.number(fastest["images_per_second"]["median"])
        return f"{fastest['name']} takes {low} ms for one input, in batches {rate} per second."
    text = f"{fastest['name']} takes {low} ms for one input, {slowest['name']} {high} ms"
    if fastest["latency_seconds"]["high"] >= slowest["latency_seconds"]["low"]:
        return f"{text}; their intervals overlap, so the order may be chance."
    return f"{text}."


class Stopped(RuntimeError):
    """A signal ended the measurement; the complete rounds before it are the result."""

    def __init__(self, signal_number: int, rounds: int) -> None:
        outcome = f"the result has {rounds} complete rounds" if rounds else "no result"
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; {outcome}")
        self.signal_number = signal_number

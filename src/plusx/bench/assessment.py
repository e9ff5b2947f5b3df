"""One table of a trained classifier: accuracy, calibration, robustness, features, speed and size.

`plusx assess RUN [RUN]` measures everything with its interval, and with two runs their differences.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from plusx import store
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset, as_split
from plusx.errors import UserError, printable
from plusx.memory.count import CountResults, SavedBytes
from plusx.metrics.calibration import calibration_error, reliability, temperature
from plusx.report.assessment import assessment_page
from plusx.report.attack import eps_text
from plusx.run import build
from plusx.run.attacking import Threat, attack_run
from plusx.run.corrupting import corrupt_run, require_images
from plusx.run.environment import environment
from plusx.run.evaluation import evaluated_dataset, home_of
from plusx.run.file_names import WEIGHTS
from plusx.run.folder import Run, now, record_test_use
from plusx.run.forgetting import after_second_task
from plusx.run.probing import probe, train_and_evaluated
from plusx.statistics import (
    LEVEL,
    difference_of_intervals,
    median_interval,
    paired_difference,
    wilson,
)
from plusx.tasks.prepare import find_device, prepare
from plusx.tasks.task import Task
from plusx.train.loop import evaluating


IMAGES = 500  # of the parts that take long: corruptions and the attack
EPS = 2 / 255
ATTACK, STEPS = "apgd-ce", 50
SECOND_STEPS = 100  # of the second task
SAMPLES = 1000  # of the bootstrap
SPLITS = ("validation", "test")
CALLS, WARM_UP = 60, 10  # forward passes of one image: measured, and before them
JSON, PAGE = "assess.json", "assess.html"

Progress = Callable[[str], None]
Value = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """A row of the table: where its value is in a result, and how it is written."""

    title: str
    part: str
    key: str = ""  # inside the part; "": the part itself
    unit: str = "%"
    scale: float = 100.0
    larger_is_better: bool = True

    def value(self, result: Mapping[str, Any]) -> Value | None:
        """Return the value with low and high, or None if it was not measured."""
        value: Value | None = result[self.part]
        return value if value is None or not self.key else value[self.key]


MEASURES: tuple[Measure, ...] = (
    Measure("Accuracy", "clean"),
    Measure("Calibration error", "calibration", "error", larger_is_better=False),
    Measure("Calibration error after temperature scaling", "calibration", "scaled_error",
            larger_is_better=False),
    Measure("Accuracy on corrupted images", "corrupted"),
    Measure("Accuracy on attacked images", "attacked"),
    Measure("Accuracy on the same images, clean", "attacked", "clean"),
    Measure("Accuracy lost by learning a second task", "forgotten", larger_is_better=False),
    Measure("Linear probe", "probe", "linear"),
    Measure("Nearest neighbours", "probe", "neighbours"),
    Measure("Time of one image", "latency_ms", "", "ms", 1.0, larger_is_better=False),
    Measure("Memory of one image", "memory_bytes", "", "MB", 1e-6, larger_is_better=False),
    Measure("Size of the file", "size_bytes", "", "MB", 1e-6, larger_is_better=False),
)  # fmt: skip


def assess(
    runs: Sequence[Run],
    *,
    data: str | Path | None = None,
    split: str = "validation",
    images: int = IMAGES,
    eps: float = EPS,
    steps: int = STEPS,
    second_steps: int = SECOND_STEPS,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    command: str = "",
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Return the measures of a run, or of two runs with their differences.

    clean: accuracy on the split, with Wilson's interval
    calibration: the expected calibration error, and that with the temperature that is best for the
        even images, on the odd ones; intervals are bootstraps over images
    corrupted: accuracy over the 15 common corruptions, at five severities
    attacked: accuracy under APGD with `steps` steps in the Linf ball of radius `eps`
    forgotten: the accuracy that the network loses by learning a second task for `second_steps`
        steps, the rotation of the training images, with the interval of pairs; None with 0 steps,
        or for images that are not square
    probe: accuracy of a linear probe and of nearest neighbours on the embeddings
    latency_ms: of one image, the median of 60 passes in float32
    memory_bytes: parameters and buffers, and the largest sum of live results in a pass of one image
    size_bytes: of the weight file
    images: at most, for corrupted and attacked
    out: a folder for assess.json and assess.html
    Raises UserError for other than one or two classifiers with one class per image, and for files
    without gradients.
    """
    if not 1 <= len(runs) <= 2:
        raise UserError(f"{len(runs)} runs: assess takes one, or two side by side")
    for run in runs:
        _refuse_other(run)
    if split not in SPLITS:
        raise UserError(f"split = {split!r}: allowed are {' and '.join(SPLITS)}")
    if second_steps < 0:
        raise UserError(f"second_steps = {second_steps}: 0 or more")
    threat = Threat(kinds=(ATTACK,), norm="linf", eps=(eps,), steps=steps)
    threat.attack(ATTACK, eps)  # raises an error before the work
    datasets = [evaluated_dataset(run, data, as_split(split), "error") for run in runs]
    if len({dataset.fingerprint() for dataset in datasets}) > 1:
        first, second = (printable(run.path) for run in runs)
        raise UserError(
            f"{first} and {second} would be assessed on other {datasets[0].inputs}: give the same "
            "ones to both with --data"
        )
    if len(set(datasets[0].labels.tolist())) < 2:
        raise UserError(f"{datasets[0].name} has a single class; at least two are needed")
    started = time.monotonic()
    results = [
        _assessed(
            run, data=data, split=split, images=images, eps=eps, steps=steps,
            second_steps=second_steps, seed=seed, device=device, progress=progress,
        )
        for run in runs
    ]  # fmt: skip
    result: dict[str, Any] = {"kind": "assessment", **results[0]}
    result |= {"images": images, "eps": eps, "steps": steps, "seed": seed}
    result["second_steps"] = second_steps
    if len(results) == 2:
        result["other"] = results[1]
        result["differences"] = _differences(*results)
    result["finding"] = finding(result)
    result |= {
        "machine": environment(find_device(device)),
        "command": command,
        "date": now(),
        "seconds": time.monotonic() - started,
    }
    if out is not None:
        store.make_folder(Path(out))
        store.write_json(Path(out) / JSON, result)
        store.write_text(Path(out) / PAGE, assessment_page(result, rows(result)))
    return result


def _refuse_other(run: Run) -> None:
    """Raise UserError for other than a classifier of images with gradients."""
    name = printable(run.path)
    if not run.classifies or run.multilabel:
        raise UserError(f"{name}: assess is for networks that predict one class per image")
    if not run.has_gradients:
        raise UserError(f"{name} is an ONNX file, without gradients: give the run")
    require_images(run.preprocessing)


def _assessed(
    run: Run,
    *,
    data: str | Path | None,
    split: str,
    images: int,
    eps: float,
    steps: int,
    second_steps: int,
    seed: int,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Return the measures of one run."""
    name = printable(run.path)
    dataset = evaluated_dataset(run, data, as_split(split), "error")
    task = prepare(run.task, device=device, precision="float32")
    progress(f"{name}: accuracy and calibration")
    probabilities, labels = _predictions(task, dataset)
    correct = probabilities.argmax(1) == labels
    options: dict[str, Any] = {"data": data, "split": split, "images": images, "seed": seed}
    options |= {"device": device, "progress": lambda line: progress(f"{name}: {line}")}
    corrupted = corrupt_run(run, **options)
    attacked = attack_run(run, kinds=[ATTACK], eps=[eps], steps=steps, checked=0, **options)
    forgotten = None
    if second_steps and len(set(run.preprocessing.size)) == 1:
        progress(f"{name}: a second task")
        train = train_and_evaluated(run, data, split, "error")[0]
        second = after_second_task(run, train, steps=second_steps, seed=seed, device=device)
        forgotten = _forgotten(correct, *_predictions(second, dataset))
    progress(f"{name}: probe, time and memory")
    probed = probe(run, data=data, split="test" if split == "test" else "validation", device=device)
    home = home_of(run)
    if home is not None and dataset.split == "test":
        use = {"data": dataset.name, "count": len(dataset), "by": "assess"}
        record_test_use(home, use)
    batch = Batch(torch.zeros(1, *run.preprocessing.input_shape, device=task.device))
    error = corrupted["mean_error"]
    messages = [*dataset.warnings, *probed.get("warnings", [])]
    return {
        "run": name,
        "data": dataset.name,
        "split": dataset.split,
        "count": len(dataset),
        "noun": dataset.noun,
        "clean": _share(correct.double().mean().item(), len(labels)),
        "calibration": _calibration(probabilities, labels, seed),
        "corrupted": {
            "value": 1 - error["value"],
            "low": 1 - error["high"],
            "high": 1 - error["low"],
            "by_kind": corrupted["by_kind"],
            "count": corrupted["count"],
        },
        "attacked": {
            "value": attacked["rows"][0]["value"],
            **_ends(attacked["rows"][0]),
            "clean": {"value": attacked["clean"]["value"], **_ends(attacked["clean"])},
            "count": attacked["count"],
        },
        "forgotten": forgotten,
        "probe": {
            **{
                name: {"value": probed[name]["accuracy"], **_ends(probed[name])}
                for name in ("linear", "neighbours")
            },
            "count": probed["count"],
        },
        "latency_ms": _latency(task, batch),
        "memory_bytes": {"value": _memory(task, batch)},
        "size_bytes": {"value": _file(run).stat().st_size},
        "parameters": sum(parameter.numel() for parameter in run.net.parameters()),
        **({"warnings": list(dict.fromkeys(messages))} if messages else {}),
    }


def _predictions(task: Task, dataset: Dataset) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n"]]:
    """Return the probabilities and labels of a data set, on the CPU."""
    loader = build.evaluation_loader(dataset, 100, task.device)
    parts = []
    with loader, evaluating(task), torch.inference_mode():
        for batch in loader.epoch(0):
            prediction: Any = task.predict(batch.to(task.device))
            parts.append((prediction.probabilities.cpu(), batch.known_targets.cpu()))
    probabilities, labels = (torch.cat(tensors) for tensors in zip(*parts))
    return probabilities, labels


def _share(value: float, count: int) -> Value:
    interval = wilson(value, count)
    return {"value": value, "low": interval.low, "high": interval.high}


def _ends(measured: Mapping[str, Any]) -> dict[str, float]:
    return {end: measured[end] for end in ("low", "high")}


def _forgotten(
    before: Bool[Tensor, "n"], probabilities: Float[Tensor, "n k"], labels: Int64[Tensor, "n"]
) -> Value:
    """Return the accuracy before the second task minus that after it."""
    after = probabilities.argmax(1) == labels
    lost = paired_difference(before.int().tolist(), after.int().tolist())
    return {
        "value": before.double().mean().item() - after.double().mean().item(),
        "low": lost.low,
        "high": lost.high,
        "after": after.double().mean().item(),
    }


def _calibration(
    probabilities: Float[Tensor, "n k"], labels: Int64[Tensor, "n"], seed: int
) -> dict[str, Any]:
    """Return the calibration error before and after temperature scaling."""
    logs = probabilities.double().clamp(min=1e-30).log()
    divisor = temperature(logs[::2], labels[::2])
    scaled = (logs[1::2] / divisor).softmax(1)
    confidence, predicted = (values.numpy() for values in probabilities.double().max(1))
    return {
        "error": _error(probabilities.double(), labels, seed),
        "scaled_error": _error(scaled, labels[1::2], seed),
        "temperature": divisor,
        "bins": reliability(confidence, predicted == labels.numpy()),
    }


def _error(probabilities: Float[Tensor, "n k"], labels: Int64[Tensor, "n"], seed: int) -> Value:
    """Return the expected calibration error with its bootstrap interval."""
    confidence, predicted = (values.numpy() for values in probabilities.max(1))
    correct = predicted == labels.numpy()
    rng = torch.Generator().manual_seed(seed)
    errors = []
    for _ in range(SAMPLES):
        drawn = torch.randint(len(labels), (len(labels),), generator=rng).numpy()
        errors.append(calibration_error(confidence[drawn], correct[drawn]))
    low, high = np.quantile(errors, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = calibration_error(confidence, correct)
    # resampling biases the error upwards; the interval is extended to include the value
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}


def _latency(task: Task, batch: Batch) -> Value:
    """Return the median time of a pass in ms."""
    times = []
    with evaluating(task), torch.inference_mode():
        for number in range(WARM_UP + CALLS):
            begin = time.perf_counter()
            task.predict(batch)
            if task.device.type == "cuda":
                torch.cuda.synchronize(task.device)
            if number >= WARM_UP:
                times.append(1000 * (time.perf_counter() - begin))
    median = median_interval(times)
    return {"value": median.median, "low": median.low, "high": median.high}


def _memory(task: Task, batch: Batch) -> int:
    """Return the bytes of parameters and buffers, and the largest sum of live results."""
    state = [*task.parameters(), *task.buffers()]
    with evaluating(task), torch.no_grad(), SavedBytes(task) as saved, CountResults(saved):
        task.predict(batch)
    return saved.peak + sum(tensor.numel() * tensor.element_size() for tensor in state)


def _file(run: Run) -> Path:
    return run.path if run.path.is_file() else run.path / WEIGHTS


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the first minus the second of each measure, with an interval if both have one."""
    result = []
    for measure in MEASURES:
        a, b = measure.value(first), measure.value(second)
        if a is None or b is None:
            continue
        row: dict[str, Any] = {"measure": measure.title, "difference": a["value"] - b["value"]}
        if "low" in a and "low" in b:
            ends = [(value["value"], value["low"], value["high"]) for value in (a, b)]
            difference = difference_of_intervals(*ends)
            row |= {"low": difference.low, "high": difference.high}
        result.append(row)
    return result


def rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the table: title and unit, and in that unit the value of each run, the difference."""
    runs = [result, result["other"]] if "other" in result else [result]
    by_title = {row["measure"]: row for row in result.get("differences", [])}
    table = []
    for measure in MEASURES:
        values = [measure.value(run) for run in runs]
        difference = by_title.get(measure.title)
        if difference is not None:
            difference = {"value": difference["difference"], **difference}
        table.append(
            {
                "title": measure.title,
                "unit": measure.unit,
                "values": [_scaled(value, measure) for value in values],
                "difference": _scaled(difference, measure),
            }
        )
    return table


def _scaled(value: Mapping[str, Any] | None, measure: Measure) -> Value | None:
    if value is None:
        return None
    return {key: measure.scale * value[key] for key in ("value", "low", "high") if key in value}


def finding(result: Mapping[str, Any]) -> str:
    """Return the result as one sentence."""
    if "other" not in result:
        clean, corrupted, attacked = (
            f"{100 * result[part]['value']:.1f} %" for part in ("clean", "corrupted", "attacked")
        )
        return (
            f"The accuracy is {clean}, {corrupted} on corrupted and {attacked} on attacked images."
        )
    better: list[str] = []
    worse: list[str] = []
    by_title = {measure.title: measure for measure in MEASURES}
    for row in result["differences"]:
        measure = by_title[row["measure"]]
        value = measure.value(result)
        assert value is not None
        # without an interval, a difference below 1 % does not count
        unclear = abs(row["difference"]) < 0.01 * abs(value["value"])
        if row["low"] <= 0 <= row["high"] if "low" in row else unclear:
            continue
        is_better = (row["difference"] > 0) == measure.larger_is_better
        (better if is_better else worse).append(row["measure"].lower())
    names = "A against B"
    if not better and not worse:
        return f"{names}: no difference is clear."
    parts = [f"better in {', '.join(better)}" if better else "",
             f"worse in {', '.join(worse)}" if worse else ""]  # fmt: skip
    return f"{names}: {'; '.join(part for part in parts if part)}."


def assessment_text(result: Mapping[str, Any]) -> str:
    """Return the table as text."""
    runs = {"A": result, "B": result["other"]} if "other" in result else {"": result}
    count = f"{result['count']:,} {result['noun']}s"
    attacked = f"{result['attacked']['count']:,} of them, eps {eps_text(result['eps'])}"
    names = [*runs, *(["A - B"] if len(runs) > 1 else [])]
    lines = [f"{name or 'run'}: {run['run']}" for name, run in runs.items()] + [
        f"{result['data']} {result['split']}, {count}; corrupted and attacked: {attacked}",
        f"  {'':46}" + "".join(f"{name:>26}" for name in names),
    ]
    for row in rows(result):
        values = row["values"] + ([row["difference"]] if len(runs) > 1 else [])
        label = f"{row['title']}, {row['unit']}"
        lines.append(f"  {label:46}" + "".join(f"{_text(value):>26}" for value in values))
    return "\n".join(lines)


def _text(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    interval = f" ({value['low']:.3g} to {value['high']:.3g})" if "low" in value else ""
    return f"{value['value']:.3g}{interval}"

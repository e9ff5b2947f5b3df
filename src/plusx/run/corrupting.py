"""Evaluation of a trained network on corrupted inputs: `plusx corrupt`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plusx import store
from plusx.attack.ascent import content
from plusx.data.batch import Batch
from plusx.data.corruptions import CORRUPTIONS, SEVERITIES, check_corruption, corrupt
from plusx.data.dataset import Dataset, as_split
from plusx.data.modality import Modality
from plusx.errors import UserError, printable
from plusx.report.corruption import Shown, corruption_page
from plusx.run import build
from plusx.run.attacking import at_most, fraction, pixels_png
from plusx.run.environment import environment
from plusx.run.evaluation import OnUnreadable, evaluated_dataset, home_of
from plusx.run.folder import Run, now, record_test_use
from plusx.statistics import LEVEL, mean_interval, wilson
from plusx.tasks.prepare import find_device, prepare
from plusx.tasks.task import Task, compute
from plusx.train.loop import evaluating


IMAGES = 500
SHOWN = 3  # severity of the images on the page, else the last one
SAMPLES = 2000  # of the bootstrap
JSON, PAGE = "corrupt.json", "corrupt.html"

Progress = Callable[[str], None]
Correct = Bool[np.ndarray, "kinds severities n"]


def corrupt_run(
    run: Run,
    *,
    baseline: Run | None = None,
    data: str | Path | None = None,
    split: str = "validation",
    kinds: Sequence[str] = (),
    severities: Sequence[int] = SEVERITIES,
    images: int = IMAGES,
    seed: int = 0,
    batch_size: int = 100,
    workers: int = 0,
    device: str = "auto",
    on_unreadable: OnUnreadable = "error",
    out: str | Path | None = None,
    command: str = "",
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Return the accuracy of a run on corrupted images, of its own data or of `data`.

    kinds: of CORRUPTIONS; (): all
    images: number of images at most, equally many of each class
    baseline: a run on the same images, whose errors divide those of `run` in the mean corruption
        error (mCE, Hendrycks and Dietterich 2019, section 4.1)
    out: a folder for corrupt.json and corrupt.html
    Images are corrupted after they are resized and cropped; padding is unchanged. Every network
    gets the same corrupted images, a function of (seed, kind, severity, image). For tasks without
    one class per input, such as masks, rows have the task's main metric, without an interval.
    Raises UserError for an unknown kind, numbers out of range, inputs other than images, a baseline
    that is not a classifier of the same images, and too few images to compare embeddings.
    """
    kinds, severities = tuple(dict.fromkeys(kinds)) or tuple(CORRUPTIONS), sorted(set(severities))
    for kind in kinds:
        for severity in severities:
            check_corruption(kind, severity)
    if images < 1 or not severities:
        raise UserError(f"images = {images}: at least 1, with at least one severity")
    if seed < 0:
        raise UserError(f"seed = {seed}: at least 0")
    started = time.monotonic()
    plan = _Plan(kinds, tuple(severities), seed, batch_size, workers, device, progress)
    dataset = at_most(evaluated_dataset(run, data, as_split(split), on_unreadable), images)
    if run.embeds:
        _require_pairs(dataset)
    classifies = run.classifies and not run.multilabel
    other_dataset = None
    if baseline is not None:
        if not (classifies and baseline.classifies and not baseline.multilabel):
            raise UserError("a baseline needs two classifiers: both must predict one class")
        other_dataset = evaluated_dataset(baseline, data, as_split(split), on_unreadable)
        other_dataset = at_most(other_dataset, images)
        if other_dataset.fingerprint() != dataset.fingerprint():
            raise UserError(
                f"{printable(baseline.path)} would be evaluated on other {other_dataset.inputs}: "
                "give the same ones to both with --data"
            )
    measured = _measured(plan, run, dataset)
    result: dict[str, Any] = {
        "kind": "corruption",
        "run": printable(run.path),
        "data": dataset.name,
        "split": dataset.split,
        "count": len(dataset),
        "noun": dataset.noun,
        "metric": measured.metric,
        "seed": seed,
        "severities": list(severities),
        "clean": measured.clean,
        "rows": measured.rows,
    }
    if measured.correct is not None:
        result |= _summary(kinds, measured.correct)
    if baseline is not None and other_dataset is not None:
        other = _measured(plan, baseline, other_dataset)
        assert measured.correct is not None
        assert other.correct is not None
        result["baseline"] = {"run": printable(baseline.path), "clean": other.clean}
        result["baseline"] |= _summary(kinds, other.correct)
        result |= _relative(measured.correct, other.correct, seed)
    result["finding"] = finding(result)
    messages = list(dataset.warnings)
    if result.get("mce", {}) is None:
        messages.append("the baseline has no error under some corruption: the mCE is undefined")
    if messages:
        result["warnings"] = messages
    if dataset.split == "test":
        use = {"data": dataset.name, "count": len(dataset), "by": "corrupt"}
        homes = [home_of(used) for used in (baseline, run) if used is not None]
        uses = [record_test_use(home, use) for home in homes if home is not None]
        if homes[-1] is not None:
            result["test_uses"] = uses[-1]
    result |= {
        "machine": environment(find_device(device)),
        "command": command,
        "date": now(),
        "seconds": time.monotonic() - started,
    }
    if out is not None:
        store.make_folder(Path(out))
        store.write_json(Path(out) / JSON, result)
        store.write_text(Path(out) / PAGE, corruption_page(result, measured.shown))
    return result


@dataclass(frozen=True)
class _Plan:
    """The settings of an evaluation."""

    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    seed: int
    batch_size: int
    workers: int
    device: str
    progress: Progress

    @property
    def cells(self) -> list[tuple[str, int]]:
        """All kinds at all severities."""
        return [(kind, severity) for kind in self.kinds for severity in self.severities]

    @property
    def shown_severity(self) -> int:
        """The severity of the images on the page."""
        return SHOWN if SHOWN in self.severities else self.severities[-1]


@dataclass(frozen=True)
class _Measured:
    """The metric of a run, clean and by kind and severity.

    correct: for classifiers, whether each sample is predicted correctly; else None
    """

    metric: str
    clean: dict[str, Any]
    rows: list[dict[str, Any]]
    correct: Correct | None
    shown: list[Shown]


def _measured(plan: _Plan, run: Run, dataset: Dataset) -> _Measured:
    """Evaluate a run on a data set, batch by batch, with every corruption."""
    task, modality = prepare(run.task, device=plan.device, precision="float32"), dataset.modality
    require_images(modality)
    classifies = run.classifies and not run.multilabel
    clean = _Cell(task, classifies)
    cells = {cell: _Cell(task, classifies) for cell in plan.cells}
    shown: list[Shown] = []
    loader = build.evaluation_loader(dataset, plan.batch_size, task.device, plan.workers)
    count = 0
    with loader, evaluating(task), torch.inference_mode():
        for cpu_batch in loader.epoch(0):
            batch = cpu_batch.to(task.device)
            clean.add(batch, batch)
            if not count:
                pixels = modality.to_pixels(batch.inputs[:1]).cpu()[0]
                shown.append(Shown("", 0, pixels_png(pixels)))
            for (kind, severity), cell in cells.items():
                corrupted = corrupted_batch(batch, modality, kind, severity, plan.seed, count)
                cell.add(corrupted, batch)
                if not count and severity == plan.shown_severity:
                    pixels = modality.to_pixels(corrupted.inputs[:1]).cpu()[0]
                    shown.append(Shown(kind, severity, pixels_png(pixels)))
                plan.progress(
                    f"{kind}, severity {severity}: {count + len(batch):,} of {len(dataset):,} "
                    f"{dataset.inputs}"
                )
            count += len(batch)
    correct = None
    if classifies:
        flat = np.stack([np.concatenate(cell.correct) for cell in cells.values()])
        correct = flat.reshape(len(plan.kinds), len(plan.severities), -1)
    rows = [
        {"corruption": kind, "group": CORRUPTIONS[kind].group, "severity": severity,
         **cell.measured()}
        for (kind, severity), cell in cells.items()
    ]  # fmt: skip
    metric = "accuracy" if classifies else task.metrics[0]
    return _Measured(metric, clean.measured(), rows, correct, shown)


def require_images(modality: Modality) -> None:
    """Raise UserError for inputs other than images, of any number of bands."""
    if modality.ndim != 2:
        raise UserError(f"corruptions are for images; the network takes {modality.inputs}")
    modality.to_pixels(torch.zeros(1, *modality.input_shape))  # raises an error without pixels


def _require_pairs(dataset: Dataset) -> None:
    """Raise UserError if no two samples have the same class, or no two have different ones, since
    embeddings are evaluated on pairs."""
    counts = torch.bincount(dataset.labels.cpu())
    if int(counts.max()) < 2 or int((counts > 0).sum()) < 2:
        raise UserError(
            "embeddings are evaluated on pairs of the same and of different classes, and these "
            f"{len(dataset)} {dataset.inputs} do not have both: use more (--images)"
        )


class _Cell:
    """The predictions for all inputs under one corruption."""

    def __init__(self, task: Task, classifies: bool) -> None:
        self.task, self.correct = task, list[Bool[np.ndarray, "n"]]()
        self.meters = None if classifies else task.meters()

    def add(self, corrupted: Batch, batch: Batch) -> None:
        prediction: Any = self.task.predict(corrupted)
        if self.meters is None:
            predicted = prediction.probabilities.argmax(1)
            self.correct.append((predicted == batch.known_targets).cpu().numpy())
        else:
            for meter in self.meters:
                meter.update(prediction, batch)

    def measured(self) -> dict[str, Any]:
        if self.meters is None:
            return fraction(torch.from_numpy(np.concatenate(self.correct)))
        return {"value": compute(self.task, self.meters)[self.task.metrics[0]]}


def corrupted_batch(
    batch: Batch, modality: Modality, kind: str, severity: int, seed: int, first: int
) -> Batch:
    """Return a batch with corrupted inputs and unchanged padding.

    first: index of the first sample in the data set
    """
    pixels = modality.to_pixels(batch.inputs)
    is_content = content(batch).expand(len(batch), 1, *pixels.shape[2:]).cpu().numpy()
    corrupted = torch.stack(
        [
            _corrupted(image, inside[0], kind, severity, [seed, first + row])
            for row, (image, inside) in enumerate(zip(pixels.cpu(), is_content))
        ]
    )
    return replace(batch, inputs=modality.from_pixels(corrupted.to(pixels.device)))


def _corrupted(
    image: Float[Tensor, "c h w"],
    inside: Bool[np.ndarray, "h w"],
    kind: str,
    severity: int,
    seed: list[int],
) -> Float[Tensor, "c h w"]:
    """Return an image with its content, a rectangle at the top left, corrupted."""
    height, width = int(inside[:, 0].sum()), int(inside[0].sum())
    rng = np.random.default_rng([*seed, list(CORRUPTIONS).index(kind), severity])
    part = image[:, :height, :width].permute(1, 2, 0).numpy()
    result = image.clone()
    result[:, :height, :width] = torch.from_numpy(corrupt(part, kind, severity, rng)).permute(
        2, 0, 1
    )
    return result


def _summary(kinds: Sequence[str], correct: Correct) -> dict[str, Any]:
    """Return the accuracy of each kind over severities, and the mean error, with intervals.

    An image is one observation: its corrupted copies are not independent.
    """
    by_kind = [
        {"corruption": kind, "group": CORRUPTIONS[kind].group, **_mean(of_kind.mean(0))}
        for kind, of_kind in zip(kinds, correct)
    ]
    accuracy = _mean(correct.mean((0, 1)))
    error = {
        "value": 1 - accuracy["value"],
        "low": 1 - accuracy["high"],
        "high": 1 - accuracy["low"],
    }
    return {"by_kind": by_kind, "mean_error": error}


def _mean(shares: Float[np.ndarray, "n"]) -> dict[str, float]:
    value = float(shares.mean())
    interval = mean_interval(shares.tolist(), bounds=(0.0, 1.0)) or wilson(value, len(shares))
    return {"value": value, "low": interval.low, "high": interval.high}


def _relative(correct: Correct, baseline: Correct, seed: int) -> dict[str, Any]:
    """Return the mCE: the error of each kind over that of the baseline, the mean over kinds.

    The interval is a bootstrap over images. None if the baseline has no error under some kind.
    """
    # (kinds, n)
    errors, baseline_errors = (1.0 - values.mean(1) for values in (correct, baseline))
    count = errors.shape[1]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), SAMPLES)
    divisors = draws @ baseline_errors.T
    if not baseline_errors.mean(1).all() or not divisors.all():
        return {"mce": None}
    ratios = (draws @ errors.T / divisors).mean(1)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float((errors.mean(1) / baseline_errors.mean(1)).mean())
    return {"mce": {"value": value, "low": float(low), "high": float(high)}}


def finding(result: dict[str, Any]) -> str:
    """Return the result as one sentence."""
    metric = result["metric"].replace("_", " ")
    clean = _percent(result["clean"]["value"])
    if "mean_error" not in result:
        values = [row["value"] for row in result["rows"] if row["value"] is not None]
        mean = _percent(sum(values) / len(values) if values else None)
        return f"The {metric} goes from {clean} to {mean} over {_selection(result)}."
    worst = min(result["by_kind"], key=lambda row: row["value"])
    text = (
        f"The {metric} goes from {clean} to {_percent(1 - result['mean_error']['value'])} over "
        f"{_selection(result)}; {CORRUPTIONS[worst['corruption']].title} is the worst, "
        f"{_percent(worst['value'])}"
    )
    if result.get("mce"):
        text += f"; mCE {_percent(result['mce']['value'])} of {result['baseline']['run']}"
    return f"{text}."


def _selection(result: dict[str, Any]) -> str:
    """Return which kinds and severities were evaluated, in words."""
    kinds = list(dict.fromkeys(row["corruption"] for row in result["rows"]))
    severities = result["severities"]
    if len(kinds) == len(CORRUPTIONS) and tuple(severities) == SEVERITIES:
        return "all corruptions"
    titles = [CORRUPTIONS[kind].title for kind in kinds]
    names = f"{len(kinds)} of {len(CORRUPTIONS)} kinds" if len(kinds) > 3 else ", ".join(titles)
    noun = "severity" if len(severities) == 1 else "severities"
    return f"{names} at {noun} {', '.join(map(str, severities))}"


def corruption_text(result: dict[str, Any]) -> str:
    """Return a result as text: a line for each kind, with a column for each severity."""
    count, severities = f"{result['count']:,} {result['noun']}s", result["severities"]
    clean = _percent(result["clean"]["value"])
    head = "".join(f"{severity:>8}" for severity in severities)
    lines = [
        f"{result['data']} {result['split']}, {count}, {result['metric']} in %, clean {clean}:",
        f"  {'severity':16}{head}{'    mean' if 'by_kind' in result else ''}",
    ]
    means = {row["corruption"]: row["value"] for row in result.get("by_kind", [])}
    values = {(row["corruption"], row["severity"]): row["value"] for row in result["rows"]}
    for kind in dict.fromkeys(row["corruption"] for row in result["rows"]):
        cells = [values[kind, severity] for severity in severities]
        cells += [means[kind]] if kind in means else []
        lines.append(f"  {kind:16}" + "".join(f"{_number(value):>8}" for value in cells))
    for name, label in (("mean_error", "mean error"), ("mce", "mCE")):
        if result.get(name):
            value, low, high = (100 * result[name][key] for key in ("value", "low", "high"))
            lines.append(f"{label} {value:.1f} % ({low:.1f} to {high:.1f} %)")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _percent(value: float | None) -> str:
    return "an undefined value" if value is None else f"{100 * value:.1f} %"

"""Claims about metrics, resumed runs and learning rates, and claims that cite published values."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from plusx import store
from plusx.data.batch import Batch
from plusx.data.prediction import ClassProbabilities
from plusx.evidence.claim import Claim
from plusx.evidence.verdict import Options, Outcome
from plusx.metrics.classification import ClassificationMeter
from plusx.train.report import Report
from plusx.train.schedule import WarmupUntil, steps, warmup


SEED = 0
_PATIENCE = 120.0  # seconds after which a run of a few seconds counts as hung


def balanced_recall(claim: Claim, options: Options) -> Outcome:
    """The difference between mean recall and accuracy, for random predictions of balanced
    classes."""
    largest, shown = 0.0, ""
    for metrics in _tables(balanced=True):
        recall = float(np.mean([row["recall"] for row in metrics["per_class"]]))
        largest = max(largest, abs(recall - metrics["accuracy"]), abs(recall - metrics["recall"]))
        shown = f"the last of them: recall {recall:.6f}, accuracy {metrics['accuracy']:.6f}"
    return Outcome(values=(largest,), shown=(shown,))


def macro_f1(claim: Claim, options: Options) -> Outcome:
    """The difference between macro F1 and the mean F1, for random predictions of unbalanced
    classes."""
    largest = harmonic_difference = 0.0
    for metrics in _tables(balanced=False):
        mean = float(np.mean([row["f1"] for row in metrics["per_class"]]))
        p, r = metrics["precision"], metrics["recall"]
        largest = max(largest, abs(mean - metrics["f1"]))
        harmonic_difference = max(harmonic_difference, abs(2 * p * r / (p + r) - mean))
    shown = (
        f"the harmonic mean of macro precision and recall lies up to {harmonic_difference:.4f} away"
    )
    return Outcome(values=(largest,), shown=(shown,))


def resume(claim: Claim, options: Options) -> Outcome:
    """The files that differ between an uninterrupted run and one that is killed with SIGKILL after
    checkpoints."""
    recipe = [
        "digits-resnet20",
        f"net.base={claim.network}",
        f"epochs={1 if options.quick else 2}",
        "checkpoint.every_steps=3",
        "checkpoint.every_seconds=0.0",
    ]
    with tempfile.TemporaryDirectory() as directory:
        uninterrupted, killed = Path(directory, "alone"), Path(directory, "killed")
        with _training_process(recipe, uninterrupted) as run:
            _wait(run)
        for _ in range(2):
            with _training_process(recipe, killed) as victim:
                _await_checkpoint(victim, killed)
                victim.send_signal(signal.SIGKILL)
                victim.communicate()
        with _training_process(recipe, killed) as run:
            _wait(run)
        log_lines = store.read_bytes(uninterrupted / "log.jsonl").count(b"\n")
        starts = store.read_bytes(killed / "timing.jsonl").count(b'"begin"')
        names = ("model.safetensors", "log.jsonl", "result.json")
        differing = [
            n for n in names if store.read_bytes(uninterrupted / n) != store.read_bytes(killed / n)
        ]
    return Outcome(
        values=(float(len(differing)),),
        shown=(
            f"compared: {', '.join(names)} ({log_lines} lines of log)",
            f"differing: {', '.join(differing) or 'none'}",
            f"the run was started {starts} times, and killed with SIGKILL before each but the last",
        ),
        smaller="1 epoch in place of 2" if options.quick else "",
    )


def warm_up_rate(claim: Claim, options: Options) -> Outcome:
    """The learning rates of both kinds of warm-up around its end; the worst one decides."""
    schedule = steps(0.1, [32_000, 48_000])
    ramp = warmup(schedule, 400)
    constant_warmup = WarmupUntil(schedule, rate=0.01, error=0.8, window=20)
    before = constant_warmup(0)
    for step in range(1, 500):
        constant_warmup.observe(
            Report(
                step=step, lr=constant_warmup(step), loss=1.0, scalars={"error": 0.9 - step / 1000}
            )
        )
    after = constant_warmup(500)
    rates = (ramp(400), ramp(31_999), after)
    rate = max(rates, key=lambda rate: abs(rate - claim.value))
    return Outcome(
        values=(rate,),
        shown=(
            f"a ramp of 400 steps: {ramp(399):g} at step 399, {ramp(400):g} at step 400",
            f"0.01 until the error is below 80 %: {before:g} before, {after:g} after",
        ),
    )


def cited(claim: Claim, options: Options) -> Outcome:
    """The first published value. Nothing is run."""
    return Outcome(values=(claim.others[0][1],), shown=_published(claim))


def cited_difference(claim: Claim, options: Options) -> Outcome:
    """The first published value minus the second. Nothing is run."""
    (_, first), (_, second), *_ = claim.others
    return Outcome(values=(first - second,), shown=_published(claim))


def _published(claim: Claim) -> tuple[str, ...]:
    shown = [
        f"published, not run here: {who}: {_number(claim, value)}" for who, value in claim.others
    ]
    shown += [f"measured by: plusx reproduce {shlex.quote(pattern)}" for pattern in claim.runs]
    return tuple(shown)


def _number(claim: Claim, value: float) -> str:
    return f"{100 * value:.2f} %" if claim.unit == "share" else f"{value:,.10g}"


def _tables(*, balanced: bool) -> list[dict[str, Any]]:
    """Return the metrics of 200 classifiers with random predictions better than chance."""
    rng = np.random.default_rng(SEED)
    metrics = []
    for _ in range(200):
        classes = int(rng.integers(2, 12))
        sizes = np.full(classes, 25) if balanced else rng.integers(5, 60, classes)
        targets = torch.from_numpy(np.repeat(np.arange(classes), sizes))
        scores: Float[np.ndarray, "n k"] = rng.random((len(targets), classes))
        scores[np.arange(len(targets)), targets.numpy()] += 0.3
        meter = ClassificationMeter()
        probabilities = torch.from_numpy(scores / scores.sum(1, keepdims=True))
        meter.update(ClassProbabilities(probabilities), Batch(targets, targets))
        metrics.append(meter.compute())
    return metrics


@contextmanager
def _training_process(recipe: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a training run in a process with one thread, and kill it at the end."""
    run = subprocess.Popen(
        [sys.executable, "-m", "plusx", "train", *recipe, "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with run:
        try:
            yield run
        finally:
            run.kill()


def _await_checkpoint(run: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for another checkpoint. Raises RuntimeError if the run ended or takes too long."""
    old_checkpoints = set(_checkpoints(folder))
    start = time.monotonic()
    while not set(_checkpoints(folder)) - old_checkpoints:
        if run.poll() is not None or time.monotonic() - start > _PATIENCE:
            run.kill()
            _, errors = run.communicate()
            raise RuntimeError(f"the run wrote no checkpoint: {errors.decode()[-300:]}")
        time.sleep(0.02)


def _checkpoints(folder: Path) -> list[str]:
    directory = folder / store.CHECKPOINTS
    return [path.name for path in directory.glob("[!.]*")] if directory.is_dir() else []


def _wait(run: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a run. Raises RuntimeError, with its last message, if it failed."""
    _, errors = run.communicate()
    if run.returncode:
        raise RuntimeError(f"a run failed: {errors.decode()[-300:].strip()}")

"""Running the unfinished trials of a comparison or a study, several at a time."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from plusx.errors import UserError
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.recipe import Recipe
from plusx.study.progress import LogTail, Progress, RunProgress
from plusx.study.trial import DIVERGED, Trial
from plusx.study.workers import WorkerPool
from plusx.zoo import find


POLL = 0.25  # seconds between two updates of the display
_STOPPING = "stopping; what was trained is saved, and the same command resumes from there"


def check_jobs(jobs: int | None) -> None:
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs = {jobs}: at least 1 run at a time")


def default_jobs(recipe: Recipe) -> int:
    """The number of runs at a time: as many as there are cores for, one with a GPU."""
    kind = recipe.device.kind
    accelerated = kind.startswith(("cuda", "mps"))
    if kind == "auto" and (sys.platform == "darwin" or os.path.exists("/dev/nvidiactl")):
        import torch

        accelerated = torch.accelerator.is_available()
    if accelerated:
        return 1
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, cores // (recipe.device.threads or 1))


def cost(recipe: Recipe, images: int | float = 1) -> float:
    """The approximate cost of a run relative to others: multiply-adds times images. `images` is the
    number an epoch has, in any unit that all runs share."""
    net = recipe.net if isinstance(recipe.net, Net) else find(recipe.net.base)
    multiply_adds = (measure(net) if isinstance(net, Net) else net).multiply_adds
    if recipe.steps is not None:
        return float(multiply_adds) * recipe.steps * recipe.batch_size
    return float(multiply_adds) * images * (recipe.epochs or 1)


def run_trials(
    pool: WorkerPool,
    trials: Sequence[Trial],
    costs: Sequence[float],
    runs: Path,
    stream: TextIO,
) -> tuple[int, dict[str, str]]:
    """Run the unfinished trials, the costliest first so that the workers end at about one time.

    Returns how many were run, and the reasons of failures by folder.

    A trial that diverges is marked in its folder and not repeated. One that fails stops no other.
    UserError: the recipe is wrong.
    """
    from plusx import store  # loads torch, as the workers do meanwhile

    by_folder = dict(zip((trial.folder for trial in trials), costs, strict=True))
    missing = [trial for trial in trials if not trial.finished(runs / trial.folder)]
    failed: dict[str, str] = {}
    display = Progress(stream, len(trials), sum(costs))
    display.finished = len(trials) - len(missing)
    display.paid = display.cost - sum(by_folder[trial.folder] for trial in missing)
    if display.finished and missing:
        display.say(f"{display.finished} of {len(trials)} runs are finished already; resuming")
    waiting = sorted(missing, key=lambda trial: -by_folder[trial.folder])
    try:
        with display:
            while waiting or pool.busy:
                while pool.free and (trial := _next(waiting, trials, runs, failed)) is not None:
                    pool.start(trial)
                    log = LogTail(runs / trial.folder / "log.jsonl")
                    length = (trial.recipe.epochs, trial.recipe.steps)
                    paid = by_folder[trial.folder]
                    display.running.append(RunProgress(trial.name, trial.seed, log, paid, *length))
                for trial, outcome in pool.ended(POLL):
                    display.show()
                    display.end(trial.name, trial.seed, outcome.error)
                    if outcome.user_error:
                        raise UserError(f"{trial}: {outcome.error}")
                    if outcome.diverged:
                        store.write_json(runs / trial.folder / DIVERGED, {"why": outcome.error})
                    elif outcome.error:
                        failed[trial.folder] = outcome.error
                display.show()
    except BaseException as stop:
        if not isinstance(stop, Exception):  # Ctrl-C or SIGTERM
            print(_STOPPING, file=stream, flush=True)
        raise
    return len(missing), failed


def _next(
    waiting: list[Trial], trials: Sequence[Trial], runs: Path, failed: dict[str, str]
) -> Trial | None:
    """The first trial whose predecessor, if it has one, is finished. One whose predecessor failed
    fails too."""
    before = {trial.folder: trial for trial in trials}
    for trial in list(waiting):
        if trial.begins in failed or (runs / trial.begins / DIVERGED).is_file():
            waiting.remove(trial)
            failed[trial.folder] = f"{before[trial.begins]}, which it begins with, failed"
        elif not trial.begins or before[trial.begins].finished(runs / trial.begins):
            waiting.remove(trial)
            return trial
    return None


def raise_failed(trials: Sequence[Trial], reasons: Mapping[str, str]) -> None:
    """RuntimeError that names the trials with their reasons; nothing where there are none."""
    if reasons:
        named = "; ".join(f"{t}: {reasons[t.folder]}" for t in trials if t.folder in reasons)
        raise RuntimeError(
            f"{len(reasons)} of {len(trials)} runs failed: {named}. The others are kept; the same "
            "command tries again"
        )


def length_of(recipe: Recipe) -> str:
    """How long the runs of a recipe are, in words."""
    if recipe.epochs:
        return f"{recipe.epochs} {'epoch' if recipe.epochs == 1 else 'epochs'}"
    return f"{recipe.steps:,} {'step' if recipe.steps == 1 else 'steps'}"


def jobs_in_words(size: int, threads: int) -> str:
    """How many runs there were at a time."""
    runs, count = "run" if size == 1 else "runs", "thread" if threads == 1 else "threads"
    return f"{size} {runs} of {threads} {count}"

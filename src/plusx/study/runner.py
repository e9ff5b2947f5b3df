"""A comparison or a study in a folder: its trials are run and measured in worker processes, then
reported.

The folder holds runs/, recipe.toml, result.json and report.html. One that was interrupted resumes:
finished trials are not repeated, and an unfinished one resumes from its last checkpoint. Trials of
another version, machine or other images than most, and failed ones, are listed and excluded from
the means.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

import torch

from plusx import store
from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.recipe import Compare, NetByName, Recipe, differences, parse_recipe, to_toml
from plusx.report import write_report
from plusx.run import build
from plusx.run.distributed import DistributedContext
from plusx.run.folder import RECIPE
from plusx.run.training import refuse_other_recipe, with_precision
from plusx.study.catalogue import EXPERIMENTS
from plusx.study.comparison import COMPARISON, comparison_trials
from plusx.study.experiment import Experiment, TrialResult, grouped
from plusx.study.progress import LogTail, Progress, RunProgress
from plusx.study.results import incomparable, read_finished, versions_and_machine
from plusx.study.trial import DIVERGED, Split, Trial
from plusx.study.workers import WorkerPool
from plusx.zoo import find


# Fields that may change between two starts: they choose what is compared, not how it is trained.
HARMLESS = (
    "checkpoint.",
    "compare.",
    "data.workers",
    "device.threads",
    "net.base",
    "seed",
    "study.",
)
POLL = 0.25  # seconds between two updates of the display
_STOPPING = "stopping; what was trained is saved, and the same command resumes from there"

T = TypeVar("T")
Kind = Literal["comparison", "study"]


def compare(
    recipe: Recipe,
    out: str | Path,
    *,
    jobs: int | None = None,
    split: Split = "validation",
    command: str = "",
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Train the recipe's networks with its seeds, and compare them: what result.json holds.

    `split="test"` compares on the test set, and each run records that it was used. For the other
    arguments and errors see `study`. UserError: the recipe has no [compare] table, or names an
    unknown network.
    """
    table = _compare_table(recipe, split)
    _refuse_repeated("compare", table)
    trials = [replace(trial, split=split) for trial in comparison_trials(recipe, table)]
    expanded = _with_seeds(trials, table.seeds, recipe)
    out = Path(out)
    return _made(COMPARISON, recipe, table, expanded, None, out, jobs, command, progress)


def study(
    recipe: Recipe,
    out: str | Path,
    *,
    jobs: int | None = None,
    command: str = "",
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Make the study of a recipe's table [study]: what result.json holds, see docs/studies.md.

    `jobs` trials are run at a time, each in its own process; None: as many as there are cores
    for the threads of a trial, one with a GPU. `command` is noted; `progress` is where progress is
    shown (None: standard error).

    UserError: the recipe has no [study] table, the study cannot be made of a network that it names,
    or the recipe is not the one that `out` was begun with. RuntimeError: trials failed, named with
    their seeds; result and report are written of the others.
    """
    out, table = Path(out), recipe.study
    if table is None:
        raise UserError(
            f"the recipe has no table [study] with a kind, one of {', '.join(EXPERIMENTS)}"
        )
    if recipe.task.kind != "classify":
        raise UserError(f'[task] kind = "{recipe.task.kind}": studies are of classifiers')
    experiment = EXPERIMENTS[table.kind]
    _check_jobs(jobs)
    _refuse_other(recipe, out, "study")
    source = build.open_split(recipe, "train")
    _refuse_repeated("study", table)
    trials = _with_seeds(experiment.trials(recipe, table, source), table.seeds, recipe)
    _check_trials(trials, recipe, source)
    return _made(experiment, recipe, table, trials, source, out, jobs, command, progress)


def rows(recipe: Recipe, out: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of the study, one after the other; see `study`."""
    yield from study(recipe, out)["rows"]


def _made(
    experiment: Experiment[T],
    recipe: Recipe,
    table: T,
    trials: Sequence[Trial],
    source: Dataset | None,
    out: Path,
    jobs: int | None,
    command: str,
    progress: TextIO | None,
) -> dict[str, Any]:
    """Run the trials and write the report; `source` are the training images of a study."""
    kind: Kind = "comparison" if source is None else "study"
    _check_jobs(jobs)
    _refuse_other(recipe, out, kind)
    runs = out / "runs"
    trials = [_with_weights(trial, runs) for trial in trials]
    _refuse_other_trials(trials, source, runs)
    threads = recipe.device.threads or 1
    size = min(jobs or default_jobs(recipe), len(trials))
    started = time.monotonic()
    with WorkerPool(size, runs) as pool, store.lock(out):
        _refuse_other(recipe, out, kind)  # it may have been begun meanwhile
        _refuse_other_trials(trials, source, runs)
        store.write_text(out / "recipe.toml", to_toml(recipe))
        count, failed = _run_trials(pool, trials, runs, progress or sys.stderr)
        result, files = _result(experiment, recipe, table, source, trials, runs, failed)
        result |= {
            "jobs": f"{size} {'run' if size == 1 else 'runs'} of {threads} "
            f"{'thread' if threads == 1 else 'threads'}",
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            # known only where all of it was done at once
            "seconds": time.monotonic() - started if count == len(trials) else None,
        }
        if count == 0 and (out / "result.json").is_file():
            result = _with_history(store.read_json(out / "result.json"), result)
        for name, text in files.items():
            store.write_text(out / name, text)
        store.write_json(out / "result.json", result)
        write_report(out)
    _raise_failed(trials, failed)
    return result


def _compare_table(recipe: Recipe, split: Split) -> Compare:
    table = recipe.compare
    if table is None:
        raise UserError(
            "the recipe has no table [compare] with networks, "
            'for example networks = ["plain20", "resnet20"]'
        )
    if isinstance(recipe.net, Net):
        raise UserError("[net]: a comparison lists its networks in [compare]; set base in [net]")
    if split == "validation" and recipe.data.validation == 0:
        raise UserError("[data] validation = 0: there are no validation images to compare on")
    return table


def _refuse_repeated(name: str, table: object) -> None:
    """UserError: a list of the recipe's table has a value twice."""
    for key, values in vars(table).items():
        if isinstance(values, tuple) and len(set(values)) < len(values):
            repeated = next(value for value in values if values.count(value) > 1)
            raise UserError(f"[{name}] {key}: {repeated} is listed twice")


def _with_seeds(trials: Sequence[Trial], seeds: Sequence[int], recipe: Recipe) -> list[Trial]:
    """The trials with each of the seeds, unless they have one of their own."""
    threads = recipe.device.threads or 1
    return [
        replace(
            trial,
            seed=seed,
            recipe=replace(
                trial.recipe,
                seed=seed,
                device=replace(trial.recipe.device, threads=threads),
                compare=None,
                study=None,
            ),
        )
        for trial in trials
        for seed in (seeds if trial.seed is None else (trial.seed,))
    ]


def _check_trials(trials: Sequence[Trial], recipe: Recipe, source: Dataset) -> None:
    """UserError: two trials have one folder, or a network does not suit the images."""
    folders = [trial.folder for trial in trials]
    repeated = [name for name in dict.fromkeys(folders) if folders.count(name) > 1]
    if repeated:
        raise UserError(f"[study]: {repeated[0]} is listed twice")
    for trial in {trial.recipe.net: trial for trial in trials}.values():
        try:
            build.spec_of(build.resolved(trial.recipe, source).net)
        except ValueError as error:
            raise UserError(f"{trial.name} on {source.name}: {error}") from error
    if recipe.data.validation == 0 and any(trial.train for trial in trials):
        raise UserError("[data] validation = 0: there are no validation images to evaluate on")


def _with_weights(trial: Trial, runs: Path) -> Trial:
    """The trial with the path of the weights that it begins with."""
    if not trial.begins:
        return trial
    net = trial.recipe.net
    assert isinstance(net, NetByName)
    weights = str(runs / trial.previous)
    return replace(trial, recipe=replace(trial.recipe, net=replace(net, weights=weights)))


def _check_jobs(jobs: int | None) -> None:
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs = {jobs}: at least 1 run at a time")


def default_jobs(recipe: Recipe) -> int:
    """The number of runs at a time: as many as there are cores for, one with a GPU."""
    kind = recipe.device.kind
    if kind.startswith(("cuda", "mps")) or (kind == "auto" and torch.accelerator.is_available()):
        return 1
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, cores // (recipe.device.threads or 1))


def _refuse_other(recipe: Recipe, out: Path, kind: Kind) -> None:
    """UserError if `out` is something else, or was begun with another recipe."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; a {kind} needs a folder")
    file = out / "recipe.toml"
    if not file.is_file():
        others = sorted(
            entry.name
            for entry in out.iterdir()
            if entry.name not in ("runs", "lock.json")
            and not (entry.name.startswith(".plusx-") and entry.name.endswith(".tmp"))
        )
        if others:
            raise UserError(
                f"{out} is not empty and not the folder of a {kind}: {', '.join(others[:3])}; "
                "choose another one"
            )
        return
    before = parse_recipe(file.read_text(encoding="utf-8"), where=str(file))
    if (before.compare if kind == "comparison" else before.study) is None:
        raise UserError(f"{out} is not the folder of a {kind}; choose another one")
    changed = [
        f"{key}: {change}"
        for key, change in differences(before, recipe).items()
        if not key.startswith(HARMLESS) or key == "study.kind"
    ]
    if changed:
        raise UserError(
            f"{out} was begun with another recipe ({'; '.join(changed)}); choose another folder, "
            "or give the recipe that it was begun with"
        )


def _refuse_other_trials(trials: Sequence[Trial], source: Dataset | None, runs: Path) -> None:
    """UserError if a trial of that name was run with another recipe.

    What a study is over may change between two starts, and not all of it is in the trials' names:
    the depth of `skips` and `ablation` is not.
    """
    if source is None:
        return
    for trial in trials:
        folder = runs / trial.folder
        if trial.train and (folder / RECIPE).is_file():
            classes = getattr(trial.recipe.data, "classes", None)
            other = classes is not None and tuple(classes) != source.classes
            images = build.open_split(trial.recipe, "train") if other else source
            resolved = build.resolved(trial.recipe, images)
            refuse_other_recipe(folder, with_precision(resolved, folder, DistributedContext()))


def cost(recipe: Recipe, images: int | float = 1) -> float:
    """The approximate cost of a run relative to others: multiply-adds times images. `images` is the
    number an epoch has, in any unit that all runs share."""
    net = recipe.net if isinstance(recipe.net, Net) else find(recipe.net.base)
    multiply_adds = (measure(net) if isinstance(net, Net) else net).multiply_adds
    if recipe.steps is not None:
        return float(multiply_adds) * recipe.steps * recipe.batch_size
    return float(multiply_adds) * images * (recipe.epochs or 1)


def _costs(trials: Sequence[Trial]) -> dict[str, float]:
    """The cost of each trial by its folder. Images are counted where some trials are measured in
    epochs and others in steps; else they are shares of the training images."""
    recipes = {trial.folder: trial.recipe for trial in trials}
    if len({recipe.epochs is None for recipe in recipes.values()}) == 1:
        shares = {name: getattr(recipe.data, "train", None) for name, recipe in recipes.items()}
        return {
            name: cost(recipes[name], share if isinstance(share, float) else 1.0)
            for name, share in shares.items()
        }
    counts = {
        data: len(build.open_split(recipe, "train"))
        for data, recipe in {recipe.data: recipe for recipe in recipes.values()}.items()
    }
    return {name: cost(recipe, counts[recipe.data]) for name, recipe in recipes.items()}


def _run_trials(
    pool: WorkerPool, trials: Sequence[Trial], runs: Path, stream: TextIO
) -> tuple[int, dict[str, str]]:
    """Run the unfinished trials, the costliest first so that the workers end at about one time.

    Returns how many were run, and the reasons of failures by folder.

    A trial that diverges is marked in its folder and not repeated. One that fails stops no other.
    UserError: the recipe is wrong.
    """
    costs = _costs(trials)
    missing = [trial for trial in trials if not trial.finished(runs / trial.folder)]
    failed: dict[str, str] = {}
    display = Progress(stream, len(trials), sum(costs.values()))
    display.finished = len(trials) - len(missing)
    display.paid = display.cost - sum(costs[trial.folder] for trial in missing)
    if display.finished and missing:
        display.say(f"{display.finished} of {len(trials)} runs are finished already; resuming")
    waiting = sorted(missing, key=lambda trial: -costs[trial.folder])
    try:
        with display:
            while waiting or pool.busy:
                while pool.free and (trial := _next(waiting, trials, runs, failed)) is not None:
                    pool.start(trial)
                    display.running.append(
                        RunProgress(
                            str(trial),
                            LogTail(runs / trial.folder / "log.jsonl"),
                            costs[trial.folder],
                            epochs=trial.recipe.epochs,
                            steps=trial.recipe.steps,
                        )
                    )
                for trial, outcome in pool.ended(POLL):
                    display.show()
                    display.end(str(trial), outcome.error)
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
    by_folder = {trial.folder: trial for trial in trials}
    for trial in list(waiting):
        previous = trial.previous
        if previous and (previous in failed or (runs / previous / DIVERGED).is_file()):
            waiting.remove(trial)
            failed[trial.folder] = f"{by_folder[previous]}, which it begins with, failed"
        elif not previous or by_folder[previous].finished(runs / previous):
            waiting.remove(trial)
            return trial
    return None


def _raise_failed(trials: Sequence[Trial], reasons: Mapping[str, str]) -> None:
    """RuntimeError that names the trials with their reasons; nothing where there are none."""
    if reasons:
        named = "; ".join(f"{t}: {reasons[t.folder]}" for t in trials if t.folder in reasons)
        raise RuntimeError(
            f"{len(reasons)} of {len(trials)} runs failed: {named}. The others are kept; the same "
            "command tries again"
        )


def _unusable(trials: Sequence[Trial], runs: Path, failed: Mapping[str, str]) -> dict[str, str]:
    """By folder, the trials excluded from the means, with the reason: they failed, diverged, or are
    not comparable with the others. Trials of the same data and seed have the same images.

    RuntimeError: none is left.
    """
    reasons = dict(failed)
    for trial in trials:
        if (runs / trial.folder / DIVERGED).is_file():
            why = store.read_json(runs / trial.folder / DIVERGED)["why"]
            reasons[trial.folder] = f"training diverged: {why}"
    left = {
        runs / trial.folder: f"{trial.recipe.data} {trial.seed}"
        for trial in trials
        if trial.folder not in reasons
    }
    if not left:
        _raise_failed(trials, reasons)
    return reasons | {folder.name: why for folder, why in incomparable(left).items()}


def _result(
    experiment: Experiment[T],
    recipe: Recipe,
    table: T,
    source: Dataset | None,
    trials: Sequence[Trial],
    runs: Path,
    failed: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of result.json but for what the clock and the caller add, and other files."""
    marked = _unusable(trials, runs, failed)
    absent = {
        folder for folder in marked if folder in failed or (runs / folder / DIVERGED).is_file()
    }
    results = {
        trial.folder: _read(trial, runs / trial.folder)
        for trial in trials
        if trial.folder not in absent
    }
    groups = grouped(result for folder, result in results.items() if folder not in marked)
    rows = experiment.rows(groups)
    odd = [
        {**row, "why": marked[folder]}
        for folder, result in results.items()
        if folder in marked
        for row in experiment.rows(grouped([result]))
    ]
    lost = [
        {"name": trial.name, "seeds": [trial.seed], "why": marked[trial.folder]}
        for trial in trials
        if trial.folder in absent
    ]
    tables = experiment.tables(table, groups, rows) if experiment.tables else []
    names = ", ".join(f"{row['name']} seed {row['seeds'][0]}" for row in lost)
    # what a finding about the others must not hide: means are over the trials that finished
    without = f" Training diverged or failed, and is in no mean: {names}." if lost else ""
    length = (recipe.epochs, "epoch") if recipe.epochs else (recipe.steps or 0, "step")
    result = {
        "kind": "compare" if source is None else "study",
        "study": getattr(table, "kind", None),
        "title": experiment.title,
        "question": experiment.question,
        "finding": experiment.finding(rows) + without,
        "data": groups[0].runs[0].data if source is None else source.name,
        "split": getattr(table, "split", trials[0].split),
        "seeds": sorted({trial.seed for trial in trials if trial.seed is not None}),
        "length": f"{length[0]:,} {length[1]}{'' if length[0] == 1 else 's'}",
        "columns": list(experiment.columns(table, groups)),
        "rows": rows,
        "tables": tables,
        "marked": odd + lost,
        "figures": experiment.figures(groups, rows),
        "notes": experiment.notes(recipe, table, groups).splitlines(),
        "recipe": to_toml(recipe),
        **experiment.extra(table, groups),
        **versions_and_machine(groups[0].results[0].folder),
    }
    return result, experiment.files(tables, groups) if experiment.files else {}


def _read(trial: Trial, folder: Path) -> TrialResult:
    texts = map(str, trial.measurements)
    return TrialResult(
        trial=trial,
        folder=folder,
        run=read_finished(folder, trial) if trial.train else None,
        answers={text: store.read_json(folder / f"{text}.json") for text in texts},
    )


def _with_history(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A result without a new run: it keeps jobs and seconds of the old one, and if all else is
    equal too, command and date."""
    history = ("jobs", "seconds", "command", "date")
    same = all(before.get(key) == value for key, value in now.items() if key not in history)
    keys = history if same else history[:2]
    return {**now, **{key: before[key] for key in keys if key in before}}

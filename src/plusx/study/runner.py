"""Run a comparison or a study in a folder.

Its trials are trained and measured in worker processes, then the report is written. The folder has
runs/, recipe.toml, result.json and report.html. An interrupted study resumes: finished trials are
not repeated, and an unfinished one resumes from its last checkpoint. Failed trials, and trials with
another version, machine or other images than most, are listed and excluded from the means.
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
from plusx.run.file_names import RECIPE
from plusx.run.training import refuse_other_recipe, with_precision
from plusx.study.catalogue import EXPERIMENTS
from plusx.study.comparison import COMPARISON, comparison_trials
from plusx.study.experiment import Experiment, TrialResult, grouped
from plusx.study.progress import LogTail, Progress, RunProgress
from plusx.study.results import incomparable, read_finished, versions_and_machine
from plusx.study.trial import DIVERGED, Split, Trial
from plusx.study.workers import WorkerPool
from plusx.zoo import find


# keys that may change when a study is resumed: they do not change how a trial is trained
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
STOPPING = "stopping; progress is saved, run the same command again to resume"

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
    """Train the recipe's networks with its seeds, and return the content of result.json.

    `split="test"` evaluates on the test set, and each run records this. For the other arguments and
    errors see `study`. Raises UserError if the recipe has no [compare] table or names an unknown
    network.
    """
    table = _compare_table(recipe, split)
    _refuse_repeated("compare", table)
    trials = [replace(trial, split=split) for trial in comparison_trials(recipe, table)]
    expanded = _with_seeds(trials, table.seeds, recipe)
    out = Path(out)
    return _run_experiment(COMPARISON, recipe, table, expanded, None, out, jobs, command, progress)


def study(
    recipe: Recipe,
    out: str | Path,
    *,
    jobs: int | None = None,
    command: str = "",
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Run the study of a recipe's [study] table and return the content of result.json.

    See docs/studies.md. `jobs` trials run at a time, each in its own process (None: the number of
    cores over the threads of a trial; 1 with a GPU). `command` is recorded. `progress` is the
    stream for progress (None: standard error). Raises UserError if the recipe has no [study] table,
    a network does not suit the study, or `out` was begun with another recipe. Raises RuntimeError,
    with the trials and seeds, if trials failed; results and report of the other trials are written.
    """
    out, table = Path(out), recipe.study
    if table is None:
        raise UserError(
            f"the recipe has no table [study] with a kind, one of {', '.join(EXPERIMENTS)}"
        )
    if recipe.task.kind != "classify":
        raise UserError(f'[task] kind = "{recipe.task.kind}": studies need kind = "classify"')
    experiment = EXPERIMENTS[table.kind]
    refuse_jobs(jobs)
    _refuse_other(recipe, out, "study")
    source = build.open_sets(recipe).train
    _refuse_repeated("study", table)
    trials = _with_seeds(experiment.trials(recipe, table, source), table.seeds, recipe)
    _check_trials(trials, recipe, source)
    return _run_experiment(experiment, recipe, table, trials, source, out, jobs, command, progress)


def rows(recipe: Recipe, out: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of the study; see `study`."""
    yield from study(recipe, out)["rows"]


def _run_experiment(
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
    """Run the trials and write the report. `source`: the training images of a study, None for a
    comparison."""
    kind: Kind = "comparison" if source is None else "study"
    refuse_jobs(jobs)
    _refuse_other(recipe, out, kind)
    runs = out / "runs"
    trials = [_with_weights(trial, runs) for trial in trials]
    _refuse_other_trials(trials, source, runs)
    threads = recipe.device.threads or 1
    size = min(jobs or default_jobs(recipe), len(trials))
    started = time.monotonic()
    with WorkerPool(size, runs) as pool, store.lock(out):
        _refuse_other(recipe, out, kind)  # another process may have begun it meanwhile
        _refuse_other_trials(trials, source, runs)
        store.write_text(out / "recipe.toml", to_toml(recipe))
        num_run, failed = run_trials(pool, trials, runs, progress or sys.stderr)
        result, files = _result(experiment, recipe, table, source, trials, runs, failed)
        result |= {
            "jobs": f"{size} {'run' if size == 1 else 'runs'} of {threads} "
            f"{'thread' if threads == 1 else 'threads'}",
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            # only if all trials ran in this call
            "seconds": time.monotonic() - started if num_run == len(trials) else None,
        }
        if num_run == 0 and (out / "result.json").is_file():
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
        raise UserError("[data] validation = 0: there is no validation set to compare on")
    return table


def _refuse_repeated(name: str, table: object) -> None:
    """Raise UserError if a list of the recipe's table has a value twice."""
    for key, values in vars(table).items():
        if isinstance(values, tuple) and len(set(values)) < len(values):
            repeated = next(value for value in values if values.count(value) > 1)
            raise UserError(f"[{name}] {key}: {repeated} is listed twice")


def _with_seeds(trials: Sequence[Trial], seeds: Sequence[int], recipe: Recipe) -> list[Trial]:
    """Return the trials with each of the seeds; a trial that has a seed keeps it."""
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
                tune=None,
            ),
        )
        for trial in trials
        for seed in (seeds if trial.seed is None else (trial.seed,))
    ]


def _check_trials(trials: Sequence[Trial], recipe: Recipe, source: Dataset) -> None:
    """Raise UserError if two trials have the same folder, or a network does not suit the data."""
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
        raise UserError("[data] validation = 0: there is no validation set to evaluate on")


def _with_weights(trial: Trial, runs: Path) -> Trial:
    """Return the trial with the path of its initial weights."""
    if not trial.initial_weights:
        return trial
    net = trial.recipe.net
    assert isinstance(net, NetByName)
    weights = str(runs / trial.previous)
    return replace(trial, recipe=replace(trial.recipe, net=replace(net, weights=weights)))


def refuse_jobs(jobs: int | None) -> None:
    """Raise UserError for a number of jobs below 1."""
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs = {jobs}: it must be at least 1")


def default_jobs(recipe: Recipe) -> int:
    """Return the number of cores over the threads of a trial; 1 with a GPU."""
    kind = recipe.device.kind
    if kind.startswith(("cuda", "mps")) or (kind == "auto" and torch.accelerator.is_available()):
        return 1
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, cores // (recipe.device.threads or 1))


def _refuse_other(recipe: Recipe, out: Path, kind: Kind) -> None:
    """Raise UserError if `out` is not a folder of this kind, or was begun with another recipe."""
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
    """Raise UserError if a trial was run with another recipe. Options of a study may change when it
    is resumed, and not all of them are in the trials' names, for example the depth of `skips` and
    `ablation`. In a comparison (`source` is None) only the specs of files may have changed."""
    for trial in trials:
        folder = runs / trial.folder
        changeable = source is not None or isinstance(trial.recipe.net, Net)
        if not (changeable and trial.train and (folder / RECIPE).is_file()):
            continue
        classes = getattr(trial.recipe.data, "classes", None)
        if source is None or (classes is not None and tuple(classes) != source.classes):
            images = build.open_split(trial.recipe, "train")
        else:
            images = source
        resolved = build.resolved(trial.recipe, images)
        refuse_other_recipe(folder, with_precision(resolved, folder, DistributedContext()))


def cost(recipe: Recipe, images: int | float = 1) -> float:
    """Return the approximate cost of a run relative to others: MACs times images. `images` is the
    number of images per epoch, in any unit that all runs share."""
    net = recipe.net if isinstance(recipe.net, Net) else find(recipe.net.base)
    multiply_adds = (measure(net) if isinstance(net, Net) else net).multiply_adds
    if recipe.steps is not None:
        return float(multiply_adds) * recipe.steps * recipe.batch_size
    return float(multiply_adds) * images * (recipe.epochs or 1)


def _costs(trials: Sequence[Trial]) -> dict[str, float]:
    """Return the cost of each trial by its folder. Images are counted if some trials are measured
    in epochs and others in steps; otherwise fractions of the training images are enough."""
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


def run_trials(
    pool: WorkerPool, trials: Sequence[Trial], runs: Path, stream: TextIO
) -> tuple[int, dict[str, str]]:
    """Run the unfinished trials, the most expensive first so that workers finish together.

    Returns the number of trials run, and the reasons of failures by folder. A diverged trial is
    marked in its folder and not repeated; a failed trial does not stop the others. Raises UserError
    if the recipe is wrong.
    """
    costs = _costs(trials)
    missing = [trial for trial in trials if not trial.finished(runs / trial.folder)]
    failed: dict[str, str] = {}
    display = Progress(stream, len(trials), sum(costs.values()))
    display.finished = len(trials) - len(missing)
    display.finished_cost = display.cost - sum(costs[trial.folder] for trial in missing)
    if display.finished and missing:
        display.print(f"{display.finished} of {len(trials)} runs are finished already; resuming")
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
            print(STOPPING, file=stream, flush=True)
        raise
    return len(missing), failed


def _next(
    waiting: list[Trial], trials: Sequence[Trial], runs: Path, failed: dict[str, str]
) -> Trial | None:
    """Remove and return the first trial that can start: its initial weights, if any, are trained. A
    trial whose initial weights failed to train is marked as failed."""
    by_folder = {trial.folder: trial for trial in trials}
    for trial in list(waiting):
        previous = trial.previous
        if previous and (previous in failed or (runs / previous / DIVERGED).is_file()):
            waiting.remove(trial)
            failed[trial.folder] = (
                f"{by_folder[previous]}, which trains its initial weights, failed"
            )
        elif not previous or by_folder[previous].finished(runs / previous):
            waiting.remove(trial)
            return trial
    return None


def _raise_failed(trials: Sequence[Trial], reasons: Mapping[str, str]) -> None:
    """Raise RuntimeError with the failed trials and the reasons, if there are any."""
    if reasons:
        failures = "; ".join(f"{t}: {reasons[t.folder]}" for t in trials if t.folder in reasons)
        raise RuntimeError(
            f"{len(reasons)} of {len(trials)} runs failed: {failures}. The others are kept; run "
            "the same command again to retry"
        )


def _unusable(trials: Sequence[Trial], runs: Path, failed: Mapping[str, str]) -> dict[str, str]:
    """Return the trials excluded from the means, by folder, with the reason: failed, diverged or
    incomparable. Trials of the same data and seed must have the same images. Raises RuntimeError if
    no trial is left."""
    reasons = dict(failed)
    for trial in trials:
        if (runs / trial.folder / DIVERGED).is_file():
            why = store.read_json(runs / trial.folder / DIVERGED)["why"]
            reasons[trial.folder] = f"training diverged: {why}"
    comparable = {
        runs / trial.folder: f"{trial.recipe.data} {trial.seed}"
        for trial in trials
        if trial.folder not in reasons
    }
    if not comparable:
        _raise_failed(trials, reasons)
    return reasons | {folder.name: why for folder, why in incomparable(comparable).items()}


def _result(
    experiment: Experiment[T],
    recipe: Recipe,
    table: T,
    source: Dataset | None,
    trials: Sequence[Trial],
    runs: Path,
    failed: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the content of result.json, except for what time and caller add, and the texts of
    further files."""
    excluded = _unusable(trials, runs, failed)
    unfinished = {
        folder for folder in excluded if folder in failed or (runs / folder / DIVERGED).is_file()
    }
    results = {
        trial.folder: _read(trial, runs / trial.folder)
        for trial in trials
        if trial.folder not in unfinished
    }
    groups = grouped(result for folder, result in results.items() if folder not in excluded)
    rows = experiment.rows(groups)
    excluded_rows = [
        {**row, "why": excluded[folder]}
        for folder, result in results.items()
        if folder in excluded
        for row in experiment.rows(grouped([result]))
    ]
    unfinished_rows = [
        {"name": trial.name, "seeds": [trial.seed], "why": excluded[trial.folder]}
        for trial in trials
        if trial.folder in unfinished
    ]
    tables = experiment.tables(table, groups, rows) if experiment.tables else []
    names = ", ".join(f"{row['name']} seed {row['seeds'][0]}" for row in unfinished_rows)
    # means are over the finished trials only, and the finding must state this
    unfinished_note = (
        f" Training diverged or failed, and is in no mean: {names}." if unfinished_rows else ""
    )
    length = (recipe.epochs, "epoch") if recipe.epochs else (recipe.steps or 0, "step")
    result = {
        "kind": "compare" if source is None else "study",
        "study": getattr(table, "kind", None),
        "title": experiment.title,
        "question": experiment.question,
        "finding": experiment.finding(rows) + unfinished_note,
        "data": groups[0].runs[0].data if source is None else source.name,
        "split": getattr(table, "split", trials[0].split),
        "seeds": sorted({trial.seed for trial in trials if trial.seed is not None}),
        "length": f"{length[0]:,} {length[1]}{'' if length[0] == 1 else 's'}",
        "columns": list(experiment.columns(table, groups)),
        "rows": rows,
        "tables": tables,
        "marked": excluded_rows + unfinished_rows,
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
        values={text: store.read_json(folder / f"{text}.json") for text in texts},
    )


def _with_history(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result without new runs: jobs and seconds are those of the old result, and so are
    command and date if nothing else changed."""
    history = ("jobs", "seconds", "command", "date")
    same = all(old.get(key) == value for key, value in new.items() if key not in history)
    keys = history if same else history[:2]
    return {**new, **{key: old[key] for key in keys if key in old}}

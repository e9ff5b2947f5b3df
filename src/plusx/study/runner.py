"""A study in a folder: its trials are run and measured in worker processes, then reported.

The folder holds runs/, recipe.toml, result.json and report.html. A study that was interrupted
resumes: finished trials are not repeated, and an unfinished one resumes from its last checkpoint.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from plusx import store
from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.recipe import NetByName, Recipe, to_toml
from plusx.run import parts
from plusx.run.distributed import DistributedContext
from plusx.run.folder import RECIPE
from plusx.run.training import refuse_other_recipe, with_precision
from plusx.study.catalogue import EXPERIMENTS
from plusx.study.compare import unusable
from plusx.study.experiment import Experiment, TrialResult, grouped
from plusx.study.folder import keep_history, refuse_other
from plusx.study.results import read_finished, versions_and_machine
from plusx.study.running import (
    check_jobs,
    cost,
    default_jobs,
    jobs_in_words,
    length_of,
    raise_failed,
    run_trials,
)
from plusx.study.trial import DIVERGED, Trial
from plusx.study.workers import WorkerPool


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
    out = Path(out)
    if recipe.study is None:
        raise UserError(
            "the recipe does not say what to study: it needs a table [study] with a kind, one of "
            f"{', '.join(EXPERIMENTS)}"
        )
    if recipe.task.kind != "classify":
        raise UserError(f'[task] kind = "{recipe.task.kind}": studies are of classifiers')
    check_jobs(jobs)
    experiment = EXPERIMENTS[recipe.study.kind]
    refuse_other(recipe, out, "study")
    source = parts.open_split(recipe, "train")
    runs = out / "runs"
    trials = [_with_weights(trial, runs) for trial in _checked(experiment, recipe, source)]
    _refuse_other_trials(trials, source, runs)
    size = min(jobs or default_jobs(recipe), len(trials))
    started = time.monotonic()
    with WorkerPool(size, runs) as pool, store.lock(out):
        refuse_other(recipe, out, "study")  # it may have been begun meanwhile
        _refuse_other_trials(trials, source, runs)
        store.write_text(out / "recipe.toml", to_toml(recipe))
        images = _images(trials)
        costs = [cost(trial.recipe, count) for trial, count in zip(trials, images, strict=True)]
        count, failed = run_trials(pool, trials, costs, runs, progress or sys.stderr)
        result, files = _result(experiment, recipe, source, trials, runs, failed)
        result |= {
            "jobs": jobs_in_words(size, recipe.device.threads or 1),
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            # Known only where all of it was done at once.
            "seconds": time.monotonic() - started if count == len(trials) else None,
        }
        if count == 0 and (out / "result.json").is_file():
            result = keep_history(store.read_json(out / "result.json"), result)
        for name, text in files.items():
            store.write_text(out / name, text)
        store.write_json(out / "result.json", result)
        from plusx.report import write_report

        write_report(out)
    raise_failed(trials, failed)
    return result


def rows(recipe: Recipe, out: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of the study, one after the other; see `study`."""
    yield from study(recipe, out)["rows"]


def _images(trials: Sequence[Trial]) -> list[int] | list[float]:
    """The images of an epoch of each trial, in a shared unit. They are counted where some trials
    are measured in epochs and others in steps; else they are the share of the training images."""
    if len({trial.recipe.epochs is None for trial in trials}) == 1:
        shares = [getattr(trial.recipe.data, "train", None) for trial in trials]
        return [share if isinstance(share, float) else 1.0 for share in shares]
    counts: dict[Any, int] = {}
    for trial in trials:
        if trial.recipe.data not in counts:
            counts[trial.recipe.data] = len(parts.open_split(trial.recipe, "train"))
    return [counts[trial.recipe.data] for trial in trials]


def _checked(experiment: Experiment, recipe: Recipe, source: Dataset) -> list[Trial]:
    assert recipe.study is not None
    for key, several in vars(recipe.study).items():
        if isinstance(several, tuple) and len(set(several)) < len(several):
            doubled = next(value for value in several if several.count(value) > 1)
            raise UserError(f"[study] {key}: {doubled} stands there twice")
    threads = recipe.device.threads or 1
    trials = []
    for trial in experiment.trials(recipe, source):
        device = replace(trial.recipe.device, threads=threads)
        trials.append(replace(trial, recipe=replace(trial.recipe, device=device, study=None)))
    folders = [trial.folder for trial in trials]
    twice = [name for name in dict.fromkeys(folders) if folders.count(name) > 1]
    if twice:
        raise UserError(f"[study]: {twice[0]} stands there twice")
    for trial in {trial.recipe.net: trial for trial in trials}.values():
        # Checked with the size of the images before anything begins.
        try:
            parts.spec_of(parts.resolved(trial.recipe, source).net)
        except ValueError as error:
            raise UserError(f"{trial.name} on {source.name}: {error}") from error
    if recipe.data.validation == 0 and any(trial.train for trial in trials):
        raise UserError("[data] validation = 0: there are no validation images to evaluate on")
    return trials


def _with_weights(trial: Trial, runs: Path) -> Trial:
    """The trial with the path of the weights that it begins with."""
    if not trial.begins:
        return trial
    net = trial.recipe.net
    assert isinstance(net, NetByName)
    weights = str(runs / trial.begins)
    return replace(trial, recipe=replace(trial.recipe, net=replace(net, weights=weights)))


def _refuse_other_trials(trials: Sequence[Trial], source: Dataset, runs: Path) -> None:
    """UserError if a trial of that name was run with another recipe.

    What a study is over may change between two starts, and not all of it is in the trials' names:
    the depth of `skips` and `ablation` is not.
    """
    for trial in trials:
        if trial.train and (runs / trial.folder / RECIPE).is_file():
            classes = getattr(trial.recipe.data, "classes", None)
            if classes is not None and tuple(classes) != source.classes:
                images = parts.open_split(trial.recipe, "train")
            else:
                images = source
            folder = runs / trial.folder
            resolved = parts.resolved(trial.recipe, images)
            refuse_other_recipe(folder, with_precision(resolved, folder, DistributedContext()))


def _result(
    experiment: Experiment,
    recipe: Recipe,
    source: Dataset,
    trials: Sequence[Trial],
    runs: Path,
    failed: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of result.json but for what the clock and the caller add, and other files."""
    assert recipe.study is not None
    # runs with the same data and seed have the same images
    alike = [f"{trial.recipe.data} {trial.seed}" for trial in trials]
    marked = unusable(trials, runs, failed, alike)
    absent = {folder for folder in marked if folder in failed or _diverged(runs / folder)}
    results = {
        trial.folder: _read(trial, runs / trial.folder)
        for trial in trials
        if trial.folder not in absent
    }
    groups = grouped(result for folder, result in results.items() if folder not in marked)
    table = experiment.rows(groups)
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
    tables = experiment.tables(recipe, groups, table) if experiment.tables else []
    files = experiment.files(recipe, groups, table) if experiment.files else {}
    result = {
        "kind": "study",
        "study": recipe.study.kind,
        "title": experiment.title,
        "question": experiment.question,
        "finding": experiment.finding(table) + _without(lost),
        "data": source.name,
        "split": getattr(recipe.study, "split", "validation"),
        "seeds": sorted({trial.seed for trial in trials}),
        "length": length_of(recipe),
        "columns": list(experiment.columns(recipe)),
        "rows": table,
        "tables": tables,
        "marked": odd + lost,
        "figures": experiment.figures(groups, table),
        "notes": experiment.notes(recipe).splitlines(),
        "recipe": to_toml(recipe),
        **versions_and_machine(groups[0].results[0].folder),
    }
    return result, files


def _without(lost: Sequence[Mapping[str, Any]]) -> str:
    """What a finding about the others must not hide: means are over the trials that finished."""
    if not lost:
        return ""
    named = ", ".join(f"{row['name']} seed {row['seeds'][0]}" for row in lost)
    return f" Training diverged or failed, and is in no mean: {named}."


def _diverged(folder: Path) -> bool:
    return (folder / DIVERGED).is_file()


def _read(trial: Trial, folder: Path) -> TrialResult:
    texts = map(str, trial.measurements)
    return TrialResult(
        trial=trial,
        folder=folder,
        run=read_finished(folder, trial.name, trial.seed, "validation") if trial.train else None,
        answers={text: store.read_json(folder / f"{text}.json") for text in texts},
    )

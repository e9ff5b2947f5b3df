"""Comparisons of networks: each is trained with every seed, in a run folder of its own.

Each run is an ordinary run folder, OUT/runs/NAME-seedN. A comparison that was interrupted resumes:
finished runs are not repeated, and an unfinished one resumes from its last checkpoint. Runs of
another version, machine or other images than most, and failed runs, are listed and excluded from
the means.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.recipe import Compare, NetByName, Recipe, to_toml
from plusx.study.finding import comparison_finding, metric_interval
from plusx.study.folder import keep_history, refuse_other
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
from plusx.zoo import find


Split = Literal["validation", "test"]


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

    `jobs` runs are trained at a time, each in its own process; None: as many as there are cores
    for the threads of a run (one if the recipe does not say), and one with a GPU. `split="test"`
    compares on the test set, and each run records that it was used. `command` is noted; `progress`
    is where progress is shown (None: standard error).

    UserError: the recipe has no [compare] table, names an unknown network, or is not the one that
    `out` was begun with. RuntimeError: runs failed, named with their seeds; result and report are
    written of the others.
    """
    out = Path(out)
    table = _checked(recipe, split)
    check_jobs(jobs)
    trials = _trials(recipe, table, split)
    size = min(jobs or default_jobs(recipe), len(trials))
    refuse_other(recipe, out, "comparison")
    started = time.monotonic()
    with WorkerPool(size, out / "runs") as pool:
        from plusx import store  # loads torch, as the workers do meanwhile

        with store.lock(out):
            refuse_other(recipe, out, "comparison")  # it may have been begun meanwhile
            store.write_text(out / "recipe.toml", to_toml(recipe))
            costs = [cost(trial.recipe) for trial in trials]
            stream = progress or sys.stderr
            count, failed = run_trials(pool, trials, costs, out / "runs", stream)
            result = {
                **_result(recipe, table, trials, out / "runs", split, failed),
                "jobs": jobs_in_words(size, recipe.device.threads or 1),
                "command": command,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                # known only if all runs were trained at once
                "seconds": time.monotonic() - started if count == len(trials) else None,
            }
            if count == 0 and (out / "result.json").is_file():
                result = keep_history(store.read_json(out / "result.json"), result)
            store.write_json(out / "result.json", result)
            from plusx.report import write_report

            write_report(out)
    raise_failed(trials, failed)
    return result


def _checked(recipe: Recipe, split: Split) -> Compare:
    table = recipe.compare
    if table is None:
        raise UserError(
            "the recipe does not say what to compare: it needs a table [compare] with networks, "
            'for example networks = ["plain20", "resnet20"]'
        )
    for name in table.networks:
        find(name)
    for key, values in (("networks", table.networks), ("seeds", table.seeds)):
        twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
        if twice:
            raise UserError(f"[compare] {key}: {twice[0]} stands there twice")
    if isinstance(recipe.net, Net):
        raise UserError("[net]: a comparison names its networks in [compare]; say base in [net]")
    if split == "validation" and recipe.data.validation == 0:
        raise UserError("[data] validation = 0: there are no validation images to compare on")
    return table


def _trials(recipe: Recipe, table: Compare, split: Split) -> list[Trial]:
    assert isinstance(recipe.net, NetByName)
    return [
        Trial(
            name=name,
            seed=seed,
            split=split,
            recipe=replace(
                recipe,
                seed=seed,
                net=replace(recipe.net, base=name),
                device=replace(recipe.device, threads=recipe.device.threads or 1),
                compare=None,
                study=None,
            ),
        )
        for name in table.networks
        for seed in table.seeds
    ]


def unusable(
    trials: Sequence[Trial], runs: Path, failed: Mapping[str, str], groups: Sequence[str]
) -> dict[str, str]:
    """By folder, the trials excluded from the means, with the reason: they failed, diverged, or are
    not comparable with the others. Trials of one group have the same images.

    RuntimeError: none is left.
    """
    from plusx import store
    from plusx.study.results import incomparable

    reasons = dict(failed)
    for trial in trials:
        if (runs / trial.folder / DIVERGED).is_file():
            why = store.read_json(runs / trial.folder / DIVERGED)["why"]
            reasons[trial.folder] = f"training diverged: {why}"
    left = {
        runs / trial.folder: group
        for trial, group in zip(trials, groups, strict=True)
        if trial.folder not in reasons
    }
    if not left:
        raise_failed(trials, reasons)
    return reasons | {folder.name: why for folder, why in incomparable(left).items()}


def _result(
    recipe: Recipe,
    table: Compare,
    trials: Sequence[Trial],
    runs: Path,
    split: Split,
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """The content of result.json except for times and the command."""
    from plusx.study.results import curve, read_finished, summarise, versions_and_machine

    marked = unusable(trials, runs, failed, [str(trial.seed) for trial in trials])
    usable = [trial for trial in trials if trial.folder not in marked]
    groups: dict[str, list[Any]] = {}
    for trial in usable:
        run = read_finished(runs / trial.folder, trial.name, trial.seed, split)
        groups.setdefault(trial.name, []).append(run)
    some = next(iter(groups.values()))[0]
    first = next(iter(some.metrics))
    rows = []
    for name, finished in groups.items():
        row = summarise(name, finished, table.threshold)
        interval = metric_interval(first, row[first]["seeds"], some.count)
        rows.append({**row, "interval": None if interval is None else list(interval)})
    return {
        "kind": "compare",
        "data": some.data,
        "split": split,
        "count": some.count,
        "averaging": some.averaging,
        "metrics": list(some.metrics),
        "spread": "standard deviation over the seeds (n - 1)",
        "seeds": list(table.seeds),
        "threshold": table.threshold,
        "length": length_of(recipe),
        "finding": comparison_finding(rows, count=some.count, split=split, key=first),
        "notes": [],
        "rows": rows,
        "marked": [
            {"name": trial.name, "seed": trial.seed, "why": marked[trial.folder]}
            for trial in trials
            if trial.folder in marked
        ],
        "curves": [curve(name, finished) for name, finished in groups.items()],
        "recipe": to_toml(recipe),
        **versions_and_machine(runs / usable[0].folder),
    }

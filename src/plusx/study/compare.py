"""Networks side by side: every one of them trained with every seed, in runs of their own.

Each run is an ordinary run folder, OUT/runs/NAME-seedN. A comparison that was interrupted goes on:
runs that are finished are not repeated, and one that was being made goes on where it was saved.
Runs of another version, machine or other images than most are named, and stand in no mean.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.recipe import Compare, NetByName, Recipe, to_toml
from plusx.study.crew import Crew, Job
from plusx.study.finding import finding, score_interval
from plusx.study.folder import as_before, refuse_other, surroundings
from plusx.study.making import (
    Planned,
    at_a_time,
    crew_of,
    length_of,
    make,
)
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

    `jobs` runs are made at a time, each in a process of its own; None: as many as there are cores
    for the threads of a run (one if the recipe does not say), and one with a GPU. `split="test"`
    compares on the test set, and each run records that it was used. `command` is noted; `progress`
    is told how it goes (None: standard error).

    UserError: the recipe has no [compare] table, names an unknown network, or is not the
    one that `out` was begun with. RuntimeError: runs
    failed, named with their seeds; the others are kept.
    """
    out = Path(out)
    told = _checked(recipe, split)
    threads = recipe.device.threads or 1
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs = {jobs}: at least 1 run is made at a time")
    planned = _plan(recipe, told, threads, out, split)
    size = min(jobs or at_a_time(recipe, threads), len(planned))
    refuse_other(recipe, out, "comparison")
    begun = time.monotonic()
    with Crew(size) as crew:
        from plusx import store  # loads torch, as the crew does meanwhile

        with store.lock(out):
            refuse_other(recipe, out, "comparison")  # it may have been begun meanwhile
            store.write_text(out / "recipe.toml", to_toml(recipe))
            stream = progress or sys.stderr
            made = make(crew, planned, stream)
            result = {
                **_result(recipe, told, planned, split),
                "jobs": crew_of(size, threads),
                "command": command,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                # Known only where all of it was done at once.
                "seconds": time.monotonic() - begun if made == len(planned) else None,
            }
            if made == 0 and (out / "result.json").is_file():
                result = as_before(store.read_json(out / "result.json"), result)
            store.write_json(out / "result.json", result)
            from plusx.report import write_report

            write_report(out)
    return result


def _checked(recipe: Recipe, split: Split) -> Compare:
    told = recipe.compare
    if told is None:
        raise UserError(
            "the recipe does not say what to compare: it needs a table [compare] with networks, "
            'for example networks = ["plain20", "resnet20"]'
        )
    for name in told.networks:
        find(name)
    for key, values in (("networks", told.networks), ("seeds", told.seeds)):
        twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
        if twice:
            raise UserError(f"[compare] {key}: {twice[0]} stands there twice")
    if isinstance(recipe.net, Net):
        raise UserError("[net]: a comparison names its networks in [compare]; say base in [net]")
    if split == "validation" and recipe.data.validation == 0:
        raise UserError("[data] validation = 0: there are no validation images to compare on")
    return told


def _plan(recipe: Recipe, told: Compare, threads: int, out: Path, split: Split) -> list[Planned]:
    assert isinstance(recipe.net, NetByName)
    planned = []
    for name in told.networks:
        for seed in told.seeds:
            own = dataclasses.replace(
                recipe,
                seed=seed,
                net=dataclasses.replace(recipe.net, base=name),
                device=dataclasses.replace(recipe.device, threads=threads),
                compare=None,
                study=None,
            )
            folder = out / "runs" / f"{name}-seed{seed}"
            planned.append(Planned(Job(name, seed, folder, to_toml(own), split), own))
    return planned


def _result(
    recipe: Recipe, told: Compare, planned: Sequence[Planned], split: Split
) -> dict[str, Any]:
    """The content of result.json but for what the clock and the caller say."""
    from plusx.study.alike import strangers
    from plusx.study.rows import curve, read_finished, row

    runs: dict[str, list[Any]] = {}
    odd = strangers({job.folder: str(job.seed) for job, _, _ in planned})
    for job, _, _ in planned:
        if job.folder not in odd:
            made = runs.setdefault(job.name, [])
            made.append(read_finished(job.folder, job.name, job.seed, split))
    some = next(iter(runs.values()))[0]
    first = next(iter(some.scores))
    rows = []
    for name, made in runs.items():
        scores = row(name, made, told.threshold)
        said = score_interval(first, scores[first]["seeds"], some.count)
        rows.append({**scores, "interval": None if said is None else [said.low, said.high]})
    return {
        "kind": "compare",
        "data": some.data,
        "split": split,
        "count": some.count,
        "averaging": some.averaging,
        "metrics": list(some.scores),
        "spread": "standard deviation over the seeds (n - 1)",
        "seeds": list(told.seeds),
        "threshold": told.threshold,
        "length": length_of(recipe),
        "finding": finding(rows, count=some.count, split=split, key=first),
        "notes": [],
        "rows": rows,
        "marked": [
            {"name": job.name, "seed": job.seed, "why": odd[job.folder]}
            for job, _, _ in planned
            if job.folder in odd
        ],
        "curves": [curve(name, made) for name, made in runs.items()],
        "recipe": to_toml(recipe),
        **surroundings(next(job.folder for job, _, _ in planned if job.folder not in odd)),
    }

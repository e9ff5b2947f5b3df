"""Networks side by side: every one of them trained with every seed, in runs of their own.

Each run is an ordinary run folder, OUT/runs/NAME-seedN. A comparison that was interrupted goes on:
runs that are finished are not repeated, and one that was being made goes on where it was saved.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from plusx.grammar.shapes import measure
from plusx.grammar.spec import Net
from plusx.recipe import Compare, NetByName, Recipe, differences, parse_recipe, to_toml
from plusx.study.crew import Crew, End, Job
from plusx.study.finding import finding, interval
from plusx.study.progress import Going, Progress, Tail
from plusx.zoo import find


LOOK = 0.25  # seconds between two looks at the runs
# Fields that may change between two starts: they choose what is compared, not how it is trained.
HARMLESS = ("checkpoint.", "compare.", "data.workers", "net.base", "seed", "device.threads")

_STOPPING = "stopping; what was trained is saved, and the same command goes on from there"

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

    ValueError: the recipe has no [compare] table, names an unknown network, or is not the one that
    `out` was begun with. RuntimeError: runs failed, named with their seeds; the others are kept.
    """
    out = Path(out)
    told = _checked(recipe, split)
    threads = recipe.device.threads or 1
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs = {jobs}: at least 1 run is made at a time")
    size = min(jobs or _size(recipe, threads), len(told.networks) * len(told.seeds))
    planned = _plan(recipe, told, threads, out, split)
    _refuse_other(recipe, out)
    begun = time.monotonic()
    with Crew(size) as crew:
        from plusx import store  # loads torch, as the crew does meanwhile

        with store.lock(out):
            _refuse_other(recipe, out)  # it may have been begun meanwhile
            store.write_text(out / "recipe.toml", to_toml(recipe))
            stream = progress or sys.stderr
            try:
                made = _make(crew, planned, recipe, stream)
            except BaseException as stop:
                if not isinstance(stop, Exception):  # Ctrl-C or SIGTERM
                    print(_STOPPING, file=stream, flush=True)
                raise
            result = {
                **_result(recipe, told, planned, split),
                "jobs": f"{size} {'run' if size == 1 else 'runs'} of "
                f"{threads} {'thread' if threads == 1 else 'threads'}",
                "command": command,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                # Known only where all of it was done at once.
                "seconds": time.monotonic() - begun if made == len(planned) else None,
            }
            if made == 0 and (out / "result.json").is_file():
                result = _as_before(store.read_json(out / "result.json"), result)
            store.write_json(out / "result.json", result)
            from plusx.report import write_report

            write_report(out)
    return result


def _checked(recipe: Recipe, split: Split) -> Compare:
    told = recipe.compare
    if told is None:
        raise ValueError(
            "the recipe does not say what to compare: it needs a table [compare] with networks, "
            'for example networks = ["plain20", "resnet20"]'
        )
    for name in told.networks:
        find(name)
    for key, values in (("networks", told.networks), ("seeds", told.seeds)):
        twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
        if twice:
            raise ValueError(f"[compare] {key}: {twice[0]} stands there twice")
    if isinstance(recipe.net, Net):
        raise ValueError("[net]: a comparison names its networks in [compare]; say base in [net]")
    if split == "validation" and recipe.data.validation == 0:
        raise ValueError("[data] validation = 0: there are no validation images to compare on")
    return told


def _size(recipe: Recipe, threads: int) -> int:
    """How many runs are made at a time where nobody said."""
    kind = recipe.device.kind
    accelerated = kind.startswith(("cuda", "mps"))
    if kind == "auto" and (sys.platform == "darwin" or os.path.exists("/dev/nvidiactl")):
        import torch

        accelerated = torch.accelerator.is_available()
    if accelerated:
        return 1
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, cores // threads)


def _plan(recipe: Recipe, told: Compare, threads: int, out: Path, split: Split) -> list[Job]:
    """All runs, the costliest first, so that the processes end at about the same time."""
    assert isinstance(recipe.net, NetByName)
    planned = []
    for name in sorted(told.networks, key=_cost, reverse=True):
        for seed in told.seeds:
            own = dataclasses.replace(
                recipe,
                seed=seed,
                net=dataclasses.replace(recipe.net, base=name),
                device=dataclasses.replace(recipe.device, threads=threads),
                compare=None,
            )
            folder = out / "runs" / f"{name}-seed{seed}"
            planned.append(Job(name, seed, folder, to_toml(own), split))
    return planned


def _cost(name: str) -> int:
    net = find(name)
    return measure(net).multiply_adds if isinstance(net, Net) else net.multiply_adds


def _refuse_other(recipe: Recipe, out: Path) -> None:
    """ValueError where `out` is something else, or was begun with another recipe."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file; a comparison needs a folder")
    file = out / "recipe.toml"
    if not file.is_file():
        others = sorted(entry.name for entry in out.iterdir() if not _ours(entry.name))
        if others:
            raise ValueError(
                f"{out} is not empty and not a comparison's folder: {', '.join(others[:3])}; "
                "choose another one"
            )
        return
    before = parse_recipe(file.read_text(encoding="utf-8"), where=str(file))
    if before.compare is None:
        raise ValueError(f"{out} is the folder of a run, not of a comparison; choose another one")
    changed = [
        f"{key}: {how}"
        for key, how in differences(before, recipe).items()
        if not key.startswith(HARMLESS)
    ]
    if changed:
        raise ValueError(
            f"{out} was begun with another recipe ({'; '.join(changed)}); choose another folder, "
            "or give the recipe that it was begun with"
        )


def _ours(name: str) -> bool:
    return name in ("runs", "lock.json") or (name.startswith(".plusx-") and name.endswith(".tmp"))


def _make(crew: Crew, planned: Sequence[Job], recipe: Recipe, stream: TextIO) -> int:
    """Make the runs that are not finished, and return how many those were."""
    costs = {name: float(_cost(name)) for name in {job.name for job in planned}}
    missing = [job for job in planned if not _finished(job)]
    failed: list[End] = []
    shown = Progress(stream, len(planned), sum(costs[job.name] for job in planned))
    shown.finished = len(planned) - len(missing)
    shown.paid = shown.cost - sum(costs[job.name] for job in missing)
    if shown.finished and missing:
        shown.say(f"{shown.finished} of {len(planned)} runs are finished already; going on")
    waiting = list(missing)
    with shown:
        while waiting or crew.jobs:
            while waiting and crew.free:
                job = waiting.pop(0)
                crew.start(job)
                tail = Tail(job.folder / "log.jsonl")
                cost, length = costs[job.name], (recipe.epochs, recipe.steps)
                shown.going.append(Going(job.name, job.seed, tail, cost, *length))
            for end in crew.ended(LOOK):
                shown.show()
                shown.end(end.job.name, end.job.seed, end.error)
                if end.fault:
                    raise ValueError(f"{end.job}: {end.error}")
                if end.error:
                    failed.append(end)
            shown.show()
    if failed:
        said = "; ".join(f"{end.job}: {end.error}" for end in failed)
        raise RuntimeError(
            f"{len(failed)} of {len(planned)} runs failed: {said}. The others are kept; the same "
            "command tries again"
        )
    return len(missing)


def _finished(job: Job) -> bool:
    wanted = ["result.json"] + ([f"{job.split}.json"] if job.split != "validation" else [])
    return all((job.folder / name).is_file() for name in wanted)


def _result(recipe: Recipe, told: Compare, planned: Sequence[Job], split: Split) -> dict[str, Any]:
    """The content of result.json but for what the clock and the caller say."""
    from plusx import store
    from plusx.study.rows import curve, read_finished, row

    runs: dict[str, list[Any]] = {name: [] for name in told.networks}
    for job in sorted(planned, key=lambda job: told.seeds.index(job.seed)):
        runs[job.name].append(read_finished(job.folder, job.name, job.seed, split))
    some = next(iter(runs.values()))[0]
    rows = []
    for name, made in runs.items():
        scores = row(name, made, told.threshold)
        said = interval(scores["accuracy"]["seeds"], some.count)
        rows.append({**scores, "interval": None if said is None else [said.low, said.high]})
    environment = store.read_json(planned[0].folder / "environment.json")
    return {
        "kind": "compare",
        "data": some.data,
        "split": split,
        "count": some.count,
        "averaging": some.averaging,
        "spread": "standard deviation over the seeds (n - 1)",
        "seeds": list(told.seeds),
        "threshold": told.threshold,
        "length": f"{recipe.epochs} epochs" if recipe.epochs else f"{recipe.steps:,} steps",
        "finding": finding(rows, count=some.count, split=split),
        "rows": rows,
        "curves": [curve(name, made) for name, made in runs.items()],
        "recipe": to_toml(recipe),
        "versions": {
            key: environment[key] for key in ("plusx", "python", "torch", "torchvision", "numpy")
        },
        "machine": {
            key: environment[key]
            for key in ("processor", "cores", "instructions", "platform", "device", "device_name")
        },
    }


def _as_before(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same as before keeps its date: nothing was done."""
    kept = ("jobs", "command", "date", "seconds")
    same = all(before.get(key) == value for key, value in now.items() if key not in kept)
    return {**now, **{key: before[key] for key in kept if same}}

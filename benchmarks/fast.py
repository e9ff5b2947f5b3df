"""Accuracy at equal work on CIFAR-10: the fast recipe against ResNet-20 with its usual recipe.

    python benchmarks/fast.py [--work 0.002 0.004 0.008 0.016] [--seeds 0 1 2] [--minutes 35]

Work is counted, not timed, in PFLOP: 2 FLOP per multiply-add and three forward passes per training
step, including the first convolution, which is not trained; Muon's iterations are added. Not
counted: the whitening of patches (one pass over 2,000 images by one small convolution), loading and
augmenting images, norms, activations, evaluation, and views beyond the first in evaluation.

Every recipe keeps its schedule, stretched to the work. The fast recipe halves its batches, down to
64 images, if there would be fewer than 128 steps. 5,000 of the 50,000 training images are held out
for validation; the test images are not used. ResNet-20 is trained with two schedules: that of He
et al. 2015, and one cycle, which is better suited to few steps.

The result of each cell (recipe, work, seed) is saved under --cells and not computed again. With
--minutes, cells that would probably not finish in time are skipped and listed.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from timing import RESULTS, load, processor_seconds

from plusx import store
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset, MemoryItems
from plusx.data.loader import Loader
from plusx.data.modality import ImageModality
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.recipe import Recipe, load_recipe
from plusx.recipe.tables import Muon
from plusx.report.figures import line, lines_figure
from plusx.run import build, optim, task_factory
from plusx.run.environment import environment
from plusx.run.folder import now
from plusx.tasks.prepare import prepare
from plusx.tasks.tta import TestTimeAugmented
from plusx.train.loop import evaluate, fit
from plusx.train.muon import orthogonal_flops
from plusx.train.state import State


PETA = 1e15
LIMIT = 0.29  # PFLOP with which the fastest network without skips reaches 94 %
WORK = (0.002, 0.004, 0.008, 0.016)
SEEDS = (0, 1, 2)
MIN_STEPS = 4  # steps
# The fast recipe halves its batches, down to 64 images, if it would take fewer steps.
MIN_FAST_STEPS, MIN_FAST_BATCH = 128, 64
HELD_OUT = 5000  # training images for validation
PROGRESS_SECONDS = 30.0  # between two lines of progress

# name in tables: (recipe, overrides)
CONTENDERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fast": ("cifar10-fast", ()),
    "resnet20": ("cifar10-resnet20", ("schedule.milestones=[0.5,0.75]",)),
    "resnet20, one cycle": ("cifar10-resnet20-quick", ()),
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """The arguments of the command, and the load before it."""

    names: list[str]
    precision: str
    cells: Path
    out: Path
    load_before: float


def step_work(recipe: Recipe) -> int:
    """Floating-point operations of one training step of the recipe."""
    spec = build.spec_of(recipe.net)
    assert isinstance(spec, Net)
    flops = 3 * 2 * measure(spec).multiply_adds * recipe.batch_size
    if isinstance(recipe.optim, Muon):
        net, _ = build.make_net(recipe)
        filters = [p.shape for p in net.parameters() if p.ndim == 4]
        if recipe.init.whiten:
            filters = filters[1:]  # the first one is not trained
        flops += sum(orthogonal_flops(shape, recipe.optim.iterations) for shape in filters)
    return flops


def cell_recipe(contender: str, precision: str, work: float, seed: int) -> Recipe:
    """The recipe of a contender, with the number of steps that makes `work` (PFLOP)."""
    name, overrides = CONTENDERS[contender]
    validation = f"data.validation={HELD_OUT}"
    all_overrides = [
        *overrides,
        validation,
        f"seed={seed}",
        f"device.precision={precision}",
        "steps=1",
    ]
    recipe = resolved(load_recipe(name, all_overrides))
    if isinstance(recipe.optim, Muon):
        while (
            recipe.batch_size > MIN_FAST_BATCH and work * PETA / step_work(recipe) < MIN_FAST_STEPS
        ):
            recipe = replace(recipe, batch_size=recipe.batch_size // 2)
    return replace(recipe, steps=max(MIN_STEPS, round(work * PETA / step_work(recipe))))


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with CIFAR-10's channels, classes and size, if it leaves them to the data."""
    if isinstance(recipe.net, Net):
        return recipe
    return replace(recipe, net=replace(recipe.net, in_channels=3, num_classes=10, size=32))


def run(recipe: Recipe, sets: build.Sets, label: str) -> dict[str, Any]:
    """Train the recipe and evaluate it; the content of a cell's file."""
    assert recipe.steps is not None
    assert sets.validation is not None
    net, _ = build.make_net(recipe)
    build.freeze_and_whiten(recipe, net, sets.train)
    device = recipe.device
    task = prepare(
        task_factory.make_training_task(recipe, net, sets.train),
        device="cpu",
        precision=device.precision,
        channels_last=device.channels_last,
    )
    state = State(task, optim.optimizer_of(recipe, task), recipe.seed)
    lr, update = optim.schedule_of(recipe, recipe.steps), optim.update_of(recipe)
    loader = Loader(
        sets.train,
        split="train",
        augment=recipe.data.augment,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        drop_last=True,  # so that every step does the same work
    )
    start, busy, last_progress = time.perf_counter(), processor_seconds(), time.monotonic()
    losses: list[float] = []
    with loader:
        for report in fit(state, _steps(loader, recipe.steps), lr, update):
            losses.append(report.loss)
            if time.monotonic() - last_progress > PROGRESS_SECONDS:
                last_progress = time.monotonic()
                print(f"{label}: step {report.step} of {recipe.steps}, loss {report.loss:.3f}",
                      file=sys.stderr, flush=True)  # fmt: skip
    seconds, busy = time.perf_counter() - start, processor_seconds() - busy
    evaluated = task if state.ema is None else state.ema
    accuracies = {}
    for views in dict.fromkeys(("none", recipe.evaluate.tta)):
        with Loader(sets.validation, split="validation", batch_size=500) as images:
            metrics = evaluate(TestTimeAugmented(evaluated, views), images.epoch(0))
        accuracies[views] = metrics["accuracy"]
    return {
        "steps": recipe.steps,
        "images": recipe.steps * recipe.batch_size,
        "batch_size": recipe.batch_size,
        "pflop": recipe.steps * step_work(recipe) / PETA,
        "accuracy": accuracies["none"],
        "accuracy_views": accuracies[recipe.evaluate.tta],
        "views": recipe.evaluate.tta,
        "count": len(sets.validation),
        "last_loss": mean(losses[-10:]),
        "seconds": seconds,
        "processor_seconds": busy,
        "threads": torch.get_num_threads(),
    }


def _steps(loader: Loader, count: int) -> Iterator[Batch]:
    done, epoch = 0, 0
    while done < count:
        for batch in loader.epoch(epoch):
            if done == count:
                return
            yield batch
            done += 1
        epoch += 1


def key(name: str, work: float, seed: int, precision: str) -> str:
    return f"{name.replace(', ', '-').replace(' ', '-')}-{work:g}-{precision}-seed{seed}.json"


def rows_of(
    cells: Path, works: Sequence[float], seeds: Sequence[int], settings: Settings
) -> list[Row]:
    """A row for every contender and work with at least one finished seed."""
    rows = []
    for work, name in product(works, settings.names):
        paths = {seed: cells / key(name, work, seed, settings.precision) for seed in seeds}
        results = {seed: store.read_json(path) for seed, path in paths.items() if path.is_file()}
        if not results:
            continue
        done = list(results.values())
        rows.append(
            {
                "name": name,
                "recipe": CONTENDERS[name][0],
                "work": work,
                "pflop": mean(result["pflop"] for result in done),
                "steps": done[0]["steps"],
                "images": done[0]["images"],
                "batch_size": done[0]["batch_size"],
                "accuracy": _spread([result["accuracy"] for result in done]),
                "accuracy_views": _spread([result["accuracy_views"] for result in done]),
                "views": done[0]["views"],
                "count": done[0]["count"],
                "seeds": list(results),
                "processor_seconds": mean(result["processor_seconds"] for result in done),
            }
        )
    return rows


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": mean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }


def curve(rows: Sequence[Row]) -> dict[str, Any]:
    """The chart of accuracy over work."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        points = [row for row in rows if row["name"] == name]
        lines.append(
            line(
                name,
                [row["pflop"] for row in points],
                [row["accuracy"]["mean"] for row in points],
                low=[min(row["accuracy"]["values"]) for row in points],
                high=[max(row["accuracy"]["values"]) for row in points],
            )
        )
    return lines_figure(
        "Validation accuracy at equal work",
        "One view of each image. The mean over the seeds, between minimum and maximum.",
        lines,
        x={"title": "training work, PFLOP", "scale": "log"},
        y={"title": "validation accuracy", "scale": "share"},
    )


def write(settings: Settings, rows: list[Row]) -> None:
    """Write the result, and a page with the curve next to the cells."""
    # matplotlib takes half a second to load
    from plusx.report import page
    from plusx.report.charts import charts

    chart = curve(rows)
    machine = environment(torch.device("cpu"))
    packages = ("plusx", "python", "torch", "torchvision", "numpy")
    names = {f"{row['name']}, {row['work']:g} PFLOP": row["accuracy"] for row in rows}
    store.write_json(
        settings.out,
        {
            "value": {name: each["mean"] for name, each in names.items()},
            "spread": {name: each["std"] for name, each in names.items()},
            "rows": rows,
            "figures": [chart],
            "seeds": sorted({seed for row in rows for seed in row["seeds"]}),
            "command": shlex.join(["python", "benchmarks/fast.py", *sys.argv[1:]]),
            "recipe": {name: [recipe, *more] for name, (recipe, more) in CONTENDERS.items()}
            | {"precision": settings.precision, "kept_back": HELD_OUT, "limit_pflop": LIMIT},
            "versions": {name: machine[name] for name in packages},
            "machine": {name: each for name, each in machine.items() if name not in packages}
            | {"load_before": settings.load_before, "load_after": load(), "note": ""},
            "date": now(),
        },
    )
    largest = max(row["work"] for row in rows)
    last = [row for row in rows if row["work"] == largest]
    summary = ", ".join(f"{row['name']} {100 * row['accuracy']['mean']:.1f} %" for row in last)
    store.write_text(
        settings.cells / "fast.html",
        page.render(
            "figures.html",
            {
                "title": "plusx: accuracy at equal work",
                "kicker": "benchmarks/fast.py",
                "finding": f"With {largest:g} PFLOP: {summary}.",
                "context": f"CIFAR-10, {HELD_OUT:,} images held out, {settings.precision}.",
                "charts": charts([chart]),
            },
        ),
    )


def tiny_sets() -> build.Sets:
    """Random images instead of CIFAR-10."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (600, 3, 32, 32), generator=generator, dtype=torch.uint8)
    whole = Dataset(
        name="random",
        split="train",
        classes=tuple(map(str, range(10))),
        labels=torch.arange(600) % 10,
        modality=ImageModality(size=(32, 32), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3),
        items=MemoryItems(images),
    )
    return build.Sets(whole, whole.subset(list(range(20))))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Accuracy at equal work.", allow_abbrev=False)
    parser.add_argument("--work", type=float, nargs="+", default=list(WORK), help="PFLOP")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--networks", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--cells", type=Path, default=Path("runs") / "fast")
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_fast.json")
    parser.add_argument(
        "--tiny", action="store_true", help="a few steps on random images, to check that it runs"
    )
    args = parser.parse_args(arguments)
    works, seeds = (sorted(args.work), args.seeds) if not args.tiny else ([1e-6], [0])
    settings = Settings(args.networks, args.precision, args.cells, args.out, load())
    start, before = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(args.threads)
    store.make_folder(settings.cells)
    skipped = []
    # the smallest work with all seeds first, so that an early stop leaves a complete curve
    for work, seed, name in product(works, seeds, settings.names):
        path = settings.cells / key(name, work, seed, settings.precision)
        if path.is_file():
            continue
        rate = _rate(settings.cells)
        elapsed = time.monotonic() - start
        if rate is not None and elapsed + work * rate > 60 * args.minutes:
            skipped.append(f"{name} {work:g} PFLOP seed {seed}")
            continue
        recipe = cell_recipe(name, settings.precision, work, seed)
        if args.tiny:
            recipe = replace(recipe, batch_size=16)
        sets = tiny_sets() if args.tiny else build.open_sets(recipe)
        result = run(recipe, sets, f"{name}, {work:g} PFLOP, seed {seed}")
        store.write_json(path, result)
        views = f"{result['views']} {100 * result['accuracy_views']:.2f} %"
        print(
            f"{name:20} {work:g} PFLOP seed {seed}: {result['steps']:5} steps, "
            f"{100 * result['accuracy']:.2f} %, {views}, {result['seconds']:.0f} s",
            flush=True,
        )
        write(settings, rows_of(settings.cells, works, seeds, settings))
    torch.set_num_threads(before)
    if rows := rows_of(settings.cells, works, seeds, settings):
        write(settings, rows)
    for cell in skipped:
        print(f"skipped for lack of time: {cell}", file=sys.stderr)
    return 0


def _rate(cells: Path) -> float | None:
    """Seconds per PFLOP of the slowest finished cell."""
    done = [json.loads(path.read_text()) for path in cells.glob("*seed*.json")]
    return max((each["seconds"] / each["pflop"] for each in done), default=None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

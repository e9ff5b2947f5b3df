"""Accuracy at equal work on CIFAR-10: the fast recipe, and ResNet-20 by its usual recipe.

    python benchmarks/fast.py [--work 0.002 0.004 0.008 0.016] [--seeds 0 1 2] [--minutes 35]

Work is counted, not timed, in PFLOP: 2 for a multiply-add, and a training step as three forward
passes, of the first convolution too, which is not trained; Muon's iterations are counted on top.
Not counted: the whitening of patches (one pass over 2,000 images by one small convolution), reading
and augmenting images, norms, activations, evaluation, and views beyond the first in evaluation.

Every schedule is that of its recipe, stretched so that it ends with the work. Batches of the fast
recipe are halved, down to 64 images, where there would be fewer than 128 steps. 5,000 of the 50,000
training images are kept back and judged; the test images are not looked at. ResNet-20 is trained
twice: as in He et al. 2015, and in one cycle, which is better suited to few steps.

Each cell (recipe, work, seed) is kept under --cells when it is done, and not done again. With
--minutes no cell is begun that would probably not end in time: what is missing is said.
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
LIMIT = 0.29  # PFLOP, the work in which the fastest network without skips reaches 94 %
WORK = (0.002, 0.004, 0.008, 0.016)
SEEDS = (0, 1, 2)
SHORTEST = 4  # steps
# Of the fast recipe the batch is halved, down to 64 images, where it would make fewer steps.
FEWEST_STEPS, SMALLEST_BATCH = 128, 64
KEPT_BACK = 5000  # training images that are judged
EVERY = 30.0  # seconds between two lines of progress

# the names in tables: (recipe, what is said otherwise than in its file)
CONTENDERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fast": ("cifar10-fast", ()),
    "resnet20": ("cifar10-resnet20", ("schedule.milestones=[0.5,0.75]",)),
    "resnet20, one cycle": ("cifar10-resnet20-quick", ()),
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What the command was told, and how busy the machine was then."""

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
            filters = filters[1:]  # the first one stays as it is
        flops += sum(orthogonal_flops(shape, recipe.optim.iterations) for shape in filters)
    return flops


def cell_recipe(contender: str, precision: str, work: float, seed: int) -> Recipe:
    """The recipe of a contender, so long that it does this work (PFLOP)."""
    name, overrides = CONTENDERS[contender]
    kept = f"data.validation={KEPT_BACK}"
    told = [*overrides, kept, f"seed={seed}", f"device.precision={precision}", "steps=1"]
    recipe = resolved(load_recipe(name, told))
    if isinstance(recipe.optim, Muon):
        while recipe.batch_size > SMALLEST_BATCH and work * PETA / step_work(recipe) < FEWEST_STEPS:
            recipe = replace(recipe, batch_size=recipe.batch_size // 2)
    return replace(recipe, steps=max(SHORTEST, round(work * PETA / step_work(recipe))))


def resolved(recipe: Recipe) -> Recipe:
    """With the channels, classes and size of CIFAR-10, where the recipe leaves them to the data."""
    if isinstance(recipe.net, Net):
        return recipe
    return replace(recipe, net=replace(recipe.net, in_channels=3, num_classes=10, size=32))


def run(recipe: Recipe, sets: build.Sets, say: str) -> dict[str, Any]:
    """Train the recipe and judge it once: what a cell keeps."""
    assert recipe.steps is not None
    assert sets.validation is not None
    net, _ = build.make_net(recipe)
    build.begin_from(recipe, net, sets.train)
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
    began, busy, told = time.perf_counter(), processor_seconds(), time.monotonic()
    losses: list[float] = []
    with loader:
        for report in fit(state, _steps(loader, recipe.steps), lr, update):
            losses.append(report.loss)
            if time.monotonic() - told > EVERY:
                told = time.monotonic()
                print(f"{say}: step {report.step} of {recipe.steps}, loss {report.loss:.3f}",
                      file=sys.stderr, flush=True)  # fmt: skip
    seconds, busy = time.perf_counter() - began, processor_seconds() - busy
    judged = task if state.ema is None else state.ema
    accuracies = {}
    for views in dict.fromkeys(("none", recipe.evaluate.tta)):
        with Loader(sets.validation, split="validation", batch_size=500) as images:
            figures = evaluate(TestTimeAugmented(judged, views), images.epoch(0))
        accuracies[views] = figures["accuracy"]
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
    made, epoch = 0, 0
    while made < count:
        for batch in loader.epoch(epoch):
            if made == count:
                return
            yield batch
            made += 1
        epoch += 1


def key(name: str, work: float, seed: int, precision: str) -> str:
    return f"{name.replace(', ', '-').replace(' ', '-')}-{work:g}-{precision}-seed{seed}.json"


def rows_of(cells: Path, works: Sequence[float], seeds: Sequence[int], said: Said) -> list[Row]:
    """A row for every contender and work of which there is a seed."""
    rows = []
    for work, name in product(works, said.names):
        paths = {seed: cells / key(name, work, seed, said.precision) for seed in seeds}
        there = {seed: store.read_json(path) for seed, path in paths.items() if path.is_file()}
        if not there:
            continue
        done = list(there.values())
        rows.append(
            {
                "name": name,
                "recipe": CONTENDERS[name][0],
                "work": work,
                "pflop": mean(each["pflop"] for each in done),
                "steps": done[0]["steps"],
                "images": done[0]["images"],
                "batch_size": done[0]["batch_size"],
                "accuracy": _spread([each["accuracy"] for each in done]),
                "accuracy_views": _spread([each["accuracy_views"] for each in done]),
                "views": done[0]["views"],
                "count": done[0]["count"],
                "seeds": list(there),
                "processor_seconds": mean(each["processor_seconds"] for each in done),
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
    """The figure: accuracy over work."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        chosen = [row for row in rows if row["name"] == name]
        lines.append(
            line(
                name,
                [row["pflop"] for row in chosen],
                [row["accuracy"]["mean"] for row in chosen],
                low=[min(row["accuracy"]["values"]) for row in chosen],
                high=[max(row["accuracy"]["values"]) for row in chosen],
            )
        )
    return lines_figure(
        "Validation accuracy at equal work",
        "One view of each image. The mean over the seeds, between least and most.",
        lines,
        x={"title": "training work, PFLOP", "scale": "log"},
        y={"title": "validation accuracy", "scale": "share"},
    )


def write(said: Said, rows: list[Row]) -> None:
    """The result, and a page with the curve beside the cells."""
    # matplotlib takes half a second to load
    from plusx.report import page
    from plusx.report.charts import charts

    told = curve(rows)
    surroundings = environment(torch.device("cpu"))
    own = ("plusx", "python", "torch", "torchvision", "numpy")
    names = {f"{row['name']}, {row['work']:g} PFLOP": row["accuracy"] for row in rows}
    store.write_json(
        said.out,
        {
            "value": {name: each["mean"] for name, each in names.items()},
            "spread": {name: each["std"] for name, each in names.items()},
            "rows": rows,
            "figures": [told],
            "seeds": sorted({seed for row in rows for seed in row["seeds"]}),
            "command": shlex.join(["python", "benchmarks/fast.py", *sys.argv[1:]]),
            "recipe": {name: [recipe, *more] for name, (recipe, more) in CONTENDERS.items()}
            | {"precision": said.precision, "kept_back": KEPT_BACK, "limit_pflop": LIMIT},
            "versions": {name: surroundings[name] for name in own},
            "machine": {name: each for name, each in surroundings.items() if name not in own}
            | {"load_before": said.load_before, "load_after": load(), "note": ""},
            "date": now(),
        },
    )
    most = max(row["work"] for row in rows)
    last = [row for row in rows if row["work"] == most]
    found = ", ".join(f"{row['name']} {100 * row['accuracy']['mean']:.1f} %" for row in last)
    store.write_text(
        said.cells / "fast.html",
        page.render(
            "figures.html",
            {
                "title": "plusx: accuracy at equal work",
                "kicker": "benchmarks/fast.py",
                "finding": f"With {most:g} PFLOP: {found}.",
                "context": f"CIFAR-10, {KEPT_BACK:,} training images kept back, {said.precision}.",
                "charts": charts([told]),
            },
        ),
    )


def tiny_sets() -> build.Sets:
    """Random pictures in the place of CIFAR-10."""
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
        "--tiny", action="store_true", help="a few steps on random pictures to see that it runs"
    )
    asked = parser.parse_args(arguments)
    works, seeds = (sorted(asked.work), asked.seeds) if not asked.tiny else ([1e-6], [0])
    said = Said(asked.networks, asked.precision, asked.cells, asked.out, load())
    began, before = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(asked.threads)
    store.make_folder(said.cells)
    left = []
    # the smallest work and all seeds of it first: what ends early is a whole curve
    for work, seed, name in product(works, seeds, said.names):
        path = said.cells / key(name, work, seed, said.precision)
        if path.is_file():
            continue
        rate = _rate(said.cells)
        passed = time.monotonic() - began
        if rate is not None and passed + work * rate > 60 * asked.minutes:
            left.append(f"{name} {work:g} PFLOP seed {seed}")
            continue
        recipe = cell_recipe(name, said.precision, work, seed)
        if asked.tiny:
            recipe = replace(recipe, batch_size=16)
        sets = tiny_sets() if asked.tiny else build.open_sets(recipe)
        done = run(recipe, sets, f"{name}, {work:g} PFLOP, seed {seed}")
        store.write_json(path, done)
        views = f"{done['views']} {100 * done['accuracy_views']:.2f} %"
        print(
            f"{name:20} {work:g} PFLOP seed {seed}: {done['steps']:5} steps, "
            f"{100 * done['accuracy']:.2f} %, {views}, {done['seconds']:.0f} s",
            flush=True,
        )
        write(said, rows_of(said.cells, works, seeds, said))
    torch.set_num_threads(before)
    if rows := rows_of(said.cells, works, seeds, said):
        write(said, rows)
    for each in left:
        print(f"not begun, for want of time: {each}", file=sys.stderr)
    return 0


def _rate(cells: Path) -> float | None:
    """Seconds a PFLOP, the slowest of the cells that are done."""
    done = [json.loads(path.read_text()) for path in cells.glob("*seed*.json")]
    return max((each["seconds"] / each["pflop"] for each in done), default=None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

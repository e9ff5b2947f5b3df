"""Semantic segmentation in equal time: a recipe against segmentation_models.pytorch.

    python benchmarks/segmentation.py data.path=camvid [--seeds 0 1 2] [--threads 2]
    python benchmarks/segmentation.py --recipe membranes-segment data.path=isbi2012

The peer is its U-Net on ResNet-18, without pretrained weights. Batches, augmentation, loss,
optimizer, schedule, averaged weights and precision are the recipe's for both. The time of a
training step of both is measured in turns, and the peer is trained for as many epochs as take the
time of the recipe's. Each network is evaluated on the test images once for each seed, with and
without the mirror image.

The result of each network, recipe and seed is saved under --cells and not computed again. Writes
results/benchmark_segmentation.json. There is no target.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from timing import RESULTS, Estimate, in_turns, load, record
from torch import Tensor, nn
from torch.nn import functional as F

from plusx import store
from plusx.data.batch import Batch
from plusx.data.loader import Loader
from plusx.errors import UserError
from plusx.recipe import Recipe, load_recipe, to_toml
from plusx.run import build, optim, task_factory
from plusx.statistics import difference
from plusx.tasks.prepare import prepare
from plusx.tasks.task import Task
from plusx.tasks.tta import TestTimeAugmented
from plusx.train.loop import evaluate, fit
from plusx.train.state import State


PEER = "segmentation_models.pytorch, U-Net on ResNet-18"
MULTIPLE = 32  # pixels; the peer takes images whose sides are multiples of it
PROGRESS_SECONDS = 30.0  # between two lines of progress


class Padded(nn.Module):
    """A network for sides that are multiples of 32, for images of any size."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        logits: Tensor = self.net(F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE)))
        return logits[..., :height, :width]


def peer(recipe: Recipe, num_classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp  # type: ignore[import-not-found]

    torch.manual_seed(recipe.seed)
    channels = recipe.net.in_channels or 3
    return Padded(smp.Unet("resnet18", encoder_weights=None, in_channels=channels,
                           classes=num_classes))  # fmt: skip


def make_task(name: str, recipe: Recipe, sets: build.Sets) -> Task:
    """The task of the recipe with its own network or the peer, ready to train."""
    if name == PEER:
        net = peer(recipe, len(sets.train.classes))
    else:
        net, _ = build.make_net(recipe)
    task = task_factory.make_training_task(recipe, net, sets.train)
    device = recipe.device
    return prepare(
        task, device="cpu", precision=device.precision, channels_last=device.channels_last
    )


def loader_of(recipe: Recipe, sets: build.Sets) -> Loader:
    return Loader(
        sets.train,
        split="train",
        augment=recipe.data.augment,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
    )


def step_seconds(names: Sequence[str], recipe: Recipe, sets: build.Sets) -> dict[str, float]:
    """The median time of a training step with each network, measured in turns."""
    with loader_of(recipe, sets) as loader:
        (batch,) = islice(loader.epoch(0), 1)

    def stepper(name: str) -> Any:
        task = make_task(name, recipe, sets)
        state = State(task, optim.optimizer_of(recipe, task), recipe.seed)
        lr, update = optim.schedule_of(recipe, 1000), optim.update_of(recipe)
        return lambda: [*fit(state, [batch], lr, update)]

    steppers = {name: stepper(name) for name in names}
    for step in steppers.values():
        step()
    times = in_turns(steppers, 10)
    return {name: float(sorted(each.wall)[len(each.wall) // 2]) for name, each in times.items()}


def batches(loader: Loader, epochs: int) -> Iterator[Batch]:
    for epoch in range(epochs):
        yield from loader.epoch(epoch)


def run(name: str, recipe: Recipe, sets: build.Sets) -> dict[str, Any]:
    """Train a network and evaluate it on the test images; the content of a cell's file."""
    assert recipe.epochs is not None
    loader = loader_of(recipe, sets)
    total = recipe.epochs * len(loader)
    task = make_task(name, recipe, sets)
    state = State(task, optim.optimizer_of(recipe, task), recipe.seed)
    lr, update = optim.schedule_of(recipe, total), optim.update_of(recipe)
    begin = last_progress = time.perf_counter()
    with loader:
        for report in fit(state, batches(loader, recipe.epochs), lr, update):
            if time.perf_counter() - last_progress > PROGRESS_SECONDS:
                last_progress = time.perf_counter()
                print(f"{name}, seed {recipe.seed}: step {report.step} of {total}, "
                      f"loss {report.loss:.3f}", file=sys.stderr, flush=True)  # fmt: skip
    seconds = time.perf_counter() - begin
    test = build.open_split(recipe, "test")
    evaluated = task if state.ema is None else state.ema
    metrics = {}
    for views in dict.fromkeys(("none", "flip")):
        with build.evaluation_loader(test, recipe.batch_size, task.device) as images:
            metrics[views] = evaluate(TestTimeAugmented(evaluated, views), images.epoch(0))
    key = task.metrics[0]
    return {
        "metric": key,
        key: metrics["none"][key],
        "flip": metrics["flip"][key],
        "count": len(test),
        "epochs": recipe.epochs,
        "steps": total,
        "seconds": seconds,
        "parameters": sum(parameter.numel() for parameter in task.net.parameters()),
        "threads": torch.get_num_threads(),
    }


def rows_of(results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each network: its metric over the seeds, with and without the mirror image."""
    rows = []
    for name, by_seed in results.items():
        runs = list(by_seed.values())
        key = runs[0]["metric"]
        rows.append(
            {
                "name": name,
                "seeds": list(by_seed),
                **{field: _spread([run[field] for run in runs]) for field in (key, "flip")},
                "seconds": mean(run["seconds"] for run in runs),
                **{field: runs[0][field] for field in
                   ("metric", "count", "epochs", "steps", "parameters", "threads")},
            }
        )  # fmt: skip
    return rows


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": mean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "seeds": list(values),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Segmentation in equal time.", allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--recipe", default="camvid-segment")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", type=Path, default=Path("runs") / "segmentation")
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_segmentation.json")
    args = parser.parse_args(arguments)
    load_before, before = load(), torch.get_num_threads()
    torch.set_num_threads(args.threads)
    overrides = [os.path.expandvars(override) for override in args.overrides]
    recipe = load_recipe(args.recipe, overrides)
    sets = build.open_sets(recipe)
    recipe = build.resolved(recipe, sets.train)
    if recipe.task.kind != "segment" or recipe.epochs is None:
        raise UserError(f"{args.recipe} does not segment for a number of epochs")
    ours = f"plusx, {args.recipe}"
    cells = args.cells / sha256(to_toml(recipe).encode()).hexdigest()[:8]
    cells.mkdir(parents=True, exist_ok=True)
    timed = cells / "step_seconds.json"
    if not timed.is_file():
        store.write_json(timed, step_seconds([ours, PEER], recipe, sets))
    seconds = store.read_json(timed)
    epochs = {ours: recipe.epochs}
    epochs[PEER] = max(1, round(recipe.epochs * seconds[ours] / seconds[PEER]))
    results: dict[str, dict[int, Any]] = {name: {} for name in epochs}
    for seed in args.seeds:
        for index, name in enumerate(epochs):
            cell = cells / f"{'peer' if index else 'plusx'}-seed{seed}.json"
            if not cell.is_file():
                seeded = replace(recipe, seed=seed, epochs=epochs[name])
                store.write_json(cell, run(name, seeded, sets))
            results[name][seed] = store.read_json(cell)
    torch.set_num_threads(before)
    rows = rows_of(results)
    key = rows[0]["metric"]
    for row in rows:
        spread = "" if row[key]["std"] is None else f" +- {100 * row[key]['std']:.1f}"
        print(f"{row['name']:50} {key} {100 * row[key]['mean']:.1f}{spread} %, "
              f"{row['epochs']} epochs, {row['seconds'] / 60:.0f} min")  # fmt: skip
    gap = difference(rows[0][key]["seeds"], rows[1][key]["seeds"])
    name = f"{ours} minus the peer, {key}"
    centre = rows[0][key]["mean"] - rows[1][key]["mean"]
    print(f"{name}: {'one seed: chance unknown' if gap is None else gap}")
    record(
        args.out,
        rows,
        {} if gap is None else {name: Estimate(centre, gap.low, gap.high)},
        recipe={"recipe": args.recipe, "overrides": args.overrides, "step_seconds": seconds},
        versions={"segmentation_models_pytorch": version("segmentation_models_pytorch")},
        load_before=load_before,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

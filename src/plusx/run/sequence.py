"""`plusx stream`: a sequence of runs, one for each task of a stream, and a matrix of evaluations.

OUT/seed-S/task-T is an ordinary run, which begins with the weights of the previous task's run.
Besides the files of a run it has memory.safetensors and memory.json, which the next task reads, and
accuracies-SPLIT.json, a row of the matrix. Existing results are not computed again, so the same
command resumes at any point.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

from plusx import statistics, store
from plusx.continual import metrics
from plusx.continual.method import Position, Trained
from plusx.continual.restricted import OfTask
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.errors import UserError
from plusx.recipe import Recipe
from plusx.report.stream import stream_page
from plusx.run import build
from plusx.run.continual import (
    MANIFEST,
    class_numbers,
    memory_of,
    method_of,
    open_parts,
    read_memory,
    stream_of,
    write_memory,
)
from plusx.run.distributed import join_processes
from plusx.run.environment import environment, num_threads
from plusx.run.file_names import RECIPE
from plusx.run.folder import load_run, now, read_recipe, record_test_use
from plusx.run.task_factory import open_task
from plusx.run.training import make_trainer, train
from plusx.tasks.prepare import prepare
from plusx.tasks.task import Task
from plusx.train.loop import evaluate as evaluate_task


JSON, PAGE = "stream.json", "stream.html"
SPLITS = ("validation", "test")
Progress = Callable[[str], None]


def stream(
    recipe: Recipe,
    out: str | Path,
    *,
    seeds: Sequence[int] = (),
    split: str = "validation",
    command: str = "",
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Train the tasks of a recipe's [stream] one after another, with every seed; return the matrix
    of accuracies and its metrics.

    seeds: (): those of [stream]
    split: "test" evaluates every run on the test set, once, which is recorded in its folder
    Writes stream.json, and a folder for each seed, into `out`. The same call resumes an unfinished
    stream. Raises UserError if tasks, classes, method and data do not match, if `out` has a stream
    of another recipe or other data, and as `train` does.
    """
    out, table = Path(out), stream_of(recipe)
    if split not in SPLITS:
        raise UserError(f"split {split!r}: a stream is evaluated on {' or '.join(SPLITS)}")
    if table.task is not None or table.previous:
        key = "previous" if table.task is None else "task"
        raise UserError(f"[stream] {key} is for a single run: leave it out")
    seeds = tuple(seeds) or table.seeds
    method = method_of(recipe)
    sets = _Sets(recipe, split)
    method.check(sets.train)
    with store.lock(store.make_folder(out)), num_threads(recipe.device.threads):
        _refuse_other_stream(recipe, out)
        rows = [
            _Seed(replace(recipe, seed=seed), out / f"seed-{seed}", split, progress).run()
            for seed in seeds
        ]
        result = {
            **_result(rows, seeds, sets, table.scenario),
            "method": recipe.method.kind if recipe.method else "",
            "command": command,
            "machine": rows[0]["environment"],
            "date": now(),
        }
        store.write_json(out / JSON, result)
        store.write_text(out / PAGE, stream_page(result))
    return result


def _refuse_other_stream(recipe: Recipe, out: Path) -> None:
    """Raise UserError if the runs in `out`, also those of other seeds, have another recipe or other
    data. Only the first run is compared, since all others were compared with it."""
    for path in sorted(out.glob(f"seed-*/task-1/{RECIPE}"))[:1]:
        run = path.parent
        of_run = _of_task(replace(recipe, seed=read_recipe(run).seed), 0, "")
        with join_processes(recipe.device.kind, recipe.device.timeout) as world:
            make_trainer(of_run, run, world).refuse_other_data()


def _of_task(recipe: Recipe, number: int, previous: str) -> Recipe:
    """Return the recipe of the run of a task; numbers begin with 0."""
    table = replace(stream_of(recipe), task=number + 1, previous=previous)
    return replace(recipe, stream=table)


class _Sets:
    """The training samples of every task, and those that it is evaluated on."""

    def __init__(self, recipe: Recipe, split: str) -> None:
        first = open_parts(recipe, "train", 1)[0]
        self.classes = class_numbers(stream_of(recipe), first.classes)
        self.train = open_parts(recipe, "train", len(self.classes))
        self.evaluated = open_parts(recipe, split, len(self.classes))
        self.names = [[first.classes[number] for number in numbers] for numbers in self.classes]


class _Seed:
    """The stream with one seed."""

    def __init__(self, recipe: Recipe, folder: Path, split: str, progress: Progress) -> None:
        self.recipe, self.folder, self.split, self.progress = recipe, folder, split, progress
        self.method = method_of(recipe)
        self.sets = _Sets(recipe, split)

    def run(self) -> dict[str, Any]:
        """Train and evaluate every task; return the matrix."""
        matrix, previous = [], ""
        for number in range(len(self.sets.classes)):
            folder = self.folder / f"task-{number + 1}"
            recipe = _of_task(self.recipe, number, previous)
            train(recipe, folder, progress=sys.stderr.isatty())
            if not (folder / MANIFEST).is_file():
                write_memory(folder, self.method.finish(self._trained(recipe, folder, number)))
            matrix.append(self._row(folder, number))
            self._report(number, matrix)
            previous = str(folder)
        # after the first run, since a later call is compared with its recipe
        untrained = self._untrained()
        run_environment = environment(load_run(previous).task.device)
        return {"matrix": matrix, "untrained": untrained, "environment": run_environment}

    def _position(self, number: int) -> Position:
        table = stream_of(self.recipe)
        return Position(
            scenario=table.scenario,
            classes=self.sets.classes,
            task=number,
            seed=self.recipe.seed,
        )

    def _trained(self, recipe: Recipe, folder: Path, number: int) -> Trained:
        """Return the finished run of a task."""
        run = load_run(folder)
        task = self._prepared(run.task)
        saved = store.load_checkpoint(folder / store.CHECKPOINTS)
        state: dict[str, Tensor] = {} if saved is None else saved.tensors["weights"]

        def batches(dataset: Dataset) -> Iterator[Batch]:
            with self._loader(dataset.with_modality(run.preprocessing), task) as loader:
                yield from loader.epoch(0)

        return Trained(
            task=task,
            parts=self.sets.train[: number + 1],
            memory=memory_of(recipe),
            position=self._position(number),
            state=state,
            batches=batches,
        )

    def _row(self, folder: Path, number: int) -> list[float]:
        """Return the accuracies on all tasks after this one."""
        path = folder / f"accuracies-{self.split}.json"
        if path.is_file():
            return _read_accuracies(path, len(self.sets.classes))
        run, memory, position = load_run(folder), read_memory(folder), self._position(number)
        task = self._prepared(run.task)
        accuracies = [
            self._accuracy(
                self.method.predictor(task, memory, position, other),
                position,
                other,
                part.with_modality(run.preprocessing),
            )
            for other, part in enumerate(self.sets.evaluated)
        ]
        if self.split == "test":
            use = {"data": self.sets.evaluated[0].name, "accuracy": mean(accuracies)}
            record_test_use(folder, {**use, "count": sum(map(len, self.sets.evaluated))})
        store.write_json(path, {"accuracies": accuracies})
        return accuracies

    def _untrained(self) -> list[float]:
        """Return the accuracies of the initial network."""
        path = store.make_folder(self.folder) / f"untrained-{self.split}.json"
        if path.is_file():
            return _read_accuracies(path, len(self.sets.classes))
        recipe = build.resolved(_of_task(self.recipe, 0, ""), self.sets.train[0])
        net, preprocessing = build.make_net(recipe)
        task = self._prepared(open_task(recipe.task, net, self.sets.train[0].classes))
        position = self._position(0)
        sets = build.Sets(self.sets.train[0], None)
        if preprocessing is not None:
            sets = sets.with_preprocessing(preprocessing)
        accuracies = [
            self._accuracy(task, position, number, part.with_modality(sets.train.modality))
            for number, part in enumerate(self.sets.evaluated)
        ]
        store.write_json(path, {"accuracies": accuracies})
        return accuracies

    def _accuracy(self, task: Task, position: Position, number: int, part: Dataset) -> float:
        if position.scenario == "task":
            task = OfTask(task, position, number)
        with self._loader(part, task) as loader:
            metrics_of_part = evaluate_task(task, loader.epoch(0))
        accuracy: float = metrics_of_part["accuracy"]
        return accuracy

    def _prepared(self, task: Task) -> Task:
        return prepare(task.eval(), device=self.recipe.device.kind, precision="float32")

    def _loader(self, dataset: Dataset, task: Task) -> Loader:
        return build.evaluation_loader(dataset, self.recipe.batch_size, task.device)

    def _report(self, number: int, matrix: Sequence[Sequence[float]]) -> None:
        mean_accuracy = mean(matrix[-1][: number + 1])
        names = ", ".join(self.sets.names[number][:6])
        self.progress(
            f"seed {self.recipe.seed}, task {number + 1} of {len(self.sets.classes)} ({names}): "
            f"accuracy {matrix[-1][number]:.1%}, on all tasks so far {mean_accuracy:.1%}"
        )


def _read_accuracies(path: Path, count: int) -> list[float]:
    values = store.read_json(path)
    accuracies = values.get("accuracies") if isinstance(values, dict) else None
    if (
        not isinstance(accuracies, list)
        or len(accuracies) != count
        or not all(type(value) in (int, float) and 0 <= value <= 1 for value in accuracies)
    ):
        raise UserError(f"{path} is not what plusx wrote: delete it, and it is computed again")
    return [float(value) for value in accuracies]


def _result(
    rows: Sequence[dict[str, Any]], seeds: Sequence[int], sets: _Sets, scenario: str
) -> dict[str, Any]:
    """Return the mean matrix and the metrics with their intervals over the seeds."""
    matrices = [row["matrix"] for row in rows]
    count = len(sets.classes)
    cells = [
        [statistics.spread([matrix[i][j] for matrix in matrices]) for j in range(count)]
        for i in range(count)
    ]
    values = {
        "average_accuracy": [metrics.average_accuracy(matrix) for matrix in matrices],
        "forgetting": [metrics.forgetting(matrix) for matrix in matrices],
        "backward_transfer": [metrics.backward_transfer(matrix) for matrix in matrices],
        "forward_transfer": [
            metrics.forward_transfer(row["matrix"], row["untrained"]) for row in rows
        ],
    }
    first = sets.evaluated[0]
    return {
        "scenario": scenario,
        "tasks": sets.names,
        "data": first.name,
        "split": first.split,
        "noun": first.noun,
        "counts": [len(part) for part in sets.evaluated],
        "count": sum(map(len, sets.evaluated)),
        "seed_numbers": list(seeds),
        "matrix": [[cell["mean"] for cell in row] for row in cells],
        "matrix_std": [[cell["std"] for cell in row] for row in cells],
        **{name: _spread(name, numbers) for name, numbers in values.items()},
        "untrained": [mean(column) for column in zip(*(row["untrained"] for row in rows))],
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation, values and interval of a metric over the seeds."""
    bounds = (0.0, 1.0) if name == "average_accuracy" else (-1.0, 1.0)
    interval = statistics.mean_interval(values, bounds=bounds)
    return {**statistics.spread(values), "interval": None if interval is None else list(interval)}

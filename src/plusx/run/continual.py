"""Continual learning by a recipe's [stream] and [method]: the data of each task, the task, and the
memory that the next task gets."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from plusx import store
from plusx.continual import METHODS
from plusx.continual.method import Memory, Method, Position
from plusx.continual.restricted import OfTask
from plusx.data.dataset import Dataset
from plusx.data.domains import TRANSFORMS
from plusx.errors import UserError, did_you_mean
from plusx.recipe import Recipe
from plusx.recipe.continual import Stream
from plusx.run.datasets import open_split, open_train_and_validation
from plusx.run.file_names import WEIGHTS
from plusx.tasks.task import Task


MEMORY, MANIFEST = "memory.safetensors", "memory.json"


def method_of(recipe: Recipe) -> Method:
    """Return the method of the recipe. Raises UserError if it is not for the stream's scenario."""
    table: Any = recipe.method
    stream = stream_of(recipe)
    parameters = asdict(table)
    method = METHODS[parameters.pop("kind")](**parameters)
    if stream.scenario not in method.scenarios:
        allowed = " or ".join(f'"{scenario}"' for scenario in method.scenarios)
        raise UserError(
            f'[method] kind = "{table.kind}" is for [stream] scenario = {allowed}, not '
            f'"{stream.scenario}": {method.why}'
        )
    return method


def stream_of(recipe: Recipe) -> Stream:
    """Return the [stream] of a recipe. Raises UserError if there is none."""
    if recipe.stream is None:
        raise UserError(
            "the recipe has no [stream]: give scenario and tasks, or use the recipe digits-stream"
        )
    return recipe.stream


def position_of(recipe: Recipe, classes: tuple[str, ...]) -> Position:
    """Return the position of a run in its stream; `classes` are those of the data.

    Raises UserError if tasks and classes do not match, or the recipe is not of a single task.
    """
    stream = stream_of(recipe)
    tasks = class_numbers(stream, classes)
    if stream.task is None:
        raise UserError("a recipe with [stream] has several tasks: train it with `plusx stream`")
    if stream.task > len(tasks):
        raise UserError(f"[stream] task = {stream.task}: there are {len(tasks)} tasks")
    return Position(scenario=stream.scenario, classes=tasks, task=stream.task - 1, seed=recipe.seed)


def class_numbers(stream: Stream, classes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the class numbers of each task. Raises UserError, with the class, if a task has a
    class that the data does not have, or a class of the data is in no task."""
    if stream.scenario == "domain":
        assert isinstance(stream.tasks, int)
        return (tuple(range(len(classes))),) * stream.tasks
    least = 2 if stream.scenario == "task" else 1
    if isinstance(stream.tasks, int):
        count, size = stream.tasks, len(classes) // stream.tasks
        if size < least or len(classes) % count:
            raise UserError(
                f"[stream] tasks = {count}: {len(classes)} classes cannot be divided into {count} "
                f"tasks of equally many, at least {least}; list the classes of each task"
            )
        numbers = range(len(classes))
        return tuple(tuple(numbers[i * size : (i + 1) * size]) for i in range(count))
    for task, names in enumerate(stream.tasks, 1):
        for name in names:
            if name not in classes:
                raise UserError(
                    f"[stream] tasks: task {task} has the class {name!r}, which the data does not "
                    f"have{did_you_mean(name, classes)} (it has {', '.join(classes[:12])})"
                )
        if len(names) < least:
            raise UserError(
                f'[stream] tasks: task {task} has a single class; with scenario = "task", every '
                "task needs at least two"
            )
    absent = [name for name in classes if not any(name in names for names in stream.tasks)]
    if absent:
        raise UserError(
            f"[stream] tasks: no task has the class {', '.join(map(repr, absent[:5]))}; data."
            "classes=[...] leaves classes out"
        )
    return tuple(tuple(classes.index(name) for name in names) for names in stream.tasks)


def open_parts(recipe: Recipe, split: str, count: int) -> list[Dataset]:
    """Open a split of the first `count` tasks. Mean and deviation, and all else that is measured on
    the training set, are those of all tasks; with several paths, of the first path.

    Raises UserError if a task has no samples, or the samples do not have one class each.
    """
    all_tasks = _all_tasks(recipe, split)
    stream, parts = stream_of(recipe), []
    tasks = class_numbers(stream, all_tasks.classes)
    for number in range(count):
        part = all_tasks
        if stream.paths:
            part = _at_path(recipe, stream.paths[number], split, all_tasks)
        elif stream.transform != "none":
            part = TRANSFORMS[stream.transform](all_tasks, number, len(tasks), recipe.seed)
        elif stream.scenario != "domain":
            members = torch.isin(all_tasks.labels.cpu(), torch.tensor(tasks[number]))
            part = all_tasks.subset(members.nonzero().flatten())
        if len(part) == 0:
            raise UserError(f"[stream] task {number + 1} has no {split} {all_tasks.inputs}")
        parts.append(part)
    return parts


def _all_tasks(recipe: Recipe, split: str) -> Dataset:
    """Open a split with the samples of all tasks; with several paths, of the first path."""
    stream = stream_of(recipe)
    if stream.paths:
        recipe = _with_path(recipe, stream.paths[0])
    train, validation = open_train_and_validation(recipe)
    if recipe.task.kind != "classify" or train.multilabel:
        raise UserError(f"[stream] needs one class per {train.noun}, and [task] kind = classify")
    if split == "train":
        return train
    if split == "validation":
        if validation is None:
            raise UserError("[data] validation = 0: a stream is evaluated on validation or test")
        return validation
    return open_split(recipe, split).like(train.modality, train.classes)


def _with_path(recipe: Recipe, path: str) -> Recipe:
    table: Any = recipe.data
    if not hasattr(table, "path"):
        raise UserError(f'[stream] paths: [data] kind = "{table.kind}" has no path')
    return replace(recipe, data=replace(table, path=path))


def _at_path(recipe: Recipe, path: str, split: str, first: Dataset) -> Dataset:
    part = open_split(_with_path(recipe, path), split)
    if part.classes != first.classes:
        different = sorted({*part.classes} ^ {*first.classes})
        raise UserError(
            f"[stream] paths: {path} and {first.name} do not have the same classes: only one has "
            f"{', '.join(map(repr, different[:5]))}"
        )
    return part.like(first.modality, first.classes)


def stream_sets(recipe: Recipe) -> tuple[Dataset, Dataset | None]:
    """Return the training samples of a run, with replayed ones, and the validation samples of its
    task."""
    position = position_of(recipe, _all_tasks(recipe, "train").classes)
    parts = open_parts(recipe, "train", position.task + 1)
    train = method_of(recipe).training_set(parts, memory_of(recipe), recipe.seed)
    if recipe.data.validation == 0:
        return train, None
    return train, open_parts(recipe, "validation", position.task + 1)[-1]


def stream_split(recipe: Recipe, split: str) -> Dataset:
    """Return a split of the task that a run trains, with replayed training samples."""
    if split == "train":
        return stream_sets(recipe)[0]
    position = position_of(recipe, _all_tasks(recipe, "train").classes)
    return open_parts(recipe, split, position.task + 1)[-1]


def continual(recipe: Recipe, task: Task, dataset: Dataset) -> Task:
    """Return the task with the recipe's continual learning around it, if there is any."""
    if recipe.stream is None:
        return task
    position = position_of(recipe, dataset.classes)
    if position.scenario == "task":
        task = OfTask(task, position)
    return method_of(recipe).wrap(task, memory_of(recipe), position)


def memory_of(recipe: Recipe) -> Memory:
    """Return the memory that the previous task of the stream left; empty for the first one."""
    stream = stream_of(recipe)
    return read_memory(Path(stream.previous)) if stream.previous else Memory()


def write_memory(folder: Path, memory: Memory) -> None:
    """Write a memory into the folder of a finished run. The manifest, which is written last, has
    the digests of the memory and of the weights from which the next task starts."""
    tensors = dict(memory.tensors)
    for number, indices in enumerate(memory.buffer):
        tensors[f"buffer.{number}"] = torch.tensor(indices, dtype=torch.int64)
    path = folder / MEMORY
    store.save_tensors(path, tensors)
    manifest = {
        "sha256": _digest(store.read_bytes(path)),
        "weights_sha256": _digest(store.read_part(folder / WEIGHTS)),
        "tasks": len(memory.buffer),
    }
    store.write_json(folder / MANIFEST, manifest)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_memory(folder: Path) -> Memory:
    """Read the memory in a run's folder. Raises UserError if a digest of the manifest does not
    match."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} has no {MANIFEST}: its task of the stream is not finished")
    manifest = store.read_json_part(folder / MANIFEST)
    for name, key in ((MEMORY, "sha256"), (WEIGHTS, "weights_sha256")):
        digest = _digest(store.read_part(folder / name))
        if not isinstance(manifest, dict) or manifest.get(key) != digest:
            raise UserError(
                f"{folder / name} is not what {MANIFEST} describes: restore the files of the run"
            )
    tensors, _ = store.load_tensors(folder / MEMORY)
    names = [name for name in tensors if name.startswith("buffer.")]
    if manifest.get("tasks") != len(names):
        raise UserError(
            f"{folder / MANIFEST}: tasks = {manifest.get('tasks')}, but {MEMORY} has the buffer of "
            f"{len(names)}: restore the files of the run"
        )
    buffer = [tensors.pop(f"buffer.{number}") for number in range(len(names))]
    return Memory(tuple(tuple(indices.tolist()) for indices in buffer), tensors)

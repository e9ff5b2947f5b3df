"""Int8 quantisation of a run's network, and its accuracy and speed."""

import copy
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from plusx import export
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.data.splits import stratified_order
from plusx.errors import UserError, counted
from plusx.export.quantise import ENOUGH_IMAGES, Progress, distance, outputs_for
from plusx.run.environment import has_exact_int8
from plusx.run.evaluation import is_own, other_data, own_split, with_run_classes
from plusx.run.folder import Run
from plusx.train.loop import evaluate


# numbers of images, at most
NUM_CALIBRATION, NUM_SELECTION, NUM_EVALUATION = 256, 256, 1000
MIN_UNCHANGED = 0.985  # fraction of unchanged classes below which there is a warning
ROUNDS = 30  # of timing


def quantised(
    run: Run,
    content: bytes,
    data: str | Path | None,
    on_unreadable: Literal["error", "skip"],
    progress: Progress,
) -> tuple[bytes, dict[str, Any]]:
    """Return the int8 file, and a summary of its quantisation.

    It is calibrated on training samples; the calibration is chosen on validation samples, and the
    accuracy is measured on other validation samples. Without validation samples, training samples
    that were not used for calibration replace them.
    """
    train = _split(run, data, "train", on_unreadable)
    assert train is not None
    noun = run.preprocessing.noun
    first = _order(train)
    images = _inputs(train.subset(first[:NUM_CALIBRATION]))
    warnings = []
    if len(images) < ENOUGH_IMAGES:
        warnings.append(
            f"only {counted(len(images), noun)} for calibration: {ENOUGH_IMAGES} and more give "
            "better ranges"
        )
    validation = _split(run, data, "validation", on_unreadable)
    order = _order(validation) if validation is not None else first[NUM_CALIBRATION:]
    source = validation if validation is not None else train
    if len(order) < 2:
        raise UserError(f"{source.name} has no {noun} left to measure the effect of int8")
    if validation is None:
        warnings.append(
            f"no validation {noun}s were held out: those for training are used for evaluation"
        )
    count = min(NUM_SELECTION, len(order) // 2)
    selection = _inputs(source.subset(order[:count]))
    model = export.quantise(content, images, selection, has_exact_int8(), progress)
    held_out = source.subset(order[count : count + NUM_EVALUATION])
    evaluation = _inputs(held_out)
    progress(f"evaluation on {counted(len(held_out), f'validation {noun}')}")
    error, agreement = distance(
        outputs_for(model.content, evaluation), outputs_for(content, evaluation)
    )
    if agreement < MIN_UNCHANGED:
        warnings.append(f"int8 changes the class of {1 - agreement:.1%} of the outputs")
    key = run.task.metrics[0]
    return model.content, {
        **model.to_dict(),
        "count": len(held_out),
        "noun": noun,
        "error": error,
        "agreement": agreement,
        "metric": key,
        key: _metric(run, model.content, held_out, key),
        f"{key}_float32": _metric(run, content, held_out, key),
        "bytes": len(model.content),
        "bytes_float32": len(content),
        "speed": _speed(content, model.content, evaluation[0][None]),
        "threads": torch.get_num_threads(),
        "warnings": warnings,
    }


def _split(
    run: Run, data: str | Path | None, split: Literal["train", "validation"], on_unreadable: Any
) -> Dataset | None:
    """Return a split of the run's own data, or of `data`, with the network's preprocessing.

    None if the run's recipe holds out no validation images.
    """
    recipe = run.recipe
    held_out = split != "validation" or recipe is None or recipe.data.validation != 0
    if recipe is not None and not held_out and (data is None or is_own(recipe, data)):
        return None
    dataset = own_split(run, data, split)
    if dataset is None:
        assert data is not None
        seed = run.recipe.seed if run.recipe is not None else 0
        dataset = other_data(run, data, split, seed, run.preprocessing.size[0], on_unreadable)
    return with_run_classes(run, dataset).with_modality(run.preprocessing)


def _order(source: Dataset) -> list[int]:
    """Return the indices of a data set in random order, stratified if it has classes."""
    if source.annotations is None:
        return stratified_order(source.labels, 0).tolist()
    return np.random.default_rng(0).permutation(len(source)).tolist()


def _inputs(source: Dataset) -> Tensor | list[Tensor]:
    """Return all preprocessed images (n, c, h, w), or sequences (c, t) of their lengths."""
    with Loader(source, split="all", batch_size=64) as loader:
        batches = list(loader.epoch(0))
    if not source.modality.sequence:
        return torch.cat([batch.inputs for batch in batches]).contiguous()
    sequences = []
    for batch in batches:
        assert batch.lengths is not None
        sequences += [row[..., :n] for row, n in zip(batch.inputs, batch.lengths.tolist())]
    return sequences


def _metric(run: Run, content: bytes, source: Dataset, key: str) -> float:
    """Return the main metric of the run's task with the network of a file."""
    task = copy.deepcopy(run.task)
    task.net = export.OnnxNetwork(content)
    with Loader(source, split="all", batch_size=64) as loader:
        return float(evaluate(task, loader.epoch(0))[key])


def _speed(before: bytes, after: bytes, image: Tensor) -> float:
    """Return the speed-up for one image: the ratio of median times, measured alternately."""
    files = [export.OnnxNetwork(before), export.OnnxNetwork(after)]
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for file, times in zip(files, seconds):
            file(image)  # fill the caches
            start = time.perf_counter()
            file(image)
            times.append(time.perf_counter() - start)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])

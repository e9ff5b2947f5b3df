"""Eight bits for a run's network: images to choose by, and what they cost and gain."""

import statistics
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from plusx import export
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.data.splits import stratified_order
from plusx.errors import UserError
from plusx.export.quantise import ENOUGH_IMAGES, Tell, distance, outputs_for
from plusx.run.environment import exact_eight_bits
from plusx.run.evaluation import in_order_of, is_own, other_data, own_split
from plusx.run.folder import Run


CALIBRATING, CHOOSING, JUDGING = 256, 256, 1000  # images, where there are so many
GOAL = 0.985  # of the classes that stay: below it, a warning
ROUNDS = 30  # of timing


def quantised(
    run: Run,
    content: bytes,
    data: str | Path | None,
    on_unreadable: Literal["error", "skip"],
    progress: Tell,
) -> tuple[bytes, dict[str, Any]]:
    """The file in eight bits, and what there is to say of it.

    Training images calibrate, of which there have to be enough; validation images choose, and other
    validation images judge. Where a run kept none back, training images that did not calibrate do.
    """
    train = _split(run, data, "train", on_unreadable)
    assert train is not None
    first = stratified_order(train.labels, 0).tolist()
    images, _ = _inputs(run, train.subset(first[:CALIBRATING]))
    warnings = []
    if len(images) < ENOUGH_IMAGES:
        warnings.append(
            f"only {len(images)} images to calibrate with: {ENOUGH_IMAGES} and more give better "
            "ranges"
        )
    validation = _split(run, data, "validation", on_unreadable)
    order = (
        stratified_order(validation.labels, 0).tolist()
        if validation is not None
        else first[CALIBRATING:]
    )
    source = validation if validation is not None else train
    if len(order) < 2:
        raise UserError(f"{source.name} has no images that could say what eight bits change")
    if validation is None:
        warnings.append("no validation images were kept back: training images judge")
    count = min(CHOOSING, len(order) // 2)
    choosing, _ = _inputs(run, source.subset(order[:count]))
    model = export.quantise(content, images, choosing, exact_eight_bits(), progress)
    judging, labels = _inputs(run, source.subset(order[count : count + JUDGING]))
    progress("the validation images")
    before, after = outputs_for(content, judging), outputs_for(model.content, judging)
    error, agreement = distance(after, before)
    if agreement < GOAL:
        warnings.append(f"eight bits change the class of {1 - agreement:.1%} of the images")
    return model.content, {
        **model.to_dict(),
        "count": len(judging),
        "error": error,
        "agreement": agreement,
        "accuracy": _accuracy(run, after, labels),
        "accuracy_float32": _accuracy(run, before, labels),
        "bytes": len(model.content),
        "bytes_float32": len(content),
        "speed": _speed(content, model.content, judging[:1]),
        "threads": torch.get_num_threads(),
        "warnings": warnings,
    }


def _split(
    run: Run, data: str | Path | None, split: Literal["train", "validation"], on_unreadable: Any
) -> Dataset | None:
    """A split of the run's own data, or of `data`, prepared for the network; None where the run's
    recipe holds no validation images out.
    """
    recipe = run.recipe
    own = recipe is not None and (data is None or is_own(recipe, data))
    if own and split == "validation" and recipe is not None and recipe.data.validation == 0:
        return None
    dataset = own_split(run, data, split)
    if dataset is None:
        assert data is not None
        seed = run.recipe.seed if run.recipe is not None else 0
        dataset = other_data(run, data, split, seed, run.preprocessing.size[0], on_unreadable)
    return in_order_of(run, dataset).with_modality(run.preprocessing)


def _inputs(run: Run, source: Dataset) -> tuple[Tensor, Tensor]:
    """All the images (n, c, h, w) as the network sees them, and their labels."""
    with Loader(source, split="all", batch_size=64) as loader:
        batches = list(loader.epoch(0))
    return (
        torch.cat([batch.inputs for batch in batches]).contiguous(),
        torch.cat([batch.known_targets for batch in batches]),
    )


def _accuracy(run: Run, logits: Tensor, labels: Tensor) -> float:
    """The share of right answers: of images, or with several labels of all questions."""
    if run.multilabel:
        return float(((logits > 0) == (labels > 0.5)).float().mean())
    return float((logits.argmax(1) == labels).float().mean())


def _speed(before: bytes, after: bytes, image: Tensor) -> float:
    """The time of one image before over that after, medians of rounds in turns."""
    files = [export.OnnxNetwork(before), export.OnnxNetwork(after)]
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for file, taken in zip(files, seconds):
            file(image)  # what was in the caches was the other's
            began = time.perf_counter()
            file(image)
            taken.append(time.perf_counter() - began)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])

"""Which samples of a data set are shown as examples."""

from collections.abc import Sequence
from typing import Any

from plusx.data.dataset import Dataset
from plusx.run.predictor import Predictor
from plusx.run.sources import Failed, Source


_CLASSIFIED = 512  # samples that are compared


def spread(count: int, length: int) -> list[int]:
    """Return at most `count` of `length` indices, evenly spread."""
    count = min(count, length)
    return [i * length // count for i in range(count)]


def hardest(
    predictor: Predictor,
    dataset: Dataset,
    sources: Sequence[Source],
    count: int,
    failed: Failed,
) -> list[tuple[int, dict[str, Any]]]:
    """Return the samples whose class gets the lowest probability, that one first: their indices
    and rows of predictions with ground_truth.

    They are chosen from at most 512 samples, evenly spread; of several labels a sample none are.
    """
    if dataset.multilabel:
        return []
    indices = [i for i in spread(_CLASSIFIED, len(dataset)) if dataset.label(i) >= 0]
    names = [str(index) for index in indices]  # which predictions name
    listed = [sources[index] for index in indices]
    rows = []
    for name, _, prediction in predictor.predictions(listed, failed, names=names):
        (row,) = prediction.rows(predictor.run.classes)
        index = int(name)
        label = dataset.classes[dataset.label(index)]
        probability = row["probabilities"][predictor.run.classes.index(label)]
        truth = {"label": label, "probability": probability}
        rows.append((probability, index, {**row, "ground_truth": truth}))
    return [(index, row) for _, index, row in sorted(rows, key=lambda entry: entry[:2])[:count]]

"""Selection of the samples of a data set that are shown as examples."""

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
    """Return indices and rows of predictions of the samples whose annotated class has the lowest
    probability, in ascending order; rows have ground_truth.

    They are selected from at most 512 samples, evenly spread; [] if samples have several labels.
    """
    if dataset.multilabel:
        return []
    indices = [i for i in spread(_CLASSIFIED, len(dataset)) if dataset.label(i) >= 0]
    names = [str(index) for index in indices]  # by which predictions are identified
    chosen = [sources[index] for index in indices]
    rows = []
    for name, _, prediction in predictor.predictions(chosen, failed, names=names):
        (row,) = prediction.rows(predictor.run.classes)
        index = int(name)
        label = dataset.classes[dataset.label(index)]
        probability = row["probabilities"][predictor.run.classes.index(label)]
        row["ground_truth"] = {"label": label, "probability": probability}
        rows.append((probability, index, row))
    return [(index, row) for _, index, row in sorted(rows, key=lambda entry: entry[:2])[:count]]

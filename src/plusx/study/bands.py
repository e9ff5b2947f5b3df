"""What the studies of networks have in common: a few images, and lines over several seeds."""

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any, TypeAlias

import numpy as np
import torch

from plusx.data.batch import Batch
from plusx.data.loader import Loader
from plusx.data.sample import Source
from plusx.grammar.sentence import Merge, parse
from plusx.grammar.spec import Net
from plusx.study.rows import spread


Number: TypeAlias = int | float  # as JSON gives them: 1.0 is written as 1

DRAWN = 0  # the seed that chooses which images are looked at: the same in every cell


def some_batches(source: Source, images: int, batch_size: int = 256) -> list[Batch]:
    """So many images of a source (all of them if it has fewer), chosen by DRAWN, not augmented."""
    chosen = np.random.default_rng(DRAWN).permutation(len(source))[:images]
    with Loader(
        source.subset(np.sort(chosen).tolist()), split="validation", batch_size=batch_size
    ) as loader:
        return list(loader.epoch(0))


def wrong_of(net: torch.nn.Module, batches: Sequence[Batch]) -> float:
    """The share of the images whose most likely class is not theirs."""
    wrong = sum(int((net(b.inputs).argmax(1) != b.targets).sum()) for b in batches)
    return wrong / sum(map(len, batches))


def merges_of(net: Net) -> set[Merge]:
    """How the blocks of a spec end their branches."""
    return {parse(block.body).merge for stage in net.stages for block in stage.blocks}


def band_of(
    name: str,
    x: Sequence[Number],
    seeds: Sequence[Sequence[Number | None]],
    *,
    dashed: bool = False,
) -> dict[str, Any]:
    """A line of a figure: mean, lowest and highest over the seeds, where all of them are known."""
    columns = {
        at: [float(value) for value in values if value is not None]
        for at, values in zip(x, zip(*seeds, strict=True), strict=True)
    }
    whole = {at: values for at, values in columns.items() if len(values) == len(seeds)}
    return {
        "name": name,
        "x": list(whole),
        "mean": [mean(values) for values in whole.values()],
        "low": [min(values) for values in whole.values()],
        "high": [max(values) for values in whole.values()],
        "dashed": dashed,
    }


def relative_places(count: int) -> list[float]:
    """Where each of `count` blocks stands, from 0 for the first to 1 for the last."""
    return [index / max(1, count - 1) for index in range(count)]


def median_of(values: Sequence[Number | None]) -> float | None:
    """The median of what is known."""
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None


def listed(parts: Sequence[str]) -> str:
    """In words: a, b and c."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""


def spread_of(values: Sequence[Number]) -> dict[str, Any]:
    """As `rows.spread`, of numbers that were read from JSON."""
    return spread([float(value) for value in values])


def counted(words: Sequence[str], told: Mapping[str, str]) -> str:
    """How often each word of `told` stands among some, in words."""
    counts = {word: list(words).count(word) for word in told}
    return listed([f"{told[word]} in {count}" for word, count in counts.items() if count])

"""What values run through a network: ranges of its tensors, from images, for eight-bit numbers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plusx.export.eight_bits import Range, values_in_question
from plusx.export.graph import INPUT
from plusx.export.session import open_session


BINS = 2048
_TOGETHER = 1 << 24  # numbers that run through the network at a time
_LEVELS = 255  # steps of eight bits


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often the values of a tensor fell between `edges` (BINS + 1,), over all images."""

    counts: np.ndarray
    edges: np.ndarray


def histograms(content: bytes, images: Tensor, tell: Callable[[int], None]) -> dict[str, Histogram]:
    """Of every value that may be a byte, over the images (m, ...); `tell` hears how many are done.

    Two passes: the least and largest values first, then the counts between them.
    """
    from onnx import ModelProto, TensorProto, helper

    model = ModelProto.FromString(content)
    names = values_in_question(model)
    del model.graph.output[:]
    for name in names:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = open_session(model.SerializeToString(), torch.get_num_threads())

    def passes(first: int) -> Iterator[dict[str, np.ndarray]]:
        given = images.numpy()
        found = session.run(names, {INPUT: given[:1]})
        size = max(1, min(32, _TOGETHER // max(1, sum(each.size for each in found))))
        for begin in range(0, len(given), size):
            part = given[begin : begin + size]
            yield {INPUT: part, **dict(zip(names, session.run(names, {INPUT: part})))}
            tell(first + min(begin + size, len(given)))

    ranges: dict[str, Range] = {}
    for batch in passes(0):
        for name, values in batch.items():
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
    counts = {name: np.zeros(BINS, np.int64) for name in ranges}
    for batch in passes(len(images)):
        for name, values in batch.items():
            counts[name] += np.histogram(values, BINS, ranges[name])[0]
    edges = {name: np.linspace(*ranges[name], BINS + 1) for name in ranges}
    return {name: Histogram(counts[name], edges[name]) for name in ranges}


def whole(seen: Histogram) -> Range:
    """From the least to the largest value."""
    return float(seen.edges[0]), float(seen.edges[-1])


def percentile(share: float) -> Callable[[Histogram], Range]:
    """The range that leaves out this share of the values at each end."""

    def between(seen: Histogram) -> Range:
        below = np.cumsum(seen.counts) / seen.counts.sum()
        low = int(np.searchsorted(below, share, side="right"))
        high = int(np.searchsorted(below, 1 - share, side="left"))
        return float(seen.edges[min(low, BINS - 1)]), float(seen.edges[min(high, BINS - 1) + 1])

    return between


def least_squares(seen: Histogram) -> Range:
    """The range with the least mean squared error of eight-bit numbers.

    Values beyond it are cut to it, those within are rounded to a step: a wide range has coarse
    steps, a narrow one cuts more (Banner et al. 2019, section 3).
    """
    middles = (seen.edges[:-1] + seen.edges[1:]) / 2
    low, high = whole(seen)
    best, least = (low, high), np.inf
    for share in np.linspace(0.3, 1, 71):
        cut = min(low * share, 0.0), max(high * share, 0.0)
        step = (cut[1] - cut[0]) / _LEVELS or 1.0
        lost = middles - np.clip(middles, *cut)
        error = float((seen.counts * (lost**2 + (lost == 0) * step**2 / 12)).sum())
        if error < least:
            best, least = cut, error
    return best


METHODS: dict[str, Callable[[Histogram], Range]] = {
    "least and largest": whole,
    "percentile 99.999": percentile(1e-5),
    "percentile 99.99": percentile(1e-4),
    "least squares": least_squares,
}

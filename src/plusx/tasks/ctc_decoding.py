"""From the log-probabilities of a CTC network to sequences of tokens. Token 0 is the blank."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


BLANK = 0
# tokens less probable than this at a position extend no sequence
_PRUNED = math.log(1e-6)


class Decoded(NamedTuple):
    """A sequence of tokens and its log-probability: of the best path with greedy decoding, and
    summed over the paths of the beam with a search."""

    tokens: list[int]
    score: float


def greedy(log_probabilities: Float[np.ndarray, "t k"]) -> Decoded:
    """Return the most probable path without repeats and blanks."""
    path = log_probabilities.argmax(1)
    score = float(log_probabilities[np.arange(len(path)), path].sum(dtype=np.float64))
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    return Decoded([int(token) for token in path[starts] if token != BLANK], score)


def beam_search(log_probabilities: Float[np.ndarray, "t k"], width: int) -> Decoded:
    """Return the most probable sequence of a prefix beam search (Graves 2012, section 7.5; Hannun
    et al. 2014, algorithm 1, without a language model).

    A prefix has two log-probabilities: of the paths that end in a blank, and of those that end in
    its last token. Only the `width` most probable prefixes are continued.
    """
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for frame in log_probabilities.astype(np.float64):
        candidates = [int(token) for token in np.flatnonzero(frame > _PRUNED) if token != BLANK]
        values = frame.tolist()
        continued: dict[tuple[int, ...], list[float]] = {}
        for prefix, (in_blank, in_token) in beam.items():
            total = _add(in_blank, in_token)
            same = continued.setdefault(prefix, [-math.inf, -math.inf])
            same[0] = _add(same[0], total + values[BLANK])
            if prefix:
                same[1] = _add(same[1], in_token + values[prefix[-1]])
            for token in candidates:
                # a token is repeated only after a blank
                before = in_blank if prefix and prefix[-1] == token else total
                longer = continued.setdefault((*prefix, token), [-math.inf, -math.inf])
                longer[1] = _add(longer[1], before + values[token])
        ranked = sorted(continued.items(), key=lambda item: -_add(*item[1]))
        beam = {prefix: (blank, token) for prefix, (blank, token) in ranked[:width]}
    best, (in_blank, in_token) = next(iter(beam.items()))
    return Decoded(list(best), _add(in_blank, in_token))


def least_positions(tokens: list[int]) -> int:
    """Return the positions that CTC needs for a sequence: one a token, and a blank between two
    equal ones."""
    return len(tokens) + sum(first == second for first, second in pairwise(tokens))


def _add(a: float, b: float) -> float:
    """Return the logarithm of the sum of two numbers given by their logarithms."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))

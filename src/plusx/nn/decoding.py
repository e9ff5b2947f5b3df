"""Decoding of sequences with a `TokenDecoder`: greedily, or by beam search."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plusx.errors import UserError
from plusx.nn.token_decoders import END, Memory, State, TokenDecoder, first_tokens


PADDING = -1  # fills up shorter sequences


class Sequences(NamedTuple):
    """The chosen tokens (n, u) without the end, padded with PADDING, and the logarithm of the
    probability of each sequence with its end."""

    tokens: Int[Tensor, "n u"]
    scores: Float[Tensor, "n"]


def decode(
    decoder: TokenDecoder,
    memory: Memory,
    *,
    beam: int = 1,
    length_penalty: float = 1.0,
    max_length: int | None = None,
    cached: bool = True,
) -> Sequences:
    """Return the sequence for each input of a memory.

    beam: sequences that are followed at the same time; 1 is greedy: always the most probable token
    length_penalty: of beam search, as in fairseq: of the finished sequences the one with the
        largest log-probability divided by length ** length_penalty wins, where the length includes
        the end; 0 is the log-probability alone, which prefers short sequences
    max_length: tokens of a sequence with its end; None: those of the decoder
    cached: reuse the layers' states of earlier tokens instead of computing them again
    Raises UserError for a beam or a length out of range.
    """
    limit = decoder.max_length if max_length is None else max_length
    if not 1 <= limit <= decoder.max_length:
        raise UserError(
            f"max_length is {limit}; the decoder has positions for 1 to {decoder.max_length}"
        )
    if beam < 1:
        raise UserError(f"beam is {beam}; it is a number of sequences, at least 1")
    if beam == 1:
        return greedy(decoder, memory, limit, cached=cached)
    return beam_search(decoder, memory, beam, length_penalty, limit, cached=cached)


@dataclass
class _Prefixes:
    """The sequences so far, with what is needed for their next token."""

    decoder: TokenDecoder
    memory: Memory
    tokens: Int[Tensor, "n u"]  # begins with END
    state: State | None  # None: not cached

    def next_log_probabilities(self) -> Float[Tensor, "n k"]:
        """Return the log-probabilities of the next token, at least in float32."""
        if self.state is None:
            logits = self.decoder(self.tokens, self.memory)[:, -1]
        else:
            logits, self.state = self.decoder.step(self.tokens[:, -1], self.memory, self.state)
        return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(1)

    def extend(self, token: Int[Tensor, "n"]) -> None:
        self.tokens = torch.cat([self.tokens, token[:, None]], 1)

    def select(self, rows: Int[Tensor, "m"], *, same_inputs: bool = False) -> None:
        """Keep some sequences, in this order. `same_inputs`: row i belongs to the same input as
        before."""
        self.tokens = self.tokens[rows]
        if self.state is not None:
            self.state = self.state.select(rows)
        if not same_inputs:
            self.memory = self.memory.select(rows)


def _prefixes(decoder: TokenDecoder, memory: Memory, cached: bool) -> _Prefixes:
    state = decoder.start(memory) if cached else None
    return _Prefixes(decoder, memory, first_tokens(memory)[:, None], state)


@torch.no_grad()
def greedy(decoder: TokenDecoder, memory: Memory, limit: int, *, cached: bool = True) -> Sequences:
    """Return sequences of the most probable next tokens, at most `limit` with the end; see
    `decode`."""
    prefixes = _prefixes(decoder, memory, cached)
    count, device = len(prefixes.tokens), prefixes.tokens.device
    tokens = torch.full((count, limit), PADDING, dtype=torch.int64, device=device)
    scores = _zeros(memory, (count,))
    active = torch.arange(count, device=device)
    for position in range(limit):
        log_probabilities = prefixes.next_log_probabilities()
        best, token = log_probabilities.max(1)
        if position == limit - 1:
            token = torch.full_like(token, END)
            best = log_probabilities[:, END]
        scores[active] += best
        unfinished = (token != END).nonzero()[:, 0]
        tokens[active[unfinished], position] = token[unfinished]
        if not len(unfinished):
            break
        prefixes.extend(token)
        if len(unfinished) < len(active):
            prefixes.select(unfinished)
            active = active[unfinished]
    return _trimmed(tokens, scores)


@torch.no_grad()
def beam_search(
    decoder: TokenDecoder,
    memory: Memory,
    beam: int,
    length_penalty: float,
    limit: int,
    *,
    cached: bool = True,
) -> Sequences:
    """Return the best finished sequence of each input; see `decode`.

    The search for an input ends when `beam` sequences are finished and none of the others is better
    so far. Without the second condition, improbable ends could fill the beam while a more probable
    sequence is not finished yet.
    """
    prefixes = _prefixes(decoder, memory, cached)
    count, device = len(prefixes.tokens), prefixes.tokens.device
    prefixes.select(torch.arange(count, device=device).repeat_interleave(beam))
    # at first all sequences of an input are equal, and only one of them is followed
    totals = _zeros(memory, (count, beam)).fill_(float("-inf"))
    totals[:, 0] = 0
    active = list(range(count))
    finished: list[list[tuple[float, float, list[int]]]] = [[] for _ in range(count)]
    for position in range(limit):
        log_probabilities = prefixes.next_log_probabilities()
        if position == limit - 1:
            end = log_probabilities[:, END].clone()
            log_probabilities.fill_(float("-inf"))[:, END] = end
        size = log_probabilities.shape[1]
        sums = totals[:, :, None] + log_probabilities.unflatten(0, (-1, beam))
        # at most `beam` of these end, so that as many remain
        best, indices = sums.flatten(1).topk(2 * beam, 1)
        origins, choices = indices // size, indices % size
        ends = choices == END
        length = position + 1
        for row, rank in (ends[:, :beam] & best[:, :beam].isfinite()).nonzero().tolist():
            prefix = prefixes.tokens[row * beam + int(origins[row, rank]), 1:].tolist()
            total = float(best[row, rank])
            finished[active[row]].append((total / length**length_penalty, total, prefix))
        if position == limit - 1:
            break
        # the best `beam` that do not end, in their order
        order = ends.long().argsort(dim=1, stable=True)[:, :beam]
        others = (best.gather(1, order)[:, 0] / length**length_penalty).tolist()
        rows = [
            row
            for row, index in enumerate(active)
            if len(finished[index]) < beam or others[row] > max(finished[index])[0]
        ]
        if not rows:
            break
        remaining = torch.tensor(rows, device=device)
        totals = best.gather(1, order)[remaining]
        origins = origins.gather(1, order)[remaining] + remaining[:, None] * beam
        prefixes.select(origins.flatten(), same_inputs=len(rows) == len(active))
        prefixes.extend(choices.gather(1, order)[remaining].flatten())
        active = [active[row] for row in rows]
    chosen = [max(candidates, key=lambda candidate: candidate[0]) for candidates in finished]
    tokens = torch.full((count, limit), PADDING, dtype=torch.int64, device=device)
    for row, (_, _, prefix) in zip(tokens, chosen):
        row[: len(prefix)] = torch.tensor(prefix, dtype=torch.int64, device=device)
    return _trimmed(tokens, totals.new_tensor([total for _, total, _ in chosen]))


def _zeros(memory: Memory, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    """Return zeros in the precision of log-probabilities: that of the memory, at least float32."""
    keys = memory.keys[0]
    wide = torch.float64 if keys.dtype == torch.float64 else torch.float32
    return torch.zeros(shape, dtype=wide, device=keys.device)


def _trimmed(tokens: Int[Tensor, "n u"], scores: Float[Tensor, "n"]) -> Sequences:
    longest = int((tokens != PADDING).sum(1).max()) if len(tokens) else 0
    return Sequences(tokens[:, :longest], scores)

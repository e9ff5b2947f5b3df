"""Connectionist temporal classification: loss, decoding, metrics, and the head of a network."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import plusx
from plusx.data.batch import Batch
from plusx.data.prediction import TokenSequences
from plusx.errors import UserError
from plusx.grammar.heads import Ctc
from plusx.grammar.model import WithHead
from plusx.nn.build import build
from plusx.tasks.ctc_decoding import beam_search, greedy, least_positions


pytest.importorskip("jiwer")

from plusx.metrics.transcripts import error_rates
from plusx.tasks.transcribe import Transcribe


VOCABULARY = ("<blank>", "\u2581", "a", "b")


class Positions(nn.Module):
    """A network whose logits are its inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def collapse(path: Sequence[int]) -> tuple[int, ...]:
    """Remove repeats, then blanks."""
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def log_likelihood(log_probabilities: np.ndarray, target: tuple[int, ...]) -> float:
    """The sum over every path that collapses to the target, one by one."""
    length, k = log_probabilities.shape
    total = sum(
        math.exp(sum(log_probabilities[t, token] for t, token in enumerate(path)))
        for path in itertools.product(range(k), repeat=length)
        if collapse(path) == target
    )
    return math.log(total) if total else -math.inf


def random_log_probabilities(seed: int, length: int, k: int, sharpness: float = 1.0) -> np.ndarray:
    logits = sharpness * np.random.default_rng(seed).normal(size=(length, k))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("target", [(1,), (2, 2), (1, 2, 1), (3, 3, 3), (2, 3), ()])
def test_the_loss_is_the_sum_over_paths(target: tuple[int, ...]) -> None:
    """Repeats need a blank between them; padded positions and targets change nothing."""
    task = Transcribe(Positions(), vocabulary=VOCABULARY)
    values = random_log_probabilities(len(target), 6, 4)
    padded = np.concatenate([values, np.full((3, 4), -7.0)])
    targets = torch.tensor([[*target, *[-1] * (4 - len(target))]])
    batch = Batch(
        torch.from_numpy(padded).T[None],
        targets,
        torch.tensor([6]),
        {"target_lengths": torch.tensor([len(target)])},
    )
    expected = -log_likelihood(values, target) / max(1, len(target))
    assert task(batch).item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_a_batch_is_the_mean_over_its_samples() -> None:
    task = Transcribe(Positions(), vocabulary=VOCABULARY)
    inputs = torch.randn(3, 4, 9, dtype=torch.float64)
    targets = torch.tensor([[1, 2, 2], [3, -1, -1], [2, 1, -1]])
    lengths, counts = torch.tensor([9, 5, 7]), torch.tensor([3, 1, 2])
    whole = task(Batch(inputs, targets, lengths, {"target_lengths": counts}))
    losses = [
        task(
            Batch(
                inputs[i : i + 1],
                targets[i : i + 1],
                lengths[i : i + 1],
                {"target_lengths": counts[i : i + 1]},
            )
        )
        for i in range(3)
    ]
    assert whole.item() == pytest.approx(torch.stack(losses).mean().item())
    torch_loss = nn.CTCLoss()(
        inputs.log_softmax(1).permute(2, 0, 1), targets.clamp(min=0), lengths, counts
    )
    assert whole.item() == pytest.approx(torch_loss.item())


def test_a_target_longer_than_the_output_is_an_error() -> None:
    task = Transcribe(Positions(), vocabulary=VOCABULARY)
    batch = Batch(
        torch.zeros(1, 4, 3), torch.tensor([[2, 2]]), None, {"target_lengths": torch.tensor([2])}
    )
    assert task(batch).isfinite()
    long = Batch(
        torch.zeros(1, 4, 4), torch.tensor([[2, 2, 2]]), None, {"target_lengths": torch.tensor([3])}
    )
    with pytest.raises(UserError, match="3 tokens needs 5 positions, but the network has 4"):
        task(long)


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_most_probable_sequence(seed: int) -> None:
    values = random_log_probabilities(seed, 5, 3)
    targets = {collapse(path) for path in itertools.product(range(3), repeat=5)}
    best = max(targets, key=lambda target: log_likelihood(values, target))
    hypothesis = beam_search(values, 1000)
    assert tuple(hypothesis.tokens) == best
    assert hypothesis.score == pytest.approx(log_likelihood(values, best), abs=1e-3)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_a_beam_of_one_is_greedy_for_confident_outputs(seed: int, length: int) -> None:
    """With less sure networks one prefix, which sums over paths, and one path can differ."""
    rng = np.random.default_rng(seed)
    path = rng.integers(0, 4, length)
    values = np.full((length, 4), math.log(0.001))
    values[np.arange(length), path] = math.log(0.997)
    assert greedy(values).tokens == beam_search(values, 1).tokens == list(collapse(path.tolist()))
    assert greedy(values).score == pytest.approx(length * math.log(0.997))


def test_a_beam_is_at_least_as_probable_as_greedy() -> None:
    for seed in range(30):
        values = random_log_probabilities(seed, 6, 3)
        by_path = log_likelihood(values, tuple(greedy(values).tokens))
        by_beam = log_likelihood(values, tuple(beam_search(values, 20).tokens))
        assert by_beam >= by_path - 1e-9


def test_zero_positions_decode_to_an_empty_sequence() -> None:
    empty = np.zeros((0, 3))
    assert greedy(empty).tokens == beam_search(empty, 4).tokens == []


@pytest.mark.parametrize(("tokens", "least"), [([], 0), ([1, 2], 2), ([1, 1], 3), ([3, 3, 3], 5)])
def test_least_positions(tokens: list[int], least: int) -> None:
    assert least_positions(tokens) == least
    target, values = tuple(tokens), np.full((least, 4), math.log(0.25))
    assert log_likelihood(values, target) > -math.inf
    if least:
        assert log_likelihood(values[1:], target) == -math.inf


def test_error_rates() -> None:
    """One word of five is wrong, one missing, and one too many."""
    targets = ["three one four", "", "nine six"]
    predicted = ["three two four", "one", "nine"]
    rates = error_rates(targets, predicted)
    assert rates["wer"] == pytest.approx(3 / 5)
    assert (rates["substitutions"], rates["deletions"], rates["insertions"]) == (1, 1, 1)
    assert rates["exact_match"] == 0.0
    assert rates["count"] == 3
    assert rates["words"] == 5
    assert error_rates(["a b"], ["a b"])["wer"] == 0
    # more errors than words
    assert error_rates(["a"], ["b c d"])["wer"] == 3
    with pytest.raises(UserError, match="all targets are empty"):
        error_rates([""], ["a"])


def test_of_two_error_rates_the_lower_one_is_kept() -> None:
    from plusx.report.metrics import METRICS, better

    for key in ("wer", "cer"):
        assert better(key, 0.1) > better(key, 0.2)
        assert METRICS[key].text(1.25, 0.05, decimals=2) == "125.00 ± 5.00 %"
    assert better("exact_match", 0.2) > better("exact_match", 0.1)


def test_the_meter_reads_tokens() -> None:
    (meter,) = Transcribe(Positions(), vocabulary=VOCABULARY).meters()
    prediction = TokenSequences(
        torch.tensor([[2, 1, 3], [3, -1, -1]]), torch.zeros(2), "transcript"
    )
    meter.update(prediction, Batch(torch.zeros(2, 1), torch.tensor([[2, 1, 2], [3, -1, -1]])))
    values = meter.compute()
    assert values["wer"] == pytest.approx(1 / 3)
    assert values["exact_match"] == 0.5
    assert prediction.rows(VOCABULARY)[0] == {"transcript": "a b", "score": 0.0}


def speech_net() -> nn.Module:
    torch.manual_seed(0)
    block = plusx.Block(body="conv5s norm act conv5 norm + act")
    spec = plusx.Net(
        stem="conv5s2 norm act",
        stem_width=8,
        stages=(plusx.Stage(block=block, depth=1, width=8),),
        ndim=1,
        in_channels=6,
        num_classes=4,
        size=40,
    )
    return build(WithHead(backbone=spec, head=Ctc(), num_classes=4)).eval()


@pytest.mark.parametrize("beam", [1, 4])
def test_padding_changes_no_transcript(beam: int) -> None:
    net = speech_net()
    task = Transcribe(net, vocabulary=VOCABULARY, beam=beam).eval()
    lengths = [40, 13, 22, 7]
    inputs = [torch.randn(6, length) for length in lengths]
    padded = torch.full((4, 6, 40), 9.0)
    for row, values in zip(padded, inputs):
        row[:, : values.shape[1]] = values
    with torch.no_grad():
        together = task.predict(Batch(padded, lengths=torch.tensor(lengths)))
        for index, values in enumerate(inputs):
            alone = task.predict(Batch(values[None]))
            count = int((alone.tokens >= 0).sum())
            assert torch.equal(together.tokens[index, :count], alone.tokens[0, :count])
            assert (together.tokens[index, count:] == -1).all()
            assert together.scores[index].item() == pytest.approx(alone.scores[0].item(), abs=1e-4)


def test_the_head_needs_one_dimension_and_has_a_position_per_stride() -> None:
    net = speech_net()
    assert net(torch.randn(2, 6, 41)).shape == (2, 4, 21)
    with pytest.raises(UserError, match="predicts tokens along one dimension; the network has 2"):
        build(WithHead(backbone=plusx.find("resnet20"), head=Ctc(), num_classes=4))

"""Metrics of transcripts: error rates of words and characters, by jiwer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.prediction import Prediction, TokenSequences
from plusx.errors import MissingLibrary, UserError
from plusx.metrics.meter import Meter


class TranscriptMeter(Meter):
    """Metrics of sequences of tokens; targets are token numbers (n, u), padded with -1.

    `compute` returns

    count: the number of texts;
    wer, cer: substitutions, deletions and insertions of words, of characters, over the number of
        words, of characters, in all targets; words are separated by spaces;
    exact_match: the fraction of texts that equal their target;
    words, characters: in the targets; substitutions, deletions, insertions: of words.

    Raises MissingLibrary if jiwer is not installed.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        require_jiwer()

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        assert isinstance(prediction, TokenSequences)
        return {
            "predicted": self._texts(prediction.tokens),
            "targets": self._texts(batch.known_targets),
        }

    def _texts(self, tokens: Tensor) -> list[str]:
        scores = torch.zeros(len(tokens))
        return TokenSequences(tokens.cpu(), scores, "transcript").texts(self.vocabulary)

    def compute(self) -> dict[str, Any]:
        self.require_records()
        predicted = [text for record in self.records for text in record["predicted"]]
        targets = [text for record in self.records for text in record["targets"]]
        return error_rates(targets, predicted)


def error_rates(targets: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of TranscriptMeter. Raises UserError if all targets are empty."""
    jiwer = require_jiwer()
    # jiwer takes no empty target: everything predicted for one is inserted
    pairs = [(target, text) for target, text in zip(targets, predicted) if target.strip()]
    extra = [text for target, text in zip(targets, predicted) if not target.strip()]
    if not pairs:
        raise UserError("all targets are empty: there is nothing to compare transcripts with")
    words = jiwer.process_words([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    letters = jiwer.process_characters([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    num_words = words.hits + words.substitutions + words.deletions
    num_letters = letters.hits + letters.substitutions + letters.deletions
    inserted = words.insertions + sum(len(text.split()) for text in extra)
    inserted_letters = letters.insertions + sum(map(len, extra))
    return {
        "count": len(targets),
        "wer": (words.substitutions + words.deletions + inserted) / num_words,
        "cer": (letters.substitutions + letters.deletions + inserted_letters) / num_letters,
        "exact_match": sum(a == b for a, b in zip(targets, predicted)) / len(targets),
        "words": num_words,
        "characters": num_letters,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": inserted,
    }


def require_jiwer() -> Any:
    """Return the module jiwer. Raises MissingLibrary if it is not installed."""
    try:
        import jiwer
    except ImportError:
        raise MissingLibrary("word and character error rates need jiwer", "audio") from None
    return jiwer

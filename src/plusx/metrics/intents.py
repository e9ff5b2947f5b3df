"""Metrics of spoken commands: exact intents, false acceptances and false rejections."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from plusx.data.batch import Batch
from plusx.data.prediction import Prediction, SpokenCommands
from plusx.data.tokenizer import decoded
from plusx.metrics.meter import Meter


class IntentMeter(Meter):
    """Metrics of commands; targets are token numbers (n, u), padded with -1, of what was spoken.

    `compute` returns

    commands, outside: the recordings whose text is a phrase of the grammar, and the others;
    intent_accuracy: the fraction of the former that is accepted, with verb, object and all values
        right;
    false_rejection_rate: the fraction of the former that is rejected;
    false_acceptance_rate: the fraction of the latter that is accepted;
    threshold: the likelihood ratio from which phrases are accepted; equal_error_threshold: that of
        equal rates of false acceptances and rejections on these recordings;
    parsed_intent_accuracy, parsed_false_acceptance_rate: the same of the transcripts, where one is
        accepted if it is a phrase of the grammar, without a likelihood.

    A metric without recordings is None.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        assert isinstance(prediction, SpokenCommands)
        grammar = prediction.grammar
        targets = [
            decoded([self.vocabulary[number] for number in row if number >= 0])
            for row in batch.known_targets.tolist()
        ]
        best = [grammar.phrases[phrase] for phrase in prediction.phrase_texts]
        transcripts = prediction.texts(self.vocabulary)
        commands = [grammar.parse(target) for target in targets]
        parsed = [grammar.parse(transcript) for transcript in transcripts]
        return {
            "spoken": [command is not None for command in commands],
            "right": [command == other for command, other in zip(commands, best)],
            "ratios": prediction.likelihood_ratios.tolist(),
            "parsed": [command is not None for command in parsed],
            "parsed_right": [command == other for command, other in zip(commands, parsed)],
            "threshold": prediction.threshold,
        }

    def compute(self) -> dict[str, Any]:
        self.require_records()
        spoken, right, ratios, parsed, parsed_right = (
            np.array([value for record in self.records for value in record[key]])
            for key in ("spoken", "right", "ratios", "parsed", "parsed_right")
        )
        threshold = self.records[0]["threshold"]
        accepted = ratios >= threshold
        return {
            "count": len(spoken),
            "commands": int(spoken.sum()),
            "outside": int((~spoken).sum()),
            "intent_accuracy": _fraction((accepted & right)[spoken]),
            "false_rejection_rate": _fraction(~accepted[spoken]),
            "false_acceptance_rate": _fraction(accepted[~spoken]),
            "threshold": threshold,
            "equal_error_threshold": equal_error_threshold(ratios[spoken], ratios[~spoken]),
            "parsed_intent_accuracy": _fraction(parsed_right[spoken]),
            "parsed_false_acceptance_rate": _fraction(parsed[~spoken]),
        }


def equal_error_threshold(commands: np.ndarray, outside: np.ndarray) -> float | None:
    """Return the likelihood ratio of one of the recordings at which the rates of false acceptances
    and false rejections differ least; None without commands or without others."""
    if not len(commands) or not len(outside):
        return None
    thresholds = np.unique(np.concatenate([commands, outside]))
    rejected = np.searchsorted(np.sort(commands), thresholds) / len(commands)
    accepted = 1 - np.searchsorted(np.sort(outside), thresholds) / len(outside)
    return float(thresholds[np.abs(rejected - accepted).argmin()])


def _fraction(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None

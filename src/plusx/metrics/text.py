"""BLEU and chrF of generated texts, computed by sacrebleu (the extra `text`)."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from plusx.data.batch import Batch
from plusx.data.prediction import Prediction, TokenSequences
from plusx.errors import MissingLibrary, UserError
from plusx.metrics.meter import Meter


# an unknown token of a reference is printed as in SentencePiece, so that no prediction equals it
UNKNOWN, UNKNOWN_TEXT = "<unk>", "\u2047"


class TextMeter(Meter):
    """Metrics of translations and captions.

    Targets are sequences of token numbers, whose text is the reference. `compute` returns

    count: texts; tokens: tokens of the references, without their ends;
    bleu: BLEU (Papineni et al. 2002) of the corpus; chrf: chrF2 (Popovic 2015); both from 0 to 100;
    exact_match: the fraction of texts that equal their reference, apart from white space;
    loss: the mean over texts of the mean negative log-probability of a token of the reference,
        given those before it;
    signature: sacrebleu's signatures of bleu and chrf, with the details of their computation. With
        a vocabulary without capital letters they are case-insensitive.

    Raises RuntimeError if the extra is not installed.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        require_sacrebleu()
        self.tokens = tuple(class_names)
        self.reference_tokens = tuple(
            UNKNOWN_TEXT if token == UNKNOWN else token for token in self.tokens
        )

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        assert isinstance(prediction, TokenSequences)
        targets = batch.known_targets.detach().cpu()
        if targets.ndim != 2 or targets.is_floating_point():
            raise UserError(
                f"targets are {targets.dtype} of shape {tuple(targets.shape)}; metrics of texts "
                "need sequences of token numbers, int64 (n, u)"
            )
        references = TokenSequences(targets, torch.zeros(len(targets)), prediction.key)
        return {
            "hypotheses": prediction.cpu().texts(self.tokens),
            "references": references.texts(self.reference_tokens),
            "tokens": int((targets >= 0).sum()),
            "losses": [] if prediction.losses is None else prediction.losses.cpu().tolist(),
        }

    def compute(self) -> dict[str, Any]:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        self.require_records()
        hypotheses, references, losses = (
            [value for record in self.records for value in record[name]]
            for name in ("hypotheses", "references", "losses")
        )
        lowercase = not any(token != token.lower() for token in self.tokens)
        metrics = {"bleu": BLEU(lowercase=lowercase), "chrf": CHRF(lowercase=lowercase)}
        scores = {
            name: metric.corpus_score(hypotheses, [references]).score
            for name, metric in metrics.items()
        }
        matches = [text == reference for text, reference in zip(hypotheses, references)]
        loss = {"loss": sum(losses) / len(losses)} if len(losses) == len(hypotheses) else {}
        return {
            "count": len(hypotheses),
            "tokens": sum(record["tokens"] for record in self.records),
            **loss,
            **scores,
            "exact_match": sum(matches) / len(matches),
            "signature": {name: str(metric.get_signature()) for name, metric in metrics.items()},
        }


def require_sacrebleu() -> None:
    """Raise MissingLibrary if sacrebleu is not installed."""
    if find_spec("sacrebleu") is None:
        raise MissingLibrary("BLEU and chrF need sacrebleu", "text")

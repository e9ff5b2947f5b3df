"""Speech to text by connectionist temporal classification (Graves et al. 2006)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.prediction import TokenSequences
from plusx.errors import UserError
from plusx.metrics.meter import Meter
from plusx.metrics.transcripts import TranscriptMeter
from plusx.nn.masking import padded
from plusx.nn.network import Backbone
from plusx.tasks.classify import at_least_float32
from plusx.tasks.ctc_decoding import BLANK, beam_search, greedy, least_positions
from plusx.tasks.task import Task


class Transcribe(Task):
    """A sequence of tokens for each input, along its time.

    The network returns logits (n, k, t) with the blank as class 0. Targets are token numbers (n, u)
    padded with -1, and `target_lengths`. The loss of a sample is its negative log-likelihood
    divided by the length of its target, as `torch.nn.CTCLoss` has it.

    vocabulary: the tokens; those in angle brackets are not text.
    beam: prefixes of the beam search; 1 decodes greedily.
    """

    metrics: tuple[str, ...] = ("wer", "cer", "exact_match")
    monitors = ("wer", "cer", "exact_match")
    has_labels = False

    def __init__(self, net: nn.Module, *, vocabulary: Sequence[str], beam: int = 1) -> None:
        super().__init__()
        if beam < 1:
            raise UserError(f"beam = {beam}: at least 1, which decodes greedily")
        self.net, self.vocabulary, self.beam = net, tuple(vocabulary), beam

    def logits(self, batch: Batch) -> tuple[Float[Tensor, "n k t"], Int64[Tensor, "n"]]:
        """Return the logits, and the number of valid positions of each."""
        inputs, lengths = batch.inputs, batch.lengths
        if lengths is None:
            logits = at_least_float32(self.net(inputs))
            return logits, torch.full((len(logits),), logits.shape[2])
        if isinstance(self.net, Backbone):
            with padded(self.net, inputs.shape[-1], lengths) as positions:
                logits = at_least_float32(self.net(inputs))
            return logits, positions.lengths(logits.shape[2]).cpu()
        # a session of ONNX Runtime takes no lengths: run one sequence at a time
        rows = [self.net(row[None, ..., :n]) for row, n in zip(inputs, lengths.tolist())]
        logits = inputs.new_zeros(len(rows), rows[0].shape[1], max(row.shape[2] for row in rows))
        for target, row in zip(logits, rows):
            target[:, : row.shape[2]] = row[0]
        return logits, torch.tensor([row.shape[2] for row in rows])

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        logits, lengths = self.logits(batch)
        targets, target_lengths = batch.known_targets, batch.extras["target_lengths"].cpu()
        # CTC sums over paths, which needs more than half precision
        with torch.autocast(logits.device.type, enabled=False):
            losses = F.ctc_loss(
                logits.log_softmax(1).permute(2, 0, 1),
                targets.clamp(min=0),
                lengths,
                target_lengths,
                blank=BLANK,
                reduction="none",
            )
        if not bool(losses.isfinite().all()):
            self._refuse_long(targets.cpu(), lengths, target_lengths)
        per_token = losses / target_lengths.clamp(min=1).to(losses)
        return per_token.mean()

    def _refuse_long(
        self, targets: Tensor, lengths: Int64[Tensor, "n"], target_lengths: Int64[Tensor, "n"]
    ) -> None:
        """Raise UserError if a target needs more positions than the network has for its input."""
        for row, length, positions in zip(
            targets.tolist(), target_lengths.tolist(), lengths.tolist()
        ):
            needed = least_positions(row[:length])
            if needed > positions:
                raise UserError(
                    f"a target of {length} tokens needs {needed} positions, but the network has "
                    f"{positions} for its input: use a network of a smaller stride, or smaller "
                    "changes of speed"
                )

    def predict(self, batch: Batch) -> TokenSequences:
        return self.decode(*self.logits(batch))

    def decode(self, logits: Float[Tensor, "n k t"], lengths: Int64[Tensor, "n"]) -> TokenSequences:
        """Return the transcript of each input, from the logits and their lengths."""
        values = logits.log_softmax(1).transpose(1, 2).detach().cpu().numpy()
        decoded = [
            greedy(rows[:length]) if self.beam == 1 else beam_search(rows[:length], self.beam)
            for rows, length in zip(values, lengths.tolist())
        ]
        longest = max((len(sequence.tokens) for sequence in decoded), default=0)
        tokens = torch.full((len(decoded), max(1, longest)), -1)
        for row, sequence in zip(tokens, decoded):
            row[: len(sequence.tokens)] = torch.tensor(sequence.tokens, dtype=torch.int64)
        scores = torch.tensor([sequence.score for sequence in decoded], dtype=torch.float32)
        return TokenSequences(tokens, scores, "transcript")

    def meters(self) -> list[Meter]:
        return [TranscriptMeter(self.vocabulary)]

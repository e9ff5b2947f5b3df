"""Generating a text from an input: translation of sentences, captions of images."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.prediction import TokenSequences
from plusx.errors import UserError
from plusx.metrics.meter import Meter
from plusx.metrics.text import TextMeter
from plusx.nn.decoding import PADDING, decode
from plusx.nn.token_decoders import END, Memory, TokenDecoder
from plusx.nn.with_head import NetworkWithHead
from plusx.tasks.classify import at_least_float32
from plusx.tasks.task import Task


METRICS: dict[str, tuple[str, ...]] = {
    "translation": ("bleu", "chrf", "exact_match"),
    "caption": ("exact_match", "bleu", "chrf"),
}


class Generate(Task):
    """Generation of a sequence of tokens, one after another.

    net: a network with a head of one of grammar.heads.DECODERS. Targets are token numbers (n, u)
        without the end, padded with -1; token 0 is the end.
    key: what is generated, the name of the text in `predict`'s rows
    label_smoothing: the probability that is spread over all tokens (Szegedy et al. 2016, section 7)
    beam, length_penalty, max_length, cached: see `plusx.nn.decoding.decode`
    class_names: the tokens, for the metrics

    The loss is the cross-entropy of the next token given those before it in the target (teacher
    forcing), the mean over the tokens of a sequence and over sequences. So losses of parts of a
    batch add up, and padding has no influence. Targets are cut to the decoder's max_length. After
    each forward `scalars["token_error"]` is the fraction of wrong tokens, averaged in the same way.
    """

    monitors = ("loss",)
    has_labels = False

    def __init__(
        self,
        net: nn.Module,
        *,
        key: Literal["translation", "caption"] = "translation",
        label_smoothing: float = 0.0,
        beam: int = 5,
        length_penalty: float = 1.0,
        max_length: int | None = None,
        cached: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(net, NetworkWithHead) or not isinstance(net.head, TokenDecoder):
            raise UserError(
                f"{type(net).__name__} does not generate tokens: a network with a head "
                "conv-decoder or transformer-decoder is needed"
            )
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}; allowed is 0 <= value < 1")
        self.net: NetworkWithHead = net
        self.key, self.metrics = key, METRICS[key]
        self.label_smoothing = label_smoothing
        self.beam, self.length_penalty, self.cached = beam, length_penalty, cached
        self.max_length = max_length
        self.class_names = None if class_names is None else tuple(class_names)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        losses, errors = self._losses(batch, self._memory(batch), self.label_smoothing)
        self.scalars = {"token_error": errors.mean()}
        return losses.mean()

    def predict(self, batch: Batch) -> TokenSequences:
        """Return the texts; with targets also the loss of each, without label smoothing."""
        memory = self._memory(batch)
        sequences = decode(
            self.net.decoder,
            memory,
            beam=self.beam,
            length_penalty=self.length_penalty,
            max_length=self.max_length,
            cached=self.cached,
        )
        losses = None
        if batch.targets is not None:
            losses, _ = self._losses(batch, memory, 0.0)
        return TokenSequences(sequences.tokens, sequences.scores, self.key, losses)

    @torch.no_grad()
    def attention(self, batch: Batch, tokens: Int[Tensor, "n u"]) -> Float[Tensor, "n v *s"]:
        """Return how much the last layer attends to each position of the features, where it
        predicts each of the tokens, padded with -1, and the end after them."""
        decoder = self.net.decoder
        inputs, _ = teacher_forcing(tokens, decoder.num_tokens, decoder.max_length)
        weights = decoder.attention_weights(inputs, self._memory(batch))
        (features,) = self.net.features(batch.inputs, [-1])
        return weights.unflatten(2, features.shape[2:])

    def meters(self) -> list[Meter]:
        if self.class_names is None:
            raise UserError("metrics of texts need the tokens, class_names")
        return [TextMeter(self.class_names)]

    def _memory(self, batch: Batch) -> Memory:
        return self.net.memory(batch.inputs, batch.lengths)

    def _losses(
        self, batch: Batch, memory: Memory, label_smoothing: float
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Return the loss and the fraction of wrong tokens of each sequence."""
        decoder = self.net.decoder
        inputs, outputs = teacher_forcing(
            batch.known_targets, decoder.num_tokens, decoder.max_length
        )
        valid = outputs != PADDING
        # padding needs no logits, which are most of the work for a large vocabulary
        logits, targets = at_least_float32(decoder(inputs, memory, valid)), outputs[valid]
        losses = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
        wrong = (logits.detach().argmax(1) != targets).to(losses.dtype)
        return _means(losses, valid), _means(wrong, valid)


def _means(values: Float[Tensor, "m"], valid: Bool[Tensor, "n v"]) -> Float[Tensor, "n"]:
    """Return the mean of each sequence's values, which are those of all valid positions."""
    zeros = values.new_zeros(valid.shape)
    return zeros.masked_scatter(valid, values).sum(1) / valid.sum(1)


def teacher_forcing(
    targets: Shaped[Tensor, "n ..."], num_tokens: int, max_length: int
) -> tuple[Int[Tensor, "n v"], Int[Tensor, "n v"]]:
    """Return a decoder's inputs and targets: END and the tokens, and the tokens and END, both cut
    to `max_length` positions; targets are padded with -1.

    Raises UserError if a target is not a sequence of tokens.
    """
    if targets.ndim != 2 or targets.is_floating_point():
        raise UserError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; allowed are token "
            f"numbers, int64 ({len(targets)}, u)"
        )
    highest = int(targets.max()) if targets.numel() else 0
    if highest >= num_tokens:
        raise UserError(
            f"a target has token {highest}; a network of {num_tokens} tokens allows 0 to "
            f"{num_tokens - 1}"
        )
    end = targets.new_full((len(targets), 1), END)
    inputs = torch.cat([end, targets.clamp(min=END)], 1)
    outputs = torch.cat([targets, targets.new_full((len(targets), 1), PADDING)], 1)
    outputs = outputs.scatter(1, (targets >= 0).sum(1, keepdim=True), END)
    return inputs[:, :max_length], outputs[:, :max_length]


def set_decoding(task: Task, *, beam: int | None = None, cached: bool = True) -> None:
    """Change how a task chooses the tokens of its texts. Raises UserError for another task."""
    if not isinstance(task, Generate):
        raise UserError(
            "a beam and a cache are for networks that generate text; this one has the task "
            f"{type(task).__name__}"
        )
    task.beam, task.cached = task.beam if beam is None else beam, cached

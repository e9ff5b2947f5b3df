"""Decoding of spoken commands within a grammar, by the likelihood of each of its phrases."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.command_grammar import CommandGrammar, refuse_outside
from plusx.data.prediction import SpokenCommands
from plusx.data.tokenizer import SPACE, Tokenizer
from plusx.errors import UserError
from plusx.metrics.intents import IntentMeter
from plusx.metrics.meter import Meter
from plusx.tasks.ctc_decoding import BLANK
from plusx.tasks.task import Task, Wrapped
from plusx.tasks.transcribe import Transcribe


class WithinGrammar(Wrapped):
    """A recogniser whose transcripts are commands of a grammar, or rejected.

    The prediction is the phrase of the highest likelihood by CTC, summed over all alignments. It is
    accepted if its likelihood ratio reaches the threshold: the likelihood of the phrase over that
    of the free transcript, both given the recording, per character of the phrase (the geometric
    mean), and at most 1. At a ratio of 1 the phrase is as likely as the free transcript.

    Raises UserError if the task is not a recogniser of characters, or a phrase has characters that
    its network does not have.
    """

    task: Transcribe

    def __init__(self, task: Task, grammar: CommandGrammar, threshold: float) -> None:
        if not isinstance(task, Transcribe):
            raise UserError(
                f"{grammar.name}: a grammar is for networks that transcribe speech; this one has "
                f"the task {type(task).__name__}"
            )
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold = {threshold:g}: from 0 to 1")
        super().__init__(task)
        self.grammar, self.threshold = grammar, threshold
        letters = [token.replace(SPACE, " ") for token in task.vocabulary]
        refuse_outside(grammar, letters, "the network")
        tokenizer = Tokenizer("characters", task.vocabulary)
        sequences = [tokenizer.encode(text) for text in grammar.texts]
        self.trie = PhraseTrie(sequences)
        self.lengths = torch.tensor([len(sequence) for sequence in sequences])

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("intent_accuracy", "false_acceptance_rate", "false_rejection_rate", "wer")

    @property
    def monitors(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("intent_accuracy", *self.task.monitors)

    def predict(self, batch: Batch) -> SpokenCommands:
        return self.decode(*self.task.logits(batch))

    def decode(self, logits: Float[Tensor, "n k t"], lengths: Tensor) -> SpokenCommands:
        """Return the command of each input, from the logits and their lengths."""
        transcripts = self.task.decode(logits, lengths)
        rows = logits.log_softmax(1).transpose(1, 2).detach().cpu().double()
        phrases, ratios = [], []
        for row, length, tokens in zip(rows, lengths.tolist(), transcripts.tokens):
            likelihoods = self.trie.log_likelihoods(row[:length])
            best = int(likelihoods.argmax())
            free = PhraseTrie([tokens[tokens >= 0].tolist()]).log_likelihoods(row[:length])
            per_character = (likelihoods[best] - free[0]) / self.lengths[best]
            phrases.append(best)
            ratios.append(min(1.0, float(per_character.exp())))
        return SpokenCommands(
            tokens=transcripts.tokens,
            scores=transcripts.scores,
            key=transcripts.key,
            phrases=torch.tensor(phrases),
            likelihood_ratios=torch.tensor(ratios, dtype=torch.float32),
            grammar=self.grammar,
            threshold=self.threshold,
        )

    def meters(self) -> list[Meter]:
        return [IntentMeter(self.task.vocabulary), *self.task.meters()]


class PhraseTrie:
    """Sequences of tokens as a tree of their prefixes, each of which is computed once.

    A sequence must not contain the blank; it may be empty.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        tokens, parents = [BLANK], [0]  # of the nodes; the first one is the empty prefix
        children: dict[tuple[int, int], int] = {}
        ends = []
        for sequence in sequences:
            node = 0
            for token in sequence:
                if (node, token) not in children:
                    children[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = children[node, token]
            ends.append(node)
        self.tokens, self.parents = torch.tensor(tokens), torch.tensor(parents)
        self.ends = torch.tensor(ends)
        # a token is repeated only after a blank
        self.repeats = self.tokens == self.tokens[self.parents]

    def log_likelihoods(self, log_probabilities: Float64[Tensor, "t k"]) -> Float64[Tensor, "p"]:
        """Return the log-likelihood of each sequence by CTC (Graves et al. 2006, section 4.1): the
        forward variables of all prefixes, position by position."""
        blank = log_probabilities.new_full((len(self.tokens),), -torch.inf)
        token = blank.clone()
        blank[0] = 0.0
        for position in log_probabilities:
            either = torch.logaddexp(blank, token)
            entering = torch.where(self.repeats, blank[self.parents], either[self.parents])
            token = torch.logaddexp(token, entering) + position[self.tokens]
            token[0] = -torch.inf
            blank = either + position[BLANK]
        return torch.logaddexp(blank, token)[self.ends]

"""Commands of a grammar by a trained recogniser, in recordings and in streams of sound."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from plusx.data.command_grammar import open_grammar
from plusx.data.prediction import command_row
from plusx.data.tokenizer import SPACE
from plusx.errors import UserError
from plusx.recipe.tables import SpokenCommand
from plusx.run.folder import Run
from plusx.run.streaming import TranscriptStream
from plusx.tasks.ctc_decoding import BLANK
from plusx.tasks.task import Task
from plusx.tasks.within_grammar import WithinGrammar


PAUSE = 0.6  # seconds without a letter that end a phrase
LONGEST = 20.0  # seconds after which a phrase ends without a pause


def within_grammar(
    run: Run, grammar: str | Path | None = None, threshold: float | None = None
) -> Run:
    """Return a run of a recogniser that predicts the commands of a grammar.

    grammar: a TOML file, or the name of one that comes with plusx; default: that of the run
    threshold: the likelihood ratio from which a phrase is accepted; default: that of the run, or
        of the recipe's table
    Raises UserError if the run has no recogniser, or no grammar is given and it has none.
    """
    if grammar is None and threshold is None:
        return run
    task: Task = run.task
    default = SpokenCommand.threshold
    if isinstance(task, WithinGrammar):
        commands = task.grammar if grammar is None else open_grammar(grammar)
        default, task = task.threshold, task.task
    elif grammar is None:
        raise UserError(f"{run.path}: a threshold without a grammar: give --grammar FILE")
    else:
        commands = open_grammar(grammar)
    limit = default if threshold is None else threshold
    return replace(run, task=WithinGrammar(task, commands, limit).eval())


class CommandEvent(NamedTuple):
    """A phrase: `seconds` is the position of its last letter, `label` the command as text or
    "rejected", `probability` the likelihood ratio, and then its parts."""

    seconds: float
    label: str
    probability: float
    phrase: str
    verb: str | None
    object: str | None
    values: dict[str, Any]


class CommandStream:
    """The commands in a stream: a phrase ends at a pause, and is then decoded as a recording.

    Raises UserError if the run has no network for transcripts, or one whose outputs depend on all
    frames.
    """

    def __init__(self, run: Run) -> None:
        assert isinstance(run.task, WithinGrammar)
        self.task = run.task
        self.transcripts = TranscriptStream(replace(run, task=run.task.task))
        seconds = self.transcripts.seconds(1) - self.transcripts.seconds(0)
        self.pause, self.longest = round(PAUSE / seconds), round(LONGEST / seconds)
        # outputs other than letters
        self.silent = [BLANK, *(i for i, name in enumerate(run.classes) if name == SPACE)]
        self.outputs: list[Float32[Tensor, "k"]] = []  # of the phrase, and of a pause before it
        self.count = 0  # outputs so far
        self.last = -1  # output of the phrase's last letter; -1: between phrases

    @property
    def latency(self) -> float:
        """Maximum seconds from the end of a phrase to its event."""
        return self.transcripts.latency + PAUSE

    def events(self, samples: Float32[Tensor, "t"], last: bool = False) -> Iterator[CommandEvent]:
        """Yield the phrases that end in these samples, or with them if they are the last."""
        for logits in self.transcripts.add(samples, last):
            for output in logits.T:
                self.outputs.append(output)
                if int(output.argmax()) not in self.silent:
                    self.last = self.count
                self.count += 1
                if self.last < 0:
                    del self.outputs[: -self.pause]
                elif self.count > self.last + self.pause or len(self.outputs) > self.longest:
                    yield self._event()
        if last and self.last >= 0:
            yield self._event()

    def _event(self) -> CommandEvent:
        logits = torch.stack(self.outputs, 1)[None]
        with torch.inference_mode():
            prediction = self.task.decode(logits, torch.tensor([logits.shape[2]]))
        row = command_row(prediction.commands[0])
        event = CommandEvent(
            self.transcripts.seconds(self.last),
            row["command"],
            float(prediction.likelihood_ratios[0]),
            prediction.phrase_texts[0],
            row["verb"],
            row["object"],
            row["values"],
        )
        self.outputs, self.last = [], -1
        return event

"""The progress of a comparison: drawn in a terminal, plain lines elsewhere, from the runs' logs."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from plusx.report.metrics import METRICS, metric


EVERY = 5.0  # seconds between two plain lines


class LogTail:
    """The lines of a log that were written since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def lines(self) -> list[dict[str, Any]]:
        """Complete new lines. A log that a resumed run has shortened is read again as a whole."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._position:
                    self._position = 0
                file.seek(self._position)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            return []


@dataclass
class RunProgress:
    """A running trial, by its log."""

    name: str
    seed: int
    tail: LogTail
    cost: float  # of the whole run, in any unit
    epochs: int | None  # how long it is: so many epochs, or so many steps
    steps: int | None
    epoch: int = 0
    step: int = 0
    best: tuple[str, float] | None = None  # the foremost metric that is known, and its key
    begun: float = field(default_factory=time.monotonic)
    _steps_an_epoch: float = math.inf  # until the first one is over

    def update(self) -> None:
        for line in self.tail.lines():
            self.step, self.epoch = line["step"], line["epoch"]
            if "train_loss" in line:  # the end of an epoch
                self._steps_an_epoch = self.step / self.epoch
                metrics = line.get("validation", {})
                self.best = next(((k, metrics[k]) for k in metrics if k in METRICS), self.best)

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        return min(1.0, self.step / (self.steps or self._steps_an_epoch * (self.epochs or 1)))

    @property
    def position(self) -> str:
        if not self.step:
            return "starting"
        if self.epochs is None:
            at = f"step {self.step:,}/{self.steps:,}"
        else:
            at = f"epoch {self.epoch:>{len(str(self.epochs))}}/{self.epochs}"
        return at if self.share < 1 else f"{at}, evaluating"

    @property
    def score(self) -> str:
        if self.best is None:
            return ""
        key, value = self.best
        return f"{metric(key).title} {100 * value:.1f} %"

    def __str__(self) -> str:
        parts = [f"{self.name} seed {self.seed} {self.position}", self.score]
        return ", ".join(filter(None, parts))


@dataclass
class Progress:
    """The state of a comparison, shown on `stream` until the block ends."""

    stream: TextIO
    runs: int
    cost: float  # of all runs
    finished: int = 0
    paid: float = 0.0  # of it, by runs that are finished
    running: list[RunProgress] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._console = Console(file=self.stream, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._begun = time.monotonic()
        self._first: tuple[float, float] | None = None  # share and time when a step was first seen
        self._shown = self._begun

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a permanent line."""
        self._console.print(Text(text), soft_wrap=True)

    def end(self, name: str, seed: int, error: str) -> None:
        """Print a permanent line about a run that ended."""
        run = next(run for run in self.running if (run.name, run.seed) == (name, seed))
        self.running.remove(run)
        run.update()
        if error:
            self.say(f"{name} seed {seed} failed: {error}")
            return
        self.finished += 1
        self.paid += run.cost
        seconds = time.monotonic() - run.begun
        if not run.step:  # nothing was left to be trained
            self.say(f"{name} seed {seed}: done in {_time(seconds)}")
            return
        score = f"{run.score}, " if run.score else ""
        length = f"{run.epoch} {'epoch' if run.epoch == 1 else 'epochs'}"
        self.say(f"{name} seed {seed}: {score}{length} in {_time(seconds)}")

    def show(self) -> None:
        """Read the runs' logs and update the display."""
        for run in self.running:
            run.update()
        now = time.monotonic()
        if self._console.is_terminal:
            self._live.update(self._table(now), refresh=True)
        elif now - self._shown >= EVERY:
            self._shown = now
            parts = [str(run) for run in self.running]
            self.say(f"{self._clock(now)}: {'; '.join(parts)}" if parts else self._clock(now))

    def _clock(self, now: float) -> str:
        left = self._left(now)
        after = "" if left is None else f", about {_time(left)} left"
        return f"{self.finished} of {self.runs} runs, {_time(now - self._begun)}{after}"

    def _share(self) -> float:
        part = sum(run.cost * run.share for run in self.running)
        return min(1.0, (self.paid + part) / self.cost) if self.cost else 1.0

    def _left(self, now: float) -> float | None:
        """Seconds left at the pace since the first step; None before it, and when only evaluation,
        which has another pace, is left."""
        share = self._share()
        if share > 1 - 1e-9:
            return None
        if self._first is None:
            if any(run.step for run in self.running):
                self._first = share, now
            return None
        done, elapsed = share - self._first[0], now - self._first[1]
        return (1 - share) * elapsed / done if done > 0.02 and elapsed > 2 else None

    def _table(self, now: float) -> Group:
        head = Table.grid(padding=(0, 2))
        head.add_row(ProgressBar(total=1, completed=self._share(), width=30), self._clock(now))
        rows = Table.grid(padding=(0, 2))
        for run in sorted(self.running, key=lambda run: (run.name, run.seed)):
            seed = f"seed {run.seed}"
            rows.add_row(Text(run.name, style="bold"), seed, run.position, run.score)
        return Group(head, rows)


def _time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

"""The progress of a comparison, read from the logs of its runs: a live display in a terminal, plain
lines elsewhere."""

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

from plusx.report.metrics import METRICS


EVERY = 5.0  # seconds at least between two plain lines


class LogTail:
    """The lines of a log that were added since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def lines(self) -> list[dict[str, Any]]:
        """Return complete new lines. A log that a resumed run shortened is read from its start."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._position:
                    self._position = 0
                file.seek(self._position)
                text = file.read()
        except OSError:
            return []
        complete = text[: text.rfind(b"\n") + 1]
        self._position += len(complete)
        try:
            return [json.loads(line) for line in complete.splitlines()]
        except ValueError:
            return []


@dataclass
class RunProgress:
    """A running trial, by its log."""

    name: str
    tail: LogTail
    cost: float  # of the whole run, in any unit
    epochs: int | None  # the length of the run: epochs or steps
    steps: int | None
    epoch: int = 0
    step: int = 0
    score: str = ""  # the most important metric of the last evaluation
    started: float = field(default_factory=time.monotonic)
    _steps_per_epoch: float = math.inf  # until the first one is over

    def update(self) -> None:
        for line in self.tail.lines():
            self.step, self.epoch = line["step"], line["epoch"]
            if "train_loss" in line:  # the end of an epoch
                self._steps_per_epoch = self.step / self.epoch
                metrics = line.get("validation", {})
                key = next((key for key in metrics if key in METRICS), None)
                if key is not None:
                    self.score = f"{METRICS[key].title} {METRICS[key].text(metrics[key])}"

    @property
    def share(self) -> float:
        """The completed fraction, from 0 to 1."""
        return min(1.0, self.step / (self.steps or self._steps_per_epoch * (self.epochs or 1)))

    def __str__(self) -> str:
        position = (
            "starting"
            if not self.step
            else f"step {self.step:,}/{self.steps:,}"
            if self.epochs is None
            else f"epoch {self.epoch:>{len(str(self.epochs))}}/{self.epochs}"
        )
        evaluating = "evaluating" if self.step and self.share == 1 else ""
        return ", ".join(filter(None, [f"{self.name} {position}", evaluating, self.score]))


@dataclass
class Progress:
    """The state of a comparison, shown on `stream` inside the context."""

    stream: TextIO
    runs: int
    cost: float  # of all runs
    finished: int = 0
    finished_cost: float = 0.0  # of the finished runs
    running: list[RunProgress] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._console = Console(file=self.stream, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._started = self._shown = time.monotonic()
        self._first: tuple[float, float] | None = None  # share and time of the first step
        self._line = ""  # the last plain line, without its times

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def print(self, text: str) -> None:
        """Print a permanent line."""
        self._console.print(Text(text), soft_wrap=True)

    def end(self, name: str, error: str) -> None:
        """Print a permanent line about a run that ended."""
        run = next(run for run in self.running if run.name == name)
        self.running.remove(run)
        run.update()
        if error:
            self.print(f"{name} failed: {error}")
            return
        self.finished += 1
        self.finished_cost += run.cost
        seconds = _time(time.monotonic() - run.started)
        if not run.step:  # the run was trained before
            self.print(f"{name}: done in {seconds}")
            return
        length = f"{run.epoch} {'epoch' if run.epoch == 1 else 'epochs'} in {seconds}"
        self.print(f"{name}: {', '.join(filter(None, [run.score, length]))}")

    def show(self) -> None:
        """Read the runs' logs and update the display."""
        for run in self.running:
            run.update()
        now = time.monotonic()
        share = min(
            1.0,
            (self.finished_cost + sum(run.cost * run.share for run in self.running))
            / (self.cost or 1.0),
        )
        left = self._seconds_left(now, share)
        after = "" if left is None else f", about {_time(left)} left"
        clock = f"{self.finished} of {self.runs} runs, {_time(now - self._started)}{after}"
        if self._console.is_terminal:
            head = Table.grid(padding=(0, 2))
            head.add_row(ProgressBar(total=1, completed=share, width=30), clock)
            lines = sorted(map(str, self.running))
            self._live.update(Group(head, *map(Text, lines)), refresh=True)
        elif now - self._shown >= EVERY:
            runs = "; ".join(map(str, self.running))
            line = f"{self.finished} {runs}"
            if line != self._line:
                self._shown, self._line = now, line
                self.print(": ".join(filter(None, [clock, runs])))

    def _seconds_left(self, now: float, share: float) -> float | None:
        """Return the estimated seconds left; None before the first step, and while only evaluation
        is left."""
        if share > 1 - 1e-9:
            return None
        if self._first is None:
            if any(run.step for run in self.running):
                self._first = share, now
            return None
        done, elapsed = share - self._first[0], now - self._first[1]
        return (1 - share) * elapsed / done if done > 0.02 and elapsed > 2 else None


def _time(seconds: float) -> str:
    rounded = round(seconds)
    if rounded < 100:
        return f"{rounded} s"
    if rounded < 6000:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"

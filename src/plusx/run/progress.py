"""Progress of a run on standard error: a progress bar on a terminal, else a line per epoch."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from plusx.train.report import Report


_EVERY = 0.1  # seconds between two updates of the bar


class Display:
    """Shows the progress of a run, unless `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.updated_at = 0.0
        self.bar: Progress | None = None

    def begin(self, total: int, done: int = 0) -> None:
        """Start the progress bar at `done` of `total` steps."""
        if not self.quiet and sys.stderr.isatty() and self.console.is_interactive:
            self.bar = Progress(
                TextColumn("step {task.completed:,}/{task.total:,}"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task("", total=total, completed=done)
            self.bar.start()

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, report: Report) -> None:
        """Update the progress bar."""
        if self.bar is None or time.monotonic() - self.updated_at < _EVERY:
            return
        self.updated_at = time.monotonic()
        text = f"rate {report.lr:.3g}  loss {report.loss:.4f}"
        self.bar.update(self.task, completed=report.step, description=text)

    def line(self, text: str) -> None:
        """Print a line above the progress bar."""
        if not self.quiet:
            self.console.print(text, markup=False)

"""Handling of SIGTERM and SIGINT: a run finishes its step and saves a checkpoint."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any


class Stopped(RuntimeError):
    """Training was stopped by a signal, after a checkpoint was saved."""

    def __init__(self, signal_number: int, step: int, path: Path) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(
            f"stopped by {name} at step {step} and saved; run the same command with --out {path} "
            "to resume"
        )
        self.signal_number = signal_number


class Signals:
    """Records the first SIGTERM or SIGINT; a second one ends the process at once.

    With `patient` it does not: a launcher may send a signal again to processes that have received
    it, and ends them itself if they take too long.
    """

    HANDLED = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, *, patient: bool = False) -> None:
        self.received: int | None = None
        self.patient = patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in self.HANDLED:
                self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self.patient:
            return
        for handled in self._before:
            signal.signal(handled, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)

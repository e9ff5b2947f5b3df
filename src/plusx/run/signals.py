"""SIGTERM and Ctrl-C: a run finishes its step, is saved, and says with which signal it ended."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any


class Stopped(RuntimeError):
    """Training was stopped by a signal, after its state was saved."""

    def __init__(self, signal_number: int, step: int, path: Path) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(
            f"stopped by {name} at step {step}; saved, and the same command with --out {path} "
            "goes on from there"
        )
        self.signal_number = signal_number


class Signals:
    """SIGTERM and SIGINT are noted once; the second one ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        # What was in place before ends the process: a second signal does not wait.
        for each in self._before:
            signal.signal(each, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)

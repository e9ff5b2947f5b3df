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
    """SIGTERM and SIGINT are noted once; the second one ends the process at once.

    With `patient` it does not: what starts the processes of a run passes a signal on to those that
    have it already, and ends them itself where they take too long.
    """

    NOTED = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, *, patient: bool = False) -> None:
        self.received: int | None = None
        self.patient = patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in self.NOTED:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self.patient:
            return
        # What was in place before ends the process: a second signal does not wait.
        for each in self._before:
            signal.signal(each, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)

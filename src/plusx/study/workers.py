"""Worker processes that run trials in parallel, each on its part of the cores.

A worker runs one trial after another, so that torch is imported once per worker. A trial writes
into its folder; only the job and its outcome are sent over the pipe, as JSON. If a worker dies,
only its current trial fails, and a new worker replaces it.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from plusx.errors import UserError
from plusx.recipe import to_toml
from plusx.study.trial import Measurement, Trial


if TYPE_CHECKING:
    from plusx.recipe import Recipe

GRACE = 10.0  # seconds that a worker has to save before it is killed


class Outcome(NamedTuple):
    """The end of a trial: `error` is empty if it finished."""

    error: str = ""
    user_error: bool = False
    diverged: bool = False  # a loss or a weight was not finite
    died: bool = False  # its process ended


class _Worker(NamedTuple):
    process: multiprocessing.process.BaseProcess
    pipe: Connection


class WorkerPool:
    """Worker processes that each run one trial at a time, in folders under `runs`. On exit from the
    context each worker saves its trial and ends."""

    def __init__(self, size: int, runs: Path) -> None:
        self._size, self._runs = size, runs
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, Trial] = {}

    @property
    def busy(self) -> bool:
        return bool(self._busy)

    @property
    def free(self) -> int:
        """The number of idle workers."""
        return self._size - len(self._busy)

    def start(self, trial: Trial) -> None:
        assert self.free > 0
        worker = self._idle.pop() if self._idle else self._spawn()  # replaces one that died
        self._busy[worker] = trial
        job = {
            "name": str(trial),
            "folder": str(self._runs / trial.folder),
            "recipe": to_toml(trial.recipe),
            "split": trial.split,
            "train": trial.train,
            "measurements": [str(measurement) for measurement in trial.measurements],
        }
        with contextlib.suppress(OSError):  # it is dead: `ended` will report it
            worker.pipe.send_bytes(json.dumps(job).encode())

    def stop(self, trial: Trial) -> None:
        """Let a running trial save and end; `ended` returns it."""
        worker = next(worker for worker, running in self._busy.items() if running is trial)
        worker.process.terminate()

    def ended(self, timeout: float) -> list[tuple[Trial, Outcome]]:
        """Return the trials that ended, after waiting at most `timeout` seconds for one."""
        by_pipe: dict[Any, _Worker] = {worker.pipe: worker for worker in self._busy}
        outcomes = []
        for pipe in wait(list(by_pipe), timeout):
            worker = by_pipe[pipe]
            trial = self._busy.pop(worker)
            try:
                outcome = Outcome(*json.loads(worker.pipe.recv_bytes()))
            except (EOFError, OSError):
                worker.process.join()
                worker.pipe.close()
                complete = trial.finished(self._runs / trial.folder)
                reason = "" if complete else _exit_reason(worker.process.exitcode)
                outcome = Outcome(reason, died=True)
            else:
                self._idle.append(worker)
            outcomes.append((trial, outcome))
        return outcomes

    def __enter__(self) -> "WorkerPool":
        self._idle = [self._spawn() for _ in range(self._size)]
        return self

    def __exit__(self, *error: object) -> None:
        workers = [*self._idle, *self._busy]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(GRACE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._idle, self._busy = [], {}

    def _spawn(self) -> _Worker:
        parent_end, child_end = self._context.Pipe()
        process = self._context.Process(target=_worker_loop, args=(child_end,), daemon=True)
        process.start()
        child_end.close()  # otherwise the pipe would stay open when the process ends
        return _Worker(process, parent_end)


def _worker_loop(pipe: Connection) -> None:
    """Run jobs until the other end of the pipe closes."""
    # Ctrl-C reaches all processes in the terminal's foreground, but only the parent should
    # handle it, and then stop the workers.
    if hasattr(os, "setpgid"):
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
    threading.Thread(target=_terminate_with_parent, daemon=True).start()
    import plusx.run  # noqa: F401  (slow, so before the first job)

    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(json.dumps(run_job(json.loads(pipe.recv_bytes()))).encode())


def run_job(job: Mapping[str, Any]) -> Outcome:
    """Run one trial, with one thread unless its recipe has more: workers share the cores."""
    import torch

    from plusx import store
    from plusx.recipe import parse_recipe
    from plusx.run import evaluate, load_run, train

    folder = Path(job["folder"])
    metrics = folder / f"{job['split']}.json"
    try:
        recipe = parse_recipe(job["recipe"], where=job["name"])
        torch.set_num_threads(recipe.device.threads or 1)
        if job["train"]:
            train(recipe, folder, progress=False)
        if job["split"] != "validation" and not metrics.exists():
            store.write_json(metrics, evaluate(load_run(folder), split=job["split"]))
        if job["measurements"]:
            _measure(recipe, folder, job["measurements"], trained=job["train"])
    except Exception as error:
        signal_number = getattr(error, "signal_number", None)
        if signal_number is not None:
            os._exit(128 + signal_number)  # the trial is saved; skip the teardown of torch
        expected = isinstance(error, ValueError | RuntimeError | OSError | FloatingPointError)
        prefix = "" if expected and str(error) else f"{type(error).__name__}: "
        diverged = isinstance(error, FloatingPointError)
        return Outcome(f"{prefix}{error}", isinstance(error, UserError), diverged)
    return Outcome()


def _measure(recipe: "Recipe", folder: Path, texts: Sequence[str], *, trained: bool) -> None:
    """Measure the run and write the results into its folder."""
    import torch

    from plusx import store
    from plusx.run.environment import environment
    from plusx.study.catalogue import MEASURES

    if not trained and not (folder / "environment.json").is_file():
        store.make_folder(folder)
        store.write_json(folder / "environment.json", environment(torch.device("cpu")))
    for text in texts:
        if not (folder / f"{text}.json").is_file():
            measurement = Measurement.parse(text)
            result = MEASURES[measurement.name](recipe, folder, *measurement.settings)
            store.write_json(folder / f"{text}.json", result)
    if trained:  # not earlier: a measurement may need earlier checkpoints
        with store.lock(folder):
            store.prune_checkpoints(folder / store.CHECKPOINTS)


def _terminate_with_parent() -> None:
    """Terminate this process when its parent dies: a killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the system may have been out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}"

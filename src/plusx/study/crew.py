"""Training runs in processes of their own, several at a time, each with its share of the cores.

A process trains one run after another, so that torch is loaded once a process and not once a run.
What a run does is in its folder; over the pipe go only what to do and how it ended, as JSON. A
process that dies takes down its own run alone: the others go on, and a new one takes its place.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from plusx.errors import UserError


if TYPE_CHECKING:
    from plusx.recipe import Recipe

DIVERGED = "diverged.json"  # in a run's folder: why its training came to nothing
PATIENCE = 10.0  # seconds that a process has to save what it did before it is killed


class Job(NamedTuple):
    """A run to be made: trained, evaluated and looked at, whatever of it is said."""

    name: str
    seed: int
    folder: Path
    recipe: str  # TOML
    split: str  # evaluated on this split at the end: validation, test
    train: bool = True
    looks: tuple[str, ...] = ()  # as plan.Cell has them
    may_diverge: bool = False  # then that is an answer too, kept as DIVERGED

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether all of it is in its folder."""
        if self.may_diverge and (self.folder / DIVERGED).is_file():
            return True
        wanted = ["result.json"] if self.train else []
        wanted += [f"{self.split}.json"] if self.split != "validation" else []
        wanted += [f"{look}.json" for look in self.looks]
        return all((self.folder / name).is_file() for name in wanted)


class End(NamedTuple):
    """How a run ended: `error` is empty where it is finished."""

    job: Job
    error: str
    fault: bool  # what was wrong is what the user gave
    diverged: bool = False  # a loss or a weight was not finite


class _Worker(NamedTuple):
    process: multiprocessing.process.BaseProcess
    pipe: Connection


class Crew:
    """As many processes as are told, each with one run at a time.

    Leaving the block stops them: each saves the run that it is at and ends.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, Job] = {}

    @property
    def jobs(self) -> list[Job]:
        """The runs that are being made."""
        return list(self._busy.values())

    @property
    def free(self) -> int:
        """How many processes have nothing to do."""
        return self._size - len(self._busy)

    def start(self, job: Job) -> None:
        """Have a run made."""
        assert self.free > 0
        worker = self._idle.pop() if self._idle else self._hire()  # for one that died
        self._busy[worker] = job
        with contextlib.suppress(OSError):  # it is dead: `ended` will say so
            worker.pipe.send_bytes(_packed([*map(_plain, job)]))

    def ended(self, timeout: float) -> list[End]:
        """The runs that ended, after waiting for one for at most so many seconds."""
        by_pipe: dict[Any, _Worker] = {worker.pipe: worker for worker in self._busy}
        ends = []
        for pipe in wait(list(by_pipe), timeout):
            worker = by_pipe[pipe]
            job = self._busy.pop(worker)
            try:
                outcome = json.loads(worker.pipe.recv_bytes())
            except (EOFError, OSError):
                worker.process.join()
                said = _last_words(worker.process.exitcode)
                ends.append(End(job, "" if job.finished else said, False))
                worker.pipe.close()
                continue
            self._idle.append(worker)
            ends.append(End(job, *outcome))
        return ends

    def __enter__(self) -> "Crew":
        self._idle = [self._hire() for _ in range(self._size)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        workers = [*self._idle, *self._busy]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._idle, self._busy = [], {}

    def _hire(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # else the end of the process would not close the pipe
        return _Worker(process, ours)


def _work(pipe: Connection) -> None:
    """What a process of the crew does until the other end of the pipe closes."""
    # Ctrl-C reaches all that run in the terminal's foreground. The parent alone shall answer, and
    # then tell us.
    if hasattr(os, "setpgid"):
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    import plusx.run  # noqa: F401  (slow: done before there is something to do)

    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(_packed(_made(_job(*json.loads(pipe.recv_bytes())))))


def _job(
    name: str,
    seed: int,
    folder: str,
    recipe: str,
    split: str,
    train: bool,
    looks: Sequence[str],
    may_diverge: bool,
) -> Job:
    return Job(name, seed, Path(folder), recipe, split, train, tuple(looks), may_diverge)


def _made(job: Job) -> tuple[str, bool, bool]:
    """Make one run; what an End says of it. All of it has the threads that the recipe says, or one:
    more than there are cores for, and every process waits for the others."""
    import torch

    from plusx.recipe import parse_recipe
    from plusx.run import evaluate, load_run, train
    from plusx.store import write_json

    figures = job.folder / f"{job.split}.json"
    try:
        recipe = parse_recipe(job.recipe, where=str(job))
        torch.set_num_threads(recipe.device.threads or 1)
        if job.train:
            train(recipe, job.folder, progress=False)
        if job.split != "validation" and not figures.exists():
            write_json(figures, evaluate(load_run(job.folder), split=job.split))
        if job.looks:
            _look(job, recipe)
    except Exception as error:
        return _outcome(error)
    return "", False, False


def _outcome(error: Exception) -> tuple[str, bool, bool]:
    """What an End says of an error. Where a signal came, the end of this process."""
    number = getattr(error, "signal_number", None)
    if number is not None:
        os._exit(128 + number)  # it is saved; do not take torch down first
    known = isinstance(error, ValueError | RuntimeError | OSError | FloatingPointError)
    name = "" if known and str(error) else f"{type(error).__name__}: "
    return (
        f"{name}{error}",
        isinstance(error, UserError),
        isinstance(error, FloatingPointError),
    )


def _look(job: Job, recipe: "Recipe") -> None:
    """Look at the run, and write what was seen into its folder."""
    import torch

    from plusx import store
    from plusx.run.environment import environment
    from plusx.study.catalogue import LOOKS
    from plusx.study.plan import asked

    if not job.train and not (job.folder / "environment.json").is_file():
        store.make_folder(job.folder)
        store.write_json(job.folder / "environment.json", environment(torch.device("cpu")))
    for look in job.looks:
        answer = job.folder / f"{look}.json"
        if not answer.is_file():
            name, settings = asked(look)
            store.write_json(answer, LOOKS[name](recipe, job.folder, *settings))
    if job.train:  # only now: a look may need what was saved on the way
        with store.lock(job.folder):
            store.prune_checkpoints(job.folder / store.CHECKPOINTS)


def _end_with_the_parent() -> None:
    """A parent that was killed cannot tell us to stop, so we look."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _last_words(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the system may have been out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}"


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _packed(value: object) -> bytes:
    return json.dumps(value).encode()

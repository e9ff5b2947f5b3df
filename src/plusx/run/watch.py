"""How the processes of one run notice that one of them died or hangs, and end together.

Each has a thread that says once in a while over the rendezvous' store that it lives and how far it
is, reads whether another has failed, and ends the process where one has, or where one was silent
for too long. The first that has something to say says it; the others end with the same code.
"""

import contextlib
import datetime
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]


BEAT = 0.5  # seconds between two signs of life
GRACE = 8.0  # seconds without one, after a connection was lost, by which a process counts as dead
FAREWELL = 20.0  # seconds that rank 0, where the store is, waits for the others to read it


class Failure(NamedTuple):
    """What ended a run: which rank says so, the exit code that all earn by it, and why."""

    rank: int
    code: int
    message: str


class Watch(threading.Thread):
    """The signs of life of this process, and its look at those of the others."""

    def __init__(
        self,
        rank: int,
        size: int,
        store: TCPStore,
        timeout: int | float,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self.rank, self.size, self.timeout = rank, size, timeout
        self.own = store.clone()  # a connection that no other thread waits on
        self.asking = store.clone()  # the main thread's
        for each in (self.own, self.asking):
            each.set_timeout(datetime.timedelta(seconds=timeout))
        self.parent = os.getppid()
        self.ticks = 0  # what this process has begun: updates, rounds of an evaluation
        self.now = 0.0  # seconds of this watch: a run that is put to sleep as a whole ages by none
        self.moved = self.answered = 0.0  # the latest tick, the latest answer of the store
        self.done = threading.Event()
        self.ending = threading.Lock()  # taken once, by who ends this process
        self.seen: dict[int, tuple[str, float]] = {}
        self.absent = 0  # others that will not say farewell
        if rank == 0:
            self.own.set("failure", "")
        self._beat(0)
        # once all have begun, every key is there, and reading one never waits for it
        self.asking.wait(["failure", *(f"beat/{each}" for each in range(size))])

    def tick(self) -> None:
        """Another piece of work has begun, which may take as long as the timeout."""
        self.ticks += 1
        self.moved = self.now

    def run(self) -> None:
        """Beat and look, until the end."""
        threading.Thread(target=self._count, name="clock", daemon=True).start()
        number = 0
        while not self.done.wait(BEAT):
            number += 1
            if os.getppid() != self.parent and self.parent:
                # who started us is gone, and nobody will wait for us: save and leave
                self.parent = 0
                os.kill(os.getpid(), signal.SIGTERM)
            try:
                self._beat(number)
                failure = self._posted(self.own)
                silent = None if failure else self._silent()
            except RuntimeError:  # torch's errors of a store are of this kind
                failure, silent = None, "rank 0 ended or hangs: its rendezvous does not answer"
            if failure is not None:
                self._leave(failure.code)
            elif silent is not None:
                self._end(silent)
            self.answered = self.now

    def verdict(self, error: Exception, code: int, lost: bool) -> tuple[Exception, int, bool]:
        """Why the run ends, where `error` came up in this process, with which code, who says so.

        lost: the error is that a connection was lost or went silent, so that the cause is another
        process'. The last of the three is whether this process is the one to say it.
        """
        if not self.ending.acquire(blocking=False):
            time.sleep(3600)  # the other thread is about to end this process
        try:
            if lost:
                missing = self._missing()
                self.absent = len(missing)
                if missing:
                    error = RuntimeError(f"{_named(missing)} ended or hangs without a word")
            said = json.dumps([self.rank, code, str(error)])
            first = self.asking.compare_set("failure", "", said).decode()
            mine = first == said
            failure = Failure(*json.loads(first))
        except RuntimeError:
            if not lost:
                return error, code, True
            return RuntimeError("rank 0 ended without a word"), 1, self.rank == 1
        return error, failure.code, mine

    def farewell(self) -> None:
        """Leave the store; rank 0, whose it is, leaves last."""
        self.done.set()
        with contextlib.suppress(RuntimeError):
            self.asking.add("left", 1)
            end = time.monotonic() + FAREWELL
            while self.rank == 0 and self.asking.add("left", 0) < self.size - self.absent:
                if time.monotonic() > end:
                    break
                time.sleep(0.02)

    def _count(self) -> None:
        """Count the time, and end this process where the store does not answer.

        In a thread of its own: an answer can be waited for without an end.
        """
        while not self.done.wait(BEAT):
            self.now += BEAT
            if self.now - self.answered >= self.timeout:
                said = f"rank 0 has given no sign of life for {self.timeout:g} seconds"
                print(f"plusx: {said}", file=sys.stderr, flush=True)
                os._exit(1)

    def _beat(self, number: int) -> None:
        self.own.set(f"beat/{self.rank}", f"{number} {self.ticks}")

    def _posted(self, store: Store) -> Failure | None:
        said = store.get("failure")
        return Failure(*json.loads(said)) if said else None

    def _silent(self) -> str | None:
        """What is wrong with another process' signs of life, or with this one's work."""
        now = self.now
        # one looks at all, all at that one: what is read does not grow with the square
        others = range(1, self.size) if self.rank == 0 else (0,)
        ticks = {self.rank: self.ticks}
        for rank in others:
            said = self.own.get(f"beat/{rank}").decode()
            ticks[rank] = int(said.split()[1])
            if rank not in self.seen or self.seen[rank][0] != said:
                self.seen[rank] = (said, now)
            elif now - self.seen[rank][1] >= self.timeout:
                self.absent = 1
                return f"rank {rank} has given no sign of life for {self.timeout:g} seconds"
        last = [rank for rank, done in ticks.items() if done == min(ticks.values())]
        behind = self.rank == 0 and len(last) < len(ticks)
        if behind and now - self.moved >= self.timeout:
            since = [now - self.seen[rank][1] for rank in last if rank in self.seen]
            self.absent = sum(each > 4 * BEAT for each in since)
            return f"{_named(last)} did not go on for {self.timeout:g} seconds; the others wait"
        return None

    def _missing(self) -> list[int]:
        """The other ranks that give no sign of life any more; nobody where one has told why."""
        before = self._beats()
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            if self._posted(self.asking) is not None:
                return []
            time.sleep(0.1)
        after = self._beats()
        return [rank for rank in after if rank != self.rank and before[rank] == after[rank]]

    def _beats(self) -> dict[int, bytes]:
        return {rank: self.asking.get(f"beat/{rank}") for rank in range(self.size)}

    def _end(self, message: str) -> None:
        """Say why and end this process, whose main thread waits for what never comes."""
        if self.done.is_set() or not self.ending.acquire(blocking=False):
            return
        said, mine = json.dumps([self.rank, 1, message]), True
        with contextlib.suppress(RuntimeError):
            mine = self.own.compare_set("failure", "", said).decode() == said
        if mine:
            print(f"plusx: {message}", file=sys.stderr, flush=True)
        self.farewell()
        os._exit(1)

    def _leave(self, code: int) -> None:
        """End this process, because another has said why the run ends."""
        if self.done.is_set() or not self.ending.acquire(blocking=False):
            return
        self.farewell()
        os._exit(code)


def _named(ranks: Sequence[int]) -> str:
    said = ", ".join(map(str, ranks))
    return f"rank {said}" if len(ranks) == 1 else f"ranks {said}"

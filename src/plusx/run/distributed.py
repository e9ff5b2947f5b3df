"""The processes of one run on torch.distributed, and the data they exchange.

A run is one process, or several under torchrun or `plusx train --processes`. Rank 0 writes the
run's folder and prints; it sends JSON and safetensors to the others, never pickles.
"""

import contextlib
import datetime
import ipaddress
import json
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from plusx.errors import UserError
from plusx.run.signals import Signals
from plusx.store.tensors import decode, encode


_POLL = 0.5  # seconds between two looks for a failure that another process has posted
_GRACE = 8.0  # seconds after a failed collective in which every live process has to answer
_FAREWELL = 20.0  # seconds that rank 0, which hosts the store, waits for the others to leave it
_FAILURE = "failure"  # key of the store: the rank that reports why the run ends, and the exit code


class DistributedContext:
    """This process among those of its run."""

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local
        self.signals: Signals | None = None
        self._agreed: int | None = None
        self._parent = os.getppid()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def stopping(self) -> int | None:
        """The signal that ends the run; with several processes once `sum` has shared it."""
        if self.size > 1:
            return self._agreed
        return None if self.signals is None else self.signals.received

    def device(self, kind: str) -> str:
        """The device of this process, of the kind that the recipe says. UserError: none."""
        if self.size == 1:
            return kind
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        if kind not in ("cpu", "cuda"):
            raise UserError(f"[device] kind = {kind!r}: {self.size} processes share cpu or cuda")
        if kind == "cpu":
            return kind
        if self.local >= torch.cuda.device_count():
            raise UserError(
                f"process {self.local + 1} of this machine has no GPU: there are "
                f"{torch.cuda.device_count()}"
            )
        torch.cuda.set_device(self.local)
        return f"cuda:{self.local}"

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank: anything that is exact in JSON."""
        if self.size == 1:
            return value
        return json.loads(self._broadcast(json.dumps(value).encode() if self.first else b""))

    def broadcast_tensors(
        self, groups: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        """Rank 0's groups of named tensors, on every rank."""
        if self.size == 1:
            return {name: dict(group) for name, group in groups.items()}
        return {
            name: decode(
                self._broadcast(encode(groups[name]) if self.first else b""), f"{name} of rank 0"
            )[0]
            for name in self.broadcast(list(groups))
        }

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Give every rank rank 0's buffers: running statistics differ between ranks."""
        if self.size > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums of these values over all ranks; shares whether a signal came to any of them."""
        if self.size == 1:
            return list(values)
        received = None if self.signals is None else self.signals.received
        if os.getppid() != self._parent:  # the launcher is gone, and nobody waits for this process
            received = signal.SIGTERM
        flags = [float(received == number) for number in Signals.NOTED]
        sums = torch.tensor([*values, *flags], dtype=torch.float64)
        distributed.all_reduce(sums)
        totals: list[float] = sums.tolist()
        came = [number for number, count in zip(Signals.NOTED, totals[len(values) :]) if count]
        self._agreed = max(came, default=None)
        return totals[: len(values)]

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.sum([])

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Send rank 0 tensors of any shape."""
        data = torch.frombuffer(bytearray(encode(tensors)), dtype=torch.uint8)
        distributed.send(torch.tensor([len(data)]), 0)
        distributed.send(data, 0)

    def receive(self, rank: int) -> dict[str, Tensor]:
        """On rank 0: the tensors that a rank sends."""
        length = torch.zeros(1, dtype=torch.int64)
        distributed.recv(length, rank)
        data = torch.empty(int(length), dtype=torch.uint8)
        distributed.recv(data, rank)
        return decode(data.numpy().tobytes(), f"tensors of rank {rank}")[0]

    def gather(self, records: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
        """On rank 0 the records of every rank: arrays, and values that are exact in JSON."""
        if not self.first:
            plain = [{k: v for k, v in r.items() if not isinstance(v, np.ndarray)} for r in records]
            arrays = {
                f"{number} {name}": torch.from_numpy(np.ascontiguousarray(value))
                for number, record in enumerate(records)
                for name, value in record.items()
                if isinstance(value, np.ndarray)
            }
            text = torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)
            self.send({"json": text, **arrays})
            return []
        gathered = [[dict(record) for record in records]]
        for rank in range(1, self.size):
            tensors = self.receive(rank)
            received = json.loads(tensors.pop("json").numpy().tobytes())
            for key, tensor in tensors.items():
                number, _, name = key.partition(" ")
                received[int(number)][name] = tensor.numpy()
            gathered.append(received)
        return gathered

    def _broadcast(self, data: bytes) -> bytes:
        length = torch.tensor([len(data)])
        distributed.broadcast(length, 0)
        whole = torch.zeros(int(length), dtype=torch.uint8)
        if self.first and data:
            whole = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if len(whole):
            distributed.broadcast(whole, 0)
        return whole.numpy().tobytes()


class FailureThread(threading.Thread):
    """Ends this process once another one has posted in the store that the run ends.

    The first process that fails posts its rank and exit code, and prints its error; the others end
    with the same code, also where their main thread waits for something that never comes. After a
    failed collective, which says no more than that some process does not answer, rank 0 names the
    ranks that have not ended too within a few seconds.
    """

    def __init__(self, rank: int, size: int, store: TCPStore, timeout: int | float) -> None:
        super().__init__(name="failures", daemon=True)
        self.rank, self.size, self.timeout = rank, size, timeout
        self.store, self.polled = store.clone(), store.clone()  # a connection for each thread
        for connection in (self.store, self.polled):
            connection.set_timeout(datetime.timedelta(seconds=timeout))
        self.done = threading.Event()
        self.ending = threading.Lock()  # taken once, by the thread that ends this process
        self.missing: list[int] = []
        self.silent = False  # whether rank 0 does not respond
        if rank == 0:
            self.store.set(_FAILURE, "")
        self.store.wait([_FAILURE])
        self.start()

    def run(self) -> None:
        """Look for a posted failure until the end."""
        while not self.done.wait(_POLL):
            try:
                posted = self.polled.get(_FAILURE)
            except RuntimeError:  # rank 0 has ended, and the next collective fails
                return
            if posted and self.ending.acquire(blocking=False):
                self.leave()
                os._exit(json.loads(posted)[1])

    def verdict(self, error: Exception) -> tuple[Exception, int, bool]:
        """The error that ends the run, its exit code, and whether this process prints it.

        error: what this process has raised.
        """
        if not self.ending.acquire(blocking=False):
            time.sleep(3600)  # the other thread is about to end this process
        signal_number = getattr(error, "signal_number", None)
        code = 128 + signal_number if signal_number else 2 if isinstance(error, UserError) else 1
        lost = isinstance(error, distributed.DistError) or "/gloo/" in str(error)
        try:
            if self.rank:
                self._refuse_silence()
                self.store.set(f"ended/{self.rank}", "")
            posted = self.store.get(_FAILURE) if lost else b""
            if posted or (lost and self.rank):
                # ends at once, so that those who wait for this process notice
                return error, json.loads(posted)[1] if posted else 1, False
            if lost:
                self.missing = self._unanswered()
                if self.missing:
                    error = RuntimeError(
                        f"{_named(self.missing)} ended or hangs: no answer within "
                        f"{self.timeout:g} seconds"
                    )
            posted = self.store.compare_set(_FAILURE, "", json.dumps([self.rank, code]))
            speaker, code = json.loads(posted)
            return error, code, speaker == self.rank
        except RuntimeError:  # torch's errors of a store are of this kind
            if lost:
                error, code = RuntimeError("rank 0 ended or hangs: it does not respond"), 1
            return error, code, True

    def leave(self) -> None:
        """Leave the store; rank 0, which hosts it, leaves last."""
        self.done.set()
        if self.silent:
            return
        # a process whose main thread hangs still sees the failure in its other thread
        end = time.monotonic() + (6 * _POLL if self.missing else _FAREWELL)
        with contextlib.suppress(RuntimeError):
            self.store.set(f"left/{self.rank}", "")
            while self.rank == 0 and time.monotonic() < end:
                if all(self.store.check([f"left/{rank}"]) for rank in range(1, self.size)):
                    break
                time.sleep(0.02)

    def _refuse_silence(self) -> None:
        """RuntimeError where rank 0, which hosts the store, has ended or does not answer.

        torch waits without end for the answer of a process that hangs; a thread does it here.
        """
        self.silent = True
        asking = threading.Thread(target=self._ask, daemon=True)
        asking.start()
        asking.join(_GRACE)
        if self.silent:
            raise RuntimeError("rank 0 does not respond")

    def _ask(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.store.get(_FAILURE)
            self.silent = False

    def _unanswered(self) -> list[int]:
        """On rank 0: the other ranks that do not end within a few seconds too."""
        end = time.monotonic() + _GRACE
        waiting = list(range(1, self.size))
        while waiting and time.monotonic() < end:
            time.sleep(0.1)
            waiting = [rank for rank in waiting if not self.store.check([f"ended/{rank}"])]
        return waiting


def _named(ranks: Sequence[int]) -> str:
    numbers = ", ".join(map(str, ranks))
    return f"rank {numbers}" if len(ranks) == 1 else f"ranks {numbers}"


def is_first() -> bool:
    """Whether this process is the one of its run that prints."""
    return _number("RANK", 0) == 0 or _number("WORLD_SIZE", 1) == 1


def _number(variable: str, default: int) -> int:
    """A variable that torchrun sets; the default where it is empty or not set."""
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal():
        raise UserError(f"{variable}={text!r} is no number: unset it, or start with torchrun")
    return int(text)


@contextlib.contextmanager
def joined(kind: str, timeout: int | float) -> Iterator[DistributedContext]:
    """The processes that torchrun has started; one process where it has not.

    kind, timeout: [device] kind and timeout of the recipe. An error of one process ends all with
    its exit code, and is printed once: the others raise SystemExit. UserError: torchrun's variables
    are incomplete. RuntimeError: a process died or hangs.
    """
    env = os.environ
    size = _number("WORLD_SIZE", 1)
    if size <= 1:
        yield DistributedContext()
        return
    variables = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in variables if not env.get(name)]
    if missing:
        raise UserError(f"WORLD_SIZE is {size}, but {missing[0]} is not set: start with torchrun")
    world = DistributedContext(_number("RANK", 0), size, _number("LOCAL_RANK", 0))
    on_gpu = world.device(kind).startswith("cuda")
    store = _open_store(world, env["MASTER_ADDR"], _number("MASTER_PORT", 0), timeout)
    failures = FailureThread(world.rank, size, store, timeout)
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=world.rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=timeout),
        )
        yield world
    except Exception as error:
        cause, code, prints = failures.verdict(error)
        failures.leave()
        if not prints:
            raise SystemExit(code) from error
        if cause is error:
            raise
        raise cause from error
    else:
        failures.leave()
    finally:
        failures.done.set()
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _open_store(
    world: DistributedContext, address: str, port: int, timeout: int | float
) -> TCPStore:
    """The store of the rendezvous: rank 0's, or the one that torchrun has opened already."""
    limit = datetime.timedelta(seconds=timeout)
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and world.first and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        warnings.warn(
            "restarts can hang while torchrun shares its store with the processes: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
            stacklevel=2,
        )
    listening = -1
    if _is_loopback(address):
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, loopback)
        if world.first and not shared:
            # By itself torch listens on every interface, and authenticates nobody.
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listening = socket.create_server(
                (address, port), family=family, backlog=2 * world.size
            ).detach()
    return TCPStore(
        address,
        port,
        world.size,
        world.first and not shared,
        limit,
        wait_for_workers=False,
        master_listen_fd=None if listening < 0 else listening,
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"

"""The processes of a run on torch.distributed, and their communication.

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


_POLL = 0.5  # seconds between checks for a failure of another process
_GRACE = 8.0  # seconds after a failed collective in which live processes must respond
_FAREWELL = 20.0  # seconds that rank 0, which hosts the store, waits for the others to leave
_FAILURE = "failure"  # key of the store: the rank that prints the error, and the exit code


class DistributedContext:
    """Rank of this process, number of processes, and their communication."""

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local
        self.signals: Signals | None = None
        self._agreed: int | None = None
        self._parent = os.getppid()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    @property
    def stopping(self) -> int | None:
        """The signal that ends the run, or None; of several processes as `sum` has shared it."""
        if self.size > 1:
            return self._agreed
        return None if self.signals is None else self.signals.received

    def device(self, kind: str) -> str:
        """Return the device of this process for [device] kind; UserError if there is none."""
        if self.size == 1:
            return kind
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        if kind not in ("cpu", "cuda"):
            raise UserError(f"[device] kind = {kind!r}: {self.size} processes need cpu or cuda")
        if kind == "cpu":
            return kind
        if self.local >= torch.cuda.device_count():
            raise UserError(
                f"process {self.local + 1} of this machine has no GPU of its own: there are "
                f"{torch.cuda.device_count()} GPUs"
            )
        torch.cuda.set_device(self.local)
        return f"cuda:{self.local}"

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value, which must be exact in JSON, on every rank."""
        if self.size == 1:
            return value
        return json.loads(self._broadcast(json.dumps(value).encode() if self.first else b""))

    def broadcast_tensors(
        self, groups: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        """Return rank 0's groups of named tensors on every rank."""
        if self.size == 1:
            return {name: dict(group) for name, group in groups.items()}
        return {
            name: decode(
                self._broadcast(encode(groups[name]) if self.first else b""), f"{name} of rank 0"
            )[0]
            for name in self.broadcast(list(groups))
        }

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Copy rank 0's buffers to every rank, since running statistics differ."""
        if self.size > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of the values over all ranks, and update `stopping` on all of them."""
        if self.size == 1:
            return list(values)
        received = None if self.signals is None else self.signals.received
        if os.getppid() != self._parent:  # the launcher has ended
            received = signal.SIGTERM
        flags = [float(received == number) for number in Signals.HANDLED]
        sums = torch.tensor([*values, *flags], dtype=torch.float64)
        distributed.all_reduce(sums)
        totals: list[float] = sums.tolist()
        counts = zip(Signals.HANDLED, totals[len(values) :])
        self._agreed = max((number for number, count in counts if count), default=None)
        return totals[: len(values)]

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.sum([])

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Send tensors of any shape to rank 0."""
        data = torch.frombuffer(bytearray(encode(tensors)), dtype=torch.uint8)
        distributed.send(torch.tensor([len(data)]), 0)
        distributed.send(data, 0)

    def receive(self, rank: int) -> dict[str, Tensor]:
        """Return the tensors that `rank` sends, on rank 0."""
        length = torch.zeros(1, dtype=torch.int64)
        distributed.recv(length, rank)
        data = torch.empty(int(length), dtype=torch.uint8)
        distributed.recv(data, rank)
        return decode(data.numpy().tobytes(), f"tensors of rank {rank}")[0]

    def gather(self, records: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
        """Return the records of every rank on rank 0, [] on others.

        Values are arrays, or exact in JSON.
        """
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
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.first and data:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if len(content):
            distributed.broadcast(content, 0)
        return content.numpy().tobytes()


class FailureThread(threading.Thread):
    """Ends this process when another process of the run has failed.

    The first process that fails posts its rank and exit code in the store, and prints its error;
    the others end with the same code, even if their main thread hangs. A failed collective does not
    show which process is missing: rank 0 then names the ranks that do not respond within a few
    seconds.
    """

    def __init__(self, rank: int, size: int, store: TCPStore, timeout: int | float) -> None:
        super().__init__(name="failures", daemon=True)
        self.rank, self.size, self.timeout = rank, size, timeout
        self.store, self.polled = store.clone(), store.clone()  # a connection for each thread
        for connection in (self.store, self.polled):
            connection.set_timeout(datetime.timedelta(seconds=timeout))
        self.done = threading.Event()
        self.ending = threading.Lock()  # acquired by the thread that ends this process
        self.missing: list[int] = []
        self.silent = False  # whether rank 0 does not respond
        if rank == 0:
            self.store.set(_FAILURE, "")
        self.store.wait([_FAILURE])
        self.start()

    def run(self) -> None:
        """Poll for a posted failure."""
        while not self.done.wait(_POLL):
            try:
                posted = self.polled.get(_FAILURE)
            except RuntimeError:  # rank 0 has ended, and the next collective fails
                return
            if posted and self.ending.acquire(blocking=False):
                self.leave()
                os._exit(json.loads(posted)[1])

    def verdict(self, error: Exception) -> tuple[Exception, int, bool]:
        """Return the error that ends the run, its exit code, and whether this process prints it.

        error: the exception that this process raised
        """
        if not self.ending.acquire(blocking=False):
            time.sleep(3600)  # the other thread ends this process
        signal_number = getattr(error, "signal_number", None)
        code = 128 + signal_number if signal_number else 2 if isinstance(error, UserError) else 1
        lost = isinstance(error, distributed.DistError) or "/gloo/" in str(error)
        try:
            if self.rank:
                self._check_rank0()
                self.store.set(f"ended/{self.rank}", "")
            posted = self.store.get(_FAILURE) if lost else b""
            if posted or (lost and self.rank):
                # end at once, so that waiting processes detect it
                return error, json.loads(posted)[1] if posted else 1, False
            if lost:
                self.missing = self._unresponsive()
                if self.missing:
                    error = RuntimeError(
                        f"{_rank_names(self.missing)} ended or hangs: no response within "
                        f"{self.timeout:g} seconds"
                    )
            posted = self.store.compare_set(_FAILURE, "", json.dumps([self.rank, code]))
            printing_rank, code = json.loads(posted)
            return error, code, printing_rank == self.rank
        except RuntimeError:  # raised by the store
            if lost:
                error, code = RuntimeError("rank 0 ended or hangs: it does not respond"), 1
            return error, code, True

    def leave(self) -> None:
        """Leave the store; rank 0, which hosts it, leaves last."""
        self.done.set()
        if self.silent:
            return
        # a process whose main thread hangs still detects the failure in its other thread
        end = time.monotonic() + (6 * _POLL if self.missing else _FAREWELL)
        with contextlib.suppress(RuntimeError):
            self.store.set(f"left/{self.rank}", "")
            while self.rank == 0 and time.monotonic() < end:
                if all(self.store.check([f"left/{rank}"]) for rank in range(1, self.size)):
                    break
                time.sleep(0.02)

    def _check_rank0(self) -> None:
        """Raise RuntimeError if rank 0, which hosts the store, has ended or does not respond.

        A thread queries it, since torch would wait for a hanging process without a limit.
        """

        def query() -> None:
            with contextlib.suppress(RuntimeError):
                self.store.get(_FAILURE)
                self.silent = False

        self.silent = True
        thread = threading.Thread(target=query, daemon=True)
        thread.start()
        thread.join(_GRACE)
        if self.silent:
            raise RuntimeError("rank 0 does not respond")

    def _unresponsive(self) -> list[int]:
        """Return, on rank 0, the ranks that have not ended within a few seconds."""
        end = time.monotonic() + _GRACE
        waiting = list(range(1, self.size))
        while waiting and time.monotonic() < end:
            time.sleep(0.1)
            waiting = [rank for rank in waiting if not self.store.check([f"ended/{rank}"])]
        return waiting


def _rank_names(ranks: Sequence[int]) -> str:
    numbers = ", ".join(map(str, ranks))
    return f"rank {numbers}" if len(ranks) == 1 else f"ranks {numbers}"


def is_first() -> bool:
    """Whether this is rank 0, or the only process."""
    return _number("RANK", 0) == 0 or _number("WORLD_SIZE", 1) == 1


def _number(variable: str, default: int) -> int:
    """Return the value of a variable that torchrun sets, or `default` if it is empty or unset."""
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal():
        raise UserError(f"{variable}={text!r} is not a number: unset it, or start with torchrun")
    return int(text)


@contextlib.contextmanager
def join_processes(kind: str, timeout: int | float) -> Iterator[DistributedContext]:
    """Join the processes that torchrun has started; a single process without torchrun.

    kind, timeout: of the recipe's [device], in seconds
    An error of one process ends all with its exit code and is printed once: the others raise
    SystemExit. Raises UserError if torchrun's variables are incomplete, RuntimeError if a process
    ended or hangs.
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
    """Open the store of the rendezvous on rank 0, or connect to it or to that of torchrun."""
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
            # torch would listen on every interface without authentication
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

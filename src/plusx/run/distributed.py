"""The processes of one run on PyTorch's own engine, and what they tell each other.

A run is one process, or, under torchrun or `plusx train --processes`, several: its world. Rank 0
keeps the folder and speaks; what it says to the others goes as JSON and safetensors, never pickled.
"""

import contextlib
import datetime
import ipaddress
import json
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from plusx.errors import UserError
from plusx.run.signals import Signals
from plusx.run.watch import Watch
from plusx.store.tensors import decode, encode


# Longer than the watch takes, whose message names the process.
AFTERWARDS = 60.0


class DistributedContext:
    """This process among those of its run. A world of one has nobody to tell anything."""

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local
        self.signals: Signals | None = None
        self.watch: Watch | None = None
        self._agreed: int | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def stopping(self) -> int | None:
        """The signal that ends the run; in a larger world once `totals` has told everybody."""
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

    def tick(self) -> None:
        """Another piece of work begins, which may take as long as the recipe's timeout."""
        if self.watch is not None:
            self.watch.tick()

    def told(self, value: Any) -> Any:
        """What rank 0 gives, on every rank: anything that is exact in JSON."""
        if self.size == 1:
            return value
        said = json.dumps(value).encode() if self.first else b""
        return json.loads(self._bytes(said))

    def tensors_told(
        self, groups: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        """Rank 0's groups of named tensors, on every rank."""
        if self.size == 1:
            return {name: dict(group) for name, group in groups.items()}
        names = self.told(list(groups))
        said = {n: self._bytes(encode(groups[n]) if self.first else b"") for n in names}
        return {name: decode(data, f"{name} of rank 0")[0] for name, data in said.items()}

    def totals(self, figures: Sequence[float]) -> list[float]:
        """The sums over all ranks of these figures. Whether a signal came is agreed on with it."""
        received = None if self.signals is None else self.signals.received
        if self.size == 1:
            return list(figures)
        known = sorted(Signals.NOTED)
        said = [*figures, *(float(received == number) for number in known)]
        sums = torch.tensor(said, dtype=torch.float64)
        distributed.all_reduce(sums)
        summed: list[float] = sums.tolist()
        came = [number for number, count in zip(known, summed[len(figures) :]) if count]
        self._agreed = max(came, default=None)
        return summed[: len(figures)]

    def wait(self) -> None:
        """Go on when all are here."""
        self.totals([])

    def level(self, module: nn.Module) -> None:
        """Give every rank rank 0's buffers: running statistics are of what a rank has seen."""
        if self.size > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Give rank 0 tensors of any shape."""
        data = torch.frombuffer(bytearray(encode(tensors)), dtype=torch.uint8)
        distributed.send(torch.tensor([len(data)]), 0)
        distributed.send(data, 0)

    def receive(self, rank: int) -> dict[str, Tensor]:
        """On rank 0: what a rank sends."""
        length = torch.zeros(1, dtype=torch.int64)
        distributed.recv(length, rank)
        data = torch.empty(int(length), dtype=torch.uint8)
        distributed.recv(data, rank)
        return decode(data.numpy().tobytes(), f"what rank {rank} sent")[0]

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

    def _bytes(self, data: bytes) -> bytes:
        length = torch.tensor([len(data)])
        distributed.broadcast(length, 0)
        whole = torch.zeros(int(length), dtype=torch.uint8)
        if self.first and data:
            whole = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if len(whole):
            distributed.broadcast(whole, 0)
        return whole.numpy().tobytes()


def is_first() -> bool:
    """Whether this process is the one of its run that speaks."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


@contextlib.contextmanager
def joined(kind: str, timeout: int | float) -> Iterator[DistributedContext]:
    """The world that torchrun put this process in; a world of one where nobody did.

    kind, timeout: [device] kind and timeout of the recipe. An error of one process ends all with
    its message, said once, and its exit code: those that have nothing to say raise SystemExit.
    UserError: torchrun's variables are incomplete. RuntimeError: a process died or hangs.
    """
    said = os.environ
    size = int(said.get("WORLD_SIZE", "1"))
    if size == 1:
        yield DistributedContext()
        return
    missing = [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in said]
    if missing:
        raise UserError(f"WORLD_SIZE is {size}, but {missing[0]} is not set: start with torchrun")
    world = DistributedContext(int(said["RANK"]), size, int(said["LOCAL_RANK"]))
    on_gpu = world.device(kind).startswith("cuda")
    store = _meeting(world, said["MASTER_ADDR"], int(said["MASTER_PORT"]), timeout)
    world.watch = watch = Watch(world.rank, size, store, timeout)
    watch.start()
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=world.rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=timeout + AFTERWARDS),
        )
        yield world
    except Exception as error:
        stopped_by = getattr(error, "signal_number", None)
        code = 128 + stopped_by if stopped_by else 2 if isinstance(error, UserError) else 1
        cause, code, speaks = watch.verdict(error, code, _is_lost(error))
        watch.farewell()
        if not speaks:
            raise SystemExit(code) from error
        if cause is error:
            raise
        raise cause from error
    else:
        watch.farewell()
    finally:
        watch.done.set()
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _meeting(world: DistributedContext, address: str, port: int, timeout: int | float) -> TCPStore:
    """The store where the processes meet: rank 0's, or the one that torchrun has opened already."""
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
            # By itself torch listens on every interface, and asks nobody who he is.
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


def _is_lost(error: Exception) -> bool:
    """Whether an error says no more than that another process does not answer."""
    return isinstance(error, distributed.DistError) or "/gloo/" in str(error)

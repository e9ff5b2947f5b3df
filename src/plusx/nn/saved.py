"""Counting what is held for the backward pass."""

import weakref
from contextvars import ContextVar

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class SavedBytes:
    """Counts the bytes that autograd, or a plan in its place, holds for the backward pass.

        with SavedBytes(net) as saved:
            task(batch).backward()
        saved.peak

    Every storage counts once, from when it is kept or made again until it is freed; parameters and
    buffers of `module` do not count.
    """

    def __init__(self, module: nn.Module) -> None:
        state = [*module.parameters(), *module.buffers()]
        self.state = {each.untyped_storage()._cdata for each in state}
        self.known: set[int] = set()
        self.live = self.peak = 0

    def watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.state or key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size

    def _pack(self, tensor: Tensor) -> Tensor:
        self.watch(tensor)
        return tensor

    def __enter__(self) -> "SavedBytes":
        self.token = counting.set(self)
        self.hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)
        counting.reset(self.token)


counting: ContextVar[SavedBytes | None] = ContextVar("counting", default=None)

"""Count the bytes that are held for the backward pass."""

import warnings
import weakref
from contextvars import ContextVar, Token
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class SavedBytes:
    """Counts the bytes that autograd or a memory plan holds for the backward pass.

        with SavedBytes(net) as saved:
            task(batch).backward()
        saved.peak

    Every storage counts once, from when it is saved or recomputed until it is freed; parameters and
    buffers of `module` do not count.
    """

    def __init__(self, module: nn.Module) -> None:
        state = [*module.parameters(), *module.buffers()]
        self.state = {tensor.untyped_storage()._cdata for tensor in state}
        self.counted: set[int] = set()
        self.live = self.peak = 0
        self.token: Token[SavedBytes | None] | None = None

    def add(self, tensor: Tensor) -> None:
        """Count a tensor until its storage is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.state or key in self.counted:
            return
        self.counted.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self.counted.discard(key)
        self.live -= size

    def _pack(self, tensor: Tensor) -> Tensor:
        self.add(tensor)
        return tensor

    def __enter__(self) -> "SavedBytes":
        self.token = counting.set(self)
        self.hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.hooks.__enter__()
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        # these hooks do not see what selective checkpoints save; their policy counts it
        warnings.filterwarnings("ignore", "A saved_tensors_hooks context", FutureWarning)
        return self

    def __exit__(self, *error: object) -> None:
        self.warnings.__exit__(None, None, None)
        self.hooks.__exit__(*error)
        assert self.token is not None
        counting.reset(self.token)


class CountResults(TorchDispatchMode):
    """Counts the results of operations: during a recomputation no hook sees what is saved."""

    def __init__(self, saved: SavedBytes) -> None:
        super().__init__()
        self.saved = saved

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self.saved.add(result)
        return results


counting: ContextVar[SavedBytes | None] = ContextVar("counting", default=None)

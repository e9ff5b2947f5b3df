"""Writing files, so that they are complete or absent. No other room writes files.

- A file: its bytes are written to a temporary file in the same folder, flushed to the disk and
  renamed to the final name, and the folder is flushed. A reader sees the old file or the new one.
- A checkpoint: a folder created under a temporary name and committed by one rename. Any flipped bit
  in its files is detected.
- A log: JSON lines. A checkpoint stores the log's length; resuming truncates the log to it.
- A lock: one process at a time writes in a run's folder. The lock of a dead process is released.

Raises OSError if the disk or a permission fails, with the path (and, if the disk is full, the bytes
needed and free), and UserError if a file is not what it should be.
"""

from typing import TYPE_CHECKING, Any

from plusx.store.cache import cache_folder
from plusx.store.canonical import read_json, read_json_part, write_json
from plusx.store.download import download
from plusx.store.files import (
    atomic_file,
    atomic_folder,
    clean,
    make_folder,
    read_bytes,
    read_part,
    refuse_as_file,
    refuse_as_folder,
    write_bytes,
    write_text,
)
from plusx.store.locking import CHECKPOINTS, LOCK, lock
from plusx.store.log import Log


if TYPE_CHECKING:
    from plusx.store.checkpoint import Checkpoint as Checkpoint
    from plusx.store.checkpoint import load_checkpoint as load_checkpoint
    from plusx.store.checkpoint import prune_checkpoints as prune_checkpoints
    from plusx.store.checkpoint import read_checkpoints as read_checkpoints
    from plusx.store.checkpoint import save_checkpoint as save_checkpoint
    from plusx.store.tensors import load_tensors as load_tensors
    from plusx.store.tensors import save_tensors as save_tensors


__all__ = [
    "CHECKPOINTS",
    "LOCK",
    "Checkpoint",
    "Log",
    "atomic_file",
    "atomic_folder",
    "cache_folder",
    "clean",
    "download",
    "load_checkpoint",
    "load_tensors",
    "lock",
    "make_folder",
    "prune_checkpoints",
    "read_bytes",
    "read_checkpoints",
    "read_json",
    "read_json_part",
    "read_part",
    "refuse_as_file",
    "refuse_as_folder",
    "save_checkpoint",
    "save_tensors",
    "write_bytes",
    "write_json",
    "write_text",
]

# imported when they are first used: they need torch
_CHECKPOINTS = (
    "Checkpoint", "load_checkpoint", "prune_checkpoints", "read_checkpoints", "save_checkpoint",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _CHECKPOINTS:
        from plusx.store import checkpoint

        return getattr(checkpoint, name)
    if name in ("load_tensors", "save_tensors"):
        from plusx.store import tensors

        return getattr(tensors, name)
    raise AttributeError(f"module 'plusx.store' has no attribute {name!r}")

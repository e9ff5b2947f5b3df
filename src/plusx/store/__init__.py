"""The one room that writes files. What it wrote is there whole or not at all.

- A file: its bytes go to a temporary file in the same folder, which is flushed to the disk, renamed
  to the final name, and the folder is flushed too. A reader sees the old file or the new one.
- A checkpoint: a folder made under a temporary name and committed by one rename. No single flipped
  bit in any of its files goes unnoticed.
- A log: JSON lines. A checkpoint remembers the log's length; resuming cuts the log there.
- A lock: one process at a time writes in a run's folder. A dead process holds nothing.

Errors: `OSError` where the disk or a permission fails, naming the path (and, where the disk is
full, the bytes needed and free); `UserError` where a file is not what it must be.
"""

from plusx.store.cache import cache_folder
from plusx.store.canonical import read_json, write_json
from plusx.store.checkpoint import (
    Checkpoint,
    load_checkpoint,
    prune_checkpoints,
    read_checkpoints,
    save_checkpoint,
)
from plusx.store.download import download
from plusx.store.files import (
    clean,
    make_folder,
    read_bytes,
    whole_file,
    whole_folder,
    write_bytes,
    write_text,
)
from plusx.store.locking import CHECKPOINTS, LOCK, lock
from plusx.store.log import Log
from plusx.store.tensors import load_tensors, save_tensors


__all__ = [
    "CHECKPOINTS",
    "LOCK",
    "Checkpoint",
    "Log",
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
    "save_checkpoint",
    "save_tensors",
    "whole_file",
    "whole_folder",
    "write_bytes",
    "write_json",
    "write_text",
]

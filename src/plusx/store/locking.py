"""A lock for a run's folder: one process at a time writes in it, and dead processes hold no
lock."""

import contextlib
import datetime
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plusx.errors import UserError
from plusx.store.canonical import json_bytes, read_json
from plusx.store.files import clean, make_folder, with_path_in_errors, write_all


CHECKPOINTS = "checkpoints"
LOCK = "lock.json"

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_held: dict[str, int] = {}  # real path of a lock file: the id of our process that holds it
# The system's lock belongs to the process: two threads would both get it, and if one closes the
# file the other loses the lock.
_one_thread = threading.Lock()


def _renew() -> None:
    """Create a new thread lock after a fork, since another thread may hold the old one."""
    global _one_thread
    _one_thread = threading.Lock()


os.register_at_fork(after_in_child=_renew)


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is created if it is missing, inside the context.

    Raises UserError with the process, host and time if another process holds it. The system
    releases the lock of a process that dies. Temporary files that a crash left in the folder and
    its checkpoints are removed.
    """
    folder = make_folder(folder)
    path = folder / LOCK
    key = os.path.realpath(path)
    with _one_thread:
        if _held.get(key) == os.getpid():
            raise UserError(f"{folder} is in use by this process ({os.getpid()})")
        descriptor = _acquire(folder, path)
        _held[key] = os.getpid()
    try:
        clean(folder)
        clean(folder / CHECKPOINTS)
        yield
    finally:
        # a forked child that leaves the context holds no lock
        with _one_thread:
            if _held.get(key) == os.getpid():
                # unlinked while still locked: a process that opened the old file detects that
                # its name is gone
                with contextlib.suppress(OSError):
                    os.unlink(path)
                os.close(descriptor)
                del _held[key]


def _acquire(folder: Path, path: Path) -> int:
    while True:
        with with_path_in_errors(path, 1):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o644)
        try:
            if not _take(descriptor, path):
                raise UserError(_refusal(folder, path))
            if not _same_file(descriptor, path):
                os.close(descriptor)
                continue
            with with_path_in_errors(path, 1):
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                write_all(descriptor, json_bytes(_this_process(), LOCK))
            return descriptor
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise


def _take(descriptor: int, path: Path) -> bool:
    """Take the system's lock on the file; without support for locks, decide by the file's
    content."""
    try:
        # a record lock, not flock: a forked worker that outlives this process must not inherit it
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in _NO_LOCKS:
            raise
    holder = _holder(path)
    if not holder or holder.get("pid") == os.getpid():
        return True
    current = _this_process()
    if holder.get("host") != current["host"]:
        return False
    return holder.get("boot") != current["boot"] or not _alive(holder.get("pid"))


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        at_path = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (at_path.st_dev, at_path.st_ino) == (opened.st_dev, opened.st_ino)


def _refusal(folder: Path, path: Path) -> str:
    holder: dict[str, Any] = {}
    for _ in range(20):  # the holder may not have written its name yet
        holder = _holder(path)
        if holder:
            break
        time.sleep(0.01)
    who = (
        f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
        if holder
        else "another process that has only just started"
    )
    return f"{folder} is in use by {who}; wait for it to end, or choose another folder"


def _holder(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path, 1 << 16)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _this_process() -> dict[str, Any]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "boot": boot, "since": now}


def _alive(pid: Any) -> bool:
    if type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        return True
    return True

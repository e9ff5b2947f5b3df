"""One process at a time writes in a run's folder, and a dead process holds nothing."""

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
from plusx.store.files import clean, explained, make_folder, write_all


CHECKPOINTS = "checkpoints"
LOCK = "lock.json"

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_held: dict[str, int] = {}  # real path of a lock file: the process of ours that holds it
# The system's lock is one of processes: of two threads both would get it, and where one closes the
# file the other loses it.
_one_thread = threading.Lock()


def _renew() -> None:
    """A fork made while another thread was at it must not wait for that thread."""
    global _one_thread
    _one_thread = threading.Lock()


os.register_at_fork(after_in_child=_renew)


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Holds a run's folder, made where it is missing, for this process until the block ends.

    Raises UserError naming the process, the host and the time where another one holds it. The
    system drops the lock of a process that dies, however it dies. What a crash left half-written
    in the folder and its checkpoints is removed.
    """
    folder = make_folder(folder)
    path = folder / LOCK
    key = os.path.realpath(path)
    with _one_thread:
        if _held.get(key) == os.getpid():
            raise UserError(f"{folder} is in use: this very process ({os.getpid()}) holds it")
        descriptor = _acquire(folder, path)
        _held[key] = os.getpid()
    try:
        clean(folder)
        clean(folder / CHECKPOINTS)
        yield
    finally:
        # A fork of ours that leaves the block holds nothing.
        with _one_thread:
            if _held.get(key) == os.getpid():
                # Unlinked while still held: whoever opened the old file finds that it lost its
                # name.
                with contextlib.suppress(OSError):
                    os.unlink(path)
                os.close(descriptor)
                del _held[key]


def _acquire(folder: Path, path: Path) -> int:
    while True:
        with explained(path, 1):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o644)
        try:
            if not _take(descriptor, path):
                raise UserError(_refusal(folder, path))
            if not _same_file(descriptor, path):
                os.close(descriptor)
                continue
            with explained(path, 1):
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                write_all(descriptor, json_bytes(_me(), LOCK))
            return descriptor
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise


def _take(descriptor: int, path: Path) -> bool:
    """Takes the system's lock on the file; where there is none, judges by what the file says."""
    try:
        # A record lock, not flock: a forked worker that outlives us must not inherit it.
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
    me = _me()
    if holder.get("host") != me["host"]:
        return False
    return holder.get("boot") != me["boot"] or not _alive(holder.get("pid"))


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)


def _refusal(folder: Path, path: Path) -> str:
    holder: dict[str, Any] = {}
    for _ in range(20):  # it may be about to write its name
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


def _me() -> dict[str, Any]:
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
    except PermissionError:  # another user's
        return True
    return True

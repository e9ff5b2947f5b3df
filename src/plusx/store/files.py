"""Files that are there whole or not at all.

Everything asks the system through `os`, so that the tests can make any single call fail.
"""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from plusx.errors import UserError


_TEMPORARY = re.compile(r"\.plusx-[0-9a-f]{16}\.tmp")
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def make_folder(path: str | Path) -> Path:
    """Makes a folder and those above it, so that they are still there after a power loss."""
    path = Path(path)
    missing = []
    above = path
    while not above.exists():
        missing.append(above)
        above = above.parent
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a folder is needed, this is a file", str(above))
    with explained(path, 0):
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o755)
            flush_folder(folder.parent)
    return path


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to be filled in the block, which takes its name only when the block ends well.

    Raises OSError where there is something of that name, unless it is an empty folder.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.parent / temporary_name()
    try:
        with explained(path, 0):
            os.mkdir(temporary, 0o755)
        yield temporary
        with explained(path, 0):
            flush_folder(temporary)
            os.rename(temporary, path)
            flush_folder(path.parent)
    except BaseException:
        remove_ours(temporary)
        raise


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A new file to be written in the block, which takes its name only when the block ends well.

    For files too large for the memory. A link under that name is replaced, not followed.
    """
    path = refuse_special(path)
    temporary = path.parent / temporary_name()
    try:
        with explained(path, 0):
            with open(_new(temporary), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            flush_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file whole or not at all, mode 0644 less the umask; its folder must be there.

    A link under that name is replaced, not followed.
    """
    path = refuse_special(path)
    temporary = path.parent / temporary_name()
    with explained(path, len(data)):
        try:
            write_new(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        flush_folder(path.parent)


def refuse_special(path: str | Path) -> Path:
    """The path. UserError where a device, pipe or socket is there, which a rename would replace."""
    path = Path(path)
    with contextlib.suppress(OSError):
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            with contextlib.suppress(FileNotFoundError):
                mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise UserError(
                f"{path} is no regular file and is not overwritten: choose another path"
            )
    return path


def write_text(path: str | Path, text: str) -> None:
    """Writes text as UTF-8; file names that are no UTF-8 keep their bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def read_bytes(path: str | Path, limit: int | None = None) -> bytes:
    """Reads a regular file of at most `limit` bytes; a device, pipe or folder is refused."""
    # Without O_NONBLOCK a pipe nobody writes to would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file")
        if limit is not None and status.st_size > limit:
            raise UserError(f"{path} has {status.st_size:,} bytes; at most {limit:,} are read")
        parts = []
        left = status.st_size
        while left and (part := os.read(descriptor, min(left, 1 << 30))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def clean(folder: str | Path) -> None:
    """Removes what a crash left half-written under `folder`: only names that store gives."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in list(entries):
            if _TEMPORARY.fullmatch(entry.name):
                remove_ours(Path(entry.path))


def remove_ours(path: Path) -> None:
    """Deletes a temporary file or folder of ours; links are unlinked, never followed."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            for name in os.listdir(path):
                remove_ours(path / name)
            os.rmdir(path)
        else:
            os.unlink(path)


def temporary_name() -> str:
    return f".plusx-{secrets.token_hex(8)}.tmp"


def _new(path: Path) -> int:
    """A descriptor of a file that was not there before."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o644)


def write_new(path: Path, data: bytes) -> None:
    descriptor = _new(path)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        # Linux takes at most 2 GiB at a time.
        left = left[os.write(descriptor, left[: 1 << 30]) :]


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path, needed: int) -> Iterator[None]:
    """Says of an OSError which of our files it was about and, on a full disk, what is missing."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            wanted = f"{needed:,} bytes needed, " if needed else ""
            text = f"the disk is full: {wanted}{_free(path)} free"
            if error.errno == errno.EFBIG:
                text = f"the file is larger than allowed (ulimit -f): {needed:,} bytes needed"
            raise OSError(error.errno, text, str(path)) from error
        if error.errno is None or not error.strerror:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _free(path: Path) -> str:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        status = os.statvfs(path)
    except OSError:
        return "an unknown number of bytes"
    return f"{status.f_bavail * status.f_frsize:,}"

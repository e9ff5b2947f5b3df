"""Files that are complete or absent.

All system calls go through `os`, so that tests can make any single one fail.
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

from plusx.errors import UserError, printable


_TEMPORARY = re.compile(r"\.plusx-[0-9a-f]{16}\.tmp")
MAX_NAME_BYTES = 255  # of a file's name, on the usual file systems
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def make_folder(path: str | Path) -> Path:
    """Create a folder and its parents durably, so that they survive a power loss."""
    path = Path(path)
    missing = []
    existing = path
    while not existing.exists():
        missing.append(existing)
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, "a folder is needed, but this is a file", str(existing)
        )
    with with_path_in_errors(path, 0):
        for folder in reversed(missing):
            try:
                os.mkdir(folder, 0o755)
            except FileExistsError:
                pass
            except FileNotFoundError as error:  # its parent exists, but as in /proc has none
                raise OSError(error.errno, "the folder cannot be created") from error
            flush_folder(folder.parent)
    return path


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Create a folder under a temporary name, and rename it when the context ends without an error.
    Raises OSError if the name exists, unless it is an empty folder."""
    path = Path(path)
    make_folder(path.parent)
    temporary = path.parent / temporary_name()
    try:
        with with_path_in_errors(path, 0):
            os.mkdir(temporary, 0o755)
        yield temporary
        with with_path_in_errors(path, 0):
            flush_folder(temporary)
            os.rename(temporary, path)
            flush_folder(path.parent)
    except BaseException:
        remove_temporary(temporary)
        raise


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Create a file under a temporary name, and rename it when the context ends without an error.
    For files that are too large for memory. A link under that name is replaced, not followed."""
    path = refuse_special(path)
    temporary = path.parent / temporary_name()
    try:
        with with_path_in_errors(path, 0):
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
    """Write a file completely or not at all, with mode 0644 minus the umask; its folder must exist.
    A link under that name is replaced, not followed."""
    path = refuse_special(path)
    temporary = path.parent / temporary_name()
    with with_path_in_errors(path, len(data)):
        try:
            write_new(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        flush_folder(path.parent)


def refuse_as_folder(path: str | Path) -> Path:
    """Return the path of a folder to write. Raises UserError if it cannot be created or written: a
    file is in its place, permissions or a read-only disk forbid it, or a name is too long."""
    existing = Path(path)
    for name in existing.parts:
        if (length := len(os.fsencode(name))) > MAX_NAME_BYTES:
            raise UserError(
                f"the name {printable(name[:40])}... has {length} bytes; at most {MAX_NAME_BYTES} "
                "are allowed"
            )
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(
            f"{printable(path)}: {printable(existing)} is not a folder; choose another folder"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"{printable(path)}: {printable(existing)} is not writable (its permissions, or a "
            "read-only disk); choose another folder"
        )
    return Path(path)


def refuse_as_file(path: str | Path) -> Path:
    """Return the path of a file to write. Raises UserError for a folder, a device or a link, and if
    the file's folder cannot be written."""
    path = refuse_special(path)
    if path.is_symlink():
        target = printable(os.readlink(path))
        raise UserError(
            f"{printable(path)} is a link to {target}, which would be replaced by a file; "
            "choose that file, or another one"
        )
    if path.is_dir():
        raise UserError(f"{printable(path)} is a folder; choose a file to write")
    refuse_as_folder(path.parent)
    return path


def refuse_special(path: str | Path) -> Path:
    """Return the path. Raises UserError for a device, pipe or socket, which a rename would
    replace."""
    path = Path(path)
    with contextlib.suppress(OSError):
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            with contextlib.suppress(FileNotFoundError):
                mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise UserError(
                f"{path} is not a regular file and is not overwritten; choose another path"
            )
    return path


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8; surrogate escapes of file names keep their bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def read_bytes(path: str | Path, limit: int | None = None) -> bytes:
    """Read a regular file of at most `limit` bytes. Raises UserError for a device, pipe or
    folder."""
    # without O_NONBLOCK opening a pipe without a writer would block
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file")
        if limit is not None and status.st_size > limit:
            raise UserError(f"{path} has {status.st_size:,} bytes; at most {limit:,} are read")
        chunks = []
        remaining = status.st_size
        while remaining and (chunk := os.read(descriptor, min(remaining, 1 << 30))):
            chunks.append(chunk)
            remaining -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(descriptor)


def read_part(path: str | Path, limit: int | None = None) -> bytes:
    """Read a file that plusx wrote into a folder. Raises UserError if it is missing."""
    try:
        return read_bytes(path, limit)
    except (FileNotFoundError, NotADirectoryError):
        path = Path(path)
        raise UserError(
            f"{printable(path)} is missing: {printable(path.parent)} is incomplete; "
            "restore the file, or run the command that wrote it again with another --out"
        ) from None


def clean(folder: str | Path) -> None:
    """Remove temporary files and folders that a crash left in `folder`."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in list(entries):
            if _TEMPORARY.fullmatch(entry.name):
                remove_temporary(Path(entry.path))


def remove_temporary(path: Path) -> None:
    """Delete a temporary file or folder; links are unlinked, never followed."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            for name in os.listdir(path):
                remove_temporary(path / name)
            os.rmdir(path)
        else:
            os.unlink(path)


def temporary_name() -> str:
    """Return a new name that `clean` recognises."""
    return f".plusx-{secrets.token_hex(8)}.tmp"


def _new(path: Path) -> int:
    """Return a descriptor of a new file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o644)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist, and flush it to the disk."""
    descriptor = _new(path)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data to a descriptor."""
    remaining = memoryview(data)
    while remaining:
        # Linux writes at most 2 GiB at a time
        remaining = remaining[os.write(descriptor, remaining[: 1 << 30]) :]


def flush_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def with_path_in_errors(path: Path, needed: int) -> Iterator[None]:
    """Add the path and, if the disk is full, the missing bytes to an OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            needed_text = f"{needed:,} bytes needed, " if needed else ""
            text = f"the disk is full: {needed_text}{_free(path)} free"
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

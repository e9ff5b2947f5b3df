"""The one module that writes files. What it wrote is there whole or not at all.

- A file: its bytes go to a temporary file in the same folder, which is flushed to the disk, renamed
  to the final name, and the folder is flushed too. A reader sees the old file or the new one.
- A checkpoint: a folder `step-00000120` with one safetensors file per group of tensors, state.json
  and manifest.json, which has the size and sha256 of every file and of itself. It is made under a
  temporary name and committed by one rename. No single flipped bit in any of it goes unnoticed.
- A log: JSON lines. A checkpoint remembers the log's length; resuming cuts the log there.
- A lock: one process at a time writes in a folder. A dead process holds nothing.

Everything asks the system through `os`, so that the tests can make any single call fail.
Errors: `OSError` where the disk or a permission fails, naming the path (and, where the disk is
full, the bytes needed and free); `ValueError` where a file is not what it must be.
"""

import contextlib
import datetime
import errno
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from plusx import tensors as safetensors


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


MAX_JSON_BYTES = 64 << 20
CHECKPOINTS = "checkpoints"
LOCK = "lock.json"

_TEMPORARY = re.compile(r"\.plusx-[0-9a-f]{16}\.tmp")
_STEP = re.compile(r"step-([0-9]{8,})(?:-([0-9]+))?")
_GROUP = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MANIFEST = "manifest.json"
_STATE = "state.json"
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


# ------------------------------------------------------------------------------------- files


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
    with _explained(path, 0):
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o755)
            _flush_folder(folder.parent)
    return path


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file whole or not at all, mode 0644 less the umask; its folder must be there.

    A link under that name is replaced, not followed.
    """
    path = Path(path)
    temporary = path.parent / _temporary_name()
    with _explained(path, len(data)):
        try:
            _write_new(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _flush_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Writes text as UTF-8; file names that are no UTF-8 keep their bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file: sorted keys, ASCII, one reading only; equal values give equal bytes.

    Raises ValueError for what JSON has no word for: numbers that are not finite, keys that are not
    text, objects.
    """
    write_bytes(path, _json_bytes(value, str(path)))


def read_bytes(path: str | Path, limit: int | None = None) -> bytes:
    """Reads a regular file of at most `limit` bytes; a device, pipe or folder is refused."""
    # Without O_NONBLOCK a pipe nobody writes to would be waited for.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if limit is not None and status.st_size > limit:
            raise ValueError(f"{path} has {status.st_size:,} bytes; at most {limit:,} are read")
        parts = []
        left = status.st_size
        while left and (part := os.read(descriptor, min(left, 1 << 30))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def read_json(path: str | Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Reads a JSON file; ValueError where it is too long, not JSON, or says a key twice."""
    return _parse_json(read_bytes(path, limit), str(path))


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file; equal tensors and metadata give equal bytes."""
    write_bytes(path, safetensors.encode(tensors, metadata))


def load_tensors(
    path: str | Path, *, finite: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises ValueError where the file is not exactly that, or (`finite`) where a number in it is
    infinite or not a number.
    """
    tensors, metadata = safetensors.decode(read_bytes(path), str(path))
    if finite:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{path}: tensor {name!r} holds numbers that are not finite")
    return tensors, metadata


# ------------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """What load_checkpoint found: groups of tensors, plain values, and the folder they are in."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]
    path: Path


def save_checkpoint(
    folder: str | Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Commits a checkpoint under `folder` and returns its path; older ones than `keep` go.

    Nothing is deleted before the new one has been read back from the file system and verified.
    Saving the same step again replaces it. The caller holds the lock of the run.
    """
    folder = Path(folder)
    assert step >= 0, step
    assert keep >= 1, keep
    files = {}
    for group, named in tensors.items():
        assert _GROUP.fullmatch(group), group
        files[f"{group}.safetensors"] = safetensors.encode(named)
    files[_STATE] = _json_bytes(dict(values), f"state of step {step}")
    files[_MANIFEST] = _manifest(step, files)

    make_folder(folder)
    clean(folder)
    found = _checkpoints(folder)
    again = [generation for at, generation, _ in found if at == step]
    name = f"step-{step:08d}" + (f"-{max(again) + 1}" if again else "")
    temporary = folder / _temporary_name()
    with _explained(folder / name, sum(map(len, files.values()))):
        try:
            os.mkdir(temporary, 0o755)
            for file, data in files.items():
                _write_new(temporary / file, data)
            _flush_folder(temporary)
            os.rename(temporary, folder / name)
        except BaseException:
            _remove_ours(temporary)
            raise
        _flush_folder(folder)
        _retain(folder, step, keep)
    return folder / name


def load_checkpoint(folder: str | Path, strict: bool = False) -> Checkpoint | None:
    """The newest checkpoint under `folder` that verifies; None where there is none at all.

    A damaged one is passed over with a warning that names the file, or, if `strict`, raises
    ValueError; so does a folder that has checkpoints but none that verifies.
    Reads only, so it may run beside the process that trains.
    """
    folder = Path(folder)
    while True:
        damage = []
        vanished = False
        for _, _, path in reversed(_checkpoints(folder)):
            try:
                return _read_checkpoint(path)
            except ValueError as error:
                if not path.exists():  # retention was faster than we were
                    vanished = True
                    continue
                if strict:
                    raise
                damage.append(str(error))
                warnings.warn(f"checkpoint passed over: {error}", stacklevel=2)
        if damage:
            raise ValueError(
                f"no checkpoint under {folder} can be used: {'; '.join(damage)}. "
                "Restore one, or delete them to start again"
            )
        if not vanished:
            return None


def clean(folder: str | Path) -> None:
    """Removes what a crash left half-written under `folder`: only names that store gives."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in list(entries):
            if _TEMPORARY.fullmatch(entry.name):
                _remove_ours(Path(entry.path))


def _manifest(step: int, files: Mapping[str, bytes]) -> bytes:
    body = {
        "format": 1,
        "step": step,
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        },
    }
    digest = hashlib.sha256(_json_bytes(body, _MANIFEST)).hexdigest()
    return _json_bytes({**body, "sha256": digest}, _MANIFEST)


def _read_manifest(path: Path, step: int) -> dict[str, dict[str, Any]]:
    where = path / _MANIFEST
    try:
        data = read_bytes(where, 1 << 20)
    except FileNotFoundError:
        raise ValueError(f"{where} is missing") from None
    try:
        manifest = _parse_json(data, str(where))
        digest = manifest.pop("sha256")
        body = _json_bytes(manifest, str(where))
        # Compared as bytes: a flipped space or escape is damage too.
        whole = _json_bytes({**manifest, "sha256": digest}, str(where)) == data
        files: dict[str, dict[str, Any]] = manifest["files"]
        sound = (
            whole
            and hashlib.sha256(body).hexdigest() == digest
            and manifest["format"] == 1
            and manifest["step"] == step
            and _STATE in files
            and all(
                name == _STATE or _GROUP.fullmatch(name.removesuffix(".safetensors"))
                for name in files
            )
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is damaged ({type(error).__name__}: {error})") from None
    if not sound:
        raise ValueError(f"{where} is damaged: it does not agree with its own sha256")
    return files


def _verified_files(path: Path, step: int) -> Iterator[tuple[str, bytes]]:
    for name, entry in _read_manifest(path, step).items():
        where = path / name
        try:
            data = read_bytes(where, entry["bytes"])
        except FileNotFoundError:
            raise ValueError(f"{where} is missing") from None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise ValueError(f"{where} cannot be read: {error.strerror}") from None
        if len(data) != entry["bytes"]:
            raise ValueError(
                f"{where} is damaged: it has {len(data):,} bytes, not {entry['bytes']:,}"
            )
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise ValueError(f"{where} is damaged: its sha256 is not the manifest's")
        yield name, data


def _read_checkpoint(path: Path) -> Checkpoint:
    match = _STEP.fullmatch(path.name)
    assert match, path
    step = int(match[1])
    groups = {}
    values = {}
    for name, data in _verified_files(path, step):
        if name == _STATE:
            values = _parse_json(data, str(path / name))
        else:
            groups[name.removesuffix(".safetensors")] = safetensors.decode(data, str(path / name))[
                0
            ]
    return Checkpoint(step, groups, values, path)


def _checkpoints(folder: Path) -> list[tuple[int, int, Path]]:
    """(step, generation, path) of the checkpoints under a folder, oldest first; links are not."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            match = _STEP.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                found.append((int(match[1]), int(match[2] or 1), Path(entry.path)))
    return sorted(found)


def _retain(folder: Path, step: int, keep: int) -> None:
    """Deletes checkpoints beyond the newest `keep` steps, after the one just written verifies.

    Steps beyond the one just written belong to a run that went on from further back: they go too.
    """
    found = _checkpoints(folder)
    new = max((entry for entry in found if entry[0] == step), key=lambda entry: entry[1])
    newest = {at: (at, generation, path) for at, generation, path in found if at <= step}
    kept = {newest[at] for at in sorted(newest)[-keep:]}
    going = [entry for entry in found if entry not in kept]
    if not going:
        return
    assert new in kept, (new, kept)
    try:
        for _ in _verified_files(new[2], step):
            pass
    except ValueError as error:
        raise OSError(
            errno.EIO, f"the disk returns other bytes than were written: {error}", str(new[2])
        ) from None
    for _, _, path in going:
        _remove_checkpoint(path)


def _remove_checkpoint(path: Path) -> None:
    """Deletes our own files of a checkpoint, the manifest first; what is not ours stays."""
    names = sorted(os.listdir(path), key=lambda name: name != _MANIFEST)
    for name in names:
        if name in (_MANIFEST, _STATE) or name.endswith(".safetensors"):
            os.unlink(path / name)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _remove_ours(path: Path) -> None:
    """Deletes a temporary file or folder of ours; links are unlinked, never followed."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            for name in os.listdir(path):
                os.unlink(path / name)
            os.rmdir(path)
        else:
            os.unlink(path)


# --------------------------------------------------------------------------------- the lock


_held: dict[str, int] = {}  # real path of a lock file: the process of ours that holds it


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Holds a run's folder, made where it is missing, for this process until the block ends.

    Raises ValueError naming the process, the host and the time where another one holds it. The
    system drops the lock of a process that dies, however it dies. What a crash left half-written
    in the folder and its checkpoints is removed.
    """
    folder = make_folder(folder)
    path = folder / LOCK
    key = os.path.realpath(path)
    if _held.get(key) == os.getpid():
        raise ValueError(f"{folder} is in use: this very process ({os.getpid()}) holds it")
    descriptor = _acquire(folder, path)
    _held[key] = os.getpid()
    try:
        clean(folder)
        clean(folder / CHECKPOINTS)
        yield
    finally:
        # A fork of ours that leaves the block holds nothing.
        if _held.get(key) == os.getpid():
            # Unlinked while still held: whoever opened the old file finds that it lost its name.
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(descriptor)
            del _held[key]


def _acquire(folder: Path, path: Path) -> int:
    while True:
        with _explained(path, 1):
            descriptor = os.open(
                path,
                os.O_RDWR
                | os.O_CREAT
                | getattr(os, "O_NOFOLLOW", 0)
                | getattr(os, "O_CLOEXEC", 0)
                | getattr(os, "O_NONBLOCK", 0),
                0o644,
            )
        try:
            if not _take(descriptor, path):
                raise ValueError(_refusal(folder, path))
            if not _same_file(descriptor, path):
                os.close(descriptor)
                continue
            with _explained(path, 1):
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                _write_all(descriptor, _json_bytes(_me(), LOCK))
            return descriptor
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise


def _take(descriptor: int, path: Path) -> bool:
    """Takes the system's lock on the file; where there is none, judges by what the file says."""
    if fcntl is not None:
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
    except PermissionError:
        return True
    return True


# ---------------------------------------------------------------------------------- the log


class Log:
    """A file of JSON lines, one `append` each.

    `position` (bytes, from `sync`) cuts the file there: what was logged after the checkpoint that
    a run resumes from is said again by the run. 0 starts anew. None goes on at the end, after the
    last whole line.
    """

    def __init__(self, path: str | Path, position: int | None = None) -> None:
        self.path = Path(path)
        with _explained(self.path, 1):
            self._descriptor = os.open(
                self.path,
                os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0),
                0o644,
            )
        try:
            size = os.fstat(self._descriptor).st_size
            if position is None:
                position = self._end_of_last_line(size)
            if position > size:
                raise ValueError(
                    f"{self.path} has {size:,} bytes; the checkpoint was made when it had "
                    f"{position:,}. It was cut short since, and cannot be gone on with"
                )
            self._position = position
            with _explained(self.path, 1):
                os.ftruncate(self._descriptor, position)
                os.lseek(self._descriptor, position, os.SEEK_SET)
                _flush_folder(self.path.parent)
        except BaseException:
            self.close()
            raise

    def _end_of_last_line(self, size: int) -> int:
        end = size
        while end:
            begin = max(0, end - 65536)
            newline = os.pread(self._descriptor, end - begin, begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
        return 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one line: to the system, not yet to the disk (see `sync`)."""
        _check_json(record, str(self.path), "")
        line = json.dumps(dict(record), allow_nan=False).encode("ascii") + b"\n"
        with _explained(self.path, len(line)):
            try:
                _write_all(self._descriptor, line)
            except BaseException:
                # Half a line would spoil the next one.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, self._position)
                    os.lseek(self._descriptor, self._position, os.SEEK_SET)
                raise
        self._position += len(line)

    def sync(self) -> int:
        """Flushes every line to the disk and returns the length of the file in bytes."""
        with _explained(self.path, 0):
            os.fsync(self._descriptor)
        return self._position

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ------------------------------------------------------------------------------ what is below


def _temporary_name() -> str:
    return f".plusx-{secrets.token_hex(8)}.tmp"


def _write_new(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o644)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        # Linux takes at most 2 GiB at a time.
        left = left[os.write(descriptor, left[: 1 << 30]) :]


def _flush_folder(folder: Path) -> None:
    """Makes the names in a folder last; Windows cannot, and needs not be asked to."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path, needed: int) -> Iterator[None]:
    """Says of an OSError which of our files it was about and, on a full disk, what is missing."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            text = f"the disk is full: {needed:,} bytes needed, {_free(path)} free"
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


def _json_bytes(value: Any, where: str) -> bytes:
    _check_json(value, where, "")
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, indent=2, sort_keys=True)
    return text.encode("ascii") + b"\n"


def _check_json(value: Any, where: str, key: str) -> None:
    """Refuses what JSON would change on its way back or has no word for."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{where}: key {name!r} in {key or 'the table'} is not text")
            _check_json(inner, where, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_json(inner, where, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {key or 'the value'} is {value}, which JSON cannot say")
    elif not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"{where}: {key or 'the value'} is a {type(value).__name__}, not data")


def _parse_json(data: bytes, where: str) -> Any:
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=safetensors.unique_keys,
            parse_constant=safetensors.refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not a JSON file that can be read: {error}") from None

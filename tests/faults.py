"""Ways to make a disk, a process or the power fail, for the tests of what must survive it.

The store asks the system through the name `os` in each of its modules. `instead_of_os` puts
something else there: a `Failing` that lets the n-th changing call fail, or a `Recorder` whose
record `power_losses` turns into the states a disk may be in when the power goes.
"""

import contextlib
import errno
import itertools
import json
import os
import random
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plusx.store import checkpoint, files, locking, log


CHANGING = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate")


@contextlib.contextmanager
def instead_of_os(system: Any) -> Iterator[Any]:
    """Everything the store asks of `os` goes to `system` inside the block."""
    modules = (checkpoint, files, locking, log)
    try:
        for module in modules:
            module.os = system  # type: ignore[attr-defined]
        yield system
    finally:
        for module in modules:
            module.os = os  # type: ignore[attr-defined]


class Killed(BaseException):
    """The process died here. No call after it reaches the disk."""


class Failing:
    """`os`, whose call number `n` (from 0) of those that change something fails.

    kind: "EIO" or "ENOSPC" (that call alone), "full" (that call and every later write or mkdir),
    "short" (writes take one byte; nothing fails), "kill" (no call reaches the disk any more).
    Nothing is flushed for real: that takes most of the time and changes nothing here.
    """

    def __init__(self, n: int = -1, kind: str = "") -> None:
        self.n, self.kind = n, kind
        self.calls = 0
        self.fired = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING:
            return real
        if name == "fsync":
            real = os.fstat
        return lambda *arguments, **named: self._call(name, real, *arguments, **named)

    def _call(self, name: str, real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        number, self.calls = self.calls, self.calls + 1
        if self.kind == "kill" and number >= self.n:
            self.fired += 1
            raise Killed(name)
        if self.kind == "full" and number >= self.n >= 0 and name in ("write", "mkdir"):
            self.fired += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if number == self.n:
            if self.kind in ("EIO", "ENOSPC"):
                self.fired += 1
                if name == "write":
                    real(arguments[0], bytes(arguments[1][: len(arguments[1]) // 2]))
                raise OSError(getattr(errno, self.kind), os.strerror(getattr(errno, self.kind)))
            if self.kind == "short":
                self.fired += 1
                if name == "write":
                    return real(arguments[0], bytes(arguments[1][:1]))
        return real(*arguments, **named)


# ------------------------------------------------------------------------------- power losses


@dataclass(eq=False)
class File:
    content: bytes = b""
    durable: bytes = b""


@dataclass(eq=False)
class Folder:
    """Names now, names the disk is sure of, and what was done to the names in between."""

    names: dict[str, Any] = field(default_factory=dict)
    durable: dict[str, Any] = field(default_factory=dict)
    pending: list[tuple[str, ...]] = field(default_factory=list)
    pending_nodes: list[Any] = field(default_factory=list)

    def do(self, change: tuple[str, ...], node: Any = None) -> None:
        _change(self.names, change, node)
        self.pending.append(change)
        self.pending_nodes.append(node)

    def flush(self) -> None:
        self.durable = dict(self.names)
        self.pending.clear()
        self.pending_nodes.clear()


def _change(names: dict[str, Any], change: tuple[str, ...], node: Any) -> None:
    if change[0] == "link":
        names[change[1]] = node
    elif change[0] == "unlink":
        names.pop(change[1], None)
    elif change[1] in names:
        names[change[2]] = names.pop(change[1])


class Recorder:
    """`os` under one folder, with a record of every call that changes something there.

    `mark(x)` puts the caller's own word into the record.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record: list[tuple[Any, ...]] = []
        self._paths: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def mark(self, word: Any) -> None:
        self.record.append(("mark", word))

    def _relative(self, path: Any) -> str:
        return os.path.relpath(path, self.root)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        new = not os.path.lexists(path)
        descriptor = os.open(path, flags, mode)
        self._paths[descriptor] = self._relative(path)
        if new:
            self.record.append(("create", self._relative(path)))
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        count = os.write(descriptor, data)
        self.record.append(("write", self._paths[descriptor], offset, bytes(data[:count])))
        return count

    def ftruncate(self, descriptor: int, length: int) -> None:
        os.ftruncate(descriptor, length)
        self.record.append(("cut", self._paths[descriptor], length))

    def fsync(self, descriptor: int) -> None:
        kind = "flush folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "flush"
        self.record.append((kind, self._paths[descriptor]))

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        os.mkdir(path, mode)
        self.record.append(("mkdir", self._relative(path)))

    def rename(self, old: Any, new: Any) -> None:
        os.rename(old, new)
        self.record.append(("rename", self._relative(old), self._relative(new)))

    def replace(self, old: Any, new: Any) -> None:
        os.replace(old, new)
        self.record.append(("rename", self._relative(old), self._relative(new)))

    def unlink(self, path: Any) -> None:
        os.unlink(path)
        self.record.append(("unlink", self._relative(path)))

    def rmdir(self, path: Any) -> None:
        os.rmdir(path)
        self.record.append(("unlink", self._relative(path)))


def power_losses(
    record: list[tuple[Any, ...]], limit: int, seed: int = 0
) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """(the caller's marks so far, tree) for states the disk may be in after a power loss.

    Whatever was not flushed may be there, be half there, or not be there: of a file the bytes, of
    a folder each change of a name, one without the other. Trees are dicts of dicts and bytes.
    """
    draw = random.Random(seed)
    states: list[tuple[list[Any], dict[str, Any]]] = []
    root = Folder()
    marks: list[Any] = []
    yielded = set()
    for event in [*record, ("end",)]:
        for choice in ("nothing", "all", *["names", "bytes", "half"], *["some"] * 6):
            tree = _crashed(root, choice, draw)
            key = (tuple(map(repr, marks)), repr(tree))
            if key not in yielded:
                yielded.add(key)
                states.append((list(marks), tree))
        _apply(root, event, marks)
    draw.shuffle(states)
    yield from itertools.islice(states, limit)


def _apply(root: Folder, event: tuple[Any, ...], marks: list[Any]) -> None:
    kind = event[0]
    if kind == "mark":
        marks.append(event[1])
    elif kind in ("create", "mkdir"):
        above, name = _place(root, event[1])
        above.do(("link", name), File() if kind == "create" else Folder())
    elif kind == "rename":
        above, old = _place(root, event[1])
        beside, new = _place(root, event[2])
        assert above is beside, "the store renames within a folder only"
        above.do(("rename", old, new))
    elif kind == "unlink":
        above, name = _place(root, event[1])
        above.do(("unlink", name))
    elif kind in ("write", "cut"):
        node = _node(root, event[1])
        if kind == "cut":
            node.content = node.content[: event[2]].ljust(event[2], b"\0")
        else:
            _, _, offset, data = event
            node.content = node.content[:offset] + data + node.content[offset + len(data) :]
    elif kind == "flush":
        node = _node(root, event[1])
        node.durable = node.content
    elif kind == "flush folder":
        _node(root, event[1]).flush()


def _node(root: Folder, path: str) -> Any:
    node: Any = root
    for part in Path(path).parts:
        node = node.names[part]
    return node


def _place(root: Folder, path: str) -> tuple[Folder, str]:
    return _node(root, str(Path(path).parent)), Path(path).name


def _crashed(node: Any, choice: str, draw: random.Random) -> Any:
    if isinstance(node, File):
        if node.content == node.durable:
            return node.durable
        pairs = enumerate(zip(node.content, node.durable, strict=False))
        shorter = min(len(node.content), len(node.durable))
        same = next((i for i, (now, then) in pairs if now != then), shorter)
        half = node.content[: (same + len(node.content) + 1) // 2]
        return {
            "nothing": node.durable,
            "all": node.content,
            "names": node.durable,
            "bytes": node.content,
            "half": half,
            "some": draw.choice([node.durable, half, node.content]),
        }[choice]
    names = dict(node.durable)
    for change, child in zip(node.pending, node.pending_nodes, strict=True):
        happened = {"nothing": False, "all": True, "names": True, "bytes": False, "half": True}
        if happened[choice] if choice in happened else draw.random() < 0.6:
            _change(names, change, child)
    return {name: _crashed(inner, choice, draw) for name, inner in sorted(names.items())}


def lay_out(tree: dict[str, Any], where: Path) -> None:
    """Writes a tree of `power_losses` under a folder."""
    where.mkdir(parents=True)
    for name, inner in tree.items():
        if isinstance(inner, bytes):
            (where / name).write_bytes(inner)
        else:
            lay_out(inner, where / name)


# ---------------------------------------------------------------------------------- processes


def fork(work: Callable[[], Any], user: int | None = None) -> tuple[int, int]:
    """Runs `work` in a child and returns its pid and a pipe that its result comes through."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of torch are idle here
        child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 70
    try:
        os.close(reading)
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        os.write(writing, json.dumps(work()).encode())
        code = 0
    except BaseException:
        os.write(writing, json.dumps(traceback.format_exc()).encode())
    finally:
        os._exit(code)


def result(child: int, reading: int, seconds: float = 300) -> Any:
    """Waits for a child of `fork`; what its work returned. A child that hangs is killed."""
    end = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reading)
            raise TimeoutError(f"the child was still at work after {seconds} s")
        time.sleep(0.002)
    with os.fdopen(reading, "rb") as pipe:
        answer = json.loads(pipe.read() or b"null")
    if os.waitstatus_to_exitcode(status):
        raise AssertionError(f"the child failed ({os.waitstatus_to_exitcode(status)}): {answer}")
    return answer


def flip(data: bytes, bit: int) -> bytes:
    """The bytes with one bit turned over."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)

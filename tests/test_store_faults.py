"""Every call to the system fails once, the power goes at every moment, the disk is full.

After each of them there is the old checkpoint or the new one, and never neither.
"""

import contextlib
import errno
import itertools
import os
import re
import resource
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from faults import Failing, Killed, Recorder, instead_of_os, lay_out, power_losses
from plusx import store


KINDS = ("EIO", "ENOSPC", "full", "short", "kill")


def save(folder: Path, step: int, fill: float | None = None) -> None:
    value = float(step) if fill is None else fill
    store.save_checkpoint(folder, step, {"weights": {"a": torch.full((5,), value)}}, {"x": value})


def found(folder: Path) -> float | None:
    """The value in the checkpoint that a run would go on from; None where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint = store.load_checkpoint(folder)
    if checkpoint is None:
        return None
    value = checkpoint.values["x"]
    assert checkpoint.tensors["weights"]["a"].tolist() == [value] * 5
    return value


def prepared(tmp_path: Path, steps: list[int]) -> Path:
    """A run's folder with checkpoints, to be copied for each fault."""
    (tmp_path / "run" / store.CHECKPOINTS).mkdir(parents=True)
    for step in steps:
        save(tmp_path / "run" / store.CHECKPOINTS, step)
    return tmp_path / "run"


# What is there, what is done, and the value before and after. A step saved again has another value.
SCENES = {
    "first": ([], lambda folder: save(folder, 1), None, 1.0),
    "second": ([1], lambda folder: save(folder, 2), 1.0, 2.0),
    "overwrite": ([1, 2], lambda folder: save(folder, 2, 2.5), 2.0, 2.5),
    "retention": ([1, 2], lambda folder: save(folder, 3), 2.0, 3.0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scene", SCENES)
def test_whichever_call_fails_there_is_the_old_checkpoint_or_the_new(tmp_path, scene, kind):
    steps, work, old, new = SCENES[scene]
    outcomes = set()
    start = prepared(tmp_path, steps)
    for n in itertools.count():
        folder = shutil.copytree(start, tmp_path / str(n)) / store.CHECKPOINTS
        with instead_of_os(Failing(n, kind)) as system:
            try:
                work(folder)
                error = None
            except (OSError, Killed) as raised:
                error = raised
        if not system.fired:
            assert error is None
            break
        assert (error is None) == (kind == "short"), (n, error)
        value = found(folder)
        assert value in (old, new), n
        if error is None:
            assert value == new
        elif isinstance(error, OSError):
            assert str(folder) in str(error)
        outcomes.add(value)
        # the next start: nothing of ours is left over, and the run goes on
        with instead_of_os(Failing()), store.lock(tmp_path / str(n)):
            assert not [p for p in folder.glob("**/*") if p.name.startswith(".")]
            assert found(folder) == value
            work(folder)
            assert found(folder) == new
            assert len(os.listdir(folder)) == min(len({*steps, int(new)}), 2)
    # the control: faults were injected before the commit and after it
    assert n >= (8 if kind == "full" else 12)
    assert outcomes == {"short": {new}, "full": {old}}.get(kind, {old, new})


FILES: dict[str, Callable[[Path], None]] = {
    "write_bytes": lambda path: store.write_bytes(path, b"new" * 100),
    "write_json": lambda path: store.write_json(path, {"new": [1, 2, 3]}),
    "save_tensors": lambda path: store.save_tensors(path, {"new": torch.ones(9)}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writer", FILES)
def test_whichever_call_fails_there_is_the_old_file_or_the_new(tmp_path, writer, kind):
    FILES[writer](tmp_path / "wanted")
    new = (tmp_path / "wanted").read_bytes()
    for n in itertools.count():
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "a").write_bytes(b"old")
        with instead_of_os(Failing(n, kind)) as system:
            try:
                FILES[writer](folder / "a")
                error = None
            except (OSError, Killed) as raised:
                error = raised
        if not system.fired:
            break
        assert (folder / "a").read_bytes() in (b"old", new)
        assert (error is None) == (kind == "short")
        if kind != "kill":
            assert os.listdir(folder) == ["a"]
    assert n >= (2 if kind == "full" else 5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_has_complete_lines_whichever_call_fails(tmp_path, kind):
    for n in itertools.count():
        path = tmp_path / f"{n}.jsonl"
        store.write_bytes(path, b'{"a": 0}\n')
        written = 0
        with instead_of_os(Failing(n, kind)) as system:
            try:
                with store.Log(path, 9) as log:
                    for i in range(1, 4):
                        log.append({"a": i})
                        written = i
                    assert log.sync() == 36
                error = None
            except (OSError, Killed) as raised:
                error = raised
        if not system.fired:
            break
        assert (error is None) == (kind == "short")
        lines = path.read_bytes().splitlines(keepends=True)
        assert lines == [b'{"a": %d}\n' % i for i in range(len(lines))]
        assert len(lines) > written
    assert n >= 4


# ------------------------------------------------------------------------------- power losses


def training(root: Path, recorder: Recorder | None = None) -> None:
    """What a run does: log lines, checkpoints, a result, and a step that is saved once more."""
    with store.Log(root / "log.jsonl") as log:
        for step in range(1, 5):
            log.append({"step": step})
            position = log.sync()
            save(root / store.CHECKPOINTS, step)
            if recorder:
                recorder.mark(("saved", step, position))
    save(root / store.CHECKPOINTS, 4, 4.5)
    if recorder:
        recorder.mark(("saved", 4.5, position))
    store.write_json(root / "result.json", {"x": 1})
    if recorder:
        recorder.mark(("result",))


def faults_after(tmp_path: Path, record: list, limit: int) -> list[str]:
    """What is wrong in which state after a power loss; the order of the record is the order."""
    wrong = []
    number = -1
    order = [None, 1.0, 2.0, 3.0, 4.0, 4.5]
    for number, (marks, tree) in enumerate(power_losses(record, limit)):
        where = tmp_path / str(number)
        lay_out(tree, where)
        saved = [mark for mark in marks if mark[0] == "saved"]
        position = order.index(saved[-1][1] if saved else None)
        try:
            value = found(where / store.CHECKPOINTS)
        except ValueError as error:
            wrong.append(f"{marks}: {error}")
            continue
        if value not in order[position : position + 2]:
            wrong.append(f"{marks}: found {value}")
        if value is not None:
            lines = (where / "log.jsonl").read_bytes() if (where / "log.jsonl").exists() else b""
            whole = b"".join(b'{"step": %d}\n' % step for step in range(1, int(value) + 1))
            if not lines.startswith(whole):
                wrong.append(f"{marks}: the log is {lines!r}")
        if (where / "result.json").exists():
            if (where / "result.json").read_bytes() != b'{\n  "x": 1\n}\n':
                wrong.append(f"{marks}: half a result")
        elif ("result",) in marks:
            wrong.append(f"{marks}: no result")
    assert number + 1 >= 100, f"only {number + 1} states"
    return wrong


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> list:
    root = tmp_path_factory.mktemp("recorded")
    with instead_of_os(Recorder(root)) as recorder:
        training(root, recorder)
    return recorder.record


def test_a_power_failure_keeps_the_last_checkpoint(tmp_path, record):
    assert faults_after(tmp_path, record, 500) == []


@pytest.mark.parametrize("forgotten", ["flush", "flush folder"])
def test_the_power_failure_test_detects_a_missing_flush(tmp_path, record, forgotten):
    # the control of the test above: the store as it would be without one kind of fsync
    careless = [event for event in record if event[0] != forgotten]
    assert len(careless) < len(record)
    assert faults_after(tmp_path, careless, 200) != []


@pytest.mark.slow
def test_the_power_failure_test_detects_a_missing_rename(tmp_path, record):
    # and as it would be if it wrote everything under its final name
    for name in (f"{store.CHECKPOINTS}/step-00000001", "result.json"):
        (temporary,) = [old for kind, old, *new in record if kind == "rename" and new == [name]]
        careless = [
            tuple(part.replace(temporary, name) if type(part) is str else part for part in event)
            for event in record
            if event[:2] != ("rename", temporary)
        ]
        assert len(careless) == len(record) - 1
        assert faults_after(tmp_path / name, careless, 400) != []


# ----------------------------------------------------------------------------------- disk full


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 4 MB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(where)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


BIG = torch.arange(300_000.0)  # 1.2 MB

SITES: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda folder: store.save_checkpoint(
        folder / store.CHECKPOINTS, 2, {"weights": {"a": BIG}, "optimizer": {"a": BIG}}, {}
    ),
    "weights": lambda folder: store.save_tensors(folder / "best.safetensors", {"a": BIG}),
    "report": lambda folder: store.write_text(folder / "report.html", "x" * 1_200_000),
    "result": lambda folder: store.write_json(folder / "result.json", ["x" * 1_200_000]),
    "log": lambda folder: _log(folder / "log.jsonl"),
}


def _log(path: Path) -> None:
    with store.Log(path) as log:
        for i in range(10):
            log.append({"line": i, "x": "x" * 120_000})


def assert_full_and_unharmed(folder: Path, error: OSError, before: dict[str, bytes]) -> None:
    text = str(error)
    assert str(folder) in text
    numbers = [int(n.replace(",", "")) for n in re.findall(r"([0-9][0-9,]*) (?:bytes|free)", text)]
    assert numbers
    assert numbers[0] > 100_000
    assert store.load_checkpoint(folder / store.CHECKPOINTS, strict=True).values == {"x": 1}
    for name, data in before.items():
        assert (folder / name).read_bytes() == data
    for path in folder.glob("**/*"):
        assert (
            path.name in before
            or path.name in ("log.jsonl", store.CHECKPOINTS)
            or (path.parent.parent.name == store.CHECKPOINTS or path.name == "step-00000001")
        ), path
    if (folder / "log.jsonl").exists():
        log = (folder / "log.jsonl").read_bytes()
        assert log == b"" or log.endswith(b"\n")


@pytest.mark.parametrize("site", SITES)
def test_the_error_of_a_full_disk_has_its_path_and_the_free_bytes(small_disk, site):
    store.save_checkpoint(small_disk / store.CHECKPOINTS, 1, {"weights": {"a": BIG[:9]}}, {"x": 1})
    (small_disk / "ballast").write_bytes(b"x" * 3_400_000)
    store.write_json(small_disk / "result.json", "old")
    before = {"ballast": b"x" * 3_400_000, "result.json": b'"old"\n'}
    with pytest.raises(OSError, match=r"the disk is full: .* bytes needed, .* free") as raised:
        SITES[site](small_disk)
    assert raised.value.errno == errno.ENOSPC
    assert_full_and_unharmed(small_disk, raised.value, before)
    (small_disk / "ballast").unlink()
    SITES[site](small_disk)  # with room again, the same thing works


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("site", SITES)
def test_a_file_size_limit_is_reported_like_a_full_disk(tmp_path, site):
    store.save_checkpoint(tmp_path / store.CHECKPOINTS, 1, {"weights": {"a": BIG[:9]}}, {"x": 1})
    with (
        files_of_at_most(200_000),
        pytest.raises(OSError, match=r"larger than allowed .*bytes needed") as raised,
    ):
        SITES[site](tmp_path)
    assert raised.value.errno == errno.EFBIG
    assert_full_and_unharmed(tmp_path, raised.value, {})
    SITES[site](tmp_path)


def test_a_folder_that_vanishes_is_an_error_not_a_new_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    folder.rmdir()
    with pytest.raises(FileNotFoundError, match=r"run/result\.json"):
        store.write_json(folder / "result.json", {})
    assert not folder.exists()

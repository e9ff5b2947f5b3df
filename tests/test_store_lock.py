"""One process at a time in a run's folder; a dead one holds nothing."""

import contextlib
import errno
import json
import os
import select
import signal
import socket
import threading
import time

import pytest

import plusx.store.locking as module
from faults import fork, result
from plusx import store


def test_a_folder_in_use_is_refused_with_its_holder_named(tmp_path):
    def work() -> str:
        try:
            with store.lock(tmp_path / "run"):
                return ""
        except ValueError as error:
            return str(error)

    with store.lock(tmp_path / "run"):
        message = result(*fork(work))
        assert f"process {os.getpid()} on {socket.gethostname()} since 20" in message
        assert str(tmp_path / "run") in message
        # the refused one changed nothing: the holder still holds
        assert f"process {os.getpid()}" in result(*fork(work))
    assert result(*fork(work)) == ""
    assert os.listdir(tmp_path / "run") == []


def test_one_process_cannot_hold_a_folder_twice(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with store.lock(tmp_path / "run"):
        for name in ("run", "link"):
            with pytest.raises(ValueError, match="by this process"), store.lock(tmp_path / name):
                pass
    with store.lock(tmp_path / "run"):
        pass


@pytest.mark.slow
def test_exactly_one_of_two_processes_gets_the_lock(tmp_path):
    for round_ in range(20):
        folder = tmp_path / str(round_)
        gate, open_gate = os.pipe()
        until, let_go = os.pipe()

        def work(folder=folder, gate=gate, open_gate=open_gate, until=until, let_go=let_go) -> list:
            os.close(open_gate)
            os.close(let_go)
            os.read(gate, 1)  # ends when the parent closes its side
            try:
                with store.lock(folder):
                    os.read(until, 1)  # the other one has been told by then
                    return ["won", os.getpid()]
            except ValueError as error:
                return ["lost", str(error)]

        children = [fork(work), fork(work)]
        for end in (gate, open_gate, until):
            os.close(end)
        ready, _, _ = select.select([pipe for _, pipe in children], [], [], 300)
        os.close(let_go)
        assert ready, "both hold the folder"
        outcomes = dict(result(*child) for child in children)
        assert set(outcomes) == {"won", "lost"}, (round_, outcomes)
        assert f"process {outcomes['won']} " in outcomes["lost"]


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    def work() -> None:
        with store.lock(tmp_path):
            (tmp_path / "ready").touch()
            time.sleep(60)

    child, pipe = fork(work)
    while not (tmp_path / "ready").exists():
        time.sleep(0.005)
    with pytest.raises(ValueError, match=f"process {child} "), store.lock(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(pipe)
    assert store.read_json(tmp_path / store.LOCK)["pid"] == child
    with store.lock(tmp_path):
        assert store.read_json(tmp_path / store.LOCK)["pid"] == os.getpid()


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    def work() -> None:
        with store.lock(tmp_path):
            worker, _ = fork(lambda: time.sleep(60))
            store.write_text(tmp_path / "worker", str(worker))
            time.sleep(60)

    child, pipe = fork(work)
    while not (tmp_path / "worker").exists():
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(pipe)
    worker = int((tmp_path / "worker").read_text())
    os.kill(worker, 0)  # still there
    try:
        with store.lock(tmp_path):
            assert store.read_json(tmp_path / store.LOCK)["pid"] == os.getpid()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_fork_that_leaves_the_block_does_not_free_the_folder(tmp_path):
    def leave() -> None:
        held.close()

    held = contextlib.ExitStack()
    held.enter_context(store.lock(tmp_path))
    result(*fork(leave))
    assert (tmp_path / store.LOCK).exists()
    held.close()
    assert not (tmp_path / store.LOCK).exists()


def test_only_leftovers_of_a_crash_are_deleted(tmp_path):
    run = tmp_path / "run"
    checkpoints = run / store.CHECKPOINTS
    checkpoints.mkdir(parents=True)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("theirs")
    ours = ".plusx-0123456789abcdef.tmp"
    (run / ours).write_bytes(b"half")
    (checkpoints / ours).mkdir()
    (checkpoints / ours / "weights.safetensors").write_bytes(b"half")
    (checkpoints / ours / "link").symlink_to(precious / "data")
    (checkpoints / ".plusx-aaaaaaaaaaaaaaaa.tmp").symlink_to(precious)
    foreign = ["notes.txt", ".plusx-short.tmp", "x.plusx-0123456789abcdef.tmp", ".plusx.tmp"]
    for name in foreign:
        (run / name).write_text("theirs")
    with store.lock(run):
        assert set(os.listdir(run)) == {*foreign, store.CHECKPOINTS, store.LOCK}
        assert os.listdir(checkpoints) == []
    assert (precious / "data").read_text() == "theirs"


def test_a_run_folder_may_be_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with store.lock(tmp_path / "run"):
        store.save_checkpoint(tmp_path / "run" / store.CHECKPOINTS, 1, {}, {})
    assert (tmp_path / "elsewhere" / store.CHECKPOINTS / "step-00000001").is_dir()


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),
        ({"boot": "another"}, True),
        ({"host": "another"}, False),
        ({"host": "another", "pid": 2**22 + 1}, False),
        ({"pid": "x"}, True),
    ],
)
def test_where_the_file_system_has_no_locks_the_file_decides(tmp_path, monkeypatch, change, free):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(module.fcntl, "lockf", no_locks)
    holder = {**module._this_process(), "pid": os.getppid(), **change}
    (tmp_path / store.LOCK).write_text(json.dumps(holder))
    if free:
        with store.lock(tmp_path):
            pass
    else:
        with pytest.raises(ValueError, match=f"process {holder['pid']}"), store.lock(tmp_path):
            pass
        assert json.loads((tmp_path / store.LOCK).read_text()) == holder


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b'{"pid": -1}'])
def test_a_corrupt_stale_lock_file_is_taken_over(tmp_path, content):
    (tmp_path / store.LOCK).write_bytes(content)
    with store.lock(tmp_path):
        assert store.read_json(tmp_path / store.LOCK)["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / store.LOCK).symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match=r"lock.json"), store.lock(tmp_path):
        pass
    assert (tmp_path / "theirs").read_text() == "precious"


def test_of_several_threads_one_holds_the_folder(tmp_path):
    """The system's lock is one of processes: both of two threads would get it."""
    inside, most, done = [], [], []

    def work() -> None:
        while not done or len(done) < 40:
            try:
                with store.lock(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.0005)
                    inside.pop()
                    done.append(1)
            except ValueError as error:
                assert "in use" in str(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1

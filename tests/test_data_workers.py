"""Worker processes that hang, die or are interrupted: an error that names the file, no orphans."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hostile
from plusx.data.image_file import ImageFile
from plusx.data.loader import Loader
from plusx.data.modality import image as room
from plusx.data.readers.open import open_data


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "set"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for index in range(6):
            (root / name / f"{index}.png").write_bytes(hostile.saved(hostile.PICTURE, "PNG"))
    return root


def children() -> set[int]:
    """The running children of this process."""
    processes = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == os.getpid() and state != "Z":
                processes.add(int(entry.name))
    return processes


def _worse(monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """Make the decoding of the first file hang, or of another die, in workers."""
    original = room.ImageFile

    def opened(path: str, limit: int, *more: object) -> ImageFile:
        if then == "hang" and path.endswith("cat/0.png"):
            time.sleep(3600)
        if then == "die" and path.endswith("dog/3.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path, limit, *more)

    monkeypatch.setattr(room, "ImageFile", opened)


# what a dead worker had open for the pixels on their way is closed by the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("then", [pytest.param("hang", marks=pytest.mark.slow), "die"])
def test_a_worker_that_hangs_or_dies_is_an_error_that_names_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    source = open_data(folder, split="all", size=16)
    _worse(monkeypatch, then)
    before = children()
    # what hangs is the first file, so that no slow machine takes another one for it
    timeout, name = (10, "cat/0") if then == "hang" else (120, "dog/3")
    with (
        Loader(source, workers=1, batch_size=4, timeout=timeout) as loader,
        pytest.raises(RuntimeError, match=rf"died or hung while processing {name}\.png"),
    ):
        list(loader.epoch(0))
    del loader
    gc.collect()
    for _ in range(1200):
        if not children() - before:
            break
        time.sleep(0.1)
    assert not children() - before


def test_closing_ends_the_workers(folder: Path) -> None:
    source = open_data(folder, split="all", size=16)
    before = children()
    with Loader(source, workers=2, batch_size=4) as loader:
        first = list(loader.epoch(0))
        assert len(first) == 3
        assert len(children() - before) >= 2
    for _ in range(1200):
        if not children() - before:
            break
        time.sleep(0.1)
    assert not children() - before
    with pytest.raises(ValueError, match="closed"):
        next(loader.epoch(1))


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(folder: Path) -> None:
    script = (
        "import os, sys\n"
        "from plusx.data.loader import Loader\n"
        "from plusx.data.readers.open import open_data\n"
        "loader = Loader(open_data(sys.argv[1], split='all', size=16), workers=2, batch_size=4)\n"
        "batches = loader.epoch(0)\n"
        "next(batches)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    session = process.pid
    process.kill()
    process.wait()

    def alive() -> list[str]:
        segments = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == session and fields[0] != "Z":
                    segments.append(entry.name)
        return segments

    for _ in range(1200):
        if not alive():
            break
        time.sleep(0.1)
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()
    assert alive() == []

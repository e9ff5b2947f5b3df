"""No command connects to anything or writes outside the output, the cache and the temporary folder.

Watched from outside by strace, so that what libraries do in native code is seen too.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

CALLS = "connect,sendto,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,symlinkat,linkat"
OPENED = re.compile(r'open(?:at)?\((?:AT_FDCWD, )?"((?:[^"\\]|\\.)*)", ([A-Z_|]+)')
CHANGED = re.compile(r'(?:creat|mkdir|rename|symlink|link)\w*\(.*?"((?:[^"\\]|\\.)*)"')
CONNECTED = re.compile(r"(?:connect|sendto)\(.*sa_family=(AF_INET6?|AF_NETLINK)")
ALLOWED = ("/dev/", "/proc/")
# plusx's cache, and matplotlib's list of fonts
IN_HOME = re.compile(r"\.(cache|config)|\.cache/(plusx|matplotlib)(/.*)?|\.config/matplotlib(/.*)?")


def watched(folder: Path, *arguments: str) -> list[str]:
    """Run a command; every connection, and every path outside `folder` that it changes."""
    log = folder / "strace.log"
    home = folder / "home"
    (folder / "tmp").mkdir(exist_ok=True)
    home.mkdir(exist_ok=True)
    variables = {
        name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ
    }
    done = subprocess.run(
        ["strace", "-f", "-qq", "-s", "4096", "-o", str(log), "-e", f"trace={CALLS}",
         "--seccomp-bpf", sys.executable, "-m", "plusx", *arguments],
        cwd=folder,
        env={**variables, "HOME": str(home), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1",
             "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
    problems = []
    for line in log.read_text(errors="replace").splitlines():
        call = line.partition(" ")[2].strip()
        if CONNECTED.match(call):
            problems.append(call)
        if " = -1 " in call:
            continue
        if opened := OPENED.match(call):
            path, flags = opened.groups()
            writes = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"} & set(flags.split("|"))
        elif changed := CHANGED.match(call):
            path, writes = changed[1], {"changed"}
        else:
            continue
        path = os.path.normpath(folder / path)
        inside = path.startswith((f"{folder}/", *ALLOWED)) and not path.startswith(f"{home}/")
        if writes and not inside and not IN_HOME.fullmatch(path.removeprefix(f"{home}/")):
            problems.append(call)
    return problems


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes."""
    folder = tmp_path_factory.mktemp("work").resolve()
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    return folder


def test_t2_no_command_connects_or_writes_outside_its_folders(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    size = ("data.size=16", "net.base=resnet20", "batch_size=8", "schedule.warmup=0")
    commands = [
        ("train", "images", "data.path=photos", *size, "epochs=1", "--out", "run"),
        ("evaluate", "run"),
        ("predict", "run", "photos", "--out", "predictions"),
        ("explain", "run", "photos/cat/0.png", "--out", "explanation"),
        ("export", "run", "--out", "net.onnx"),
        ("predict", "net.onnx", "photos"),
        ("evaluate", "net.onnx", "--data", "photos", "--split", "all"),
        ("probe", "run"),
        ("report", "run"),
        ("pack", "photos", "--out", "photos.plusx"),
        ("describe", "resnet50", "--memory", "1GB"),
        ("info",),
        ("claims",),
    ]
    for command in commands:
        assert not watched(folder, *command), command

"""Decoding: every hostile file gets its verdict, and every used one its exact pixels."""

import contextlib
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import hostile
from plusx.data.image_file import UnreadableInput, decode, examine, open_image, printable


CORPUS = hostile.corpus()


def test_the_corpus_is_large_and_has_every_verdict() -> None:
    assert len(CORPUS) >= 60
    assert len({case.name for case in CORPUS}) == len(CORPUS)
    assert {case.verdict for case in CORPUS} == {"used", "refused", "ignored"}


@pytest.mark.parametrize(
    "case", [case for case in CORPUS if case.verdict == "refused"], ids=lambda case: case.name
)
def test_a_damaged_file_is_refused_with_the_reason(case: hostile.Case, tmp_path: Path) -> None:
    path = tmp_path / case.name
    path.write_bytes(case.data)
    began = time.process_time()
    with pytest.raises(UnreadableInput) as caught:
        decode(path)
    assert time.process_time() - began < 1
    assert case.reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert examine(path).problem == str(caught.value)


@pytest.mark.parametrize(
    ("highest", "expected"),
    [(65535, None), (4096, None), (4095, "at most 16 of 256 grey levels"), (255, "becomes black")],
)
def test_little_used_16_bit_values_are_a_warning(
    highest: int, expected: str | None, tmp_path: Path
) -> None:
    """The high byte is what is seen: of 12 bits in 16 next to nothing."""
    grey = np.linspace(0, highest, 60).astype(np.uint16).reshape(6, 10)
    Image.fromarray(grey).save(tmp_path / "x.png")
    warning = examine(tmp_path / "x.png").warning
    assert warning is None if expected is None else expected in (warning or "")


@pytest.mark.parametrize(
    "case",
    [case for case in CORPUS if case.verdict == "used"],
    ids=lambda case: printable(case.name),
)
def test_a_used_file_has_the_right_pixels(case: hostile.Case, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(case.data)
    for thorough in (True, False):
        pixels = decode(path, thorough=thorough)
        assert pixels.dtype == np.uint8
        assert case.pixels is not None
        assert pixels.shape == case.pixels.shape
        off = np.abs(pixels.astype(int) - case.pixels.astype(int)).max()
        assert off <= case.within
    verdict = examine(path)
    assert verdict.problem is None
    assert case.reason in (verdict.warning or "")
    assert bool(verdict.warning) == bool(case.reason)


def test_the_same_bytes_decode_from_memory_and_as_grey() -> None:
    data = hostile.saved(hostile.PICTURE, "PNG")
    assert np.array_equal(decode(data), hostile.PICTURE)
    grey = decode(data, channels=1)
    assert grey.shape == (32, 48, 1)
    assert np.array_equal(grey[:, :, 0], np.asarray(Image.fromarray(hostile.PICTURE).convert("L")))


def test_the_limit_counts_pixels_of_the_header() -> None:
    data = hostile.saved(hostile.PICTURE, "PNG")
    assert decode(data, 32 * 48).shape == (32, 48, 3)
    with pytest.raises(UnreadableInput, match="48 x 32 pixels, at most 1,535"):
        decode(data, 32 * 48 - 1)


def test_decompression_bombs_take_no_memory(tmp_path: Path) -> None:
    """In a child with little room for memory, every bomb is refused quickly."""
    bombs = hostile.bombs()
    for bomb in bombs:
        (tmp_path / bomb.name).write_bytes(bomb.data)
    script = (
        "import resource, sys, time\n"
        "from plusx.data.image_file import examine\n"
        "from PIL import Image; Image.init()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    began = time.process_time()\n"
        "    assert examine(path).problem, path\n"
        "    assert time.process_time() - began < 0.5, path\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert grown < 50 * 1024, grown\n"
        "print(len(sys.argv) - 1)\n"
    )
    paths = [str(tmp_path / bomb.name) for bomb in bombs]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(bombs))]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        began = time.process_time()
        with pytest.raises(UnreadableInput, match="not a regular file"):
            decode(path)
        assert time.process_time() - began < 1
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "missing")
    assert "No such file" in (examine(tmp_path / "missing").problem or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_unreadable_file_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(hostile.saved(hostile.PICTURE, "PNG"))
    path.chmod(0)
    tmp_path.chmod(0o755)
    try:
        os.seteuid(65534)
        problem = examine(path).problem
    finally:
        os.seteuid(0)
    assert problem is not None
    assert "denied" in problem


def test_decoder_warnings_are_silenced_in_all_threads(tmp_path: Path) -> None:
    files = []
    for case in CORPUS:
        if case.verdict != "ignored" and len(case.data) < 10_000:
            files.append(tmp_path / str(len(files)))
            files[-1].write_bytes(case.data)
    filters = list(warnings.filters)
    examined: list[list[bool]] = []

    def work() -> None:
        examined.append([examine(path).problem is None for path in files])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(examined) == 4
    assert all(verdicts == examined[0] for verdicts in examined)
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_raise_only_unreadable_input(kind: str, count: int) -> None:
    """A fuzz: bytes changed at random and ends cut off; only documented errors come out."""
    data = hostile.saved(hostile.noise()[:12, :12], kind)
    random = np.random.default_rng(count)
    for _ in range(count):
        mutated = bytearray(data)
        for _ in range(random.integers(1, 6)):
            mutated[random.integers(len(mutated))] = random.integers(256)
        if random.random() < 0.3:
            del mutated[random.integers(len(mutated)) :]
        began = time.process_time()
        with contextlib.suppress(UnreadableInput):
            assert decode(bytes(mutated)).ndim == 3
        assert time.process_time() - began < 2


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG"]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_whole_images_of_any_shape_are_used(
    height: int, width: int, kind: str, second: bool, seed: int
) -> None:
    """No whole image is refused, and lossless ones come back as they were."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    options: dict[str, object] = {
        "JPEG": {"progressive": True} if second else {"optimize": True, "subsampling": 0},
        "WEBP": {"lossless": True},
        "TIFF": {"compression": "tiff_lzw" if second else None},
    }.get(kind, {})
    decoded = decode(hostile.saved(pixels, kind, **options))
    assert decoded.shape == pixels.shape
    if kind not in ("JPEG", "GIF"):
        assert np.array_equal(decoded, pixels)


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 2}])
def test_a_jpeg_cut_anywhere_is_refused(options: dict[str, object]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    data = hostile.saved(pixels, "JPEG", quality=90, **options)
    scan = data.index(b"\xff\xda")
    for end in range(scan + 20, len(data) - 20, 41):
        with pytest.raises(UnreadableInput):
            decode(data[:end] + b"\xff\xd9")


def test_interlaced_pngs_are_counted(tmp_path: Path) -> None:
    """Pillow writes none, so one is put together here: 3 x 2 grey pixels in seven passes."""
    pixels = [[10, 20, 30], [40, 50, 60]]
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    rows = b""
    for left, top, right, down in [*passes, (0, 1, 1, 2)]:
        for row in pixels[top::down]:
            rows += b"\0" + bytes(row[left::right]) if row[left::right] else b""
    data = hostile.png(3, 2, 8, 0, rows)
    header = data[16:28] + b"\1"
    data = data[:8] + hostile.chunk(b"IHDR", header) + data[33:]
    assert decode(data)[:, :, 0].tolist() == pixels
    short = hostile.png(3, 2, 8, 0, rows[:-2])
    short = short[:8] + hostile.chunk(b"IHDR", header) + short[33:]
    with pytest.raises(UnreadableInput, match="missing"):
        decode(short)


def test_paths_are_shown_on_one_line_as_valid_text() -> None:
    odd = os.fsdecode(b"/data/caf\xe9\xff/new\nline\x1b[31m \xe2\x80\xae.png")
    shown = printable(odd, "/data")
    shown.encode("utf-8")
    assert shown == "caf\\xe9\\xff/new\\nline\\x1b[31m \\u202e.png"
    assert printable("/data/x é.png", "/data") == "x é.png"
    assert printable("/elsewhere/x.png", "/data") == "/elsewhere/x.png"


def test_open_image_gives_pillow_images_of_two_modes() -> None:
    data = hostile.saved(hostile.PICTURE, "PNG")
    assert open_image(data).mode == "RGB"
    assert open_image(data, channels=1).mode == "L"

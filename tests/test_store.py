"""The store's files, JSON, tensors and logs, seen from outside."""

import json
import math
import mmap
import os
import shutil
import stat
import struct
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faults import fork, result
from plusx import store


NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@pytest.fixture
def open_folder():
    """A folder that every user can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


# --------------------------------------------------------------------------------------- files


def test_a_file_is_written_atomically_with_the_usual_mode(tmp_path):
    before = os.umask(0o027)
    try:
        store.write_bytes(tmp_path / "a", b"one")
    finally:
        os.umask(before)
    assert (tmp_path / "a").read_bytes() == b"one"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["a"]


def test_tensors_are_readable_by_others_too(tmp_path):
    # the library's own writer leaves 0600
    before = os.umask(0o022)
    try:
        store.save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "a"
    store.write_bytes(path, b"old" * 1000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as old:
        store.write_bytes(path, b"new" * 1000)
        assert old[:] == b"old" * 1000
    assert path.read_bytes() == b"new" * 1000


def test_tensors_loaded_from_a_file_can_be_saved_to_it(tmp_path):
    path = tmp_path / "a.safetensors"
    store.save_tensors(path, {"x": torch.arange(1000.0)})
    for _ in range(3):
        tensors, _ = store.load_tensors(path)
        tensors["x"] += 1
        store.save_tensors(path, tensors)
    assert torch.equal(store.load_tensors(path)[0]["x"], torch.arange(1000.0) + 3)


def test_a_link_is_replaced_not_followed(tmp_path):
    (tmp_path / "target").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    store.write_bytes(tmp_path / "link", b"ours")
    assert (tmp_path / "target").read_bytes() == b"theirs"
    assert (tmp_path / "link").read_bytes() == b"ours"
    assert not (tmp_path / "link").is_symlink()


def test_names_of_any_bytes_survive_as_text(tmp_path):
    name = os.fsdecode(b"caf\xe9\xff")
    store.write_text(tmp_path / "a.csv", f"path\n{name}\n")
    assert (tmp_path / "a.csv").read_bytes() == b"path\ncaf\xe9\xff\n"
    store.write_json(tmp_path / "a.json", {"path": name})
    assert store.read_json(tmp_path / "a.json") == {"path": name}


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    store.write_bytes(tmp_path / ("n" * 255), b"x")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"x"


def test_where_a_file_cannot_be_written_the_message_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone/a"):
        store.write_bytes(tmp_path / "gone" / "a", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        store.write_bytes(tmp_path / "folder", b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="file"):
        store.make_folder(tmp_path / "file" / "run")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@as_root
def test_without_permission_the_message_names_the_path(open_folder):
    (open_folder / "ours").mkdir(mode=0o755)
    (open_folder / "ours" / "a").write_bytes(b"old")

    def work() -> list[str]:
        messages = []
        for attempt in (
            lambda: store.write_bytes(open_folder / "ours" / "a", b"new"),
            lambda: store.make_folder(open_folder / "ours" / "run"),
            lambda: store.Log(open_folder / "ours" / "log.jsonl"),
            lambda: store.save_checkpoint(open_folder / "ours" / "checkpoints", 1, {}, {}),
            lambda: store.lock(open_folder / "ours").__enter__(),
        ):
            try:
                attempt()
            except PermissionError as error:
                messages.append(str(error))
        return messages

    messages = result(*fork(work, NOBODY))
    assert len(messages) == 5
    assert all(str(open_folder / "ours") in text for text in messages)
    assert (open_folder / "ours" / "a").read_bytes() == b"old"
    assert os.listdir(open_folder / "ours") == ["a"]


@as_root
def test_the_same_attempts_succeed_where_they_may(open_folder):
    # what makes the test above more than a test of root's powers
    (open_folder / "ours").mkdir()
    os.chown(open_folder / "ours", NOBODY, NOBODY)

    def work() -> str:
        with store.lock(open_folder / "ours"):
            return store.save_checkpoint(open_folder / "ours" / "checkpoints", 1, {}, {}).name

    assert result(*fork(work, NOBODY)) == "step-00000001"


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="not a regular file"):
        store.read_bytes(path)


def test_reading_has_a_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert store.read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes; at most 4"):
        store.read_bytes(tmp_path / "a", 4)


# ---------------------------------------------------------------------------------------- JSON


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.slow
@given(values)
@settings(max_examples=60)
def test_json_round_trips(tmp_path_factory, value):
    folder = tmp_path_factory.getbasetemp()
    store.write_json(folder / "a.json", value)
    back = store.read_json(folder / "a.json")
    assert repr(back) == repr(store.read_json(folder / "a.json"))
    assert back == value
    store.write_json(folder / "b.json", back)
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()


def test_the_order_of_keys_changes_no_byte(tmp_path):
    store.write_json(tmp_path / "a", {"x": 1, "y": 2})
    store.write_json(tmp_path / "b", {"y": 2, "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {"b": math.nan}]}, r"a\[1\].b is nan"),
        ({"a": math.inf}, "a is inf"),
        ({1: 2}, "key 1"),
        ({"a": {1, 2}}, "a is a set"),
        ({"a": torch.ones(1)}, "a is a Tensor"),
        ({"a": b"x"}, "a is a bytes"),
    ],
)
def test_values_that_json_cannot_hold_are_refused_with_their_path(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        store.write_json(tmp_path / "a.json", value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' occurs twice"),
        (b"", "cannot be read|Expecting"),
        (b"{", "a.json"),
        (b"\xff\xfe", "utf-8"),
        (b"[NaN]", "NaN is not a JSON value"),
        (b"[Infinity]", "Infinity"),
        (b"[1e999]", "1e999"),
        (b"[" * 100_000, "a.json"),
        (b"9" * 5000, "a.json"),
        (b'"' + b"x" * 2000 + b'"', "at most 1,000"),
    ],
)
def test_invalid_json_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        store.read_json(tmp_path / "a.json", limit=1000 if b"xxx" in text else 1 << 20)


# ------------------------------------------------------------------------------------- tensors


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
]  # fmt: skip
shapes = st.lists(st.integers(0, 4), max_size=4)


@st.composite
def named_tensors(draw):
    tensors = {}
    for name in draw(st.lists(st.text(max_size=6), max_size=5, unique=True)):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
        tensors[name] = (torch.randn(shape) * 100).to(dtype)
    tensors.pop("__metadata__", None)
    return tensors


@pytest.mark.slow
@given(named_tensors(), st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=4))
@settings(max_examples=60)
def test_the_format_is_the_librarys_in_both_directions(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.getbasetemp() / "a.safetensors"
    store.save_tensors(path, tensors, metadata)
    theirs = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == metadata
    ours, loaded_metadata = store.load_tensors(path, finite=False)
    assert loaded_metadata == metadata
    # Not over the old file, which the library has mapped; and no empty metadata, which the library
    # itself cannot read back.
    store.write_bytes(path, safetensors.torch.save(tensors, metadata or None))
    from_theirs, loaded_metadata = store.load_tensors(path, finite=False)
    assert loaded_metadata == metadata
    for loaded in (theirs, ours, from_theirs):
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert loaded[name].shape == tensor.shape
            assert loaded[name].equal(tensor)


def test_equal_tensors_give_equal_bytes_whatever_their_order_and_layout(tmp_path):
    x = torch.randn(2, 3, 4, 4)
    metadata = {f"key{i}": str(i) for i in range(20)}
    store.save_tensors(tmp_path / "a", {"x": x, "y": x[0]}, metadata)
    reversed_metadata = dict(reversed(metadata.items()))
    last = x.to(memory_format=torch.channels_last)
    store.save_tensors(tmp_path / "b", {"y": x[0].clone(), "x": last}, reversed_metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_unsupported_types_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'z' is torch.complex64"):
        store.save_tensors(tmp_path / "a", {"z": torch.ones(1, dtype=torch.complex64)})
    with pytest.raises(ValueError, match="20,001 tensors"):
        store.save_tensors(tmp_path / "a", dict.fromkeys(map(str, range(20_001)), torch.ones(0)))
    with pytest.raises(ValueError, match="__metadata__"):
        store.save_tensors(tmp_path / "a", {"__metadata__": torch.ones(1)})
    assert os.listdir(tmp_path) == []


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: list, dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


MALFORMED = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a header of 2**62 bytes": file_of({}, length=1 << 62),
    "a header of 100 MB": file_of(b"{}" + b" " * (100 << 20)),
    "a header longer than the file": file_of({}, length=100),
    "not JSON": file_of(b"{"),
    "not UTF-8": file_of(b'{"\xff": 1}'),
    "a list": file_of([]),
    "deep": file_of(b"[" * 100_000),
    "an overlap": file_of({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"0" * 12),
    "a gap": file_of({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, b"0" * 20),
    "a start past the header": file_of({"a": entry(4, 12, [2])}, b"0" * 12),
    "bytes left over": file_of({"a": entry(0, 8, [2])}, b"0" * 9),
    "cut short": file_of({"a": entry(0, 8, [2])}, b"0" * 7),
    "a name twice": file_of(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 8, [2])).encode(),) * 2),
                            b"0" * 8),
    "a huge shape": file_of({"a": entry(0, 8, [1 << 62])}, b"0" * 8),
    "a shape past 64 bits": file_of({"a": entry(0, 0, [0, 1 << 70])}),
    "a shape that wraps round": file_of({"a": entry(0, 8, [1 << 32, 1 << 32])}, b"0" * 8),
    "a huge shape and offsets to match": file_of({"a": entry(0, 1 << 40, [1 << 38])}, b"0" * 8),
    "a negative shape": file_of({"a": entry(0, 8, [-2])}, b"0" * 8),
    "a broken shape": file_of({"a": entry(0, 8, [2.0])}, b"0" * 8),
    "a boolean in a shape": file_of({"a": entry(0, 4, [True])}, b"0" * 4),
    "a text for a shape": file_of({"a": {**entry(0, 8, []), "shape": "2"}}, b"0" * 8),
    "a shape of 65 dimensions": file_of({"a": entry(0, 4, [1] * 65)}, b"0" * 4),
    "offsets the wrong way round": file_of({"a": entry(8, 0, [2])}, b"0" * 8),
    "three offsets": file_of({"a": {**entry(0, 8, [2]), "data_offsets": [0, 4, 8]}}, b"0" * 8),
    "an unknown type": file_of({"a": entry(0, 8, [2], "F31")}, b"0" * 8),
    "a type that is no text": file_of({"a": entry(0, 8, [2], ["F32"])}, b"0" * 8),
    "a key too many": file_of({"a": {**entry(0, 8, [2]), "_target_": "os.system"}}, b"0" * 8),
    "an entry that is no table": file_of({"a": 1}),
    "metadata that is no text": file_of({"__metadata__": {"a": 1}}),
    "metadata that is no table": file_of({"__metadata__": "a"}),
    "a bool of 7": file_of({"a": entry(0, 1, [1], "BOOL")}, b"\x07"),
    "not a number": file_of({"a": entry(0, 4, [1])}, struct.pack("<f", math.nan)),
    "infinite": file_of({"a": entry(0, 4, [1])}, struct.pack("<f", -math.inf)),
    "a pickle": b"\x80\x04\x95" + b"." * 100,
    "a zip": b"PK\x03\x04" + b"\0" * 100,
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_is_refused_by_name_before_memory_is_taken(tmp_path, kind):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(MALFORMED[kind])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"weights\.safetensors"):
            store.load_tensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20 or kind == "a header of 100 MB"
    assert peak < 200 << 20


def test_a_file_next_to_each_malformed_one_is_read(tmp_path):
    # the control: the maker of malformed files makes sound ones too
    path = tmp_path / "a"
    path.write_bytes(
        file_of({"a": entry(0, 8, [2]), "b": entry(8, 12, [1])}, struct.pack("3f", 1, 2, 3))
    )
    assert store.load_tensors(path)[0]["a"].tolist() == [1, 2]


def test_too_many_tensors_are_refused_though_the_header_is_short_enough(tmp_path, monkeypatch):
    import plusx.store.tensors as module

    monkeypatch.setattr(module, "MAX_TENSORS", 3)
    path = tmp_path / "a"
    path.write_bytes(file_of({str(i): entry(0, 0, [0]) for i in range(4)}))
    with pytest.raises(ValueError, match="4 tensors; at most 3"):
        store.load_tensors(path)


# ---------------------------------------------------------------------------------------- logs


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_continues_at_the_position_of_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    with store.Log(path) as log:
        log.append({"step": 1, "loss": 0.1})
        position = log.sync()
        log.append({"step": 2, "loss": 0.2})
        log.append({"step": 3, "loss": 0.3})
    whole = path.read_bytes()
    with store.Log(path, position) as log:
        assert lines(path) == [{"step": 1, "loss": 0.1}]
        log.append({"step": 2, "loss": 0.2})
        log.append({"step": 3, "loss": 0.3})
        assert log.sync() == len(whole)
    assert path.read_bytes() == whole


def test_a_log_without_a_position_continues_after_its_last_complete_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"a": ' + "x" * 100_000)
    with store.Log(path) as log:
        log.append({"a": 2})
    assert lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text("x" * 100_000)
    with store.Log(path) as log:
        log.append({"a": 3})
    assert lines(path) == [{"a": 3}]


def test_position_zero_starts_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n')
    store.Log(path, 0).close()
    assert path.read_bytes() == b""


def test_a_log_shorter_than_its_checkpoint_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"has 9 bytes.*had 10"):
        store.Log(path, 10)
    assert path.read_text() == '{"a": 1}\n'


def test_a_log_accepts_json_values_only(tmp_path):
    with store.Log(tmp_path / "log.jsonl") as log:
        with pytest.raises(ValueError, match="loss is nan"):
            log.append({"loss": math.nan})
        assert log.sync() == 0


def test_a_log_does_not_cut_what_a_link_points_to(tmp_path):
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match=r"log.jsonl"):
        store.Log(tmp_path / "log.jsonl", 0)
    assert (tmp_path / "theirs").read_text() == "precious"


# ------------------------------------------------------------------------------------- folders


def fill_and_fail(folder: Path, error: type[BaseException]) -> None:
    with store.atomic_folder(folder) as partial:
        (partial / "inner").mkdir()
        (partial / "link").symlink_to(folder.parent)
        raise error


def test_a_folder_is_created_atomically(tmp_path):
    with store.atomic_folder(tmp_path / "a" / "set") as partial:
        store.write_bytes(store.make_folder(partial / "inner") / "x", b"1")
        assert os.listdir(tmp_path / "a") == [partial.name]
    assert (tmp_path / "a" / "set" / "inner" / "x").read_bytes() == b"1"
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fill_and_fail(tmp_path / "b" / "set", error)
        assert os.listdir(tmp_path / "b") == []
    with pytest.raises(OSError, match="a/set"), store.atomic_folder(tmp_path / "a" / "set"):
        pass
    assert os.listdir(tmp_path / "a") == ["set"]
    assert (tmp_path / "a" / "set" / "inner" / "x").read_bytes() == b"1"


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_x1_only_regular_files_are_overwritten(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "place"
    os.mkfifo(tmp_path / "pipe")
    if kind == "link":
        path.symlink_to("pipe")
    else:
        os.rename(tmp_path / "pipe", path)
    mode = os.lstat(path).st_mode
    with pytest.raises(ValueError, match="not a regular file"):
        store.write_bytes(path, b"x")
    with pytest.raises(ValueError, match="not a regular file"), store.atomic_file(path):
        raise AssertionError("nothing may be written")
    assert os.lstat(path).st_mode == mode
    assert {entry.name for entry in tmp_path.iterdir()} <= {"place", "pipe"}

"""Checkpoints: every flipped bit is noticed, the newest sound one is loaded, the last one stays."""

import os
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from faults import flip
from plusx import store


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {
        "weights": {"conv1.weight": torch.randn(4, 3, 3, 3, generator=generator)},
        "optimizer": {"conv1.weight.momentum_buffer": torch.randn(4, 3, 3, 3, generator=generator)},
        "average": {"conv1.weight": torch.randn(4, 3, 3, 3, generator=generator)},
    }


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return store.save_checkpoint(folder, step, tensors(step), {"step": step, "log": 7}, keep)


def assert_is(checkpoint: store.Checkpoint | None, step: int) -> None:
    assert checkpoint is not None
    assert checkpoint.step == step
    assert checkpoint.values == {"step": step, "log": 7}
    expected = tensors(step)
    assert checkpoint.tensors.keys() == expected.keys()
    for group, named in expected.items():
        assert checkpoint.tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            assert torch.equal(checkpoint.tensors[group][name], tensor)


def load_with_warnings(folder: Path) -> tuple[store.Checkpoint | None, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint = store.load_checkpoint(folder)
    return checkpoint, [str(warning.message) for warning in caught]


def test_the_newest_is_loaded_and_two_are_kept(tmp_path):
    for step in (1, 2, 3, 10, 9_999_999, 123_456_789):
        path = save(tmp_path, step)
        assert_is(store.load_checkpoint(tmp_path), step)
        assert path.parent == tmp_path
    assert sorted(os.listdir(tmp_path)) == ["step-09999999", "step-123456789"]
    files = ["average.safetensors", "manifest.json", "optimizer.safetensors", "state.json"]
    assert sorted(os.listdir(path)) == [*files, "weights.safetensors"]


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_requested_number_of_checkpoints_is_kept(tmp_path, keep):
    for step in range(8):
        save(tmp_path, step, keep)
    assert sorted(os.listdir(tmp_path)) == [f"step-{s:08d}" for s in range(8 - keep, 8)]


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert store.load_checkpoint(tmp_path) is None
    assert store.load_checkpoint(tmp_path / "gone") is None
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-00000002").write_text("a file")
    assert store.load_checkpoint(tmp_path) is None


def test_the_order_is_of_steps_not_of_clocks(tmp_path):
    for step in (5, 6):
        save(tmp_path, step)
    os.utime(tmp_path / "step-00000006", (0, 0))
    os.utime(tmp_path / "step-00000005", (2**33, 2**33))
    assert_is(store.load_checkpoint(tmp_path), 6)
    save(tmp_path, 7)
    assert sorted(os.listdir(tmp_path)) == ["step-00000006", "step-00000007"]


def test_equal_states_give_equal_bytes(tmp_path):
    one, two = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    for name in os.listdir(one):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.slow
def test_200_of_200_flipped_bits_are_detected_in_every_file(tmp_path):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    draw = random.Random(5)
    files = sorted(os.listdir(bad))
    flips = 0
    for trial in range(200):
        path = bad / files[trial % len(files)]
        sound = path.read_bytes()
        path.write_bytes(flip(sound, draw.randrange(len(sound) * 8)))
        with pytest.raises(ValueError, match=str(path)):
            store.load_checkpoint(tmp_path, strict=True)
        checkpoint, messages = load_with_warnings(tmp_path)
        assert_is(checkpoint, 1)
        assert len(messages) == 1
        assert str(path) in messages[0]
        flips += 1
        path.write_bytes(sound)
    assert flips == 200
    # the control: with every bit back in its place nothing is noticed
    assert_is(store.load_checkpoint(tmp_path, strict=True), 2)
    assert good.exists()


def test_any_bit_of_a_manifest_counts(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / "manifest.json"
    sound = path.read_bytes()
    for bit in range(0, len(sound) * 8, 31):
        path.write_bytes(flip(sound, bit))
        with pytest.raises(ValueError, match=r"manifest\.json"):
            store.load_checkpoint(tmp_path, strict=True)


def test_other_damage_is_detected_too(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    before = {name: (path / name).read_bytes() for name in os.listdir(path)}
    assert len(before["weights.safetensors"]) == len(before["average.safetensors"])

    def refused(**damage: bytes | None) -> None:
        for name, data in before.items():
            changed = damage.get(name.partition(".")[0], data)
            if changed is None:
                (path / name).unlink()
            else:
                (path / name).write_bytes(changed)
        with pytest.raises(ValueError, match=str(path)):
            store.load_checkpoint(tmp_path, strict=True)
        checkpoint, messages = load_with_warnings(tmp_path)
        assert_is(checkpoint, 1)
        assert len(messages) == 1

    for name, data in before.items():
        stem = name.partition(".")[0]
        refused(**{stem: None})
        refused(**{stem: b""})
        refused(**{stem: data[:-1]})
        refused(**{stem: data + b"\n"})
        refused(**{stem: b"\0" * min(4096, len(data)) + data[4096:]})
    refused(weights=before["average.safetensors"], average=before["weights.safetensors"])
    older = tmp_path / "step-00000001" / "manifest.json"
    refused(manifest=older.read_bytes())


def test_a_valid_checkpoint_in_the_folder_of_another_step_is_refused(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000009")
    checkpoint, messages = load_with_warnings(tmp_path)
    assert_is(checkpoint, 1)
    assert "step-00000009" in messages[0]


def test_without_a_valid_checkpoint_a_run_does_not_restart(tmp_path):
    for step in (1, 2):
        path = save(tmp_path, step) / "state.json"
        path.write_bytes(flip(path.read_bytes(), 9))
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match=r"no checkpoint under .* is valid: .*2/state.*1/state"),
    ):
        store.load_checkpoint(tmp_path)


def test_a_damaged_newest_is_replaced_by_saving_it_again(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / "weights.safetensors"
    path.write_bytes(flip(path.read_bytes(), 900))
    assert_is(load_with_warnings(tmp_path)[0], 1)
    save(tmp_path, 2)
    assert_is(store.load_checkpoint(tmp_path, strict=True), 2)
    assert len(os.listdir(tmp_path)) == 2
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert_is(store.load_checkpoint(tmp_path, strict=True), 3)
    assert len(os.listdir(tmp_path)) == 2


def test_resuming_from_an_older_checkpoint_deletes_later_ones(tmp_path):
    for step in (1, 5):
        save(tmp_path, step)
    path = tmp_path / "step-00000005" / "state.json"
    path.write_bytes(flip(path.read_bytes(), 9))
    assert_is(load_with_warnings(tmp_path)[0], 1)
    save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000001", "step-00000002"]


def test_no_checkpoint_is_deleted_if_the_new_one_is_invalid(tmp_path, monkeypatch):
    import plusx.store.checkpoint as module

    for step in (1, 2):
        save(tmp_path, step)
    honest = module.write_new

    def forgetful(path: Path, data: bytes) -> None:
        honest(path, flip(data, 80) if path.name == "optimizer.safetensors" else data)

    monkeypatch.setattr(module, "write_new", forgetful)
    with pytest.raises(OSError, match="the disk returned other bytes than were written"):
        save(tmp_path, 3)
    checkpoint, messages = load_with_warnings(tmp_path)
    assert_is(checkpoint, 2)
    assert "step-00000003/optimizer.safetensors" in messages[0]
    assert (tmp_path / "step-00000001" / "manifest.json").exists()


def test_foreign_files_are_neither_deleted_nor_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "weights.safetensors").write_text("theirs")
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    (folder / "notes.txt").write_text("theirs")
    (folder / "step-1").mkdir()
    (folder / "step-00000000").symlink_to(precious)
    (folder / "step-00000001" / "notes.txt").write_text("theirs")
    (folder / "step-00000001" / "inner").symlink_to(precious)
    (folder / "step-00000001" / "average.safetensors").unlink()
    (folder / "step-00000001" / "average.safetensors").symlink_to(precious / "weights.safetensors")
    for step in (2, 3, 4):
        save(folder, step)
    assert sorted(os.listdir(folder)) == [
        "notes.txt", "step-00000000", "step-00000001", "step-00000003", "step-00000004", "step-1",
    ]  # fmt: skip
    assert sorted(os.listdir(folder / "step-00000001")) == ["inner", "notes.txt"]
    assert (precious / "weights.safetensors").read_text() == "theirs"


def test_half_deleted_steps_and_half_written_ones_do_not_matter(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    half = tmp_path / ".plusx-0123456789abcdef.tmp"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert_is(store.load_checkpoint(tmp_path, strict=True), 2)
    save(tmp_path, 3)
    assert sorted(os.listdir(tmp_path)) == ["step-00000002", "step-00000003"]


def test_names_in_a_manifest_cannot_leave_the_folder(tmp_path):
    import plusx.store.checkpoint as module

    (tmp_path / "secret.safetensors").write_bytes(b"x")
    path = tmp_path / "checkpoints" / "step-00000001"
    path.mkdir(parents=True)
    for name in ("../../secret.safetensors", "/etc/passwd", "a/b.safetensors", "x.pt", "a\0"):
        files = {"state.json": b"{}\n", name: b"x"}
        (path / "state.json").write_bytes(b"{}\n")
        (path / "manifest.json").write_bytes(module._manifest(1, files))
        with pytest.raises(ValueError, match=r"manifest\.json is corrupt"):
            store.load_checkpoint(tmp_path / "checkpoints", strict=True)


def test_a_concurrent_reader_never_sees_half_a_checkpoint(tmp_path):
    import threading

    save(tmp_path, 0, keep=1)
    done = threading.Event()
    steps = []

    wrong = []

    def read() -> None:
        while not done.is_set():
            try:
                checkpoint = store.load_checkpoint(tmp_path, strict=True)
                steps.append(checkpoint.step if checkpoint else -1)
            except ValueError as error:
                wrong.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for step in range(1, 30):
            save(tmp_path, step, keep=1)
    finally:
        done.set()
        reader.join()
    assert wrong == []
    assert -1 not in steps
    assert steps == sorted(steps)
    assert len(set(steps)) > 1

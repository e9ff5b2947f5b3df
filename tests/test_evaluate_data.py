"""What `plusx evaluate RUN --data DATA` judges a run on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plusx import store
from plusx.recipe import load_recipe
from plusx.run import Run, evaluate, load_run, predict, train


SMALL = ["net.base=resnet20", "data.size=16", "epochs=1", "batch_size=8", "device.threads=1"]


def photos(root: Path, seed: int, count: int = 10) -> Path:
    draws = np.random.default_rng(seed)
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for number in range(count):
            pixels = draws.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "photos", 1)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(load_recipe("images", [f"data.path={folder}", *SMALL]), out, progress=False)
    return load_run(out)


def test_a_folder_without_splits_is_judged_as_a_whole(run: Run, tmp_path: Path) -> None:
    other = photos(tmp_path / "photos", 2)
    figures = evaluate(run, data=other)
    assert (figures["split"], figures["count"]) == ("all", 20)
    table = tmp_path / "photos.csv"
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in other.glob("*/*.png")]
    table.write_text("\n".join(["path,label", *rows]))
    assert evaluate(run, data=table)["count"] == 20


def test_of_the_data_it_was_trained_on_only_what_was_kept_back(run: Run, folder: Path) -> None:
    own = evaluate(run)
    assert (own["split"], own["count"]) == ("validation", 4)
    assert evaluate(run, data=folder) == own
    moved = folder.parent / "elsewhere" / folder.name
    moved.parent.mkdir()
    moved.symlink_to(folder)
    assert evaluate(run, data=moved) == own
    whole = evaluate(run, data=folder, split="all")
    assert whole["count"] == 20
    assert "trained on are among" in whole["notices"][0]
    shutil.copytree(folder, renamed := folder.parent / "renamed")
    assert {**evaluate(run, data=renamed), "data": folder.name} == own
    assert "trained on are among" in evaluate(run, data=renamed, split="all")["notices"][0]


def test_a_folder_that_changed_since_is_not_cut_again(tmp_path: Path) -> None:
    root, out = photos(tmp_path / "photos", 7, 5), tmp_path / "run"
    recipe = load_recipe("images", [f"data.path={root}", *SMALL])
    train(recipe, out, progress=False)
    (root / ".DS_Store").write_bytes(b"")
    assert train(recipe, out, progress=False)["steps"] == 1
    evaluate(load_run(out))
    (out / "result.json").rename(out / "kept.json")
    train(recipe, out, progress=False)  # a notice more is no reason to refuse
    (root / "cat" / "0.png").unlink()
    with pytest.raises(ValueError, match="other images"):
        train(recipe, out, progress=False)
    for data in (None, root):
        with pytest.raises(ValueError, match="have changed since"):
            evaluate(load_run(out), data=data)
    weights = load_run(out / "model.safetensors")
    with pytest.raises(ValueError, match="have changed since"):
        evaluate(weights, data=root)
    assert evaluate(weights, data=root, split="all")["count"] == 9


def test_where_nothing_was_kept_back_it_is_said(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 8, 4)
    said = [f"data.path={root}", "data.validation=0", *SMALL]
    train(load_recipe("images", said), tmp_path / "run", progress=False)
    shutil.copytree(root, tmp_path / "copy")
    for data in (root, tmp_path / "copy"):
        figures = evaluate(load_run(tmp_path / "run"), data=data)
        assert figures["count"] == 8
        assert "trained on are among" in figures["notices"][0]


def test_a_folder_with_splits_is_judged_on_the_one_that_was_asked_for(
    run: Run, tmp_path: Path
) -> None:
    photos(tmp_path / "photos" / "val", 3, 3)
    photos(tmp_path / "photos" / "train", 4, 5)
    assert evaluate(run, data=tmp_path / "photos")["count"] == 6
    assert evaluate(run, data=tmp_path / "photos", split="train")["count"] == 10


def test_what_is_left_out_anywhere_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "photos" / "train", 5, 6)
    photos(tmp_path / "photos" / "val", 6, 3)
    (tmp_path / "photos" / "val" / "cat" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    said = ["net.base=resnet20", f"data.path={tmp_path / 'photos'}", "data.damaged=skip", *SMALL]
    train(load_recipe("images", said), tmp_path / "run")
    notices = store.read_json(tmp_path / "run" / "data.json")["notices"]
    assert any("val/cat/cut.png" in notice for notice in notices)
    assert "plusx: 1 of 7 files skipped" in capsys.readouterr().err


def test_a_spec_for_images_of_another_size_is_refused(tmp_path: Path) -> None:
    for size in ("net.size=16", "net.size=7"):
        with pytest.raises(ValueError, match=r"\[net\] size = \d+, but .* 8 x 8 of digits"):
            train(load_recipe("digits-resnet20", [size]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_has_an_image_at_least(run: Run, folder: Path) -> None:
    for judge in (
        lambda: evaluate(run, batch_size=0),
        lambda: predict(run, [folder], batch_size=0),
    ):
        with pytest.raises(ValueError, match="batch_size = 0: at least 1"):
            judge()

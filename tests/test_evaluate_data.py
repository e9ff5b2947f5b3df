"""What `plusx evaluate RUN --data DATA` judges a run on."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plusx import store
from plusx.data.readers.open import open_data
from plusx.models import create_model
from plusx.recipe import load_recipe
from plusx.run import Run, evaluate, load_run, predict, train
from plusx.run.build import make_net
from plusx.run.folder import load_weights_as
from plusx.weights import save_network
from plusx.weights.convert import SOURCE_DEFAULTS


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


def test_a_folder_without_splits_is_evaluated_as_a_whole(run: Run, tmp_path: Path) -> None:
    other = photos(tmp_path / "photos", 2)
    figures = evaluate(run, data=other)
    assert (figures["split"], figures["count"]) == ("all", 20)
    table = tmp_path / "photos.csv"
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in other.glob("*/*.png")]
    table.write_text("\n".join(["path,label", *rows]))
    assert evaluate(run, data=table)["count"] == 20


def test_only_held_out_images_of_the_training_data_are_evaluated(run: Run, folder: Path) -> None:
    held_out = evaluate(run)
    assert (held_out["split"], held_out["count"]) == ("validation", 4)
    assert evaluate(run, data=folder) == held_out
    moved = folder.parent / "elsewhere" / folder.name
    moved.parent.mkdir()
    moved.symlink_to(folder)
    assert evaluate(run, data=moved) == held_out
    whole = evaluate(run, data=folder, split="all")
    assert whole["count"] == 20
    assert "includes images that the run was trained on" in whole["warnings"][0]
    shutil.copytree(folder, renamed := folder.parent / "renamed")
    assert {**evaluate(run, data=renamed), "data": folder.name} == held_out
    assert (
        "includes images that the run was trained on"
        in evaluate(run, data=renamed, split="all")["warnings"][0]
    )


@pytest.mark.slow
def test_a_moved_folder_keeps_its_held_out_images(folder: Path, tmp_path: Path) -> None:
    """Some classes, and some images of each: of the same folder, wherever it lies."""
    root = photos(tmp_path / "photos", 3)
    shutil.copytree(root / "dog", root / "fox")
    overrides = [f"data.path={root}", "data.classes=[dog,cat]", "data.per_class=5", *SMALL]
    train(load_recipe("images", overrides), tmp_path / "run", progress=False)
    run = load_run(tmp_path / "run")
    held_out = evaluate(run)
    shutil.copytree(root, renamed := tmp_path / "renamed")
    assert {**evaluate(run, data=renamed), "data": "photos"} == held_out


def test_a_folder_that_changed_is_refused(tmp_path: Path) -> None:
    root, out = photos(tmp_path / "photos", 7, 5), tmp_path / "run"
    recipe = load_recipe("images", [f"data.path={root}", *SMALL])
    train(recipe, out, progress=False)
    (root / ".DS_Store").write_bytes(b"")
    assert train(recipe, out, progress=False)["steps"] == 1
    evaluate(load_run(out))
    (out / "result.json").rename(out / "kept.json")
    train(recipe, out, progress=False)  # a warning more is no reason to refuse
    (root / "cat" / "0.png").unlink()
    with pytest.raises(ValueError, match="have changed since the start"):
        train(recipe, out, progress=False)
    for data in (None, root):
        with pytest.raises(ValueError, match="have changed since"):
            evaluate(load_run(out), data=data)
    weights = load_run(out / "model.safetensors")
    with pytest.raises(ValueError, match="have changed since"):
        evaluate(weights, data=root)
    assert evaluate(weights, data=root, split="all")["count"] == 9


def test_without_held_out_images_there_is_a_warning(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 8, 4)
    overrides = [f"data.path={root}", "data.validation=0", *SMALL]
    train(load_recipe("images", overrides), tmp_path / "run", progress=False)
    shutil.copytree(root, tmp_path / "copy")
    for data in (root, tmp_path / "copy"):
        figures = evaluate(load_run(tmp_path / "run"), data=data)
        assert figures["count"] == 8
        assert "includes images that the run was trained on" in figures["warnings"][0]


def test_a_folder_with_splits_is_evaluated_on_the_given_one(run: Run, tmp_path: Path) -> None:
    photos(tmp_path / "photos" / "val", 3, 3)
    photos(tmp_path / "photos" / "train", 4, 5)
    assert evaluate(run, data=tmp_path / "photos")["count"] == 6
    assert evaluate(run, data=tmp_path / "photos", split="train")["count"] == 10


def test_skipped_files_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos" / "train", 5, 6)
    photos(tmp_path / "photos" / "val", 6, 3)
    (tmp_path / "photos" / "val" / "cat" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    overrides = [
        "net.base=resnet20",
        f"data.path={tmp_path / 'photos'}",
        "data.on_unreadable=skip",
        *SMALL,
    ]
    train(load_recipe("images", overrides), tmp_path / "run")
    warnings = store.read_json(tmp_path / "run" / "data.json")["warnings"]
    assert any("val/cat/cut.png" in warning for warning in warnings)
    assert "plusx: 1 of 7 files skipped" in capsys.readouterr().err


def test_a_spec_for_images_of_another_size_is_refused(tmp_path: Path) -> None:
    for size in ("net.size=16", "net.size=7"):
        with pytest.raises(ValueError, match=r"size = \d+, but the images of digits are 8 x 8"):
            train(load_recipe("digits-resnet20", [size]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_has_an_image_at_least(run: Run, folder: Path) -> None:
    for judge in (
        lambda: evaluate(run, batch_size=0),
        lambda: predict(run, [folder], batch_size=0),
    ):
        with pytest.raises(ValueError, match="batch_size = 0: at least 1"):
            judge()


def weights_of(
    path: Path, outputs: int, resize: str = "stretch", channels: int = 3, **metadata: object
) -> Path:
    """A file of untrained weights that says as much of its use as is `said`."""
    net = create_model("resnet20", num_classes=outputs, in_channels=channels, seed=0)
    usual = {
        "size": [16, 16],
        "channels": 3,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "resize": resize,
    }
    fields = {"preprocessing": usual, "classes": None, **metadata}
    save_network(net, path, model="resnet20", **fields)  # type: ignore[arg-type]
    return path


def confusion_of(figures: dict) -> list[list[int]]:
    return figures["confusion"]


@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
def test_evaluation_and_prediction_have_the_same_inputs(
    folder: Path, tmp_path: Path, resize: str
) -> None:
    file = weights_of(tmp_path / "w.safetensors", 2, resize, classes=("cat", "dog"))
    run = load_run(file)
    rows = predict(run, [folder])["predictions"]
    right = [row["probabilities"][run.classes.index(Path(row["path"]).parent.name)] for row in rows]
    expected = -float(np.mean(np.log(right)))
    assert evaluate(run, data=folder)["loss"] == pytest.approx(expected, rel=1e-5)


def test_fewer_classes_and_indices_follow_the_order_of_the_network(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 9, 3)
    names = ("dog", "bird", "cat")
    run = load_run(weights_of(tmp_path / "w.safetensors", 3, classes=names))
    counts = [3, 0, 3]
    assert [sum(row) for row in confusion_of(evaluate(run, data=root))] == counts
    table = tmp_path / "table.csv"
    for number in ("0", "dog"), ("2", "cat"):
        rows = [f"photos/{number[1]}/{label}.png,{number[0]}" for label in range(3)]
        table.write_text("\n".join(["path,label", *rows]))
        totals = [sum(row) for row in confusion_of(evaluate(run, data=table))]
        assert totals == [3 * (label == number[1]) for label in names]
    shutil.rmtree(root / "cat")
    assert [sum(row) for row in confusion_of(evaluate(run, data=root))] == [3, 0, 0]


def test_a_multilabel_network_is_evaluated_on_single_labels(
    tmp_path: Path,
) -> None:
    photos(tmp_path / "photos", 10, 2)
    file = weights_of(
        tmp_path / "w.safetensors", 3, classes=("dog", "bird", "cat"), multilabel=True
    )
    rows = [f"photos/{name}/{index}.png,{name}" for name in ("cat", "dog") for index in range(2)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    figures = evaluate(load_run(file), data=tmp_path / "table.csv")
    assert [row["count"] for row in figures["per_class"]] == [2, 0, 2]


def test_classes_without_names_follow_the_order_of_the_data(folder: Path, tmp_path: Path) -> None:
    figures = evaluate(load_run(weights_of(tmp_path / "two.safetensors", 2)), data=folder)
    assert [row["label"] for row in figures["per_class"]] == ["cat", "dog"]
    assert "are matched by order" in figures["warnings"][0]
    with pytest.raises(ValueError, match=r"'cat'|cannot be matched"):
        evaluate(load_run(weights_of(tmp_path / "three.safetensors", 3)), data=folder)


@pytest.mark.slow
def test_the_folders_of_imagenet_are_its_classes_in_their_order(tmp_path: Path) -> None:
    for number in range(1000):
        path = tmp_path / "val" / f"n{1440764 + number:08}" / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(path)
    file = weights_of(tmp_path / "w.safetensors", 1000)
    figures = evaluate(load_weights_as("resnet20", str(file)), data=tmp_path / "val")
    assert figures["count"] == 1000
    assert [row["label"] for row in figures["per_class"]][:2] == ["tench", "goldfish"]
    assert any("folders of ImageNet" in warning for warning in figures["warnings"])


def test_weights_without_preprocessing(folder: Path, tmp_path: Path) -> None:
    file = weights_of(tmp_path / "w.safetensors", 2, preprocessing=None, classes=("cat", "dog"))
    figures = evaluate(load_weights_as("resnet20", str(file)), data=folder)
    assert any("do not state their preprocessing" in warning for warning in figures["warnings"])
    usual = {
        "size": [8, 8],
        "channels": 1,
        "mean": [0.3053],
        "std": [0.3760],
        "resize": "stretch",
    }
    digits = tuple("0123456789")
    losses = []
    for preprocessing in (None, usual):
        path = tmp_path / "digits.safetensors"
        weights_of(path, 10, channels=1, preprocessing=preprocessing, classes=digits)
        losses.append(evaluate(load_weights_as("resnet20", str(path)), data="digits")["loss"])
    assert losses[0] == losses[1]


def test_every_use_of_test_images_is_recorded(run: Run, tmp_path: Path) -> None:
    for number, part in enumerate(("train", "val", "test")):
        photos(tmp_path / "photos" / part, 20 + number, 2)
    shutil.copytree(run.path, tmp_path / "run")
    copied = load_run(tmp_path / "run")
    weights = load_run(tmp_path / "run" / "model.safetensors")
    assert evaluate(copied, data=tmp_path / "photos", split="all")["test_uses"] == 1
    assert evaluate(weights, data=tmp_path / "photos", split="test")["test_uses"] == 2
    assert "test_uses" not in evaluate(copied, data=tmp_path / "photos", split="train")
    (tmp_path / "run" / "result.json").unlink()
    assert "not finished" in evaluate(load_run(tmp_path / "run"))["warnings"][0]


@pytest.mark.parametrize("source", ["akamaster", "elsewhere"])
def test_x10_published_weights_name_their_training_data(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation images of a published set are some of those that others trained on."""
    learned = replace(SOURCE_DEFAULTS["akamaster"], trained_on="digits")
    assert SOURCE_DEFAULTS["akamaster"].trained_on == "cifar10"
    monkeypatch.setitem(SOURCE_DEFAULTS, "akamaster", learned)
    net = create_model("resnet20", in_channels=1, seed=0)
    modality = open_data("digits").modality
    save_network(
        net, tmp_path / "w.safetensors", model="resnet20", preprocessing=modality.to_dict(),
        source=source,
    )  # fmt: skip
    run = load_run(tmp_path / "w.safetensors")
    texts = evaluate(run, data="digits").get("warnings", [])
    assert any("include the validation images" in w for w in texts) == (source == "akamaster")
    texts = evaluate(run, data="digits", split="test").get("warnings", [])
    assert not any("include the validation images" in text for text in texts)


def test_x10_a_fine_tuned_network_names_the_data_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = replace(SOURCE_DEFAULTS["akamaster"], trained_on="digits")
    monkeypatch.setitem(SOURCE_DEFAULTS, "akamaster", learned)
    net = create_model("resnet20", in_channels=1, seed=0)
    save_network(net, tmp_path / "w.safetensors", model="resnet20", source="akamaster")
    overrides = [
        "net.base=resnet20",
        "net.in_channels=1",
        f"net.weights={tmp_path / 'w.safetensors'}",
    ]
    with pytest.warns(UserWarning, match="weights of akamaster were trained on all training"):
        make_net(load_recipe("digits", overrides))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_net(load_recipe("digits", [*overrides, "data.validation=0"]))

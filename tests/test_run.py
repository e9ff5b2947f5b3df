"""Runs: what a folder holds, early stopping, kept weights, beginnings from weights, other data."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.loader import Loader
from plusx.data.readers.open import open_data
from plusx.metrics.classification import ClassificationMeter
from plusx.recipe import Recipe, parse_recipe
from plusx.run import evaluate, load_run, predict, train, write_predictions
from plusx.run.optim import schedule_of
from plusx.train.loop import evaluating
from plusx.train.state import State
from plusx.train.update import GradientStep


TINY = """
epochs = 2
batch_size = 64

[net]
stem = "conv3 norm act"
stem_width = 8
size = 8
in_channels = 1
num_classes = 10
stages = [{ block = "conv3s norm act conv3 norm + act", depth = 1, width = 16, stride = 2 }]

[data]
kind = "digits"
augment = "pad1 crop"

[optim]
kind = "sgd"
lr = 0.1

[device]
kind = "cpu"
threads = 1
"""
COLOUR = TINY.replace("in_channels = 1", "in_channels = 3").replace("size = 8", "size = 12")


def tiny(*overrides: str) -> Recipe:
    return parse_recipe(TINY, overrides)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny(), out, progress=False)
    return out


def test_files_of_a_run(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "checkpoints",
        "data.json",
        "environment.json",
        "log.jsonl",
        "model.safetensors",
        "recipe.toml",
        "result.json",
        "timing.jsonl",
    }
    log = lines(finished)
    assert len(log) == 2 * 19 + 2
    assert set(log[0]) == {"step", "epoch", "lr", "loss", "error"}
    ends = [line for line in log if "train_loss" in line]
    assert [line["epoch"] for line in ends] == [1, 2]
    result = json.loads((finished / "result.json").read_text())
    assert (result["epochs"], result["steps"]) == (2, 38)
    assert ends[-1]["validation"]["accuracy"] == result["validation"]["accuracy"]
    assert "date" not in (finished / "log.jsonl").read_text()
    assert "date" in (finished / "timing.jsonl").read_text()


def test_the_train_error_is_of_the_trained_network_on_images_as_they_are(finished: Path) -> None:
    run = load_run(finished)
    meter = ClassificationMeter()
    with evaluating(run.task), torch.inference_mode():
        for batch in Loader(open_data("digits"), split="all").epoch(0):
            meter.update(run.task.predict(batch), batch)
    result = json.loads((finished / "result.json").read_text())
    assert result["train_error"] == pytest.approx(1 - meter.compute()["accuracy"])
    assert result["train"]["count"] == 1200


def test_runs_are_reproducible_and_differ_between_seeds(finished: Path, tmp_path: Path) -> None:
    train(tiny(), tmp_path / "again", progress=False)
    train(tiny("seed=1"), tmp_path / "other", progress=False)
    for name in ("log.jsonl", "result.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (finished / name).read_bytes()


def test_steps_may_end_within_an_epoch(tmp_path: Path) -> None:
    result = train(tiny("steps=25"), tmp_path / "run", progress=False)
    assert (result["steps"], result["epochs"]) == (25, 2)
    ends = [line for line in lines(tmp_path / "run") if "train_loss" in line]
    assert [line["step"] for line in ends] == [19, 25]


@pytest.mark.slow
def test_patience_stops_and_keeps_the_best(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = tiny("epochs=10", "schedule.kind=one-cycle", "evaluate.patience=2")
    result = train(recipe, out, progress=False)
    accuracies = [line["validation"]["accuracy"] for line in lines(out) if "validation" in line]
    best = int(np.argmax(accuracies))
    assert result["weights"] == "best"
    assert result["best_epoch"] == best + 1
    assert result["validation"]["accuracy"] == accuracies[best]
    if result["stopped_early"]:
        assert len(accuracies) == best + 3
    last = json.loads((finished / "result.json").read_text())
    assert (last["weights"], last["best_epoch"]) == ("last", None)


def test_an_epoch_chosen_by_its_metrics_is_optimistic(finished: Path, tmp_path: Path) -> None:
    train(tiny("epochs=2", "evaluate.keep=best"), tmp_path / "run", progress=False)
    warning = "optimistic: the epoch was chosen on the same images"
    assert warning in evaluate(load_run(tmp_path / "run"))["warnings"]
    of_training = evaluate(load_run(tmp_path / "run"), split="train")
    of_last = evaluate(load_run(finished))
    for others in (of_training, of_last):
        assert warning not in others.get("warnings", [])


@pytest.mark.slow
def test_averaged_weights_are_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    result = train(tiny("optim.ema=0.9"), tmp_path / "run", progress=False)
    assert result["ema"]
    figures = evaluate(load_run(tmp_path / "run"))
    assert figures["loss"] == pytest.approx(result["validation"]["loss"])


def test_without_validation_images_nothing_is_evaluated(tmp_path: Path) -> None:
    result = train(tiny("data.validation=0", "epochs=1"), tmp_path / "run", progress=False)
    assert result["validation"] is None
    assert result["train"]["count"] == 1500
    with pytest.raises(ValueError, match="validation"):
        evaluate(load_run(tmp_path / "run"))


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"not empty and not a run's folder: thesis\.tex"):
        train(tiny(), tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_a_run_that_starts_from_weights(finished: Path, tmp_path: Path) -> None:
    base = 'base = "resnet20"\nnum_classes = 10'
    recipe = parse_recipe(_with_net(TINY, base), ["epochs=1"])
    train(recipe, tmp_path / "first", progress=False)
    weights = tmp_path / "first" / "model.safetensors"
    second = parse_recipe(_with_net(TINY, f'{base}\nweights = "{weights}"'), ["steps=1"])
    train(second, tmp_path / "second", progress=False)
    fresh, begun = (lines(tmp_path / name)[0]["loss"] for name in ("first", "second"))
    assert begun < fresh / 2
    wrong = parse_recipe(_with_net(TINY, f'base = "plain20"\nweights = "{weights}"'))
    with pytest.raises(ValueError, match="the weights are for resnet20"):
        train(wrong, tmp_path / "third", progress=False)
    assert not (tmp_path / "third").exists()


def _with_net(recipe: str, net: str) -> str:
    head, rest = recipe.split("[net]")
    return f"{head}[net]\n{net}\n\n[data]{rest.split('[data]')[1]}"


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"schedule.kind": "constant"}, {0: 0.1, 99: 0.1}),
        (
            {"schedule.kind": "steps", "schedule.milestones": "[0.5, 75]"},
            {49: 0.1, 50: 0.01, 74: 0.01, 75: 0.001},
        ),
        (
            {"schedule.kind": "cosine", "schedule.warmup": "0.1"},
            {0: 0.0, 5: 0.05, 10: 0.1, 55: 0.05},
        ),
        ({"schedule.kind": "cosine", "schedule.end": "0.02"}, {0: 0.1, 50: 0.06, 100: 0.02}),
        ({"schedule.kind": "one-cycle"}, {0: 0.004, 29: 0.1}),
    ],
)
def test_the_rate_follows_the_recipe(schedule: dict[str, str], rates: dict[int, float]) -> None:
    recipe = tiny(*(f"{key}={value}" for key, value in schedule.items()))
    lr = schedule_of(recipe, 100)
    for step, rate in rates.items():
        assert lr(step) == pytest.approx(rate), step


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for label, tone in (("dark", 40), ("light", 210)):
        (root / label).mkdir()
        for number in range(10):
            pixels = np.clip(draws.normal(tone, 20, (18, 22, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def of_photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "photos"
    overrides = ["data.kind=folder", f"data.path={photos}", "data.size=12", "batch_size=8"]
    recipe = parse_recipe(
        COLOUR.replace("num_classes = 10", "num_classes = 2"), [*overrides, "epochs=6"]
    )
    result = train(recipe, out, progress=False)
    assert result["validation"]["accuracy"] == 1.0
    return out


def test_predictions_as_table_and_json(photos: Path, of_photos: Path, tmp_path: Path) -> None:
    run = load_run(of_photos)
    odd = tmp_path / "=1+1.png"
    odd.write_bytes((photos / "light" / "0.png").read_bytes())
    result = predict(run, [photos, odd])
    assert result["classes"] == ["dark", "light"]
    assert len(result["predictions"]) == 21
    for row in result["predictions"][:20]:
        assert row["label"] == Path(row["path"]).parent.name
        assert row["probability"] == max(row["probabilities"])
    json_file, csv_file = write_predictions(tmp_path / "out", {**result, "classes": ["=a", "@b"]})
    assert json.loads(json_file.read_text())["predictions"] == result["predictions"]
    with csv_file.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "label", "probability", "'=a", "'@b"]
    assert float(rows[1][2]) == result["predictions"][0]["probability"]
    relative = predict(run, [odd])
    relative["predictions"][0]["path"] = "=cmd|' /C calc'!A0.png"
    write_predictions(tmp_path / "out", relative)
    assert "\n'=cmd|" in (tmp_path / "out" / "predictions.csv").read_text()


def test_prediction_and_evaluation_have_the_same_inputs(photos: Path, of_photos: Path) -> None:
    run = load_run(of_photos)
    source = open_data(photos, split="all", size=12)
    loader = Loader(source, split="all", batch_size=20)
    with evaluating(run.task), torch.inference_mode():
        expected = run.task.predict(next(loader.epoch(0))).tensors()["probabilities"]
    result = predict(run, source.paths or [])
    predicted = torch.tensor([row["probabilities"] for row in result["predictions"]])
    assert torch.allclose(predicted, expected, atol=1e-6)


def test_views_are_averaged(photos: Path, of_photos: Path, tmp_path: Path) -> None:
    run = load_run(of_photos)
    path = photos / "dark" / "0.png"
    mirrored = tmp_path / "mirrored.png"
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    both = predict(run, [path, mirrored])["predictions"]
    flip = predict(run, [path], tta="flip")["predictions"][0]
    mean = np.mean([row["probabilities"] for row in both], axis=0)
    assert np.allclose(flip["probabilities"], mean, atol=1e-4)


def test_evaluation_matches_classes_by_name(photos: Path, of_photos: Path, tmp_path: Path) -> None:
    run = load_run(of_photos)
    assert evaluate(run, data=photos, split="all")["accuracy"] == 1.0
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    (renamed / "light").symlink_to(photos / "light")
    for name in ("a", "light"):
        (renamed / name).unlink(missing_ok=True)
        (renamed / name).mkdir()
        (renamed / name / "0.png").write_bytes((photos / "light" / "0.png").read_bytes())
    with pytest.raises(ValueError, match=r"'a'"):
        evaluate(run, data=renamed, split="all")


def test_images_that_changed_since_are_refused(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for file in photos.rglob("*.png"):
        target = data / file.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    recipe = parse_recipe(
        COLOUR.replace("num_classes = 10", "num_classes = 2"),
        ["data.kind=folder", f"data.path={data}", "data.size=12", "batch_size=8", "epochs=1"],
    )
    out = tmp_path / "run"
    train(recipe, out, progress=False)
    (out / "result.json").unlink()
    (data / "dark" / "0.png").write_bytes((photos / "light" / "0.png").read_bytes())
    with pytest.raises(ValueError, match="have changed since the start"):
        train(recipe, out, progress=False)
    train(recipe, out, progress=False, allow_data_change=True)


def test_images_may_lie_elsewhere_and_threads_differ_with_a_warning(
    photos: Path, tmp_path: Path
) -> None:
    recipe = parse_recipe(
        COLOUR.replace("num_classes = 10", "num_classes = 2"),
        ["data.kind=folder", f"data.path={photos}", "data.size=12", "batch_size=8", "epochs=1"],
    )
    out = tmp_path / "run"
    first = train(recipe, out, progress=False)
    (out / "result.json").unlink()
    copied = tmp_path / photos.name
    shutil.copytree(photos, copied)
    moved = replace(
        recipe,
        data=replace(recipe.data, path=str(copied)),
        device=replace(recipe.device, threads=2),
    )
    with pytest.warns(UserWarning, match="threads 1 -> 2"):
        second = train(moved, out, progress=False)
    assert second["data"] == first["data"]
    with pytest.raises(ValueError, match="batch_size: 8 -> 4"):
        train(replace(recipe, batch_size=4), out, progress=False)


def test_several_labels_of_an_image(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    rows = ["path,label"]
    for number in range(40):
        red, green = (int(each) for each in draws.integers(0, 2, 2))
        pixels = draws.normal(60, 20, (14, 15, 3))
        pixels[:, :, 0] += 120 * red
        pixels[:, :, 1] += 120 * green
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'|'.join(['red'] * red + ['green'] * green)}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    recipe = parse_recipe(
        COLOUR.replace("num_classes = 10", "num_classes = 2"),
        [
            *("data.kind=csv", f"data.path={tmp_path / 'list.csv'}", "data.size=12"),
            *("batch_size=8", "epochs=5", "task.multilabel=true", "task.class_weights=balanced"),
        ],
    )
    result = train(recipe, tmp_path / "run", progress=False)
    assert result["validation"]["label_accuracy"] >= 0.9
    images = sorted(tmp_path.glob("*.png"))
    cells = dict(row.split(",") for row in rows[1:])
    for opened in (tmp_path / "run", tmp_path / "run" / "model.safetensors"):
        predictions = predict(load_run(opened), images)["predictions"]
        labels = {Path(row["path"]).name: "|".join(reversed(row["labels"])) for row in predictions}
        assert sum(labels[name] == cell for name, cell in cells.items()) >= 36


def test_corrupt_weights_are_not_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(state: State, batch: Batch) -> Tensor:
        loss = GradientStep()(state, batch)
        with torch.no_grad():
            next(state.task.parameters()).fill_(torch.nan)
        return loss

    monkeypatch.setattr("plusx.run.optim.update_of", lambda recipe, sharing: spoilt)
    with pytest.raises(FloatingPointError, match=r"step 1, rate 0\.\d+.*not finite"):
        train(tiny("epochs=1", "batch_size=1200"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "result.json").exists()

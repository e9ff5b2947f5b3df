"""Runs that tell a class for every pixel: training, figures, pictures, explanations."""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch.nn import functional

from plusx import run as runs
from plusx import store
from plusx.cli import run as command
from plusx.data.annotations import Boxes
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset, FileItems, MemoryItems
from plusx.data.instance_mask import InstanceMask
from plusx.data.modality import ImageModality
from plusx.data.prediction import Detections, PositionProbabilities, Prediction, labels_at_size
from plusx.explain.dense_cam import dense_cam
from plusx.grammar.heads import Fcn, Fcos, UNet
from plusx.models import create_model
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe import parse_recipe
from plusx.report.predictions import predictions_page, read_examples
from plusx.run import drawing
from plusx.run.build import resolved
from plusx.run.dense_predictions import GroundTruth, coco, predict_dense
from plusx.run.predictor import MAX_POSITIONS, Predictor
from plusx.tasks.segment import Segment
from plusx.tasks.task import Task
from plusx.weights import save_network


RECIPE = """
seed = 0
epochs = 8
batch_size = 4

[net]
base = "resnet20"

[head]
kind = "unet"
width = 8

[task]
kind = "segment"
loss = "cross-entropy dice"
class_weights = "root"
background = "ground"

[data]
kind = "masks"
path = "{path}"
size = [32, 40]
classes = ["ground", "disc", "bar"]
ignore = [9]
augment = "flip"

[optim]
kind = "adamw"
lr = 0.01

[schedule]
kind = "cosine"
warmup = 0.1

[evaluate]
every = 8
tta = "flip"
"""


def scene(seed: int, size: tuple[int, int] = (32, 40)) -> tuple[np.ndarray, np.ndarray]:
    """A disc in red and a bar in blue on grey, with noise; the frame is not judged."""
    draw = np.random.default_rng(seed)
    height, width = size
    down, along = np.mgrid[:height, :width]
    mask = np.zeros(size, np.uint8)
    top, left = draw.integers(8, height - 8), draw.integers(8, width - 8)
    mask[(down - top) ** 2 + (along - left) ** 2 < 36] = 1
    column = draw.integers(4, width - 8)
    mask[:, column : column + 3][mask[:, column : column + 3] == 0] = 2
    image = np.full((*size, 3), 110.0)
    image[mask == 1] = (200, 60, 60)
    image[mask == 2] = (60, 60, 200)
    image += draw.normal(0, 12, image.shape)
    mask[0] = mask[-1] = 9
    return image.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 16), ("val", 4), ("test", 4)):
        (root / split).mkdir()
        (root / f"{split}annot").mkdir()
        for number in range(count):
            image, mask = scene(1000 * len(split) + number)
            Image.fromarray(image).save(root / split / f"{number}.png")
            Image.fromarray(mask).save(root / f"{split}annot" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = folder / "discs.toml"
    recipe.write_text(RECIPE.format(path=data), encoding="utf-8")
    assert command(["train", str(recipe), "--out", str(folder / "discs")]) == 0
    return folder / "discs"


def pixels(path: Path | io.BytesIO) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def json_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert command(arguments) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_segmentation_run_learns(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json_of(["evaluate", str(trained), "--json"], capsys)
    assert result["metrics"][0] == "dice"
    assert result["tta"] == "flip"
    assert [row["label"] for row in result["per_class"]] == ["ground", "disc", "bar"]
    # the classes differ in colour, so a trained network is far above what an untrained one has
    assert result["dice"] > 0.7
    assert result["mean_iou"] > 0.6
    assert result["positions"] == 4 * 30 * 40
    one = json_of(["evaluate", str(trained), "--json", "--tta", "none"], capsys)
    assert one["tta"] == "none"
    assert one["loss"] != result["loss"]
    assert command(["evaluate", str(trained), "--tta", "flip-shift"]) == 2
    assert "allowed is none or flip" in capsys.readouterr().err


@pytest.mark.slow
def test_predictions_are_drawn_beside_image_and_annotation(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = scene(7, (50, 90))  # another size: all of it is seen, and told of
    Image.fromarray(image).save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "out"
    paths = [str(data / "val" / "0.png"), str(tmp_path / "wide.png"), str(tmp_path / "broken.png")]
    result = json_of(["predict", str(trained), *paths, "--out", str(out), "--json"], capsys)
    first, wide = result["predictions"]
    assert [failure["path"] for failure in result["failed"]] == [paths[2]]
    assert first["ground_truth"]["dice"] > 0.5
    assert "ground_truth" not in wide
    assert wide["size"] == [50, 90]
    assert sum(wide["class_fractions"].values()) == pytest.approx(1)
    predicted = pixels(out / wide["mask"])
    assert predicted.shape == (50, 90)
    assert (predicted == mask)[1:-1].mean() > 0.8
    shares = np.bincount(predicted.ravel(), minlength=3) / predicted.size
    assert list(wide["class_fractions"].values()) == pytest.approx(shares.tolist())
    beside = [pixels(out / row["side_by_side"]).shape for row in result["predictions"]]
    assert beside[0][1] > 2.5 * beside[0][0] * 40 / 32  # image, what is told, truth
    assert beside[1][1] < 2.5 * beside[1][0] * 90 / 50
    assert store.read_json(out / "predictions.json")["predictions"] == result["predictions"]
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [first["label"], wide["label"]]
    page = (out / "predictions.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert not (trained / "test_uses.jsonl").exists()


@pytest.mark.slow
def test_the_report_shows_validation_images(trained: Path) -> None:
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "Examples from the validation split" in page
    assert page.count("data:image/png;base64,") == 4
    result = store.read_json(trained / "examples" / "predictions.json")["predictions"]
    assert all(row["ground_truth"]["dice"] > 0.5 for row in result)
    result[0]["side_by_side"] = "../../secret.png"
    store.write_json(trained / "examples" / "predictions.json", {"predictions": result})
    with pytest.raises(ValueError, match="not an image of a prediction"):
        read_examples(trained / "examples")


@pytest.mark.slow
def test_annotations_of_test_images_are_a_use_of_the_test_set(trained: Path, data: Path) -> None:
    run = runs.load_run(trained)
    result = runs.predict(run, [data / "test"])
    assert all("ground_truth" in row for row in result["predictions"])
    assert result["test_uses"] == 1
    (trained / "test_uses.jsonl").unlink()


@pytest.mark.slow
def test_the_weight_file_alone_predicts_the_same(trained: Path, data: Path) -> None:
    path = data / "val" / "1.png"
    whole = runs.predict(runs.load_run(trained), [path], tta="none")
    alone = runs.predict(runs.load_run(trained / "model.safetensors"), [path])
    assert alone["classes"] == whole["classes"]
    assert alone["predictions"][0]["class_fractions"] == whole["predictions"][0]["class_fractions"]


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(data: Path, tmp_path: Path) -> None:
    text = RECIPE.format(path=data).replace("epochs = 8", "epochs = 2")
    text += "\n[checkpoint]\nevery_steps = 1\nevery_seconds = 0.0\nkeep = 20\n"
    recipe = tmp_path / "again.toml"
    recipe.write_text(text, encoding="utf-8")
    whole, resumed = tmp_path / "whole", tmp_path / "again"
    assert command(["train", str(recipe), "--out", str(whole)]) == 0
    shutil.copytree(whole, resumed)
    for name in ("result.json", "model.safetensors", "report.html"):
        (resumed / name).unlink()
    shutil.rmtree(resumed / "examples")
    saved = sorted(path for path in (resumed / store.CHECKPOINTS).iterdir() if path.is_dir())
    assert len(saved) > 5
    for path in saved[3:]:  # in the middle of an epoch
        shutil.rmtree(path)
    assert command(["train", str(recipe), "--out", str(resumed)]) == 0
    for name in ("result.json", "model.safetensors", "log.jsonl", "examples/predictions.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_evaluation_uses_the_preprocessing_of_the_initial_weights(
    data: Path, tmp_path: Path
) -> None:
    first, weights = create_model("resnet20", seed=1), tmp_path / "first.safetensors"
    modality = ImageModality((32, 32), 3, (0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    save_network(first, weights, model="resnet20", preprocessing=modality.to_dict())
    text = RECIPE.format(path=data).replace('"resnet20"', f'"resnet20"\nweights = "{weights}"')
    text = text.replace("epochs = 8", "epochs = 2").replace('tta = "flip"', "")
    result = runs.train(parse_recipe(text), tmp_path / "run", progress=False)
    run = runs.load_run(tmp_path / "run")
    assert run.preprocessing.mean == (0.1, 0.2, 0.3)
    evaluated = runs.evaluate(run, batch_size=4)
    assert evaluated["loss"] == result["validation"]["loss"]
    elsewhere = runs.evaluate(run, data=shutil.copytree(data, tmp_path / "copy"), batch_size=4)
    assert elsewhere["loss"] == evaluated["loss"]
    # how the run's own data was divided says nothing of others
    assert run.recipe is not None
    cut = replace(run.recipe, data=replace(run.recipe.data, validation=0.25))
    resumed = runs.evaluate(replace(run, recipe=cut), data=tmp_path / "copy", batch_size=4)
    assert resumed["loss"] == evaluated["loss"]


@pytest.mark.slow
def test_images_of_any_size_are_predicted_unscaled(data: Path, tmp_path: Path) -> None:
    """Without a size nothing is scaled; what is told window by window has the image's size too."""
    for split in ("train", "val"):
        image, mask = scene(5, (41, 67))
        (tmp_path / "sets" / split).mkdir(parents=True)
        (tmp_path / "sets" / f"{split}annot").mkdir()
        Image.fromarray(image).save(tmp_path / "sets" / split / "odd.png")
        Image.fromarray(mask).save(tmp_path / "sets" / f"{split}annot" / "odd.png")
        for number in range(2):
            for folder in (split, f"{split}annot"):
                content = (data / folder / f"{number}.png").read_bytes()
                (tmp_path / "sets" / folder / f"{number}.png").write_bytes(content)
    text = RECIPE.format(path=tmp_path / "sets").replace("size = [32, 40]\n", "")
    text = text.replace('background = "ground"', 'background = "ground"\nwindow = [32, 32]')
    recipe = tmp_path / "any.toml"
    recipe.write_text(text.replace("epochs = 8", "epochs = 1"), encoding="utf-8")
    assert command(["train", str(recipe), "--out", str(tmp_path / "any")]) == 0
    run = runs.load_run(tmp_path / "any")
    assert not run.sized
    recorded = store.read_json(tmp_path / "any" / "result.json")["validation"]["confusion"]
    for size in (1, 3):
        assert runs.evaluate(run, tta="none", batch_size=size)["confusion"] == recorded, size
    path = tmp_path / "sets" / "val" / "odd.png"
    result = runs.predict(run, [path], out=tmp_path / "out")
    assert result["predictions"][0]["size"] == [41, 67]
    assert pixels(tmp_path / "out" / result["predictions"][0]["mask"]).shape == (41, 67)
    alone = runs.load_run(tmp_path / "any" / "model.safetensors")
    assert not alone.sized
    assert isinstance(alone.task, Segment)
    assert alone.task.window == (32, 32)
    resumed = runs.predict(alone, [path], tta="flip")
    assert (
        resumed["predictions"][0]["class_fractions"] == result["predictions"][0]["class_fractions"]
    )


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("spacing = [1.0, 1.0, 1.0]", "spacing is only for volumes"),
        ("window = [8, 8, 8]", "2 numbers are needed"),
    ],
)
def test_fields_of_volumes_are_refused_for_images(field: str, message: str) -> None:
    text = RECIPE.format(path="nowhere").replace("[data]", f"{field}\n\n[data]")
    source = Dataset(
        name="one",
        split="train",
        classes=("ground", "disc", "bar"),
        labels=torch.ones(1, 3),
        modality=ImageModality((32, 40), 3, (0.5,) * 3, (0.5,) * 3),
        items=MemoryItems(torch.zeros(1, 3, 32, 40, dtype=torch.uint8)),
    )
    with pytest.raises(ValueError, match=message):
        resolved(parse_recipe(text), source)


def test_class_fractions_of_volumes_count_all_slices() -> None:
    shares = ({"ground": 1.0, "disc": 0.0}, {"ground": 0.5, "disc": 0.5})
    rows = [
        {"path": "a", "size": [2, 2, deep], "label": "ground", "class_fractions": fractions}
        for deep, fractions in zip((1, 3), shares, strict=True)
    ]
    page = predictions_page(
        {"classes": ["ground", "disc"], "predictions": rows},
        [b"", b""],
        drawing.colours(2),
        "run",
    )
    assert "62.5" in page
    assert "37.5" in page


@pytest.mark.slow
def test_an_explanation_finds_the_class(trained: Path, data: Path, tmp_path: Path) -> None:
    from plusx.explain.explain import explain

    out = tmp_path / "why"
    result = explain(
        runs.load_run(trained), [data / "val"], out, class_name="disc", stage="layer1", checked=2
    )
    assert result["positions"] == [32, 40]
    maps = store.load_tensors(out / "maps.safetensors")[0]["maps"]
    masks = np.stack([pixels(path) for path in sorted((data / "valannot").iterdir())])
    inside = torch.from_numpy(masks == 1)
    # what speaks for the disc lies where it is, more than elsewhere
    assert float(maps[inside].mean()) > float(maps[~inside].mean())
    assert result["shuffled_weights"]
    with pytest.raises(ValueError, match="only grad-cam"):
        explain(runs.load_run(trained), [data / "val"], tmp_path / "no", method="occlusion")


@pytest.mark.slow
@pytest.mark.parametrize("head", [UNet(width=4), Fcn(stride=8), Fcos(width=8, depth=1)])
def test_grad_cam_of_every_stage(head: Any) -> None:
    torch.manual_seed(0)
    net = NetworkWithHead(create_model("resnet20", seed=0), head, 3)
    x = torch.randn(2, 3, 32, 32)
    classes = torch.tensor([0, 2])
    shapes = [tuple(dense_cam(net, x, classes, stage=stage).shape) for stage in (0, 1, 2)]
    assert len({shape[0] for shape in shapes}) == 1
    assert shapes[0][1] >= shapes[1][1] >= shapes[2][1]
    # without words in the tail, the end of the last stage is what the head stands on
    torch.testing.assert_close(dense_cam(net, x, classes), dense_cam(net, x, classes, stage=2))
    assert net.training


@pytest.mark.slow
def test_grad_cam_of_a_linear_network_adds_up() -> None:
    """Of a head that is one linear map of the last stage, a map is that of its weights."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolve = torch.nn.Conv2d(64, 3, 1, bias=False)

        def forward(self, x: Any, stem: Any, stages: Any) -> Any:
            return self.convolve(stages[-1])

    net = NetworkWithHead(create_model("resnet20", seed=0), Fcn(stride=8), 3)
    net.head = Linear()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        _, stages = net.eval().maps(x)
        expected = net.head.convolve(stages[-1])[:, 1]
    torch.testing.assert_close(dense_cam(net, x, torch.tensor([1])), expected)


def test_run_lengths_are_cocos() -> None:
    plane = np.array([[0, 1], [0, 1], [1, 1]], bool)
    assert InstanceMask.of(plane).run_lengths((3, 2)) == {"size": [3, 2], "counts": [2, 4]}
    assert InstanceMask.of(~plane).run_lengths((3, 2)) == {"size": [3, 2], "counts": [0, 2, 4]}
    assert InstanceMask.of(np.zeros((2, 2), bool)).run_lengths((2, 2))["counts"] == [4]
    assert InstanceMask.of(np.ones((2, 2), bool)).run_lengths((2, 2))["counts"] == [0, 4]


@pytest.mark.slow
@given(arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_run_lengths_round_trip(plane: np.ndarray) -> None:
    height, width = plane.shape
    counts = InstanceMask.of(plane).run_lengths((height, width))["counts"]
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    assert (plane == values.reshape(width, height).T).all()
    assert all(counts[1:])


@pytest.mark.slow
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_masks_are_interpolated_like_torch(visible: tuple[int, int], size: tuple[int, int]) -> None:
    result = torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(sum(visible) + sum(size)))
    inside = result[None, :, : visible[0], : visible[1]]
    whole = functional.interpolate(inside, size, mode="bilinear", align_corners=False)[0]
    labels = labels_at_size(result, visible, size).long()[None]
    assert bool((whole.gather(0, labels)[0] >= whole.amax(0) - 1e-5).all())


class Brightness(Segment):
    """Tells whether a pixel is bright, and remembers how much it was asked at once."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 2, 1))
        self.asked: list[int] = []

    def predict_slabs(self, batch: Batch) -> Iterator[Prediction]:
        self.asked.append(batch.inputs.numel() // 3)
        bright = (batch.inputs.mean(1, keepdim=True) > 0).float()
        yield PositionProbabilities(torch.cat([1 - bright, bright], 1))


def seeing(task: Segment, path: Path, size: tuple[int, int], sized: bool) -> runs.Run:
    count = task.net.weight.shape[0]  # type: ignore[union-attr, index]
    return runs.Run(
        path=path, net=task.net, task=task, classes=tuple("abcd"[:count]), recipe=None,
        preprocessing=ImageModality(
            size, 3, (0.5,) * 3, (0.2,) * 3, resize="fit" if sized else "none"
        ),
        finished=True,
    )  # fmt: skip


@pytest.mark.slow
def test_large_images_are_predicted_and_drawn_in_bounded_memory(tmp_path: Path) -> None:
    """Few at a time, and no picture larger than can be looked at; masks are as large as images."""
    task = Brightness().eval()
    run = seeing(task, tmp_path, (1024, 1280), sized=True)
    image = torch.randint(0, 256, (3, 2500, 3125), dtype=torch.uint8)
    image[:, :, :1500] //= 4
    names = [f"{number}.png" for number in range(5)]
    predictor = Predictor(run, device="cpu")
    result = predict_dense(
        predictor, [image] * 5, GroundTruth([]), [], out=tmp_path, batch_size=64, names=names
    )
    prepared = predictor.task.task
    assert isinstance(prepared, Brightness)  # a copy, which prepare has made
    assert max(prepared.asked) <= MAX_POSITIONS
    assert len(prepared.asked) < 5  # and together where they are small enough
    row = result["predictions"][0]
    mask = pixels(tmp_path / row["mask"])
    assert mask.shape == (2500, 3125)
    assert (mask[:, :1400] == 0).all()
    assert pixels(tmp_path / row["overlay"]).shape[:2] == (1638, 2048)
    assert pixels(tmp_path / row["side_by_side"]).shape[0] == 1638
    page = (tmp_path / "predictions.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 5
    assert len(page) < 5 * 3_000_000  # noise is the heaviest of all


@pytest.mark.slow
def test_a_mask_predicted_in_slabs_equals_the_whole(tmp_path: Path) -> None:
    task = Segment(torch.nn.Conv2d(3, 4, 3, padding=1), window=(16, 16)).eval()
    run = seeing(task, tmp_path, (64, 64), sized=False)
    image = torch.randint(0, 256, (3, 43, 60), dtype=torch.uint8)
    padded = torch.zeros(1, 3, 64, 64)
    padded[:, :, :43, :60] = run.preprocessing.normalise(image[None])
    for tta in ("none", "flip"):
        predictor = Predictor(run, tta=tta)
        whole_task = predictor.task
        (answer,) = predictor.predictions([image], [])
        with torch.inference_mode():
            whole = whole_task.predict(Batch(padded)).tensors()["probabilities"]
        labels = answer.prediction.tensors()["labels"][0]
        assert torch.equal(labels.long(), whole[0, :, :43, :60].argmax(0))


def test_coco_has_width_and_height() -> None:
    row = {"path": "a.png", "size": [4, 6],
           "boxes": [{"label": "b", "score": 0.5, "box": [1.0, 1.0, 3.0, 2.5]}]}  # fmt: skip
    content = coco({"classes": ["a", "b"], "predictions": [row]}, [1, 2])
    (result,) = content["annotations"]
    assert result["bbox"] == [1.0, 1.0, 2.0, 1.5]
    assert result["category_id"] == 2
    assert content["categories"][result["category_id"] - 1]["name"] == "b"
    assert content["images"] == [{"id": 1, "file_name": "a.png", "width": 6, "height": 4}]


def test_overlays_show_the_prediction() -> None:
    grey = np.full((8, 10, 3), 100, np.uint8)
    mask = np.zeros((8, 10), np.uint8)
    mask[2:5, 3:7] = 1
    mask[0, 0] = 255
    overlay = drawing.overlay_mask(grey, mask, 2)
    assert (overlay[0, 0] == 100).all()
    assert (overlay[3, 4] != overlay[6, 8]).any()
    assert (pixels(io.BytesIO(drawing.mask_png(mask, 2))) == mask).all()
    boxed = drawing.draw_boxes(grey, [(2, 1, 7, 6)], [1], [""], 2)
    assert (boxed[1, 2:7] == drawing.colours(2)[1]).all()
    assert (boxed[3, 4] == 100).all()
    assert len(set(drawing.colours(20))) == 20
    stretched = drawing.as_rgb(np.linspace(0, 9000, 80, dtype=np.uint16).reshape(8, 10, 1))
    assert stretched.min() == 0
    assert stretched.max() == 255


def test_class_fractions_are_reported() -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: Any) -> Any:
            return torch.stack([x[:, 0], -x[:, 0]], 1) + self.weight

    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0] = 40
    x[0, 0, 1] = -40
    scores = Segment(Fixed()).eval().predict(Batch(x)).class_scores(2)
    assert scores.tolist() == [[0.5, 0.5]]


class FixedDetections(Task):
    """Predicts the same boxes for every image."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.net = torch.nn.Identity()
        self.net.head_spec = Fcos()  # type: ignore[assignment]
        self.net.num_classes = 2  # type: ignore[assignment]
        self.rows = rows

    def forward(self, batch: Any) -> Any:
        raise NotImplementedError

    def predict(self, batch: Batch) -> Detections:
        rows = self.rows.expand(len(batch), -1, -1)
        grids = rows[..., 6:].unflatten(2, (28, 28)) if rows.shape[2] > 6 else None
        return Detections(rows[..., :4], rows[..., 4], rows[..., 5].long(), grids)

    def meters(self) -> list[Any]:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
def test_boxes_are_in_pixels_of_the_stored_image(masks: bool, tmp_path: Path) -> None:
    rows = torch.zeros(1, 3, 6 + 28 * 28 * masks)
    # in a network's input of 30 x 60, where an image of 60 x 80 is half as large
    rows[0, 0, :6] = torch.tensor([5, 5, 20, 15, 0.4, 0])
    rows[0, 1, :6] = torch.tensor([10, 2, 50, 28, 0.9, 1])
    rows[0, 2, 5] = -1
    rows[..., 6:] = 1
    task = FixedDetections(rows).eval()
    run = runs.Run(
        path=tmp_path / "run", net=task.net, task=task, classes=("a", "b"), recipe=None,
        preprocessing=ImageModality((30, 60), 3, (0.5,) * 3, (0.2,) * 3, resize="fit"),
        finished=True,
    )  # fmt: skip
    image = torch.full((3, 60, 80), 100, dtype=torch.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    right = np.array([[12, 8, 40, 30, 0, 0]], np.float32)
    source = Dataset(
        name="one", split="test", classes=("a", "b"), labels=torch.ones(1, 2),
        modality=run.preprocessing, items=FileItems([str(path)]), annotations=Boxes([right]),
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    predictor = Predictor(run, device="cpu")
    truth = GroundTruth([source])
    result = predict_dense(predictor, [path] * 2, truth, [], out=tmp_path, batch_size=8)
    first, second = result["predictions"]
    assert result["test_uses"] == 1
    assert [annotation["label"] for annotation in first["boxes"]] == ["b", "a"]
    assert first["boxes"][0]["box"] == [20, 4, 80, 56]  # cut to the image
    assert first["boxes"][1]["box"] == [10, 10, 40, 30]
    assert first["boxes"] == second["boxes"]
    assert first["ground_truth"]["boxes"] == [{"label": "a", "box": [12, 8, 40, 30]}]
    annotations = store.read_json(tmp_path / "coco.json")["annotations"]
    assert [annotation["bbox"] for annotation in annotations[:2]] == [
        [20, 4, 60, 52],
        [10, 10, 30, 20],
    ]
    if masks:
        lengths = first["boxes"][1]["segmentation"]
        assert lengths["size"] == [60, 80]
        inside = sum(lengths["counts"][1::2])
        assert abs(inside - 30 * 20) < 60  # the border of a pasted mask is a matter of rounding
    side_by_side = pixels(tmp_path / first["side_by_side"])
    assert side_by_side.shape[1] > 3 * side_by_side.shape[0]  # image, what is told, truth
    scores = task.predict(Batch(torch.zeros(2, 3, 30, 60))).class_scores(2)
    assert scores[0].tolist() == pytest.approx([0.4, 0.9])


@pytest.mark.slow
def test_an_unknown_monitor_is_refused(data: Path, tmp_path: Path) -> None:
    overrides = ['evaluate.monitor="map50"']
    with pytest.raises(ValueError, match=r"monitor = .map50.: .* has dice, loss, mean_iou"):
        runs.train(parse_recipe(RECIPE.replace("{path}", str(data)), overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_use_of_the_test_set_is_recorded_before_the_first_annotation(
    trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("no more power")

    monkeypatch.setattr(GroundTruth, "of", fails)
    with pytest.raises(RuntimeError, match="no more power"):
        runs.predict(runs.load_run(trained), [data / "test", data / "val"])
    (line,) = (trained / "test_uses.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["count"] == 4
    (trained / "test_uses.jsonl").unlink()


@pytest.mark.slow
def test_an_embedding_is_one_vector_per_image(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json_of(["probe", str(trained), "--json"], capsys)
    assert result["width"] == 64  # channels of the last stage, whatever the size of the images
    assert (result["learned_from"], result["count"]) == (16, 4)
    assert result["classes"] == ["ground", "disc", "bar"]

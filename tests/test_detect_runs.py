"""Detectors at work: they learn, go on bit for bit, are judged with their masks, and have a run."""

import importlib
import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from plusx import store
from plusx.data.annotations import Boxes
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset, MemoryItems
from plusx.data.loader import Loader
from plusx.data.modality import ImageModality
from plusx.data.prediction import Detections
from plusx.data.sets.cells import open_cells
from plusx.grammar.heads import Fcos, Head, MaskRcnn, Yolo
from plusx.grammar.spec import Block, Net, Stage
from plusx.models import create_model
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe import Recipe, load_recipe
from plusx.report import write_report
from plusx.run import evaluate as evaluated
from plusx.run import load_run, predict, train
from plusx.run.build import open_split
from plusx.run.task_factory import make_training_task
from plusx.tasks.detect import Detect
from plusx.tasks.prepare import prepare
from plusx.train.loop import evaluate, fit
from plusx.train.optim import make_optimizer
from plusx.train.schedule import cosine
from plusx.train.state import State
from plusx.train.update import GradientStep


ROOT = Path(__file__).parents[1]
BASIC = Block(body="conv3s norm act conv3 norm + act")
# strides 4, 8 and 16, so that it is quick
SMALL = Net(
    stem="conv3s2 norm act conv3s2 norm act",
    stem_width=16,
    stages=tuple(
        Stage(block=BASIC, depth=1, width=width, stride=stride)
        for width, stride in ((16, 1), (32, 2), (64, 2))
    ),
    size=64,
    num_classes=2,
)
CLASSES = ("square", "bar")
ANCHORS = tuple((side, side) for side in (8, 12, 16, 20, 24, 28, 32, 40, 48))


def squares(step: int, count: int = 8, masks: bool = False) -> Batch:
    """Light squares and dark bars, one of each, apart from each other, on grey with noise."""
    draw = np.random.default_rng(step)
    images = draw.normal(0, 0.2, (count, 3, 64, 64)).astype(np.float32)
    boxes = np.zeros((count, 2, 6), np.float32)
    planes = np.zeros((count, 2, 64, 64), np.uint8)
    for image, rows, planes_of_image in zip(images, boxes, planes):
        for index, ((tall, wide), shade) in enumerate((((14, 14), 1.5), ((10, 22), -1.5))):
            top = 32 * index + int(draw.integers(2, 30 - tall))
            left = int(draw.integers(2, 62 - wide))
            image[:, top : top + tall, left : left + wide] += shade
            planes_of_image[index, top : top + tall, left : left + wide] = 1
            rows[index] = (left, top, left + wide, top + tall, index, 0)
    extras = {"masks": torch.from_numpy(planes)} if masks else {}
    return Batch(torch.from_numpy(images), torch.from_numpy(boxes), extras=extras)


def begun(head: Head, rate: float) -> State:
    torch.manual_seed(0)
    net = NetworkWithHead(create_model(SMALL, seed=0), head, 2)
    task = prepare(Detect(net, class_names=CLASSES), device="cpu")
    return State(task, make_optimizer(task, "adamw", lr=rate, weight_decay=0.01), seed=3)


def taught(state: State, rate: float, until: int, masks: bool, total: int) -> list[float]:
    batches = (squares(step, masks=masks) for step in range(state.step, until))
    lr = cosine(rate, total)
    return [report.loss for report in fit(state, batches, lr, GradientStep(clip=10.0))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "steps", "rate", "least"),
    [
        (Fcos(width=32, depth=1, finest=4, levels=2), 60, 5e-3, 0.8),
        (Yolo(anchors=ANCHORS), 100, 3e-3, 0.4),
    ],
    ids=["fcos", "yolo"],
)
def test_a_detector_learns(head: Head, steps: int, rate: float, least: float) -> None:
    state = begun(head, rate)
    losses = taught(state, rate, steps, False, steps)
    assert losses[-1] < losses[0] / 2
    figures = evaluate(state.task, [squares(1000 + index) for index in range(3)])
    assert figures["map50"] > least
    assert set(state.task.metrics) <= set(figures)


@pytest.mark.slow
def test_a_mask_rcnn_learns_and_its_masks_are_evaluated() -> None:
    head = MaskRcnn(width=16, anchors=(12, 24, 48, 96), regions=32)
    state = begun(head, 3e-3)
    losses = taught(state, 3e-3, 60, True, 60)
    assert losses[-1] < losses[0] / 2
    figures = evaluate(state.task, [squares(1000 + index, masks=True) for index in range(2)])
    assert figures["map50"] > 0.6
    assert figures["mask_map50"] > 0.5
    with pytest.raises(ValueError, match="needs instance masks; the batch has none"):
        state.task(squares(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [Fcos(width=16, depth=1, finest=4, levels=2), MaskRcnn(width=8, anchors=(8, 16, 32, 64))],
    ids=["fcos", "mask-rcnn"],
)
def test_a_detector_resumes_bit_for_bit(head: Head) -> None:
    """Proposals are drawn at random, and the draws are those of the step."""
    masks = head.kind == "mask-rcnn"
    whole = begun(head, 1e-3)
    losses = taught(whole, 1e-3, 4, masks, 4)
    first = begun(head, 1e-3)
    taught(first, 1e-3, 2, masks, 4)
    tensors, values = first.state_dict()
    tensors = {
        group: {k: v.clone() for k, v in by_name.items()} for group, by_name in tensors.items()
    }
    second = begun(head, 1e-3)
    second.load_state_dict(tensors, values)
    torch.rand(5)
    assert taught(second, 1e-3, 4, masks, 4) == losses[2:]


def cells(count: int) -> Dataset:
    return open_cells("validation").subset(range(count))


@pytest.mark.slow
def test_the_loader_yields_boxes_for_detectors() -> None:
    """Targets that are told back as they are have every figure at its best."""
    source = cells(6)
    with Loader(source, split="validation", batch_size=4) as loader:
        batches = list(loader.epoch(0))
    task = begun(MaskRcnn(width=8, anchors=(8, 16, 32, 64)), 1e-3).task
    (meter,) = task.meters()
    for batch in batches:
        boxes = batch.targets
        grids = torch.zeros(*boxes.shape[:2], 28, 28)
        for images, boxes_of_batch, planes in zip(grids, boxes, batch.extras["masks"]):
            for grid, box, plane in zip(images, boxes_of_batch, planes):
                if box[4] >= 0:
                    left, top, right, bottom = box[:4].int().tolist()
                    part = plane[None, None, top:bottom, left:right].float()
                    grid[:] = torch.nn.functional.interpolate(part, (28, 28))[0, 0]
        scores = torch.full(boxes.shape[:2], 0.9)
        meter.update(Detections(boxes[..., :4], scores, boxes[..., 4].long(), grids), batch)
    figures = meter.compute()
    assert figures["map"] == pytest.approx(1.0)
    assert figures["mask_map50"] > 0.9


def write_voc(root: Path, count: int) -> Path:
    """Images as `squares` has them, as Pascal VOC lays them out."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    batch = squares(5, count)
    names = [f"{number:03}" for number in range(count)]
    for name, image, rows in zip(names, batch.inputs, batch.targets):
        pixels = (128 + 60 * image).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.png")
        note = ElementTree.Element("annotation")
        for left, top, right, bottom, category, *_ in rows.int().tolist():
            annotation = ElementTree.SubElement(note, "object")
            ElementTree.SubElement(annotation, "name").text = CLASSES[category]
            box = ElementTree.SubElement(annotation, "bndbox")
            corners = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
            for key, value in corners.items():
                ElementTree.SubElement(box, key).text = str(value)
        ElementTree.ElementTree(note).write(root / "Annotations" / f"{name}.xml")
    splits = {"train": names[: count - 8], "val": names[-8:-4], "test": names[-4:]}
    for split, names_of_split in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names_of_split) + "\n")
    return root


@pytest.mark.slow
def test_a_run_predicts_boxes(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", 24)
    recipe = load_recipe(
        "blood-cells-detect",
        [
            f"data.path={folder}",
            "data.size=[64,64]",
            "data.augment=flip",
            "net.base=resnet20",
            "head.width=16",
            "head.depth=1",
            "head.finest=4",
            "head.levels=2",
            "device.precision=float32",
            "device.threads=1",
            "optim.lr=5e-3",
            "epochs=2",
        ],
    )
    result = train(recipe, tmp_path / "run", progress=False)
    assert result["metrics"] == ["map50", "map"]
    assert result["validation"]["count"] == 4
    assert 0 <= result["validation"]["map50"] <= 1
    assert [row["label"] for row in result["validation"]["per_class"]] == ["bar", "square"]
    run = load_run(tmp_path / "run")
    figures = evaluated(run)
    assert figures["map50"] == result["validation"]["map50"]
    rows = predict(run, [folder / "JPEGImages" / "000.png"])["predictions"]
    assert {"path", "boxes"} <= set(rows[0])


@pytest.mark.data
@pytest.mark.slow
def test_the_blood_cells_data_set_is_complete() -> None:
    recipe = load_recipe("blood-cells-detect", [f"data.path={bccd()}"])
    boxes = 0
    for split, count in (("train", 205), ("validation", 87), ("test", 72)):
        source = open_split(recipe, split)
        assert len(source) == count
        assert source.classes == ("Platelets", "RBC", "WBC")
        boxes += sum(map(len, source.annotations.rows))
    # two boxes have no area
    assert boxes == 4155 + 372 + 361 - 2


def bccd() -> Path:
    folder = Path(os.environ.get("PLUSX_DATA", "")) / "BCCD"
    if not folder.is_dir():
        pytest.skip("BCCD is not under PLUSX_DATA")
    return folder


@pytest.mark.parametrize("name", ["blood-cells-detect", "camvid-detect", "cells-mask"])
def test_recipes_of_detectors_compare_with_a_plain_twin(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    assert recipe.compare is not None
    assert recipe.compare.networks == ("plain18", "resnet18")
    assert recipe.task.kind == "detect"


@pytest.mark.slow
def test_the_time_of_detectors_is_measured_and_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    detectors = importlib.import_module("detectors")
    threads = torch.get_num_threads()
    assert detectors.main(["--tiny", "--threads", "1", "--out", str(tmp_path / "made.json")]) == 0
    assert torch.get_num_threads() == threads
    assert len(capsys.readouterr().out.splitlines()) == 1
    (row,) = store.read_json(tmp_path / "made.json")["rows"]
    assert row["name"] == "resnet18, fcos"
    assert 0 < row["seconds"]["low"] <= row["seconds"]["value"] <= row["seconds"]["high"]


def test_crowds_and_empty_rows_are_no_boxes() -> None:
    """An image without boxes is learned from: nothing is to be found in it."""
    net = NetworkWithHead(
        create_model(SMALL, seed=0), Fcos(width=8, depth=0, finest=4, levels=2), 2
    )
    nothing: Tensor = torch.tensor([[[0.0, 0, 0, 0, -1, 0]]])
    task = Detect(net, class_names=CLASSES)
    loss = task(Batch(torch.zeros(1, 3, 64, 64), nothing))
    loss.backward()
    assert bool(loss.isfinite())
    assert float(task.scalars["boxes"]) == 0.0


def test_missing_requirements_of_a_detector_are_named_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load_recipe("cells-mask")
    net = NetworkWithHead(
        create_model(SMALL, seed=0), Fcos(width=8, depth=0, finest=4, levels=2), 2
    )
    source = Dataset(
        name="mine",
        split="train",
        classes=CLASSES,
        labels=torch.ones(2, 2),
        modality=ImageModality((32, 32), 3, (0.5,) * 3, (0.2,) * 3),
        items=MemoryItems(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)),
    )
    with pytest.raises(ValueError, match='kind = "detect", but mine has no boxes'):
        make_training_task(recipe, net, source)
    monkeypatch.setattr("plusx.metrics.detection.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'plusx\[detect\]'"):
        make_training_task(recipe, net, replace(source, annotations=Boxes.none(2)))


@pytest.mark.slow
def test_the_report_shows_synthetic_images(tmp_path: Path) -> None:
    recipe = load_recipe(
        "cells-mask",
        ["data.size=[32,32]", "data.train=4", "batch_size=2", "epochs=1",
         "net.base=resnet20", "device.precision=float32", "device.threads=1"],
    )  # fmt: skip
    train(recipe, tmp_path / "run", progress=False)
    rows = store.read_json(tmp_path / "run" / "examples" / "predictions.json")["predictions"]
    assert len(rows) == 6
    assert all(row["ground_truth"]["boxes"] for row in rows)
    assert "Examples from the validation split" in write_report(tmp_path / "run").read_text()

"""Predicted boxes as they are written, evaluated and drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plusx import run as runs
from plusx import store
from plusx.data.annotations import Boxes
from plusx.data.dataset import Dataset, FileItems
from plusx.data.instance_mask import InstanceMask, packed_run_lengths
from plusx.data.loader import Loader
from plusx.data.modality import ImageModality
from plusx.data.prediction import stored_boxes
from plusx.data.readers.coco import RunLengths, segmentation_mask
from plusx.metrics.detection import DetectionMeter
from plusx.recipe import load_recipe
from plusx.run import drawing
from plusx.run.dense_predictions import GroundTruth, coco, coco_results, predict_dense
from plusx.run.predictor import Predictor
from test_scenes import coco as coco_folder
from test_scenes import write_image
from test_segment_runs import FixedDetections


pytest.importorskip("faster_coco_eval")

NAMES = ("a", "b")
SHAPES = {"tall": (96, 40), "wide": (40, 96), "even": (64, 64)}


class Measured(FixedDetections):
    """Predicts the same boxes for every image, and is evaluated."""

    def meters(self) -> list[Any]:
        return [DetectionMeter(NAMES)]


def run_of(task: FixedDetections, path: Path, size: tuple[int, int]) -> runs.Run:
    path.mkdir(exist_ok=True)
    modality = ImageModality(size, 3, (0.5,) * 3, (0.2,) * 3, resize="fit")
    return runs.Run(
        path=path, net=task.net, task=task, classes=NAMES, recipe=None, preprocessing=modality,
        finished=True,
    )  # fmt: skip


def images(folder: Path, shapes: dict[str, tuple[int, int]]) -> list[Path]:
    paths = []
    for name, (height, width) in shapes.items():
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        paths.append(folder / f"{name}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.slow
def test_s12_evaluation_and_prediction_use_the_same_boxes(tmp_path: Path) -> None:
    """The mAP of what predict writes is that of evaluate, on images of other shapes than the input:
    boxes that reach into the padding are cut, and those that lie in it are none.
    """
    rng = np.random.default_rng(0)
    rows = torch.zeros(1, 60, 6)
    centres, sides = rng.uniform(0, 64, (60, 2)), rng.uniform(0.01, 40, (60, 2))
    rows[0, :, :2] = torch.from_numpy((centres - sides / 2).clip(0, 64))
    rows[0, :, 2:4] = torch.from_numpy((centres + sides / 2).clip(0, 64))
    rows[0, :, 4] = torch.from_numpy(np.sort(rng.uniform(0.1, 1, 60))[::-1].copy())
    rows[0, :, 5] = torch.from_numpy(rng.integers(0, 2, 60))
    run = run_of(Measured(rows).eval(), tmp_path / "run", (64, 64))
    paths, truth = images(tmp_path, SHAPES), []
    for height, width in SHAPES.values():
        scale = 64 / max(height, width)
        boxes = rows[0, rng.permutation(60)[:20]].numpy().copy()
        boxes[:, :4] = (boxes[:, :4] / scale + rng.normal(0, 1, (20, 4))).clip(0)
        boxes[:, 0:4:2] = boxes[:, 0:4:2].clip(max=width)
        boxes[:, 1:4:2] = boxes[:, 1:4:2].clip(max=height)
        boxes[:, 4], boxes[:, 5] = boxes[:, 5], 0
        area = (boxes[:, 2] - boxes[:, 0] > 1) & (boxes[:, 3] - boxes[:, 1] > 1)
        truth.append(boxes[area].astype(np.float32))
    source = Dataset(
        name="three", split="validation", classes=NAMES, labels=torch.ones(3, 2),
        modality=run.preprocessing, items=FileItems([str(path) for path in paths]),
        annotations=Boxes(truth),
    )  # fmt: skip
    meter = DetectionMeter(NAMES)
    with Loader(source, split="all", batch_size=2) as loader:
        for batch in loader.epoch(0):
            meter.update(run.task.predict(batch), batch)
    evaluated = meter.compute()
    predictor, annotations = Predictor(run, device="cpu"), GroundTruth([source])
    result = predict_dense(predictor, paths, annotations, [], out=tmp_path / "out", batch_size=8)
    content = store.read_json(tmp_path / "out" / "coco.json")
    written = store.read_json(tmp_path / "out" / "coco-results.json")
    assert all(min(row["bbox"][2:]) > 0 for row in written)
    assert evaluated["map"] == pytest.approx(map_of(result, content, written), abs=1e-9)
    assert 0.2 < evaluated["map50"] < 1


def map_of(result: dict[str, Any], content: dict[str, Any], written: list[Any]) -> float:
    """COCO's mAP of predicted boxes, from the files alone."""
    from faster_coco_eval import COCO, COCOeval_faster

    annotations: list[dict[str, Any]] = []
    for image, row in zip(content["images"], result["predictions"]):
        for box in row["ground_truth"]["boxes"]:
            left, top, right, bottom = box["box"]
            wide, high = right - left, bottom - top
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "iscrowd": 0,
                 "category_id": NAMES.index(box["label"]) + 1, "area": wide * high,
                 "bbox": [left, top, wide, high]}
            )  # fmt: skip
    truth = COCO({**content, "annotations": annotations})
    evaluation = COCOeval_faster(truth, truth.loadRes(written), "bbox", print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def _silent(*words: object) -> None:
    """In the place of printing."""


def test_s12_a_box_that_is_written_has_an_area() -> None:
    boxes = torch.tensor([[1.001, 1, 1.004, 9], [1.0, 1, 1.02, 9], [2, 2, 2.006, 9]])
    stored, indices = stored_boxes(boxes, torch.zeros(3).long(), 1.0, (10, 10))
    assert indices.tolist() == [1, 2]
    corners = [[round(side, 2) for side in box] for box in stored.tolist()]
    assert corners == [[1.0, 1.0, 1.02, 9.0], [2.0, 2.0, 2.01, 9.0]]


def test_s11_predictions_have_the_ids_of_the_json_that_they_are_from() -> None:
    box = {"label": "b", "score": 0.5, "box": [1.0, 1.0, 3.0, 2.5]}
    rows = [
        {"path": "a.png", "size": [4, 6], "boxes": [box], "image_id": 397133},
        {"path": "b.png", "size": [4, 6], "boxes": [box], "image_id": "x7"},
        {"path": "c.png", "size": [4, 6], "boxes": [box]},
    ]
    content = coco({"classes": ["a", "b"], "predictions": rows}, [18, 90])
    assert [image["id"] for image in content["images"]] == [397133, "x7", 397134]
    assert [category["id"] for category in content["categories"]] == [18, 90]
    assert coco_results(content)[0] == {
        "image_id": 397133, "category_id": 90, "bbox": [1.0, 1.0, 2.0, 1.5], "score": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_s11_masks_of_a_results_list_are_packed_as_coco_packs_them(seed: int) -> None:
    plane = np.random.default_rng(seed).random((9, 40)) < 0.3 + 0.1 * seed
    lengths = InstanceMask.of(plane).run_lengths((9, 40))
    text = packed_run_lengths(lengths["counts"])
    assert (segmentation_mask(RunLengths(size=(9, 40), counts=text), (9, 40)) == plane).all()
    library = pytest.importorskip("faster_coco_eval.core.mask")
    counts = library.encode(np.asfortranarray(plane.astype(np.uint8)))["counts"]
    assert text == (counts.decode() if isinstance(counts, bytes) else counts)


def test_s11_labels_of_boxes_do_not_cover_each_other() -> None:
    grey = np.full((600, 800, 3), 100, np.uint8)
    boxes = [(100, 100, 300, 300), (100, 100, 300, 301), (100, 100, 301, 300)]
    alone = drawing.draw_boxes(grey, boxes[:1], [0], ["word"], 2)
    labelled = [(drawing.draw_boxes(grey, boxes[:n], [1] * n, ["word"] * n, 2) !=
                 drawing.draw_boxes(grey, boxes[:n], [1] * n, [""] * n, 2)).any(-1).sum()
                for n in (1, 2, 3)]  # fmt: skip
    assert labelled[0] * 1.8 < labelled[1]
    assert labelled[0] * 2.6 < labelled[2]
    assert (alone != grey).any()


@pytest.mark.parametrize("side", [320, 2048])
def test_s11_lines_and_labels_grow_with_the_image(side: int) -> None:
    grey = np.full((side, side, 3), 100, np.uint8)
    box = (side // 4, side // 4, side // 2, side // 2)
    image = drawing.draw_boxes(grey, [box], [0], [""], 2)
    thickness = int((image[side * 3 // 8, : side // 3] != 100).any(-1).sum())
    assert thickness == {320: 2, 2048: 7}[side]
    labelled = drawing.draw_boxes(grey, [box], [0], ["word"], 2)
    rows = (labelled[: side // 4] != 100).any((1, 2)).sum()
    assert rows >= side / 48


@pytest.mark.slow
def test_s11_a_page_of_large_photos_is_small(tmp_path: Path) -> None:
    rows = torch.zeros(1, 30, 6)
    rows[0, :, :2] = torch.rand(30, 2) * 200
    rows[0, :, 2:4], rows[0, :, 4] = rows[0, :, :2] + 50, 0.9
    run = run_of(FixedDetections(rows).eval(), tmp_path / "run", (256, 256))
    blurred = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    paths = [tmp_path / f"{number}.jpg" for number in range(2)]
    for path in paths:
        Image.fromarray(blurred).resize((4000, 3000)).save(path)
    predict_dense(Predictor(run, device="cpu"), paths, GroundTruth([]), [], out=tmp_path / "out",
                  batch_size=2)  # fmt: skip
    assert (tmp_path / "out" / "predictions.html").stat().st_size < 2 * 150_000 + 40_000


@pytest.mark.slow
def test_s11_a_run_keeps_the_ids_of_its_json(tmp_path: Path) -> None:
    root = coco_folder(tmp_path / "set")
    for path in root.glob("*.json"):
        content = store.read_json(path)
        for category in content["categories"]:
            category["id"] = {1: 18, 2: 90}[category["id"]]
        for annotation in content["annotations"]:
            annotation["category_id"] = {1: 18, 2: 90}[annotation["category_id"]]
            annotation["image_id"] += 1000
        for image in content["images"]:
            image["id"] += 1000
        path.write_text(json.dumps(content))
    overrides = [f"data.path={root}", "data.size=[32,48]", "net.base=resnet20", "head.width=16",
            "head.depth=1", "head.finest=4", "head.levels=2", "device.precision=float32",
            "device.threads=1", "data.kind=coco", "epochs=1", "batch_size=3"]  # fmt: skip
    runs.train(load_recipe("blood-cells-detect", overrides), tmp_path / "run", progress=False)
    assert store.read_json(tmp_path / "run" / "data.json")["category_ids"] == [18, 90]
    write_image(tmp_path / "new" / "x.png")
    paths = [root / "val" / "d.png", tmp_path / "new" / "x.png"]
    runs.predict(runs.load_run(tmp_path / "run"), paths, out=tmp_path / "out")
    content = store.read_json(tmp_path / "out" / "coco.json")
    assert [image["id"] for image in content["images"]] == [1000, 1001]
    assert content["categories"] == [{"id": 18, "name": "cat"}, {"id": 90, "name": "dog"}]

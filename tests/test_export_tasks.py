"""ONNX files of every task: `plusx predict` gives the rows that it gives for the weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import plusx
from plusx import run, zoo
from plusx.data.modality import VolumeModality
from plusx.data.modality.space import Space
from plusx.grammar.heads import FasterRcnn, Fcn, Fcos, Head, MaskRcnn, UNet, Yolo
from plusx.nn.with_head import NetworkWithHead
from plusx.run.folder import load_run
from plusx.weights import save_network
from zoo_shrunken import shrunken


pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

PREPROCESSING = {"size": [64, 64], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
CASES: dict[str, tuple[Head | None, dict[str, Any], str]] = {
    "masks": (UNet(width=8), {"kind": "segment"}, "stretch"),
    "masks of any size": (Fcn(stride=16), {"kind": "segment"}, "none"),
    "boxes": (Fcos(width=16), {"kind": "detect", "score_threshold": 0.001}, "stretch"),
    "boxes of any size": (Yolo(), {"kind": "detect", "score_threshold": 0.2}, "none"),
    "two stages": (FasterRcnn(width=16), {"kind": "detect", "score_threshold": 0.2}, "stretch"),
    "instance masks": (MaskRcnn(width=16), {"kind": "detect", "score_threshold": 0.2}, "none"),
    "embeddings": (None, {"kind": "embed"}, "center_crop"),
    "several labels": (None, {"kind": "classify", "multilabel": True}, "center_crop"),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number, size in enumerate(((64, 64), (70, 100), (64, 64))):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(
            folder / f"{number}.png"
        )
    return folder


def network(head: Head | None) -> torch.nn.Module:
    spec = replace(shrunken(zoo.find("resnet18"), width=16, depth=1), size=64)
    net = plusx.create_model(spec, num_classes=3, seed=0)
    torch.manual_seed(0)  # for the head
    return net.eval() if head is None else NetworkWithHead(net, head, 3).eval()


def assert_alike(one: Any, other: Any) -> None:
    """Equal, numbers nearly so."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            if key != "segmentation":  # a pixel of an outline may fall to the other side
                assert_alike(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other):
            assert_alike(first, second)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-3, abs=2e-2)
    else:
        assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_file_predicts_what_the_weights_predict(case: str, photos: Path, tmp_path: Path) -> None:
    head, task, resize = CASES[case]
    weights, onnx = tmp_path / "net.safetensors", tmp_path / "net.onnx"
    preprocessing = {**PREPROCESSING, "resize": resize}
    save_network(
        network(head),
        weights,
        preprocessing=preprocessing,
        classes=["a", "b", "c"],
        task=task,
        multilabel=bool(task.get("multilabel")),
    )
    exported = run.export_onnx(weights, onnx)
    assert exported["error"] <= exported["allowed"]
    expected, predicted = (run.predict(load_run(path), [photos]) for path in (weights, onnx))
    assert len(predicted["predictions"]) == 3
    if task["kind"] == "detect":
        assert any(row["boxes"] for row in predicted["predictions"])
    assert_alike(predicted, expected)


@pytest.mark.slow
def test_a_file_of_volumes_predicts_what_the_weights_predict(tmp_path: Path) -> None:
    spec = replace(shrunken(zoo.find("r3d_18"), width=8, depth=1), in_channels=1)
    net = NetworkWithHead(plusx.create_model(spec, num_classes=2, seed=0), UNet(width=4), 2).eval()
    space = Space(patch=(16, 32, 32), spacing=(1.0, 1.0, 1.0), orientation="RAS", range=(0.0, 1.0))
    preprocessing = VolumeModality((32, 32), 1, (0.5,), (0.25,), space=space).to_dict()
    weights, onnx = tmp_path / "net.safetensors", tmp_path / "net.onnx"
    task = {"kind": "segment", "window": [16, 32, 32], "spacing": [1.0, 1.0, 1.0]}
    save_network(net, weights, preprocessing=preprocessing, classes=["a", "b"], task=task)
    run.export_onnx(weights, onnx)
    batch = plusx.Batch(torch.randn(1, 1, 20, 40, 32))
    with torch.inference_mode():
        expected, predicted = (
            load_run(path).task.predict(batch).tensors() for path in (weights, onnx)
        )
    assert predicted.keys() == expected.keys()
    for name in predicted:
        torch.testing.assert_close(predicted[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_x3_the_steps_in_the_metadata_prepare_an_image_with_pillow_and_numpy_alone(
    photos: Path, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    weights, onnx = tmp_path / "net.safetensors", tmp_path / "net.onnx"
    save_network(network(None), weights, preprocessing=PREPROCESSING)
    run.export_onnx(weights, onnx)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    resize, crop, scale, normalise = json.loads(metadata["input_steps"])
    with Image.open(photos / "1.png") as file:
        image = file.convert("RGB")
    height, width = resize["size"]
    assert (resize["mode"], resize["interpolation"]) == ("shorter_side", "bilinear")
    factor = max(height / image.height, width / image.width)
    size = (int(image.width * factor), int(image.height * factor))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((a - b) / 2) for a, b in zip(image.size, crop["size"][::-1]))
    image = image.crop((left, top, left + crop["size"][1], top + crop["size"][0]))
    pixels = (np.asarray(image, np.float32) - scale["low"]) / (scale["high"] - scale["low"])
    pixels = (pixels - normalise["mean"]) / normalise["std"]
    inputs = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    (logits,) = session.run(["logits"], {"input": inputs})
    odds = np.exp(logits[0] - logits[0].max())
    row = run.predict(load_run(onnx), [photos / "1.png"])["predictions"][0]
    np.testing.assert_allclose(odds / odds.sum(), row["probabilities"], atol=1e-4)

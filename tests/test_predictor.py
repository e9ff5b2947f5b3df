"""plusx.load: a trained network, and inputs of every form."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import plusx
from plusx.data.modality import IMAGENET_MEAN, IMAGENET_STD, ImageModality


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictor") / "model.safetensors"
    net = plusx.create_model("resnet20", num_classes=3, seed=0)
    modality = ImageModality((32, 32), 3, IMAGENET_MEAN[3], IMAGENET_STD[3])
    plusx.save(net, path, preprocessing=modality.to_dict(), classes=["a", "b", "c"])
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_all_forms_of_an_input_have_one_prediction(weights: Path, photo: Path) -> None:
    predictor = plusx.load(weights, device="cpu")
    assert predictor.classes == ("a", "b", "c")
    image = Image.open(photo)
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    rows = predictor([photo, str(photo), photo.read_bytes(), image, array, tensor])
    assert len(rows) == 6
    for row in rows:
        assert row["probabilities"] == rows[0]["probabilities"]
        assert row["label"] == rows[0]["label"]
    assert [row["path"] for row in rows[:3]] == [str(photo), str(photo), "input 2"]
    assert predictor(photo) == predictor(photo.parent)
    assert predictor(image)[0]["probabilities"] == pytest.approx(rows[0]["probabilities"])


def test_the_batch_size_changes_no_prediction(weights: Path) -> None:
    images = list(torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8))
    predictor = plusx.load(weights, device="cpu")
    whole = predictor(images)
    for row, expected in zip(predictor(images, batch_size=2), whole, strict=True):
        assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_unreadable_inputs_do_not_stop_the_others(weights: Path, photo: Path) -> None:
    broken = photo.with_name("broken.png")
    broken.write_bytes(photo.read_bytes()[:-100])
    predictor = plusx.load(weights, device="cpu")
    failed: list[dict[str, str]] = []
    rows = predictor([broken, photo], failed=failed)
    assert [row["path"] for row in rows] == [str(photo)]
    assert [failure["path"] for failure in failed] == [str(broken)]
    with pytest.raises(plusx.UserError, match=r"broken\.png"):
        predictor([broken, photo])
    with pytest.raises(plusx.UserError, match="no such file"):
        predictor([photo.with_name("none.png")])
    with pytest.raises(plusx.UserError, match="3 channels"):
        predictor(np.zeros((8, 8), np.uint8))
    with pytest.raises(plusx.UserError, match="uint8"):
        predictor(torch.zeros(3, 8, 8))


def test_x6_a_prediction_that_is_not_finite_is_refused_and_its_input_named(
    tmp_path: Path, photo: Path
) -> None:
    net = plusx.create_model("resnet20", num_classes=2, seed=0)
    with torch.no_grad():
        for parameter in list(net.parameters())[-2:]:
            parameter.fill_(3e38)
    modality = ImageModality((32, 32), 3, IMAGENET_MEAN[3], IMAGENET_STD[3])
    plusx.save(net, tmp_path / "m.safetensors", preprocessing=modality.to_dict())
    with pytest.raises(FloatingPointError, match=r"photo\.png: the prediction is not finite"):
        plusx.load(tmp_path / "m.safetensors", device="cpu")([photo])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), r"shape \(2, 8, 8, 3\): .* one image \(h, w\) or"),
        (np.zeros(8, np.uint8), r"shape \(8,\)"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\): .* with 3 channels"),
        (np.array([["a", "b"]]), "takes one image"),
        (torch.zeros(3, 8, 8, 1, dtype=torch.uint8), r"takes one image \(c, h, w\)"),
    ],
)
def test_an_input_of_another_type_or_shape_is_refused(
    weights: Path, value: object, message: str
) -> None:
    with pytest.raises(plusx.UserError, match=message):
        plusx.load(weights, device="cpu")(value)  # type: ignore[arg-type]

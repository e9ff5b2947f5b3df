"""Ten crops and several scales, as values of test-time augmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import plusx
from plusx.data.modality import IMAGENET_MEAN, IMAGENET_STD, ImageModality, VolumeModality
from plusx.data.modality.space import Space
from plusx.run.evaluation import refuse_views
from plusx.tasks.tta import SIDES, TestTimeAugmented, Tta, five_crops, resized


SIZES = st.integers(8, 40)


class Watched(nn.Module):
    """A small convolutional classifier that lists the sizes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate")
        self.inputs: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(tuple(x.shape))
        return self.conv(x).relu().mean((2, 3))


def probabilities(task: plusx.Task, inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return task.predict(plusx.Batch(inputs)).tensors()["probabilities"]


def augmented(views: Tta, size: tuple[int, int] | None = None) -> tuple[Watched, TestTimeAugmented]:
    net = Watched()
    return net, TestTimeAugmented(plusx.Classify(net).eval(), views, size)


@given(SIZES, SIZES, st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=20)
def test_five_crops_are_the_corners_and_the_centre(
    height: int, width: int, down: int, right: int
) -> None:
    image = torch.arange((height + down) * (width + right)).view(1, 1, height + down, -1).float()
    if not down and not right:
        padded = nn.functional.pad(image, [width // 8] * 2 + [height // 8] * 2, mode="reflect")
        assert torch.equal(five_crops(image, (height, width))[4], image)
        image = padded
    crops = five_crops(image, (height, width))
    rows, columns = image.shape[2] - height, image.shape[3] - width
    begins = [image[0, 0, top, left] for top in (0, rows) for left in (0, columns)]
    begins.append(image[0, 0, rows // 2, columns // 2])
    assert [crop[0, 0, 0, 0] for crop in crops] == begins
    assert {tuple(crop.shape) for crop in crops} == {(1, 1, height, width)}


def test_images_of_the_network_s_size_are_padded_by_an_eighth() -> None:
    image = torch.arange(32 * 32).view(1, 1, 32, 32).float()
    first, *_, last, centre = five_crops(image, (32, 32))
    assert torch.equal(centre, image)
    # by reflection, without the border
    assert float(first[0, 0, 0, 0]) == float(image[0, 0, 4, 4])
    assert torch.equal(first[:, :, 4:, 4:], image[:, :, :28, :28])
    assert float(last[0, 0, -1, -1]) == float(image[0, 0, 27, 27])
    assert torch.equal(last[:, :, :28, :28], image[:, :, 4:, 4:])


@pytest.mark.parametrize("side", [32, 40])
@pytest.mark.parametrize("views", ["ten-crop", "multi-scale"])
def test_all_views_of_a_constant_image_are_one(views: Tta, side: int) -> None:
    _, task = augmented(views, (32, 32))
    x = torch.tensor([0.3, -1.0, 2.0]).view(1, 3, 1, 1).expand(2, 3, side, side)
    expected = probabilities(task.task, x[:, :, :32, :32])
    assert torch.allclose(probabilities(task, x), expected, atol=1e-6)


def test_the_number_of_passes_and_their_sizes() -> None:
    net, task = augmented("ten-crop", (224, 224))
    probabilities(task, torch.randn(2, 3, 256, 256))
    assert net.inputs == [(2, 3, 224, 224)] * 10
    net, task = augmented("multi-scale", (224, 224))
    probabilities(task, torch.randn(1, 3, 112, 168))
    assert net.inputs == [(1, 3, side, round(1.5 * side)) for side in SIDES]
    net, task = augmented("multi-scale", (32, 32))
    probabilities(task, torch.randn(3, 3, 32, 32))
    assert net.inputs == [(3, 3, side, side) for side in (32, 37, 55, 69, 91)]


def test_probabilities_are_averaged_over_the_crops() -> None:
    _, task = augmented("ten-crop", (8, 8))
    x = torch.randn(2, 3, 12, 11)
    crops = [
        x[:, :, top : top + 8, left : left + 8]
        for top, left in ((0, 0), (0, 3), (4, 0), (4, 3), (2, 1))
    ]
    views = [probabilities(task.task, view) for crop in crops for view in (crop, crop.flip(-1))]
    assert torch.allclose(probabilities(task, x), torch.stack(views).mean(0), atol=1e-6)


def test_mirrored_images_have_the_same_ten_crops() -> None:
    _, task = augmented("ten-crop", (16, 16))
    for side in (16, 18):  # padded, and with an even margin
        x = torch.randn(3, 3, side, side)
        assert torch.allclose(probabilities(task, x), probabilities(task, x.flip(-1)), atol=1e-6)


def test_the_padding_of_a_batch_is_in_no_view() -> None:
    _, task = augmented("multi-scale", (16, 16))
    small, large = torch.randn(3, 20, 30), torch.randn(3, 32, 24)
    padded = torch.zeros(2, 3, 32, 32)
    padded[0, :, :20, :30], padded[1, :, :, :24] = small, large
    sizes = {"content_size": torch.tensor([[20, 30], [32, 24]])}
    with torch.inference_mode():
        together = task.predict(plusx.Batch(padded, extras=sizes)).tensors()["probabilities"]
    alone = torch.cat([probabilities(task, image[None]) for image in (small, large)])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("shorter", [24, 48, 90])
def test_images_are_resized_as_pillow_does(shorter: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    x = torch.tensor(pixels).permute(2, 0, 1)[None].float()
    size = (round(64 * shorter / 48), shorter)
    expected = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    ours = resized(x, shorter)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - expected).max() <= 1.01  # rounded after each dimension


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tta") / "model.safetensors"
    net = plusx.create_model("resnet20", num_classes=2, seed=0)
    modality = ImageModality((28, 28), 3, IMAGENET_MEAN[3], IMAGENET_STD[3])
    plusx.save(net, path, preprocessing=modality.to_dict(), classes=["a", "b"])
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, shape in (("a", (32, 40)), ("a", (64, 48)), ("b", (90, 64)), ("b", (33, 32))):
        (folder / name).mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        coarse.resize(shape[::-1]).save(folder / name / f"{shape[0]}.png")
    return folder


def test_crops_are_cut_from_the_image_before_its_crop(weights: Path, photos: Path) -> None:
    path = photos / "a" / "64.png"
    with Image.open(path) as image:
        # the shorter side to 28 / 0.875, and of the longer one the middle
        pixels = np.asarray(image.resize((32, 42), Image.Resampling.BILINEAR))[5:37]
    x = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values[3]).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    x = (x - mean) / std
    predictor = plusx.load(weights, tta="ten-crop", device="cpu")
    task = predictor.task.task
    views = [
        probabilities(task, view)
        for crop in five_crops(x, (28, 28))
        for view in (crop, crop.flip(-1))
    ]
    row = predictor(path)[0]
    assert row["probabilities"] == pytest.approx(torch.stack(views).mean(0)[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("views", ["ten-crop", "multi-scale"])
def test_evaluate_and_predict_agree(weights: Path, photos: Path, views: Tta) -> None:
    rows = plusx.load(weights, tta=views, device="cpu")(photos)
    plain = plusx.load(weights, tta="none", device="cpu")(photos)
    assert all(row["probabilities"] != other["probabilities"] for row, other in zip(rows, plain))
    from plusx.run import evaluate, load_run

    result = evaluate(load_run(weights), data=photos, split="all", tta=views, device="cpu")
    assert (result["tta"], result["count"]) == (views, 4)
    correct = [row["label"] == Path(row["path"]).parent.name for row in rows]
    assert result["accuracy"] == sum(correct) / 4
    losses = [
        -np.log(row["probabilities"]["ab".index(Path(row["path"]).parent.name)]) for row in rows
    ]
    assert result["loss"] == pytest.approx(np.mean(losses), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "word"), [("vgg16_cifar", ""), ("vgg11", "pool7"), ("vit", "pos")]
)
def test_networks_of_one_size_have_no_scales(
    tmp_path: Path, photos: Path, name: str, word: str
) -> None:
    spec: object = plusx.find("vit_base_patch16_gap" if name == "vit" else name)
    assert isinstance(spec, plusx.Net)
    from dataclasses import replace

    size = 32
    stages = tuple(replace(stage, width=12, depth=1) for stage in spec.stages)
    small = replace(spec, size=size, stages=stages, stem_width=12, num_classes=2)
    if name == "vgg11":
        small = replace(small, tail="pool7 fc8 act")
    modality = ImageModality((size, size), 3, IMAGENET_MEAN[3], IMAGENET_STD[3])
    path = tmp_path / "model.safetensors"
    net = plusx.create_model(small, seed=0)
    plusx.save(net, path, preprocessing=modality.to_dict(), classes=["a", "b"])
    if not word:
        assert len(plusx.load(path, tta="multi-scale", device="cpu")(photos)) == 4
        return
    with pytest.raises(plusx.UserError, match=f"images of one size, because of {word}"):
        plusx.load(path, tta="multi-scale", device="cpu")
    assert len(plusx.load(path, tta="ten-crop", device="cpu")(photos)) == 4


def test_volumes_have_no_crops_and_external_modules_no_scales() -> None:
    space = Space((16, 16, 16), (1.0, 1.0, 1.0), "SPL", (0.0, 1.0))
    volumes = VolumeModality((16, 16), 1, (0.5,), (0.25,), space=space)
    with pytest.raises(plusx.UserError, match="is for images, not for volumes"):
        refuse_views(volumes, None, "ten-crop")
    images = ImageModality((32, 32), 3, IMAGENET_MEAN[3], IMAGENET_STD[3])
    with pytest.raises(plusx.UserError, match="external module or an exported file"):
        refuse_views(images, plusx.find("resnet8_keras"), "multi-scale")
    refuse_views(images, plusx.find("resnet8_keras"), "ten-crop")
    refuse_views(images, plusx.find("resnet20"), "multi-scale")

"""A folder of volumes from a recipe to masks: trained, evaluated, predicted, and gone on with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import plusx
from plusx import cli
from plusx.data.batch import Batch
from plusx.data.image_file import UnreadableInput
from plusx.data.modality.space import affine_of, reoriented_spacing
from plusx.data.prediction import PositionProbabilities
from plusx.data.readers.scans import read_scan
from plusx.data.readers.volume_files import further_channels, read_channels
from plusx.data.readers.volumes import scans_in
from plusx.errors import UserError
from plusx.grammar.heads import UNet
from plusx.grammar.spec import Block, Net, Stage
from plusx.metrics.segmentation import SurfaceDistanceMeter, hd95
from plusx.nn.network import Network
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe import load_recipe
from plusx.report import write_report
from plusx.report.predictions import read_examples
from plusx.run import build, load_run, train
from plusx.run.examples import draw_examples
from plusx.run.folder import test_uses as uses_of
from plusx.run.prediction import predict, write_predictions
from volume_files import write_nifti, write_series


RECIPE = """
seed = 0
epochs = 6
batch_size = 4

[net]
stem = "conv3 norm act"
stem_width = 6
ndim = 3
in_channels = 1
num_classes = 2
size = 16

[[net.stages]]
block = {{ body = "conv3s norm act conv3 norm + act" }}
depth = 1
width = 6

[[net.stages]]
block = {{ body = "conv3s norm act conv3 norm + act" }}
depth = 1
width = 12
stride = 2

[head]
kind = "unet"
width = 6

[task]
kind = "segment"
loss = "cross-entropy dice"

[data]
kind = "volumes"
path = "{path}"
classes = ["background", "ball"]
range = [-1024, 3071]
window = [-160, 240]
patch = [8, 16, 16]
patches = 6
validation = 2

[optim]
kind = "adamw"
lr = 0.01

[device]
threads = 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("volumes")


@pytest.fixture(autouse=True)
def own_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUSX_CACHE", str(home / "cache"))


def slices(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units (slice, row, column) of soft tissue with a brighter ball, and its mask."""
    random = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*map(np.arange, (10, 24, 20)), indexing="ij"), -1)
    middle = random.uniform((3, 8, 7), (7, 16, 13))
    mask = ((((places - middle) / (2.5, 5, 5)) ** 2).sum(-1) < 1).astype(np.uint8)
    values = 20 + 130 * mask + 15 * random.standard_normal(mask.shape)
    values[:, :2] = -1000
    return np.rint(values).astype(np.float32), mask


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    """A run on six NIfTI files and two DICOM series with masks of NIfTI, (x, y, z) each."""
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    for number in range(8):
        values, mask = slices(number)
        if number < 6:
            path = home / "set" / "images" / f"case{number}.nii.gz"
            write_nifti(path, values.transpose(2, 1, 0), affine)
        else:
            folder = home / "set" / "images" / f"case{number}"
            write_series(folder, values, spacing=(2.0, 1.0, 1.0))
        path = home / "set" / "labels" / f"case{number}.nii.gz"
        write_nifti(path, mask.transpose(2, 1, 0), affine)
    (home / "recipe.toml").write_text(RECIPE.format(path=home / "set"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUSX_CACHE", str(home / "cache"))
        assert cli.run(["train", str(home / "recipe.toml"), "--out", str(home / "run")]) == 0
    return home / "run"


def json_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run([*words, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.slow
def test_a_run_on_volumes_learns(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = json_of(capsys, "evaluate", str(trained))
    assert figures["count"] == 2
    assert figures["dice"] > 0.7  # 0.9 and more is usual
    assert 0 <= figures["hd95"] < 20
    assert figures["hd95_missed"] == 0
    result = json.loads((trained / "result.json").read_text())
    assert result["validation"]["dice"] == pytest.approx(figures["dice"])
    # the epochs saw patches, and their number is that of 6 volumes
    assert result["steps"] == 6 * 6 * 6 // 4
    recipe = (trained / "recipe.toml").read_text()
    assert "window = [8, 16, 16]" in recipe
    assert "spacing = [2.0, 1.0, 1.0]" in recipe


@pytest.mark.slow
def test_other_volumes_are_evaluated_as_a_whole(
    trained: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        for kind in ("images", "labels"):
            path = tmp_path / "others" / kind / f"case{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((home / "set" / kind / path.name).read_bytes())
    figures = json_of(capsys, "evaluate", str(trained), "--data", str(tmp_path / "others"))
    assert (figures["split"], figures["count"]) == ("all", 3)


@pytest.mark.slow
def test_masks_have_the_affine_of_their_volumes(
    trained: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same patient as NIfTI in another orientation and spacing, and as DICOM."""
    import nibabel

    values, mask = slices(50)
    turned = np.array([[0, 0, 2.0, 5], [0, -1.0, 0, -3], [1.0, 0, 0, 9], [0, 0, 0, 1]])
    write_nifti(home / "new" / "turned.nii.gz", np.repeat(values, 2, 2)[:, :, ::2], turned)
    write_nifti(home / "new" / "usual.nii", values.transpose(2, 1, 0), np.diag([-1, -1, 2.0, 1]))
    write_series(home / "new" / "series", values, spacing=(2.0, 1.0, 1.0))
    result = json_of(capsys, "predict", str(trained), str(home / "new"), "--out", str(home / "out"))
    rows = {Path(row["path"]).name: row for row in result["predictions"]}
    assert set(rows) == {"turned.nii.gz", "usual.nii", "series"}
    assert not result["failed"]
    for name, row in rows.items():
        scan = read_scan(home / "new" / name)
        loaded = nibabel.load(home / "out" / row["mask"])
        np.testing.assert_allclose(loaded.affine, scan.affine, atol=1e-4)
        assert loaded.shape == scan.values.shape[1:] == tuple(row["size"])
        inside = np.asarray(loaded.dataobj)
        voxel = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
        assert row["volumes_ml"]["ball"] == pytest.approx((inside == 1).sum() * voxel)
        assert (home / "out" / row["side_by_side"]).is_file()
    usual, series = (
        np.asarray(nibabel.load(home / "out" / rows[name]["mask"]).dataobj)
        for name in ("usual.nii", "series")
    )
    np.testing.assert_array_equal(usual, series)
    right = mask.transpose(2, 1, 0) > 0
    assert 2 * (right & (usual > 0)).sum() / (right.sum() + usual.sum()) > 0.7
    assert (home / "out" / "predictions.html").is_file()


@pytest.mark.slow
def test_volumes_of_another_range_are_refused_in_prediction(
    trained: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, _ = slices(51)
    write_nifti(home / "odd" / "scaled.nii.gz", (values + 1024).transpose(2, 1, 0) / 4095)
    capsys.readouterr()
    assert cli.run(["predict", str(trained), str(home / "odd")]) == 1
    assert "almost none of the stated range" in capsys.readouterr().err


@pytest.mark.slow
def test_annotations_of_known_volumes_are_drawn_beside_them(
    trained: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "set" / "images" / "case7"
    (row,) = json_of(capsys, "predict", str(trained), str(path))["predictions"]
    assert row["ground_truth"]["dice"] > 0.7
    assert row["ground_truth"]["hd95"] < 20


def a_network(ndim: int) -> Network:
    block = Block(body="conv3s norm act conv3 norm + act")
    stages = (Stage(block=block, depth=1, width=4), Stage(block=block, depth=1, width=8, stride=2))
    return Network(
        Net(stem="conv3 norm act", stem_width=4, stages=stages, ndim=ndim, in_channels=1, size=8)
    )


def test_an_image_network_predicts_slice_by_slice() -> None:
    net = NetworkWithHead(a_network(2), UNet(width=4), 2).eval()
    x = torch.randn(2, 1, 3, 8, 8)
    with torch.inference_mode():
        whole = net(x)
        assert whole.shape == (2, 2, 3, 8, 8)
        for index in range(3):
            torch.testing.assert_close(whole[:, :, index], net(x[:, :, index]))


@pytest.mark.slow
def test_an_image_network_is_trained_on_slices(tmp_path: Path) -> None:
    words = ["steps=1", "data.train=2", "data.validation=1", "data.patches=1", "evaluate.every=0"]
    result = train(load_recipe("volumes-slices", words), tmp_path / "run", progress=False)
    assert result["steps"] == 1
    with pytest.raises(UserError, match="takes arrays in 2 dimensions"):
        train(load_recipe("volumes-slices", [*words, "head=default"]), tmp_path / "none")


def test_distances_are_of_surfaces_and_in_mm() -> None:
    """Against every pair of surface voxels, one by one."""
    random = np.random.default_rng(0)
    spacing = (2.0, 1.0, 0.5)
    for _ in range(5):
        # boxes with few holes: most of their voxels are inside, and no surface
        one, other = np.zeros((2, 8, 9, 10), bool)
        one[1:7, 1:8, 0:6], other[0:6, 2:9, 3:10] = True, True
        one, other = (mask & (random.random(mask.shape) < 0.99) for mask in (one, other))
        points = []
        for mask in (one, other):
            padded = np.pad(mask, 1)
            edge = [
                voxel
                for voxel in np.argwhere(mask)
                if not all(
                    padded[tuple(voxel + 1 + step * np.eye(3, dtype=int)[axis])]
                    for axis in range(3)
                    for step in (-1, 1)
                )
            ]
            points.append(np.array(edge) * spacing)
        apart = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
        expected = max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95))
        assert hd95(one, other, spacing) == pytest.approx(expected)
    ball = np.zeros((9, 9, 9), bool)
    ball[2:6, 2:6, 2:6] = True
    assert hd95(ball, np.roll(ball, 3, 0), spacing) == pytest.approx(6)
    assert hd95(ball, ball, spacing) == 0


def test_a_class_that_is_missed_is_counted_and_has_no_distance() -> None:
    meter = SurfaceDistanceMeter((1.0, 1.0, 1.0), ("none", "a", "b"), 0)
    right = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    right[0, 1, 1, 1], right[0, 3] = 1, 255
    probabilities = torch.zeros(1, 3, 4, 4, 4)
    probabilities[:, 0] = 1
    meter.update(PositionProbabilities(probabilities), Batch(right, right))
    assert meter.compute()["hd95"] is None
    assert meter.compute()["hd95_missed"] == 1
    probabilities[0, 1, 1, 1, 2], probabilities[0, 2, 3] = 2, 2  # the latter is not judged
    meter.update(PositionProbabilities(probabilities), Batch(right, right))
    assert meter.compute()["hd95"] == 1
    assert [row["missed"] for row in meter.compute()["hd95_per_class"]] == [1, 0]


@pytest.mark.slow
def test_a_use_of_test_volumes_is_recorded_before_the_first_annotation(
    trained: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("images", "labels"):
        (tmp_path / "test" / kind).mkdir(parents=True)
        for name in ("case0.nii.gz", "case1.nii.gz"):
            path = home / "set" / kind / name
            (tmp_path / "test" / kind / name).write_bytes(path.read_bytes())

    def fails(*arguments: object) -> None:
        raise RuntimeError("no more power")

    monkeypatch.setattr("plusx.run.volume_predictions._metrics", fails)
    before = uses_of(trained)
    assert cli.run(["predict", str(trained), str(tmp_path / "test" / "images")]) == 1
    assert uses_of(trained) == before + 1
    assert json.loads((trained / "test_uses.jsonl").read_text().splitlines()[-1])["count"] == 2
    # the weights of a run alone are the run's all the same
    weights = str(trained / "model.safetensors")
    assert cli.run(["predict", weights, str(tmp_path / "test" / "images")]) == 1
    assert uses_of(trained) == before + 2


@pytest.mark.slow
def test_synthetic_volumes_are_drawn_for_the_report(trained: Path) -> None:
    run = load_run(trained)
    assert run.recipe is not None
    stored = build.open_split(run.recipe, "validation")
    shutil.rmtree(trained / "examples")
    draw_examples(trained, replace(stored, items=replace(stored.items, paths=None)))
    rows = json.loads((trained / "examples" / "predictions.json").read_text())["predictions"]
    assert len(rows) == 2
    for row in rows:
        assert row["ground_truth"]["dice"] > 0.7
        assert (trained / "examples" / row["side_by_side"]).is_file()
    assert "Examples from the validation split" in write_report(trained).read_text()


@pytest.mark.parametrize("orientation", ["SPL", "RAS", "LAI"])
def test_an_affine_is_made_of_an_orientation(orientation: str) -> None:
    affine = affine_of(orientation, (3.0, 1.0, 2.0))
    assert nibabel.aff2axcodes(affine) == tuple(orientation)
    assert reoriented_spacing(affine, orientation) == (3.0, 1.0, 2.0)


@pytest.mark.slow
def test_distances_are_printed_in_mm(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = json_of(capsys, "evaluate", str(trained))
    far = f"{figures['hd95']:.2f} mm"
    assert cli.run(["evaluate", str(trained)]) == 0
    output = capsys.readouterr().out
    assert f"HD95 {far}" in output
    row = next(line for line in output.splitlines() if line.strip().startswith("ball"))
    assert f"{figures['hd95']:.3f}" in row
    page = write_report(trained).read_text()
    assert f"HD95 {far}" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1.2.840.113619.2", "case 1 (left)", "a\\b\nc", ".hidden\u00e9"])
def test_s10_any_name_of_a_volume_is_drawn(name: str, trained: Path, tmp_path: Path) -> None:
    values, _ = slices(50)
    folder = write_series(tmp_path / "new" / name, values, spacing=(2.0, 1.0, 1.0))
    out = tmp_path / "out"
    result = predict(load_run(trained), [folder], out=out)
    write_predictions(out, result)
    (row,) = result["predictions"]
    assert (out / row["mask"]).is_file()
    (example,) = read_examples(out)
    assert example["path"] == row["path"]
    (called,) = plusx.load(trained)(folder)
    files = {"mask", "overlay", "side_by_side"}
    assert called == {key: value for key, value in row.items() if key not in files}


@pytest.mark.slow
def test_s11_channels_in_several_files_are_predicted_as_one(trained: Path, tmp_path: Path) -> None:
    assert further_channels(str(tmp_path / "case_0000.nii.gz"), 1) == []
    for number in range(3):
        write_nifti(tmp_path / f"case_{number:04}.nii.gz", np.zeros((3, 3, 3), np.float32))
    paths = further_channels(str(tmp_path / "case_0000.nii.gz"), 3)
    assert [Path(path).name for path in paths] == ["case_0001.nii.gz", "case_0002.nii.gz"]
    assert scans_in([tmp_path], 3) == [str(tmp_path / "case_0000.nii.gz")]
    assert len(scans_in([tmp_path])) == 3
    assert read_channels([str(tmp_path / "case_0000.nii.gz"), *paths]).values.shape[0] == 3
    write_nifti(tmp_path / "case_0002.nii.gz", np.zeros((3, 3, 2), np.float32))
    with pytest.raises(UnreadableInput, match=r"case_0002\.nii\.gz has another size"):
        read_channels([str(tmp_path / "case_0000.nii.gz"), *paths])

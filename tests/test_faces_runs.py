"""From a folder of people to a gallery: trained, evaluated, predicted, enrolled, verified."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from plusx import run as runs
from plusx import store
from plusx.cli import run as command
from plusx.data.modality import ImageModality
from plusx.data.readers.people import open_people
from plusx.grammar.heads import Fcn
from plusx.models import create_model
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe import parse_recipe
from plusx.recipe.sets import OwnData
from plusx.run.gallery import enroll, open_gallery, verify
from plusx.run.probing import probe
from plusx.weights import save_network
from test_faces import write_people


RECIPE = """
epochs = 6
batch_size = 12

[net]
base = "resnet20"
tail = "pool norm"

[task]
kind = "embed"
loss = "{loss}"
width = 16
margin = 0.3
scale = 12.0
far = 0.1

[data]
kind = "people"
path = "{path}"
size = [12, 12]
channels = 1
augment = "flip"
test = "test.*"
validation = "held.*"
sampler = "pk"
samples_per_class = 3

[optim]
kind = "sgd"
lr = 0.05

[device]
threads = 1
"""
PEOPLE = {
    **{f"p{number}": 6 for number in range(6)},
    **{f"held{number}": 4 for number in range(4)},
    **{f"test{number}": 4 for number in range(4)},
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUSX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"), PEOPLE)


@pytest.fixture(scope="module")
def trained(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "faces"
    recipe = parse_recipe(RECIPE.format(path=faces, loss="arcface"))
    result = runs.train(recipe, out, progress=False)
    assert result["metrics"][0] == "equal_error_rate"
    assert result["validation"]["people"] == 4
    assert result["validation"]["equal_error_rate"] < 0.35
    assert result["train"]["equal_error_rate"] < 0.35
    return out


@pytest.fixture(scope="module")
def gallery(faces: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staff")
    for name in ("test0", "test1", "test2"):
        (folder / name).mkdir()
        for image in sorted((faces / name).iterdir())[:3]:
            (folder / name / image.name).write_bytes(image.read_bytes())
    to = tmp_path_factory.mktemp("galleries") / "staff"
    result = enroll(runs.load_run(trained), folder, to, device="cpu")
    assert (result["people"], result["pictures"]) == (3, 9)
    false, true = result["false_accepts"], result["true_accepts"]
    assert false["people"] == 4 + 6 + 3  # of validation and training, and enrolled
    assert false["images"] == 16 + 36 + 9
    assert false["accepted"] <= 6  # a tenth of 61, rounded down
    assert (true["images"], true["people"]) == (9, 3)
    for accepts in (false, true):
        assert accepts["rate"] == accepts["accepted"] / accepts["images"]
        assert 0 <= accepts["low"] <= accepts["rate"] <= accepts["high"] <= 1
        assert accepts["low"] < accepts["high"]
    assert store.read_json(to / "gallery.json")["true_accepts"] == true
    return to


def test_an_evaluation_on_test_people_is_recorded(trained: Path) -> None:
    opened = runs.load_run(trained)
    first = runs.evaluate(opened, split="test", device="cpu")
    second = runs.evaluate(opened, split="test", device="cpu")
    assert (first["people"], first["count"], first["test_uses"]) == (4, 16, 1)
    assert second["test_uses"] == 2
    assert first["equal_error_rate"] == second["equal_error_rate"]
    mean = runs.evaluate(opened, tta="flip", device="cpu")
    assert mean["tta"] == "flip"


def test_other_people_are_evaluated_as_a_whole(trained: Path, faces: Path, tmp_path: Path) -> None:
    others = _folder_of(faces, tmp_path / "others", ["p0", "p1", "p2"])
    result = runs.evaluate(runs.load_run(trained), data=others, device="cpu")
    assert (result["split"], result["people"], result["count"]) == ("all", 3, 18)


def test_predictions_are_unit_vectors(trained: Path, faces: Path, tmp_path: Path) -> None:
    predictions = runs.predict(runs.load_run(trained), [faces / "test0"], device="cpu")
    assert predictions["classes"] == []
    for row in predictions["predictions"]:
        assert sum(number**2 for number in row["embedding"]) == pytest.approx(1, abs=1e-4)
        assert len(row["embedding"]) == 16
    runs.write_predictions(tmp_path, predictions)
    lines = (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5
    assert lines[0] == ",".join(["path", *map(str, range(16))])


def test_a_probe_on_other_people_is_refused(trained: Path) -> None:
    with pytest.raises(ValueError, match="have different classes"):
        probe(runs.load_run(trained), device="cpu")


def test_a_gallery_identifies_its_people_in_other_images(gallery: Path, faces: Path) -> None:
    opened = open_gallery(gallery)
    assert opened.people == ("test0", "test1", "test2")
    right = 0
    for name in opened.people:
        image = sorted((faces / name).iterdir())[3]
        (row,) = verify(opened, [image], device="cpu")["answers"]
        right += row["nearest"] == name
        assert row["person"] == (row["nearest"] if row["score"] >= opened.threshold else None)
    assert right == 3


def test_the_threshold_is_the_lowest_with_few_enough_false_accepts(
    gallery: Path, trained: Path, faces: Path
) -> None:
    opened = open_gallery(gallery)
    strangers = open_people(faces, split="validation", test="test.*", validation="held.*")
    result = verify(opened, strangers.paths or [], device="cpu")
    accepted = [row for row in result["answers"] if row["person"] is not None]
    assert len(accepted) <= 6  # of all impostors
    stricter = enroll(
        runs.load_run(trained),
        _folder_of(faces, gallery.parent / "again", ["test0", "test1", "test2"]),
        gallery.parent / "stricter",
        far=0.01,
        device="cpu",
    )
    assert stricter["false_accepts"]["accepted"] == 0
    assert stricter["threshold"] > opened.threshold
    assert any("more images are needed" in warning for warning in stricter["warnings"])
    none = verify(open_gallery(gallery.parent / "stricter"), strangers.paths or [], device="cpu")
    assert all(row["person"] is None for row in none["answers"])


def _folder_of(faces: Path, to: Path, names: list[str]) -> Path:
    for name in names:
        (to / name).mkdir(parents=True)
        for image in (faces / name).iterdir():
            (to / name / image.name).write_bytes(image.read_bytes())
    return to


def test_enrolled_people_are_no_impostors(trained: Path, faces: Path, tmp_path: Path) -> None:
    folder = _folder_of(faces, tmp_path / "in", ["held0", "test0"])
    (folder / "somebody").mkdir()
    for image in (faces / "held1").iterdir():  # under another name
        (folder / "somebody" / image.name).write_bytes(image.read_bytes())
    result = enroll(runs.load_run(trained), folder, tmp_path / "gallery", device="cpu")
    assert result["false_accepts"]["people"] == 2 + 6 + 3
    assert any("2 impostors are enrolled" in warning for warning in result["warnings"])
    assert any("held0, held1" in warning for warning in result["warnings"])


def test_training_people_are_no_impostors(trained: Path, faces: Path, tmp_path: Path) -> None:
    run = runs.load_run(trained)
    assert run.recipe is not None
    pictures = OwnData(kind="folder", path=str(faces))  # whose validation has people who train
    run = replace(run, recipe=replace(run.recipe, data=pictures))
    staff = _folder_of(faces, tmp_path / "staff", ["test0", "test1"])
    result = enroll(run, staff, tmp_path / "gallery", device="cpu")
    assert result["false_accepts"]["people"] == result["people"]
    assert result["false_accepts"]["images"] == result["pictures"]


def test_impostors_of_a_folder_take_the_place_of_the_runs(
    trained: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    staff = _folder_of(faces, tmp_path / "staff", ["test0", "test1", "p0"])
    visitors = _folder_of(faces, tmp_path / "visitors", ["test2", "test3"])
    words = ["enroll", str(trained), str(staff), "--device", "cpu", "--far", "0.2"]
    to = ["--impostors", str(visitors), "--out", str(tmp_path / "gallery")]
    assert command([*words, *to]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "20 % of impostors may be accepted" in lines[1]
    assert "of 22 images (5 people) of impostors" in lines[2]  # 8 visitors, and 14 enrolled
    assert "of 14 images (3 people) enrolled" in lines[3]
    assert command([*words, "--out", str(tmp_path / "other"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["false_accepts"]["people"] == 4 + 5 + 3  # p0 is enrolled, and trained
    assert result["warnings"] == ["1 impostor is enrolled and left out: p0"]


def test_one_person_can_be_enrolled_with_one_image(
    trained: Path, faces: Path, tmp_path: Path
) -> None:
    folder = _folder_of(faces, tmp_path / "in", ["test0"])
    for image in sorted((folder / "test0").iterdir())[1:]:
        image.unlink()
    result = enroll(runs.load_run(trained), folder, tmp_path / "gallery", device="cpu")
    assert result["true_accepts"] is None
    assert (result["false_accepts"]["images"], result["false_accepts"]["people"]) == (52, 10)
    assert "people with one image: test0" in result["warnings"]


def test_the_commands_print_json_and_name_errors(
    trained: Path, gallery: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(sorted((faces / "test1").iterdir())[0])
    assert command(["verify", str(gallery), image, "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["answers"][0]) == {"path", "person", "score", "nearest"}
    assert result["answers"][0]["nearest"] == "test1"

    assert command(["verify", str(gallery), image, "--person", "test0", "--device", "cpu"]) == 0
    assert "not test0" in capsys.readouterr().out
    assert command(["verify", str(gallery), image, "--person", "test9"]) == 2
    assert "'test9' is not enrolled" in capsys.readouterr().err
    assert command(["verify", str(faces), image]) == 2
    assert "is not a gallery" in capsys.readouterr().err

    assert command(["enroll", str(trained), str(faces), "--out", str(gallery)]) == 2
    assert "exists already" in capsys.readouterr().err
    to = str(tmp_path / "gallery")
    missing = ["enroll", str(trained), str(tmp_path / "nobody"), "--out", to]
    assert command(missing) == 2
    assert "missing" in capsys.readouterr().err
    assert not (tmp_path / "gallery").exists()
    assert command(["evaluate", str(trained), "--device", "cpu", "--json"]) == 0
    assert "equal_error_rate_interval" in json.loads(capsys.readouterr().out)


def test_a_corrupt_gallery_is_refused(gallery: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in gallery.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    result = store.read_json(copy / "gallery.json")
    store.write_json(copy / "gallery.json", {**result, "people": result["people"][:2]})
    with pytest.raises(ValueError, match="2 people, but vectors of shape"):
        open_gallery(copy)
    store.write_json(copy / "gallery.json", {**result, "format": "another"})
    with pytest.raises(ValueError, match="its format is not"):
        open_gallery(copy)
    store.write_json(copy / "gallery.json", {**result, "tta": "sideways"})
    with pytest.raises(ValueError, match="tta = 'sideways'"):
        open_gallery(copy)
    store.write_json(copy / "gallery.json", result)
    headed = NetworkWithHead(create_model("resnet20"), Fcn(), 2)
    shown = ImageModality((32, 32), 3, (0.5,) * 3, (0.5,) * 3).to_dict()
    save_network(headed, copy / "model.safetensors", preprocessing=shown)
    with pytest.raises(ValueError, match="do not have the width"):
        open_gallery(copy)


def test_triplets_train_and_need_groups_of_one_person(faces: Path, tmp_path: Path) -> None:
    text = RECIPE.format(path=faces, loss="triplet")
    recipe = parse_recipe(text, ["epochs=2", "data.size=[8, 8]"])
    result = runs.train(recipe, tmp_path / "run", progress=False)
    assert result["validation"]["equal_error_rate"] < 0.5
    alone = parse_recipe(text, ["data.sampler=uniform"])
    with pytest.raises(ValueError, match='set \\[data\\] sampler = "pk"'):
        runs.train(alone, tmp_path / "other", progress=False)
    parted = parse_recipe(text, ["optim.accumulation_steps=2"])
    with pytest.raises(ValueError, match="triplet loss is not a sum"):
        runs.train(parted, tmp_path / "parted", progress=False)
    crowded = parse_recipe(text, ["batch_size=30"])
    with pytest.raises(ValueError, match="needs 10 classes, and there are 6"):
        runs.train(crowded, tmp_path / "third", progress=False)


def test_a_classifier_cannot_enroll(faces: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(
        'epochs = 1\n[net]\nbase = "resnet20"\n[data]\nkind = "digits"\ntrain = 100\n'
        '[optim]\nkind = "sgd"\nlr = 0.01\n[device]\nthreads = 1\n'
    )
    runs.train(recipe, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="a gallery needs a network"):
        enroll(runs.load_run(tmp_path / "run"), faces, tmp_path / "gallery")

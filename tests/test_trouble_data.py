"""Trouble with data sets of users, through the command line and the Python interface."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import plusx
import plusx.cli
from corpus import Tree, annotation_of, coco_json, faces, folder, photos, scans, tree, voc
from plusx.data.readers.annotated import open_annotated
from plusx.data.readers.annotation_index import LayoutOptions
from plusx.errors import UserError
from plusx.recipe import load_recipe
from plusx.run.datasets import open_split
from plusx.run.prediction import write_predictions


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; exit code, standard output and the last line of standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        code = plusx.cli.run([os.fspath(w) if isinstance(w, Path) else str(w) for w in words])
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return code, output.out, output.err

    return call


# ------------------------------------------------------------------ nothing to learn


def crowds(root: Path, count: int = 6, ordinary: int = 0) -> Path:
    boxes = [
        annotation_of(n) | {"iscrowd": int(n >= ordinary), "segmentation": []} for n in range(count)
    ]
    return coco_json(root, "train.json", "images", count, annotations=boxes)


def test_crowds_alone_are_refused_before_training(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    root = crowds(tmp_path / "set")
    code, _, err = run("train", "boxes", f"data.path={root}", "epochs=1", "--out", out)
    assert code == 2
    assert "marked as crowd (iscrowd in COCO) or difficult" in err
    assert not (out / "log.jsonl").exists()


def test_difficult_objects_alone_are_refused(tmp_path: Path, run: Run) -> None:
    voc(tmp_path / "set")
    for path in (tmp_path / "set" / "Annotations").iterdir():
        text = path.read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>")
        path.write_text(text)
    code, _, err = run("train", "boxes", f"data.path={tmp_path / 'set'}", "epochs=1")
    assert code == 2
    assert "there is nothing to learn: all 3 boxes" in err or "all 4 boxes" in err


def test_a_split_by_the_seed_that_leaves_only_crowds_is_refused(tmp_path: Path) -> None:
    root = crowds(tmp_path / "set", 4, ordinary=1)
    messages = []
    for seed in range(8):
        try:
            open_annotated(root, "coco", seed=seed, validation=2)
        except UserError as error:
            messages.append(str(error))
    assert 0 < len(messages) < 8
    assert all("nothing to learn" in text and "data.validation" in text for text in messages)


def test_training_on_one_class_is_refused_and_lost_classes_are_named(tmp_path: Path) -> None:
    root = tree(photos(["cat", "dog", "eel"], 8))(tmp_path / "set")
    for value in ("1", "0.05"):
        recipe = load_recipe("images", [f"data.path={root}", f"data.train={value}"])
        with pytest.raises(UserError, match=rf"train = {value} leaves one class only .* per_class"):
            open_split(recipe, "train")
    recipe = load_recipe("images", [f"data.path={root}", "data.train=2"])
    (warning,) = open_split(recipe, "train").warnings
    assert "leaves 1 class without a sample to train on (" in warning
    recipe = load_recipe("images", [f"data.path={root}", "data.train=3"])
    assert open_split(recipe, "train").warnings == []


# ------------------------------------------------------------------ descriptions and notes


YOLO: Tree = {f"images/train/{n}.png": n for n in range(4)}
YOLO |= {f"labels/train/{n}.txt": f"{n % 2} .5 .5 .2 .2\n" for n in range(4)}
NAMES = "train: images/train\nnames: [cell, wall]\n"


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        (NAMES.encode("utf-16"), ("cell", "wall")),
        (NAMES.encode("utf-16-le"), ("cell", "wall")),
        ("names:\t[cell, wall]\ntrain: images/train\n".encode("utf-8-sig"), ("cell", "wall")),
        (b"a: &a\n  names: [cell, wall]\n<<: *a\ntrain: images/train\n", ("cell", "wall")),
        (b"{names: [cell, wall], train: images/train}", ("cell", "wall")),
        (b"train: images/train\nnc: 2\n", ("0", "1")),
    ],
)
def test_a_description_of_yolo_is_read_whatever_its_form(
    text: bytes, classes: tuple[str, ...], tmp_path: Path, run: Run
) -> None:
    tree(YOLO | {"data.yaml": text})(tmp_path)
    code, out, _ = run("info", tmp_path, "--json")
    assert code == 0
    values = json.loads(out)
    assert values["kind"] == "yolo"
    assert tuple(row["name"] for row in values["classes"]) == classes
    is_warned = any("data.yaml has no class names" in text for text in values["warnings"])
    assert is_warned == (classes[0] == "0")


@pytest.mark.parametrize("text", ["", "classes: [cell, wall]\n", "names: [cell, wall]\n\tval: x\n"])
def test_a_description_without_keys_is_named(text: str, tmp_path: Path, run: Run) -> None:
    tree(YOLO | {"data.yaml": text})(tmp_path)
    code, _, err = run("info", tmp_path)
    assert code == 2
    assert "data.yaml" in err


def test_another_yaml_beside_the_images_is_named(tmp_path: Path, run: Run) -> None:
    tree(YOLO | {"hyperparameters.yaml": "lr: 0.1\n"})(tmp_path)
    code, out, _ = run("info", tmp_path)
    assert code == 0
    assert "hyperparameters.yaml is not read" in out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<annotation>", '<annotation xmlns="http://example.org/voc">'),
        ("object>", "Object>"),
        ("annotation>", "doc>"),
        ("bndbox>", "BndBox>"),
    ],
)
def test_voc_in_another_form_is_read(old: str, new: str, tmp_path: Path, run: Run) -> None:
    voc(tmp_path)
    for path in (tmp_path / "Annotations").iterdir():
        path.write_text(path.read_text().replace(old, new))
    code, out, _ = run("info", tmp_path, "--json")
    assert code == 0
    (row,) = json.loads(out)["classes"]
    assert row == {"name": "cell", "train": 3, "validation": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotations><image><box/></image></annotations>", "its root is <annotations>"),
        (
            "<annotation><item><bndbox/></item></annotation>",
            "it has a <bndbox> outside of any <object>",
        ),
    ],
)
def test_xml_of_another_format_is_no_empty_image(
    text: str, reason: str, tmp_path: Path, run: Run
) -> None:
    voc(tmp_path)
    (tmp_path / "Annotations" / "2.xml").write_text(text)
    code, _, err = run("train", "boxes", f"data.path={tmp_path}", "epochs=1")
    assert code == 2
    assert f"2.xml: cannot be read: {reason}" in err


# ------------------------------------------------------------------ COCO


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_json_with_a_byte_order_mark_is_read(encoding: str, tmp_path: Path, run: Run) -> None:
    coco_json(tmp_path, "train.json", "images")
    path = tmp_path / "train.json"
    path.write_bytes(path.read_text().encode(encoding))
    code, out, _ = run("info", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["splits"] == {"train": 3, "validation": 1}


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"images": 5}, "images is 5, not a list"),
        ({"categories": [{"id": 1}]}, "categories, item 1: name is missing"),
        ({"annotations": [{"id": 1, "category_id": 1}]}, "annotation 1: image_id is missing"),
        (
            {"annotations": [annotation_of(1) | {"bbox": [1, 2, "a", 4]}]},
            "bbox has 'a', not four numbers (left, top, width and height)",
        ),
        ({"annotations": [annotation_of(1) | {"iscrowd": 7}]}, "iscrowd is 7, not 0 or 1"),
        ({"annotations": [3]}, "annotation 1: it is 3, not a JSON object"),
    ],
)
def test_errors_of_a_json_are_plain(
    lists: dict[str, object], message: str, tmp_path: Path, run: Run
) -> None:
    coco_json(tmp_path, "train.json", "images")
    path = tmp_path / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | lists))
    code, _, err = run("train", "boxes", f"data.path={tmp_path}", "epochs=1")
    assert code == 2
    assert message in err
    assert "Input should" not in err


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, "x"]], "polygons [[x, y, x, y, ...]] or run lengths"),
        ({"size": [24, 32]}, "polygons [[x, y, x, y, ...]] or run lengths"),
        ({"size": [24, 32], "counts": "m"}, "its run lengths are truncated"),
    ],
)
def test_errors_of_segmentations_are_plain(
    segmentation: object, message: str, tmp_path: Path
) -> None:
    notes = [annotation_of(n) | {"segmentation": segmentation} for n in range(4)]
    coco_json(tmp_path, "train.json", "images", annotations=notes)
    with pytest.raises(UserError) as caught:
        open_annotated(tmp_path, "coco", options=LayoutOptions(instances=True))
    assert message in str(caught.value)


def test_the_supercategory_that_roboflow_adds_is_no_class(tmp_path: Path, run: Run) -> None:
    categories = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "red", "supercategory": "cells"},
        {"id": 2, "name": "white", "supercategory": "cells"},
    ]
    coco_json(tmp_path, "train.json", "images", categories=categories)
    _, out, _ = run("info", tmp_path, "--json")
    values = json.loads(out)
    assert [row["name"] for row in values["classes"]] == ["red", "white"]
    assert any("'cells' is not a class" in text for text in values["warnings"])
    annotation = annotation_of(0) | {"category_id": 0}
    coco_json(tmp_path, "train.json", "images", categories=categories, annotations=[annotation])
    _, out, _ = run("info", tmp_path, "--json")
    assert [row["name"] for row in json.loads(out)["classes"]] == ["cells", "red", "white"]


# ------------------------------------------------------------------ what is meant by a path


def test_a_folder_around_a_data_set_names_it(tmp_path: Path, run: Run) -> None:
    voc(tmp_path / "outer" / "BCCD")
    code, _, err = run("info", tmp_path / "outer")
    assert code == 2
    assert "contains data sets: BCCD (voc); give the path of one" in err
    coco_json(tmp_path / "outer" / "other", "train.json", "images")
    words = ["train", "images", f"data.path={tmp_path / 'outer'}"]
    code, _, err = run(*words)
    assert code == 2
    assert "BCCD (voc), other (coco)" in err


def test_the_files_of_a_named_set_have_its_name(tmp_path: Path, run: Run) -> None:
    tree({"cifar-10-batches-bin/test_batch.bin": b"x", "cifar-100-python/test": b"x"})(tmp_path)
    for folder_name, name in (
        ("cifar-10-batches-bin", "cifar10"),
        ("cifar-100-python", "cifar100"),
    ):
        code, _, err = run("info", tmp_path / folder_name)
        assert code == 2
        assert f"`plusx info {name}`" in err


def test_masks_in_colours_are_listed_with_what_to_write(tmp_path: Path, run: Run) -> None:
    colours = np.zeros((24, 32, 3), np.uint8)
    colours[:, 16:] = (255, 0, 0)
    colours[:4] = (0, 255, 0)
    tree({f"images/{n}.png": n for n in range(4)} | {f"masks/{n}.png": colours for n in range(4)})(
        tmp_path
    )
    code, _, err = run("info", tmp_path)
    assert code == 2
    assert "0,0,0 (41.67% of the pixels); 255,0,0 (41.67% of the pixels); 0,255,0 (16.67%" in err
    assert "classes.csv with the lines name,red,green,blue NAME,0,0,0 NAME,255,0,0" in err
    names = "name,red,green,blue\nsky,0,0,0\nroad,255,0,0\ncar,0,255,0\n"
    (tmp_path / "classes.csv").write_text(names)
    assert run("info", tmp_path)[0] == 0
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    (tmp_path / "classes.csv").unlink()
    Image.fromarray(noise).save(tmp_path / "masks" / "0.png")
    assert "smoothed (anti-aliased) or compressed" in run("info", tmp_path)[2]


def test_folders_that_may_be_people_name_both_commands(tmp_path: Path, run: Run) -> None:
    faces(tmp_path)
    code, out, _ = run("info", tmp_path)
    assert code == 0
    assert f"plusx train images data.path={tmp_path}" in out
    assert f"plusx train people data.path={tmp_path}   (as people)" in out


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "yolo", "data.path=photos"], "`plusx train boxes data.path=PATH` trains on it"),
        (["train", "folder"], "`plusx train images data.path=PATH`"),
        (["train", "images"], "images is missing: there is no such folder or file; data.path=PATH"),
        (["train", "digits-resnet20", "data.augment=flip,jitter"], "by blanks: 'flip jitter'"),
        (["train", "digits-resnet20", "data.augment=pad1;flip"], "by blanks: 'pad1 flip'"),
        (["train", "digits-resnet20", "--out", ""], "--out is empty: name a file or a folder"),
        (["train", "digits-resnet20", "--out="], "--out is empty: name a file or a folder"),
        (["train", "digits-resnet20", "--out", "a" * 300], "... has 300 bytes; at most"),
        (["info", "digits", "--out", f"x/{'b' * 256}/y.html"], "... has 256 bytes"),
    ],
)
def test_messages_suggest_a_remedy(
    words: list[str], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*words)
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_in_which_nothing_can_be_written_is_refused_first(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != tmp_path and allowed(path, mode)
    )
    for words in (["train", "digits-resnet20"], ["pack", "nothing"]):
        code, _, err = run(*words, "--out", tmp_path / "new")
        assert code == 2
        assert f"{tmp_path} is not writable" in err


def test_a_link_is_not_replaced_by_a_packed_file(run: Run, tmp_path: Path) -> None:
    folder(tmp_path / "photos")
    target, link = tmp_path / "target.plusx", tmp_path / "link.plusx"
    target.write_bytes(b"")
    link.symlink_to(target)
    code, _, err = run("pack", tmp_path / "photos", "--out", link)
    assert code == 2
    assert f"is a link to {target}" in err
    assert link.is_symlink()
    code, _, err = run("pack", tmp_path / "photos", "--out", target, "--threads", "-1")
    assert (code, target.read_bytes()) == (2, b"")
    assert "threads = -1: from 1 to 1024, or 0" in err


def test_classes_that_differ_in_invisible_characters_are_refused(run: Run, tmp_path: Path) -> None:
    for number, other in enumerate(("fish\u200b", "fish\u00ad", "fi\ufeffsh")):
        root = tree(photos(["fish", other], first=number))(tmp_path / str(number))
        code, _, err = run("info", root)
        assert code == 2
        assert "differ in blanks, invisible characters or Unicode form only" in err
    root = tree({f"img/{n}.png": n for n in range(8)})(tmp_path / "csv")
    names = ("hot dog", "hot\u00a0dog")
    rows = [f"img/{n}.png,{names[n % 2]}" for n in range(8)]
    (root / "photos.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert "invisible characters" in run("info", root / "photos.csv")[2]


@pytest.mark.parametrize("seed", [2**70, -(2**70), True])
def test_a_seed_that_torch_cannot_take_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match=r"seed is .*; a whole number of at most 64 bits"):
        plusx.create_model("resnet20", seed=seed)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.patient=(", "patient = '(' is not a regular expression: missing )"),
        ("data.orientation=XYZ", "orientation 'XYZ': one of the letters L and R"),
    ],
)
def test_fields_of_volumes_are_checked_first(
    override: str, message: str, run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("nibabel")
    scans("images", "labels")(tmp_path)
    words = [f"data.path={tmp_path}", 'data.classes=["a","b"]', "data.range=[0,900]", override]
    code, _, err = run("train", "volumes", *words)
    assert code == 2
    assert message in err


# ------------------------------------------------------------------ folders of runs


SMALL = ["epochs=1", "data.train=64", "net.base=resnet20", "device.threads=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert plusx.cli.run(["train", "digits-resnet20", *SMALL, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data.json", ["evaluate", "RUN"]),
        ("data.json", ["report", "RUN"]),
        ("environment.json", ["report", "RUN"]),
        ("recipe.toml", ["report", "RUN"]),
        ("log.jsonl", ["report", "RUN"]),
        ("data.json", ["train", "digits-resnet20", *SMALL, "--out", "RUN"]),
    ],
)
def test_a_missing_or_changed_file_of_a_run_is_named(
    name: str, words: list[str], finished: Path, run: Run, tmp_path: Path
) -> None:
    folder_of_run = shutil.copytree(finished, tmp_path / "run")
    words = [str(folder_of_run) if word == "RUN" else word for word in words]
    for content in (None, b"[1, 2]\n", b"\xff\xfe", b'{"epoch": "x", "train_loss": []'):
        (folder_of_run / name).unlink(missing_ok=True)
        if content is not None:
            (folder_of_run / name).write_bytes(content)
        code, _, err = run(*words)
        if name == "recipe.toml" and content is not None:
            continue  # shown as it is
        if words[0] == "train" and content is None:
            continue  # the images cannot be compared
        assert code == 2, (content, err)
        assert name in err
        assert "Errno" not in err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", "many"),
        ("parameters", None),
        ("name", 3),
        ("validation", [1]),
        ("train_error", ""),
    ],
)
def test_a_result_of_other_types_is_named(
    key: str, value: object, finished: Path, run: Run, tmp_path: Path
) -> None:
    folder_of_run = shutil.copytree(finished, tmp_path / "run")
    file = folder_of_run / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    code, _, err = run("train", "digits-resnet20", *SMALL, "--out", folder_of_run)
    assert code == 2
    assert "result.json is not the result of a run" in err
    code, _, err = run("report", folder_of_run)
    assert code in (0, 2)
    assert code == 0 or "result.json" in err


def test_files_of_an_unfinished_run_are_checked_before_it_resumes(
    finished: Path, run: Run, tmp_path: Path
) -> None:
    folder_of_run = shutil.copytree(finished, tmp_path / "run")
    (folder_of_run / "result.json").unlink()
    words = ["train", "digits-resnet20", *SMALL, "--out", folder_of_run]
    data = json.loads((folder_of_run / "data.json").read_text())
    for name, content in (
        ("environment.json", True),
        ("data.json", {key: value for key, value in data.items() if key != "train"}),
    ):
        before = (folder_of_run / name).read_bytes()
        (folder_of_run / name).write_text(json.dumps(content))
        code, _, err = run(*words)
        assert code == 2
        assert name in err
        (folder_of_run / name).write_bytes(before)


def test_a_csv_among_the_images_to_predict_is_explained(finished: Path, run: Run) -> None:
    file = finished.parent / "rows.csv"
    file.write_text("path,label\n")
    code, _, err = run("predict", finished, file)
    assert code != 0
    assert "give the images or their folder; `plusx evaluate RUN --data FILE.csv`" in err


def test_the_page_of_predictions_is_named_where_there_is_one(tmp_path: Path) -> None:
    rows = [{"path": "a.png", "boxes": [{"label": "cell", "score": 0.5, "box": [1, 2, 3, 4]}]}]
    result = {"classes": ["cell"], "predictions": rows}
    assert write_predictions(tmp_path, result)[-1] == tmp_path / "predictions.csv"
    (tmp_path / "predictions.html").write_text("")
    assert write_predictions(tmp_path, result)[-1] == tmp_path / "predictions.html"
    labels = [{"path": "a.png", "label": "cell", "probability": 0.5, "probabilities": [0.5]}]
    written = write_predictions(tmp_path, result | {"predictions": labels})
    assert written[-1] == tmp_path / "predictions.csv"


def test_an_epoch_of_one_step_is_warned_of(run: Run, tmp_path: Path) -> None:
    root = tree(photos(["cat", "dog"], 20))(tmp_path / "set")
    words = ["train", "images", f"data.path={root}", "data.size=32", "net.base=resnet20"]
    code, _, err = run(*words, "epochs=1", "device.threads=1", "--out", tmp_path / "a")
    assert code == 0
    assert "an epoch is a single step" in err
    assert "set batch_size=4" in err
    code, _, err = run(
        *words, "batch_size=4", "epochs=1", "device.threads=1", "--out", tmp_path / "b"
    )
    assert code == 0
    assert "single step" not in err

"""Trouble that people reported of classified images, by the rows T3 to T15, X5 to X13 of issue 13:
each is a right result, a warning that names it, or an error that does.
"""

import io
import json
import os
import re
import sys
import tarfile
import unicodedata
from pathlib import Path

import pytest
import torch

import hostile
from plusx.bench.bench import _finding
from plusx.cli import run as command_line
from plusx.cli.shell import print_line
from plusx.data import loader
from plusx.data.dataset import as_split
from plusx.data.image_file import DEFAULT_LIMIT, decode
from plusx.data.loader import Loader, batches
from plusx.data.modality import modality_from_dict
from plusx.data.readers.csv_file import read_rows
from plusx.data.readers.folder import scan
from plusx.data.readers.listing import class_name, file_problem, refuse_similar_names
from plusx.data.readers.open import open_data
from plusx.data.readers.packing import pack
from plusx.data.readers.tar import read_tar
from plusx.data.readers.verdicts import is_checked
from plusx.data.splits import split_of
from plusx.describe import describe_network
from plusx.errors import UserError, counted, printable, shortened
from plusx.grammar.sizes import parse_size
from plusx.models import create_model
from plusx.recipe import load_recipe, to_toml
from plusx.run.datasets import open_split
from plusx.run.distributed import is_first, join_processes
from plusx.run.evaluation import evaluate as evaluate_run
from plusx.run.folder import load_run
from plusx.run.optim import schedule_warnings
from plusx.run.sources import image_files
from plusx.run.training import make_trainer, refuse_other_recipe, train
from plusx.study.gradients import _ratio_text
from plusx.tasks.classify import Classify
from plusx.train.loop import evaluate, fit
from plusx.train.state import State
from plusx.weights.files import save_network
from plusx.zoo import find


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path_factory.mktemp("cache")))


def photos(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 5) -> Path:
    """Small PNGs, each of a colour of its own."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = hostile.plain((index * 9 % 256, number * 50, 200), 20 + index, 30)
            (root / name / f"{index:02}.png").write_bytes(hostile.saved(pixels, "PNG"))
    return root


def message(call: object, *arguments: object, **options: object) -> str:
    """What the error of a call says, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)  # type: ignore[operator]
    text = str(caught.value)
    assert text.isprintable(), text
    return text


# splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN_SET", "train"),
        ("trainset", "train"),
        ("training-images", "train"),
        ("Val", "validation"),
        ("valid", "validation"),
        ("Validation", "validation"),
        ("eval", "validation"),
        ("TEST", "test"),
        ("Testing", "test"),
        ("test_data", "test"),
        ("cat", ""),
        ("tester", ""),
        ("trainer", ""),
        ("", ""),
    ],
)
def test_t3_names_of_splits(name: str, split: str) -> None:
    assert split_of(name) == split
    if split:
        assert as_split(name) == split


def test_t3_split_folders_with_other_names_are_splits(tmp_path: Path) -> None:
    photos(tmp_path / "Training"), photos(tmp_path / "Testing", count=2)
    assert len(open_data(tmp_path, validation=0)) == 10
    assert len(open_data(tmp_path, split="test")) == 4
    # Kaggle's folders of splits hold a folder of their own name
    other = tmp_path / "twice"
    photos(other / "training_set" / "training_set"), photos(other / "test_set" / "test_set")
    assert open_data(other, split="test").classes == ("cat", "dog")


def test_t3_folders_that_hold_the_same_folders_are_no_classes(tmp_path: Path) -> None:
    photos(tmp_path / "first"), photos(tmp_path / "second", ("cat", "dog", "emu"))
    text = message(open_data, tmp_path)
    assert "the folders first, second contain the same folders (cat, dog)" in text
    assert "/train/CLASS" in text
    # splits within the classes
    (
        photos(tmp_path / "set" / "cat", ("train", "test")),
        photos(tmp_path / "set" / "dog", ("train", "test")),
    )
    assert "(test, train), so it is unclear which ones are classes" in message(
        open_data, tmp_path / "set"
    )


def test_t3_folders_within_classes_still_belong_to_them(tmp_path: Path) -> None:
    photos(tmp_path, ("cat/images", "dog/images"))  # as in Tiny ImageNet
    assert open_data(tmp_path, split="all").classes == ("cat", "dog")
    photos(tmp_path, ("cat", "dog", "cat/left", "cat/right", "dog/left", "dog/right"), count=2)
    assert len(open_data(tmp_path, split="all")) == 22


def test_t3_a_train_is_a_vehicle_too(tmp_path: Path) -> None:
    photos(tmp_path, ("bus", "car", "train"))
    assert open_data(tmp_path).classes == ("bus", "car", "train")


def test_t4_a_split_folder_that_is_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    photos(tmp_path / "outside"), photos(tmp_path / "set" / "train")
    for name in ("val", "Testing", "train"):
        link = tmp_path / "set" / name
        if name == "train":
            (tmp_path / "set" / "train").rename(tmp_path / "set" / "valid")
        link.symlink_to(tmp_path / "outside")
        for options in ({}, {"on_unreadable": "skip"}):
            text = message(open_data, tmp_path / "set", **options)
            assert f"the split folder {name} is a link that leaves the folder" in text
        link.unlink()
    # archives without links leave their targets as text
    (tmp_path / "set" / "test").write_text("../outside")
    assert "the split folder test is a file" in message(open_data, tmp_path / "set")


def test_t4_files_beside_split_folders_are_named(tmp_path: Path) -> None:
    photos(tmp_path / "train"), photos(tmp_path / "val"), photos(tmp_path / "extra")
    (tmp_path / "notes.txt").write_text("about")
    (tmp_path / "more").symlink_to("/")
    for split in ("train", "validation"):
        warnings = "\n".join(open_data(tmp_path, split=split).warnings)
        assert "1 ignored, beside the split folders: extra" in warnings
        assert "1 ignored, outside the class folders: notes.txt" in warnings
        assert "skipped more: a link that leaves the folder" in warnings


def test_t5_folders_written_by_plusx_are_no_classes(tmp_path: Path) -> None:
    photos(tmp_path)
    first = open_data(tmp_path).fingerprint()
    run, why = tmp_path / "runs" / "images", tmp_path / "runs" / "explain-images"
    photos(run, ("examples",)), photos(why, (".",))
    (run / "recipe.toml").write_text("")
    (why / "explanation.json").write_text("{}")
    source = open_data(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.fingerprint() == first
    assert any("a folder that plusx wrote: runs/" in warning for warning in source.warnings)
    # a class in which somebody left a run keeps its images
    photos(tmp_path / "cat" / "run", (".",))
    (tmp_path / "cat" / "run" / "recipe.toml").write_text("")
    assert open_data(tmp_path).fingerprint() == first


# names of classes


def test_t6_one_rule_for_names_of_classes() -> None:
    decomposed = unicodedata.normalize("NFD", "Äpfel")
    assert class_name(f" {decomposed} ") == "Äpfel"
    assert class_name("\x1b[31mcat") == "\\x1b[31mcat"
    assert "'Cat' and 'cat' differ in case only" in message(
        refuse_similar_names, ["Cat", "cat", "dog"], "set"
    )
    refuse_similar_names(["cat", "dog"], "set")
    assert "differ in blanks, invisible characters or Unicode form" in message(
        refuse_similar_names, ["Äpfel", decomposed], "set"
    )


def test_t6_labels_that_differ_in_case_are_refused_in_csvs_tars_and_folders(
    tmp_path: Path,
) -> None:
    photos(tmp_path / "set")
    rows = [f"cat/0{index}.png,{'Cat' if index == 2 else 'cat'}" for index in range(5)]
    rows += [f"dog/0{index}.png,dog" for index in range(5)]
    table = tmp_path / "set" / "set.csv"
    table.write_text("\n".join(["path,label", *rows]))
    assert "'Cat' and 'cat' differ in case only" in message(open_data, table)
    archive = tmp_path / "set.tar"
    with tarfile.open(archive, "w") as tar:
        for index, name in enumerate(("cat", "Cat", "dog")):
            tar.add(tmp_path / "set" / "dog" / f"0{index}.png", f"{name}/{index}.png")
    assert "'Cat' and 'cat' differ in case only" in message(open_data, archive)


def test_t6_unicode_forms_of_one_name_are_one_class(tmp_path: Path) -> None:
    decomposed, composed = (unicodedata.normalize(form, "Äpfel") for form in ("NFD", "NFC"))
    photos(tmp_path / "train", (decomposed, "dog")), photos(tmp_path / "val", (composed, "dog"))
    source = open_data(tmp_path, split="validation")
    assert source.classes == ("dog", composed)
    assert source.labels.bincount().tolist() == [5, 5]
    rows = [f"train/dog/0{index}.png,{decomposed},train" for index in range(3)]
    rows += ["val/dog/00.png,dog,train", f"val/dog/01.png,{composed},val"]
    (tmp_path / "set.csv").write_text("\n".join(["path,label,split", *rows]))
    assert open_data(tmp_path / "set.csv").classes == ("dog", composed)


def test_t15_names_in_val_are_compared_with_those_in_train(tmp_path: Path) -> None:
    photos(tmp_path / "train"), photos(tmp_path / "val", ("Cat", "dog"))
    text = message(open_data, tmp_path)
    assert "'Cat' and 'cat' differ in case only" in text
    assert "validation" not in text
    (tmp_path / "val" / "Cat").rename(tmp_path / "val" / "cats")
    text = message(open_data, tmp_path)
    assert f"{tmp_path}/val: the class 'cats' is not a training class" in text
    assert "did you mean cat?" in text


def test_t15_class_folders_one_level_down_are_read(tmp_path: Path) -> None:
    photos(tmp_path / "PetImages", ("Cat", "Dog"))
    source = open_data(tmp_path)
    assert source.classes == ("Cat", "Dog")
    assert "PetImages, the only folder in" in source.warnings[0]
    photos(tmp_path / "below" / "set" / "train"), photos(tmp_path / "below" / "set" / "val")
    assert len(open_data(tmp_path / "below", split="validation")) == 10
    assert "one class only" in message(open_data, photos(tmp_path / "one", ("cat",)))


# tables


CSV = "path,label\ncat/00.png,cat\ncat/01.png,Äpfel\ndog/00.png,cat\ndog/01.png,Äpfel\n"


@pytest.mark.parametrize(
    "data",
    [
        CSV.encode(),
        CSV.encode("utf-8-sig"),
        CSV.encode("utf-16"),
        "\ufeff".encode("utf-16-be") + CSV.encode("utf-16-be"),
        CSV.replace(",", ";").encode(),
        CSV.replace(",", "\t").encode(),
        CSV.replace("/", "\\").encode(),
        CSV.replace("png,", "png ,").encode(),
        CSV.replace("\n", "\r\n").encode(),
        CSV.replace("\n", "\r").encode(),
    ],
)
def test_t15_tables_as_other_programs_write_them_are_read(tmp_path: Path, data: bytes) -> None:
    table = photos(tmp_path) / "set.csv"
    table.write_bytes(data)
    source = open_data(table, split="all")
    assert source.classes == ("cat", "Äpfel")
    assert source.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1250"])
def test_t15_tables_in_other_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    table = photos(tmp_path) / "set.csv"
    table.write_bytes(CSV.encode(encoding))
    text = message(open_data, table)
    assert "row 3: the label '\\xc4pfel' is not UTF-8: save the file as UTF-8" in text
    table.write_bytes("path,label\ncat/Ä.png,cat\n".encode(encoding))
    assert "row 2: the path 'cat/\\xc4.png' is not UTF-8" in message(open_data, table)


def test_t15_blanks_and_backslashes_of_real_names_are_kept(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "cat" / "00.png").rename(tmp_path / "cat" / "a\\b.png ")
    (tmp_path / "set.csv").write_text("path,label\ncat/a\\b.png ,cat\n cat/01.png,dog\n")
    _, rows = read_rows(tmp_path / "set.csv", "set.csv")
    paths = [os.path.relpath(row.path(str(tmp_path)), tmp_path) for row in rows]
    assert paths == ["cat/a\\b.png ", "cat/01.png"]


# links and files that data names


def test_x9_one_rule_for_files_that_data_names(tmp_path: Path) -> None:
    root, outside = photos(tmp_path / "set"), photos(tmp_path / "outside")
    (root / "link.png").symlink_to(root / "cat" / "00.png")
    (root / "away.png").symlink_to(outside / "cat" / "00.png")
    (root / "folder").symlink_to(outside / "cat")
    (root / "nothing.png").symlink_to("none.png")
    os.mkfifo(root / "pipe.png")
    problems = {
        name: file_problem(str(root / name), os.path.realpath(root))
        for name in ("cat/00.png", "link.png", "away.png", "folder/00.png", "nothing.png", "no.png")
    }
    leaves = "a link that leaves the folder"
    assert list(problems.values()) == [
        None,
        None,
        leaves,
        leaves,
        "a link to nothing",
        "missing",
    ]
    assert file_problem(str(root / "pipe.png"), str(root)) == "not a regular file"


# foreign text


def test_x7_one_function_prints_foreign_text() -> None:
    assert printable("\x1b]0;owned\x07\u202ecat\n") == "\\x1b]0;owned\\x07\\u202ecat\\n"
    assert printable("\ud800x") == "\\ud800x"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert printable(printable("\x1b")) == printable("\x1b")
    assert printable("Äpfel 猫") == "Äpfel 猫"


# archives


def archive(*sizes: int) -> bytes:
    """A tar file with a PNG for each size, in two classes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, size in enumerate(sizes):
            data = hostile.saved(hostile.plain((number, 0, 0), size, size), "PNG")
            member = tarfile.TarInfo(f"{'ab'[number % 2]}/{number}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def test_x5_a_tar_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "set.tar", archive(4, 4, 4, 4)
    path.write_bytes(data)
    assert len(read_tar(path).entries) == 4
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    for cut in range(256, end, 256):
        path.write_bytes(data[:cut])
        assert re.search(r"set\.tar", message(read_tar, path)), cut
    path.write_bytes(data[: end + 512])  # one empty block is an end
    assert len(read_tar(path).entries) == 4
    assert scan(photos(tmp_path / "set")).root


# formats and sizes


def test_t7_heic_is_read_with_its_extra_and_named_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    photos(tmp_path)
    file = io.BytesIO()
    image = hostile.Image.fromarray(hostile.PICTURE)
    pillow_heif.from_pillow(image).save(file, quality=-1)
    for name in ("10.HEIC", "11.jpg", "12"):  # phones' files are renamed, too
        (tmp_path / "cat" / name).write_bytes(file.getvalue())
    source = open_data(tmp_path, split="all")
    assert len(source) == 13
    pixels = decode(tmp_path / "cat" / "10.HEIC").astype(int)
    assert abs(pixels - hostile.PICTURE).max() <= 8
    # without pillow-heif, in a cache that remembers it was there
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("plusx.data.image_file.find_spec", lambda name: None)
    text = message(open_data, tmp_path, split="all")
    assert "3 of 13 files cannot be used: cat/10.HEIC: HEIC: convert it, or install" in text
    skipping = open_data(tmp_path, split="all", on_unreadable="skip")
    assert skipping.warnings[0] == "3 of 13 files skipped"
    for path in (tmp_path / "dog").iterdir():
        path.unlink()
    (tmp_path / "dog" / "0.heic").write_bytes(file.getvalue())
    assert "dog/0.heic: HEIC: convert it, or install" in message(open_data, tmp_path)


def test_t7_other_formats_are_named_and_counted(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "cat" / "a.jp2").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n")
    (tmp_path / "cat" / "a.NEF").write_bytes(hostile.saved(hostile.PICTURE, "TIFF"))
    text = message(open_data, tmp_path)
    assert "2 of 12 files cannot be used: cat/a.NEF: camera raw is not read: convert it" in text
    assert "2 of 8 files skipped" not in open_data(tmp_path, on_unreadable="skip").warnings
    assert open_data(tmp_path, on_unreadable="skip").warnings[0] == "2 of 12 files skipped"


def test_t14_phones_of_200_megapixels_are_within_the_limit_and_a_field_moves_it(
    tmp_path: Path,
) -> None:
    assert DEFAULT_LIMIT >= 16320 * 12240
    photos(tmp_path)
    large = hostile.Image.new("1", (8160, 6144))
    (tmp_path / "cat" / "large.png").write_bytes(hostile.saved(large, "PNG"))
    assert len(open_data(tmp_path, split="all")) == 11
    recipe = load_recipe("images", [f"data.path={tmp_path}", "data.max_pixels=40000000"])
    text = message(open_split, recipe, "all")
    assert "cat/large.png: 8160 x 6144 pixels, at most 40,000,000 are decoded" in text
    skipping = load_recipe(
        "images",
        [f"data.path={tmp_path}", "data.max_pixels=40000000", "data.on_unreadable=skip"],
    )
    modality = open_split(skipping, "train").modality
    assert modality_from_dict(modality.to_dict()) == modality
    assert "max_pixels" not in open_data(tmp_path).modality.to_dict()
    # Pillow's own limit is that of others again
    assert hostile.Image.MAX_IMAGE_PIXELS is not None


# labels and splits


@pytest.mark.parametrize("labels", ["012", "0", "102"])
def test_t8_numbers_against_names_that_are_numbers_are_refused(tmp_path: Path, labels: str) -> None:
    photos(tmp_path)
    rows = [f"cat/0{index}.png,{label}" for index, label in enumerate(labels)]
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *rows]))
    options = {"split": "all", "classes": ("1", "10", "2")}
    text = message(open_data, tmp_path / "set.csv", **options)
    assert "label '0' is not one of the classes 1, 10, 2; it is not used as the number of a" in text


def test_t8_names_that_are_numbers_are_names(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "set.csv").write_text("path,label\ncat/00.png,2\ncat/01.png,10\n")
    source = open_data(tmp_path / "set.csv", split="all", classes=("1", "10", "2"))
    assert source.labels.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (("1.0", "0.0", "2.0"), "label '1.0' is not an integer from 0 (there are 3 different"),
        (("1", "2", "10"), "label '10' is outside 0 to 2 (there are 3 different labels)"),
    ],
)
def test_t15_labels_that_are_odd_numbers_are_counted_rightly(
    tmp_path: Path, labels: tuple[str, ...], reason: str
) -> None:
    photos(tmp_path)
    rows = [f"cat/0{index}.png,{label}" for index, label in enumerate(labels)]
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *rows]))
    assert reason in message(open_data, tmp_path / "set.csv")


def test_t13_a_class_of_one_image_trains_and_is_named(tmp_path: Path) -> None:
    photos(tmp_path), photos(tmp_path, ("emu", "yak"), count=1)
    for split in ("train", "validation"):
        source = open_data(tmp_path, split=split)
        assert any("2 classes (emu, yak) have one sample" in text for text in source.warnings)
        assert {2, 3} <= set(source.labels.tolist()) or split == "validation"
    assert len(open_data(tmp_path)) == 10
    text = message(open_data, photos(tmp_path / "lone", ("ant", "bee", "cow"), count=1))
    assert "lone: validation = 0.2: 1 of 3 samples cannot be held out" in text
    text = message(open_data, photos(tmp_path / "two", count=1), split="validation")
    assert "2 samples are too few to hold out 0.2 of them" in text
    assert len(open_data(tmp_path / "lone", validation=0)) == 3


@pytest.mark.parametrize("validation", [0.5, 0.7, 0.9, 20])
def test_t13_every_class_keeps_an_image_to_train_on(tmp_path: Path, validation: float) -> None:
    photos(tmp_path, count=12), photos(tmp_path, ("emu",), count=2)
    train = open_data(tmp_path, validation=validation)
    assert len(train.labels.unique()) == 3
    held = open_data(tmp_path, split="validation", validation=validation)
    assert len(train) + len(held) == 26


# recipes and commands


@pytest.mark.parametrize("name", ["2024", "2024-05-01", "true", "1e5", "[1]", "nan", "0x10"])
def test_t10_a_folder_may_have_the_name_of_a_number(name: str) -> None:
    assert load_recipe("images", [f"data.path={name}"]).data.path == name
    assert load_recipe("images", [f'data.path="{name}"']).data.path == name
    assert load_recipe("images", ["data.path=x", f"net.weights={name}"]).net.weights == name


def test_t10_an_empty_path_is_refused() -> None:
    text = message(load_recipe, "images", ["data.path="])
    assert 'data] path = "": must not be empty' in text
    # numbers stay numbers where a field takes both
    assert load_recipe("faces-verify", ["data.validation=4"]).data.validation == 4


def test_x13_seeds_have_63_bits() -> None:
    assert load_recipe("digits", [f"seed={2**63 - 1}"]).seed == 2**63 - 1
    text = message(load_recipe, "digits", [f"seed={2**63}"])
    assert f"must be below {2**63}" in text


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Overrides of the recipe images for a few photos and a moment."""
    photos(tmp_path / "set", ("cat", "dog", "emu"))
    small = ["data.size=32", "net.base=resnet18", "epochs=1", "batch_size=4", "seed=1"]
    return [f"data.path={tmp_path}/set", *small, "evaluate.train_set=false", "data.augment="]


def test_t12_a_batch_of_one_is_refused_before_anything_is_written(
    tiny: list[str], tmp_path: Path
) -> None:
    for overrides in (["batch_size=1"], ["optim.accumulation_steps=4"]):
        recipe = load_recipe("images", [*tiny, *overrides])
        text = message(train, recipe, tmp_path / "run", progress=False)
        assert "batch norm needs two images at a time" in text
        assert "set batch_size = " in text
        assert not (tmp_path / "run" / "recipe.toml").exists()
    # at larger sizes there is more than one value
    with join_processes("cpu", 60) as world:
        make_trainer(
            load_recipe("images", [*tiny, "batch_size=1", "data.size=64"]), tmp_path / "run", world
        )


def test_t15_schedule_steps_after_the_end_are_a_warning() -> None:
    recipe = load_recipe(
        "digits-resnet20", ["schedule.kind=steps", "schedule.milestones=[50, 900]"]
    )
    (text,) = schedule_warnings(recipe, 100)
    assert "does not change at step 900, since the run ends at 100" in text
    recipe = load_recipe("digits-resnet20", ["schedule.kind=cosine", "schedule.warmup=500"])
    (text,) = schedule_warnings(recipe, 100)
    assert "warmup: 500 steps, but the run has 100" in text
    assert schedule_warnings(recipe, 1000) == []


def test_t15_a_finished_run_is_not_trained_longer(tmp_path: Path) -> None:
    recipe = load_recipe("digits-resnet20", ["epochs=3"])
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    (tmp_path / "result.json").write_text("{}")
    longer = load_recipe("digits-resnet20", ["epochs=4"])
    text = message(refuse_other_recipe, tmp_path, longer)
    assert f"to train longer, start a new run from its weights: net.weights={tmp_path}" in text
    (tmp_path / "result.json").unlink()
    assert "choose another folder" in message(refuse_other_recipe, tmp_path, longer)


def test_t15_tuples_are_no_batches() -> None:
    net = torch.nn.Linear(2, 2)
    task = Classify(net)
    state = State(task, torch.optim.SGD(net.parameters(), 0.1), 0)
    pair = (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
    assert "(plusx.Batch(x, y) for x, y in batches)" in message(next, fit(state, iter([pair])))
    assert "evaluate takes plusx.Batch, not a tuple" in message(evaluate, task, iter([pair]))


def test_t15_names_of_files_and_runs_are_no_names_of_networks(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    assert "is a run: `plusx report" in message(describe_network, str(tmp_path))
    assert "write a spec of your own into the recipe" in message(find, "mine.toml")


@pytest.mark.parametrize("text", ["4", "16", "1.5"])
def test_t15_a_memory_of_few_bytes_lacks_its_unit(text: str) -> None:
    assert f"write {text}GB or {text}MB" in message(parse_size, text)
    assert parse_size("800000") == 800_000
    assert parse_size("4B") == 4


def test_t15_a_missing_file_does_not_stop_the_others(tmp_path: Path) -> None:
    photos(tmp_path)
    failed: list[dict[str, str]] = []
    image = str(tmp_path / "cat" / "00.png")
    assert image_files([image, str(tmp_path / "none.png")], failed) == [image]
    assert failed == [{"path": f"{tmp_path}/none.png", "reason": "no such file or folder"}]
    assert "no such file or folder" in message(image_files, [str(tmp_path / "none.png")], failed)


def test_t15_output_paths_are_checked_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("kept"), folder.mkdir()
    commands = [
        ["predict", "no-run", "x.png", "--out", str(file)],
        ["predict", "no-run", "x.png", "--out", str(file / "below")],
        ["explain", "no-run", "x.png", "--out", str(file)],
        ["train", "digits", "--out", str(file / "x")],
        ["compare", "digits", "--out", str(file)],
        ["study", "skips", "--out", str(file)],
        ["bench", "resnet20", "--out", str(file)],
        ["export", "no-run", "--out", str(folder)],
        ["export", "no-run", "--out", str(file / "x.onnx")],
        ["pack", str(folder), "--out", str(folder)],
        ["convert", "no.th", "--as", "resnet20", "--source", "akamaster", "--out", str(folder)],
        ["enroll", "no-run", str(folder), "--out", str(file)],
        ["export", "no-run", "--out", "/dev/null"],
    ]
    for arguments in commands:
        assert command_line(arguments) == 2, arguments
        text = capsys.readouterr().err
        assert re.search("is not a folder|is a folder|not a regular file", text), (arguments, text)
        assert len(text.splitlines()) == 1
    assert file.read_text() == "kept"


@pytest.mark.parametrize("value", ["", "one"])
def test_x13_an_empty_world_size_is_one_process(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    monkeypatch.setenv("RANK", "")
    if value:
        with (
            pytest.raises(UserError, match="WORLD_SIZE='one' is not a number"),
            join_processes("cpu", 60),
        ):
            pass
        return
    with join_processes("cpu", 60) as world:
        assert world.size == 1
    assert is_first()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[0, 0, 0]", "every weight is 0, so the loss would be 0"),
        ("[1, -2]", "-2 is not a weight: a number from 0 for each class"),
        ("[1, true]", "True is not a weight"),
        ("balance", "must be none, balanced, or a list of a number for each class; did you mean"),
        ("3", "must be none, balanced, or a list"),
    ],
)
def test_t15_class_weights_say_what_is_allowed(value: str, reason: str) -> None:
    text = message(load_recipe, "images", ["data.path=x", f"task.class_weights={value}"])
    assert reason in text
    assert "more)" not in text
    recipe = load_recipe("images", ["data.path=x", "task.class_weights=[1,2,0]"])
    assert recipe.task.class_weights == (1.0, 2.0, 0.0)


def test_x13_an_exhausted_epoch_is_an_error(tmp_path: Path) -> None:
    epoch = batches("digits", batch_size=500)
    assert len(list(epoch)) == 3
    assert "the batches of this epoch are over" in message(list, epoch)
    workers = batches(photos(tmp_path), batch_size=2, workers=1)
    next(workers)
    workers.close()  # type: ignore[attr-defined]


def test_t15_full_shared_memory_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_free_shared_memory", lambda: 1000)
    with pytest.raises(
        RuntimeError, match=r"has 1,000 bytes free: free some, set data\.workers = 0"
    ):
        Loader(photos(tmp_path), batch_size=2, workers=1)
    with Loader(photos(tmp_path), batch_size=2) as without:
        assert len(without) == 4


def test_x7_no_escape_of_a_file_reaches_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\u202e"
    net = create_model("resnet20", num_classes=2)
    path = tmp_path / "evil.safetensors"
    size = {"size": [32, 32], "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    save_network(net, path, preprocessing=size, classes=(evil, "dog"), data=evil)
    run = load_run(path)
    assert run.classes == (printable(evil), "dog")
    assert run.data == printable(evil)
    print_line(evil)
    for arguments in (["describe", evil], ["evaluate", str(path), "--data", evil]):
        assert command_line(arguments) != 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text(f'seed = 0\n"{printable(evil)}" = 1\n')
    (tmp_path / "run" / "data.json").write_text(json.dumps({"classes": [evil]}))
    assert command_line(["evaluate", str(tmp_path / "run")]) == 2
    written = capsys.readouterr()
    for letter in evil:
        if not letter.isprintable():
            assert letter not in written.out + written.err


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"classes": 3}', '{"classes": ["a"], "preprocessing": {}, "train": 3}', "null"],
)
def test_x13_a_data_json_that_no_run_wrote_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "recipe.toml").write_text(to_toml(load_recipe("digits-resnet20")))
    (tmp_path / "data.json").write_text(content)
    text = message(load_run, tmp_path)
    assert f"{tmp_path}/data.json is invalid" in text


def test_t15_weights_without_their_run_may_have_seen_the_data(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    net = create_model("resnet20", num_classes=2)
    size = {"size": [32, 32], "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    expected = {
        "photos": "trained on data named photos",
        "": "training data of the weights is unknown",
    }
    for name, reason in expected.items():
        path = tmp_path / f"of_{name}.safetensors"
        save_network(net, path, preprocessing=size, classes=("cat", "dog"), data=name)
        assert reason in evaluate_run(load_run(path), data=root)["warnings"][0]
    save_network(net, path, preprocessing=size, classes=("cat", "dog"), data="others")
    assert "warnings" not in evaluate_run(load_run(path), data=root)


def test_x13_large_and_small_numbers_and_long_names_are_readable() -> None:
    assert _ratio_text(99.7) == "100 times"
    assert counted(1, "image") == "1 image"
    assert counted(2000, "image") == "2,000 images"
    name = "x" * 100 + "end"
    assert len(shortened(name)) == 60
    assert shortened(name).endswith("xxend")
    times = {"low": 1.0, "high": 3.0}
    rows = [
        {"name": name, "latency_seconds": {"median": median, **times}}
        for name, median in (("a", 1.5), ("b", 2.0))
    ]
    assert "intervals overlap, so the order may be chance" in _finding(rows)


def test_x13_data_of_others_is_not_opened_because_a_recipe_names_it(tmp_path: Path) -> None:
    root = photos(tmp_path / "set")
    assert not is_checked(root)
    open_data(root)
    assert is_checked(os.path.realpath(root))


def test_t7_raw_files_in_tars_are_named_too(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as tar:
        for number, ending in enumerate(("png", "NEF", "png", "png")):
            kind = "TIFF" if ending == "NEF" else "PNG"
            data = hostile.saved(hostile.plain((number, 0, 0)), kind)
            member = tarfile.TarInfo(f"{'ab'[number % 2]}/{number}.{ending}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert "1 of 4 files cannot be used: set.tar/b/1.NEF: camera raw" in message(open_data, path)


def test_t5_a_run_within_the_folder_of_images_resumes(tmp_path: Path) -> None:
    photos(tmp_path, ("cat", "dog"))
    small = ["net.base=resnet20", "data.size=32", "steps=2", "batch_size=4", "seed=1"]
    recipe = load_recipe("images", [f"data.path={tmp_path}", *small, "data.augment="])
    out = tmp_path / "runs" / "images"
    first = train(recipe, out, progress=False)
    assert train(recipe, out, progress=False) == first
    assert evaluate_run(load_run(out))["count"] == 2


def test_t15_a_packed_file_of_the_photos_of_a_run_is_known(tmp_path: Path) -> None:
    root = photos(tmp_path / "set")
    small = ["net.base=resnet20", "data.size=32", "steps=2", "batch_size=4", "seed=1"]
    recipe = load_recipe("images", [f"data.path={root}", *small, "data.augment="])
    train(recipe, tmp_path / "run", progress=False)
    pack(root, tmp_path / "set.plusx", size=32)
    warnings = evaluate_run(load_run(tmp_path / "run"), data=tmp_path / "set.plusx")["warnings"]
    assert "set.plusx includes images that the run was trained on" in warnings

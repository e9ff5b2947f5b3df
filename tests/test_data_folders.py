"""Folders and CSVs: what is used, what is refused and named, and nothing is written there."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import hostile
from plusx.data.dataset import Dataset
from plusx.data.image_file import Verdict
from plusx.data.loader import Loader, batches
from plusx.data.modality import ImageModality, image
from plusx.data.readers.folder import scan
from plusx.data.readers.open import open_data
from plusx.data.readers.verdicts import check_entries, examined
from plusx.run.sources import image_files


COLOURS = ImageModality((8, 8), 3, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path_factory.mktemp("cache")))


def photos(
    root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 5, start: int = 0
) -> Path:
    """Small PNGs of mixed sizes, each of a colour of its own."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(start, start + count):
            pixels = hostile.plain((index * 9 % 256, number * 50, 200), 20 + index, 30)
            (root / name / f"{index:02}.png").write_bytes(hostile.saved(pixels, "PNG"))
    return root


def names(source: Dataset) -> list[str]:
    assert source.paths is not None
    return [os.path.relpath(path, source.root) for path in source.paths]


def digest(root: Path) -> str:
    """A hash of all that lies under a folder: names, kinds, sizes, times and content."""
    sha256 = hashlib.sha256()
    for path, folders, files in os.walk(os.fsencode(root)):
        folders.sort()
        for name in sorted([*folders, *files]):
            file_path = os.path.join(path, name)
            status = os.lstat(file_path)
            metadata = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_nlink)
            sha256.update(file_path + repr(metadata).encode())
            if os.path.isfile(file_path) and not os.path.islink(file_path):
                with open(file_path, "rb") as file:
                    sha256.update(file.read())
    return sha256.hexdigest()


# the layouts


def test_a_flat_folder_is_split_by_the_seed_and_evaluated_whole(tmp_path: Path) -> None:
    root = photos(tmp_path / "set", count=10)
    train, held = open_data(root), open_data(root, split="validation")
    assert train.classes == ("cat", "dog")
    assert train.labels.bincount().tolist() == [8, 8]
    assert held.labels.bincount().tolist() == [2, 2]
    assert not set(names(train)) & set(names(held))
    whole = open_data(root, split="all")
    assert set(names(whole)) == set(names(train)) | set(names(held))
    assert names(open_data(root)) == names(train)
    assert names(open_data(root, seed=2)) != names(train)
    assert len(open_data(root, validation=0)) == 20
    assert len(open_data(root, split="validation", validation=6)) == 6
    with pytest.raises(ValueError, match="no test split"):
        open_data(root, split="test")
    with pytest.raises(ValueError, match="validation = 20: that leaves none"):
        open_data(root, validation=20)


def test_a_folder_with_splits_is_used_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "set"
    photos(root / "train"), photos(root / "val", ("dog",), 2, 50), photos(root / "test", count=1)
    sizes = {
        split: len(open_data(root, split=split)) for split in ("train", "validation", "test", "all")
    }
    assert sizes == {"train": 10, "validation": 2, "test": 2, "all": 14}
    assert open_data(root, split="validation").labels.tolist() == [1, 1]
    with pytest.raises(ValueError, match="validation split of its own"):
        open_data(root, validation=0.5)


def test_without_a_val_folder_validation_is_held_out_of_train(tmp_path: Path) -> None:
    root = tmp_path / "set"
    photos(root / "train"), photos(root / "test", count=1)
    assert len(open_data(root)) == 8
    assert len(open_data(root, split="validation")) == 2
    assert len(open_data(root, validation=0)) == 10


def test_the_classes_of_a_trained_network_keep_their_indices(tmp_path: Path) -> None:
    root = photos(tmp_path / "set")
    source = open_data(root, split="all", classes=("ant", "dog", "cat"))
    assert source.classes == ("ant", "dog", "cat")
    assert set(source.labels.tolist()) == {1, 2}
    with pytest.raises(ValueError, match="'cat' is not one of dog"):
        open_data(root, split="all", classes=("dog", "emu"))


def test_evaluation_resizes_the_shorter_side_and_crops_the_middle(tmp_path: Path) -> None:
    from torchvision.transforms import v2

    root = tmp_path / "set"
    random = np.random.default_rng(0)
    for name, shape in (("a", (50, 90, 3)), ("b", (90, 41, 3))):
        (root / name).mkdir(parents=True)
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        (root / name / "x.png").write_bytes(hostile.saved(pixels, "PNG"))
    (batch,) = batches(open_data(root, split="all", size=28))
    peer = v2.Compose(
        [
            v2.Resize(32),
            v2.CenterCrop(28),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    for resized, name in zip(batch.inputs, "ab"):
        with hostile.Image.open(root / name / "x.png") as image:
            assert torch.equal(resized, peer(image))


@pytest.mark.parametrize("augment", ["flip", "pad2 crop flip cutout8", "resizedcrop jitter.4"])
def test_files_have_equal_pixels_for_any_number_of_workers(tmp_path: Path, augment: str) -> None:
    source = open_data(photos(tmp_path / "set", count=6), size=16, validation=0)
    loaded = {}
    for workers in (0, 1, 2):
        with Loader(source, augment=augment, batch_size=5, workers=workers) as loader:
            loaded[workers] = [list(loader.epoch(epoch)) for epoch in range(2)]
    for epoch in range(2):
        for plain, one, two in zip(loaded[0][epoch], loaded[1][epoch], loaded[2][epoch]):
            assert plain.inputs.shape[1:] == (3, 16, 16)
            assert torch.equal(plain.inputs, one.inputs)
            assert torch.equal(plain.inputs, two.inputs)
            assert torch.equal(plain.targets, two.targets)
    resumed = list(batches(source, augment=augment, batch_size=5, epoch=1, start=1))
    assert torch.equal(resumed[0].inputs, loaded[2][1][1].inputs)


def test_very_long_images_are_scaled_without_filling_the_memory(tmp_path: Path) -> None:
    root = photos(tmp_path / "set")
    (root / "cat" / "long.png").write_bytes(
        hostile.saved(hostile.plain((1, 2, 3), 1, 60000), "PNG")
    )
    source = open_data(root, split="all", size=64)
    assert len(torch.cat([batch.targets for batch in batches(source)])) == 11
    assert len(list(batches(source, split="train", augment="resizedcrop flip"))) == 1


# what cannot be used


@pytest.fixture
def hostile_set(tmp_path: Path) -> Path:
    """The whole corpus and all that is no file in one class, and a sound class beside it."""
    root = tmp_path / "set"
    hostile.plant(root / "odd")
    hostile.plant_specials(root / "special", tmp_path / "outside")
    return photos(root, ("sound",), 4)


def test_the_scan_lists_every_file_once_with_its_verdict(hostile_set: Path) -> None:
    began = time.perf_counter()
    report = scan(hostile_set)
    entries = examined(list(report.entries), report.root, COLOURS)
    assert time.perf_counter() - began < 60
    paths = [entry.path for entry in entries]
    assert len(paths) == len(set(paths))
    remaining = {os.path.relpath(entry.path, report.root): entry for entry in entries}
    for case in hostile.corpus():
        entry = remaining.pop(os.path.join("odd", case.name))
        assert entry.label == "odd"
        assert (case.name, entry.state) == (case.name, case.verdict)
        assert case.reason in entry.reason
    for name, expected in hostile.SPECIALS.items():
        state, _, reason = expected.partition(" ")
        entry = remaining.pop(os.path.join("special", name))
        assert (name, entry.state) == (name, state)
        assert reason in entry.reason
    assert {os.path.dirname(name) for name in remaining} == {"sound"}


def test_unreadable_files_are_named_or_skipped(hostile_set: Path) -> None:
    before = digest(hostile_set)
    with pytest.raises(ValueError, match=r"files cannot be used: odd/beyond.pgm: ") as caught:
        open_data(hostile_set)
    assert "\n" not in str(caught.value)
    assert 'on_unreadable = "skip"' in str(caught.value)
    source = open_data(hostile_set, on_unreadable="skip", validation=0, size=16)
    corpus = hostile.corpus()
    used = {os.path.join("odd", case.name) for case in corpus if case.verdict == "used"}
    used |= {"special/real.png", "special/folder.jpg/inside.png"}
    used |= {f"sound/{index:02}.png" for index in range(4)}
    assert set(names(source)) == used
    refused = sum(case.verdict == "refused" for case in corpus) + 8
    assert source.warnings[0] == f"{refused} of {refused + len(used)} files skipped"
    assert sum(warning.startswith("skipped ") for warning in source.warnings) == refused
    json.dumps(source.warnings).encode("utf-8")
    "".join(source.warnings).encode("utf-8")
    # a whole epoch in workers: each kept sample once, with its own label, and nothing else
    labels = []
    with Loader(source, augment="resizedcrop flip", batch_size=16, workers=2) as loader:
        for batch in loader.epoch(0):
            assert batch.inputs.isfinite().all()
            labels += batch.targets.tolist()
    assert sorted(labels) == sorted(source.labels.tolist())
    assert len(labels) == len(used)
    # evaluation and fingerprints neither write
    source.fingerprint()
    list(batches(source, split="validation"))
    assert digest(hostile_set) == before


def test_a_skipped_file_is_never_replaced_by_another(tmp_path: Path) -> None:
    root = photos(tmp_path / "set", count=6)
    (root / "cat" / "03.png").write_bytes(b"on_unreadable")
    source = open_data(root, split="all", on_unreadable="skip", size=8)
    assert names(source) == [
        *(f"cat/{index:02}.png" for index in (0, 1, 2, 4, 5)),
        *(f"dog/{index:02}.png" for index in range(6)),
    ]
    colours = [tuple(source.read(i).tensor[:, 0, 0].tolist()) for i in range(len(source))]
    assert colours[3] == (36, 0, 200)
    assert [source.read(i).target for i in range(len(source))] == [0] * 5 + [1] * 6


def test_verdicts_are_cached_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "set")
    open_data(root)
    decoded: list[str] = []
    original = image.examine

    def counted(path: str, limit: int) -> Verdict:
        decoded.append(path)
        return original(path, limit)

    monkeypatch.setattr(image, "examine", counted)
    open_data(root)
    assert decoded == []
    changed = root / "dog" / "02.png"
    changed.write_bytes(b"on_unreadable")
    with pytest.raises(ValueError, match=r"1 of 10 files cannot be used: dog/02\.png"):
        open_data(root)
    assert decoded == [str(changed)]
    # a damaged memory costs time, not truth
    (memory,) = Path(os.environ["PLUSX_CACHE"], "checked").iterdir()
    for junk in (b"", b"{}", b'{"terms": 3, "kept": {"a": 1}}', b"\xff"):
        memory.write_bytes(junk)
        with pytest.raises(ValueError, match="dog/02"):
            open_data(root)


def test_a_cache_that_cannot_be_written_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "file" / "below"))
    assert len(open_data(photos(tmp_path / "set"))) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_becomes_unreadable_later_is_named(tmp_path: Path, workers: int) -> None:
    root = photos(tmp_path / "set")
    source = open_data(root, size=8, validation=0)
    (root / "dog" / "04.png").write_bytes(b"on_unreadable")
    with (
        Loader(source, workers=workers, batch_size=3) as loader,
        pytest.raises(RuntimeError, match=r"^dog/04\.png cannot be used any more"),
    ):
        list(loader.epoch(0))
    (root / "dog" / "04.png").unlink()
    with pytest.raises(RuntimeError, match="No such file"):
        list(batches(source))


def test_links_inside_the_root_are_followed_once(tmp_path: Path) -> None:
    root = photos(tmp_path / "set")
    store = root / ".store"
    shutil.move(root / "dog", store)
    os.symlink(".store", root / "dog")
    source = open_data(root, split="all")
    assert source.labels.bincount().tolist() == [5, 5]
    os.symlink("../cat", root / "cat" / "again")
    with pytest.raises(ValueError, match=r"cat/again: a link to a folder above it"):
        open_data(root, split="all")
    (root / "cat" / "again").unlink()
    os.symlink("cat", root / "kitten")
    with pytest.raises(ValueError, match="the class folder 'kitten' has no images"):
        open_data(root, split="all")


# roots that cannot be used


def test_what_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is missing: there is no such folder or file"):
        open_data(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"neither a path nor one of digits.*mean 'digits'"):
        open_data("digit")
    with pytest.raises(ValueError, match="no class folders"):
        open_data(tmp_path)
    (tmp_path / "x.png").write_bytes(hostile.saved(hostile.PICTURE, "PNG"))
    with pytest.raises(ValueError, match="no class folders: images are expected in"):
        open_data(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="is not data that plusx can read"):
        open_data(tmp_path / "notes.txt")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match="is not data that plusx can read"):
        open_data(tmp_path / "pipe.csv")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="no class folders"):
        open_data(tmp_path)


def test_a_class_folder_without_images_is_named_or_left_out(tmp_path: Path) -> None:
    root = photos(tmp_path / "set")
    (root / "bare").mkdir()
    (root / "bare" / "notes.txt").write_text("none yet")
    with pytest.raises(ValueError, match="the class folder 'bare' has no images"):
        open_data(root)
    source = open_data(root, on_unreadable="skip")
    assert source.classes == ("cat", "dog")
    assert "the class folder 'bare' has no images and is left out" in source.warnings


def test_a_class_of_unreadable_images_is_an_error_even_when_skipping(
    tmp_path: Path,
) -> None:
    root = photos(tmp_path / "set", ("cat", "dog", "emu"))
    for path in (root / "dog").iterdir():
        path.write_bytes(b"on_unreadable")
    with pytest.raises(ValueError, match="no image of the class 'dog' can be used"):
        open_data(root, on_unreadable="skip")


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one class only \\('cat'\\)"):
        open_data(photos(tmp_path / "set", ("cat",)))


def test_classes_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'Cat' and 'cat' differ in case only"):
        open_data(photos(tmp_path / "set", ("cat", "Cat")))


def test_a_class_without_training_images_is_refused(tmp_path: Path) -> None:
    photos(tmp_path / "train"), photos(tmp_path / "val", ("emu",))
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match="the class 'emu' is not a training class"):
            open_data(tmp_path, split=split)


def test_hidden_files_and_files_beside_the_classes_are_ignored_with_a_warning(
    tmp_path: Path,
) -> None:
    root = photos(tmp_path / "set")
    photos(root, (".hidden",))
    (root / "README.md").write_text("about")
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    source = open_data(root, split="all")
    assert source.classes == ("cat", "dog")
    warnings = "\n".join(source.warnings)
    assert "hidden: .hidden, cat/.DS_Store" in warnings
    assert "outside the class folders: README.md" in warnings


def test_class_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    root = photos(tmp_path / "set")
    photos(root, (os.fsdecode(b"caf\xe9"),))
    source = open_data(root)
    assert source.classes == ("caf\\xe9", "cat", "dog")


def test_a_changed_set_has_another_fingerprint(tmp_path: Path) -> None:
    root = photos(tmp_path / "set")
    first = open_data(root, split="all").fingerprint()
    assert open_data(root, split="all").fingerprint() == first
    moved = tmp_path / "elsewhere" / "set"
    shutil.copytree(root, moved)
    assert open_data(moved, split="all").fingerprint() == first
    path = moved / "cat" / "01.png"
    data = bytearray(path.read_bytes())
    path.write_bytes(data + b"x")
    assert open_data(moved, split="all").fingerprint() != first
    data = bytearray(hostile.saved(hostile.plain((10, 0, 200), 21, 30), "PNG"))
    shutil.copytree(root, tmp_path / "third" / "set")
    path = tmp_path / "third" / "set" / "cat" / "01.png"
    assert len(data) == path.stat().st_size
    path.write_bytes(data)
    assert open_data(path.parent.parent, split="all").fingerprint() != first
    (root / "cat" / "01.png").unlink()
    assert open_data(root, split="all").fingerprint() != first


def test_the_end_of_a_large_file_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    root = photos(tmp_path / "set")
    path = root / "cat" / "00.png"
    path.write_bytes(path.read_bytes() + bytes(100_000))
    first = open_data(root, split="all").fingerprint()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert open_data(root, split="all").fingerprint() != first


# prediction


def test_images_to_predict_come_from_files_and_folders(tmp_path: Path) -> None:
    root = photos(tmp_path / "set", count=2)
    failed: list[dict[str, str]] = []
    names = ["dog/00.png", "dog/01.png", "cat/00.png"]
    paths = [root / "dog", root / "cat" / "00.png"]
    assert image_files(paths, failed) == [str(root / name) for name in names]
    assert not failed
    (root / "dog" / "02.png").symlink_to(root / "nothing.png")
    assert len(image_files([root], failed)) == 4
    assert failed[0]["path"].endswith("dog/02.png")
    with pytest.raises(ValueError, match="no such file or folder"):
        image_files([root / "nothing"], failed)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="a folder without images"):
        image_files([tmp_path / "bare"], failed)


# CSVs


def table(root: Path, text: str | bytes, name: str = "set.csv") -> Path:
    path = root / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return photos(tmp_path / "set", count=4)


GOOD = "path,label\n" + "".join(
    f"{name}/0{index}.png,{name}\n" for name in ("dog", "cat") for index in range(4)
)


def test_a_csv_is_split_by_the_seed_or_by_its_column(pictures: Path) -> None:
    source = open_data(table(pictures, GOOD), validation=0.25)
    assert source.classes == ("cat", "dog")
    assert source.labels.bincount().tolist() == [3, 3]
    assert len(open_data(table(pictures, GOOD), split="validation", validation=0.25)) == 2
    rows = GOOD.splitlines()
    splits = ["split", "train", "val", "train", "test", "train", "validation", "train", "test"]
    text = "\ufeff" + "\r\n".join(f"{row},{part}" for row, part in zip(rows, splits))
    files = {
        split: names(open_data(table(pictures, text), split=split))
        for split in ("train", "validation", "test")
    }
    assert files["validation"] == ["dog/01.png", "cat/01.png"]
    assert files["test"] == ["dog/03.png", "cat/03.png"]
    assert files["train"] == ["dog/00.png", "dog/02.png", "cat/00.png", "cat/02.png"]


def test_several_labels_of_a_row_are_separated_by_a_bar(pictures: Path) -> None:
    text = "path,label\ncat/00.png,tail|whiskers\ncat/01.png,\ndog/00.png, tail \ndog/01.png,paw\n"
    source = open_data(table(pictures, text), split="all")
    assert source.classes == ("paw", "tail", "whiskers")
    assert source.labels.tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert source.multilabel
    (batch,) = batches(source)
    assert batch.targets.dtype == torch.float32


def test_integers_are_class_indices(pictures: Path) -> None:
    text = GOOD.replace(",dog", ",1").replace(",cat", ",0")
    source = open_data(table(pictures, text), split="all")
    assert source.classes == ("0", "1")
    assert source.labels.tolist() == [1] * 4 + [0] * 4
    named = open_data(table(pictures, text), split="all", classes=("cat", "dog", "emu"))
    assert named.labels.tolist() == source.labels.tolist()
    assert named.classes == ("cat", "dog", "emu")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("2", "row 3: label '2' is outside 0 to 1"),
        ("7", "row 3: label '7' is outside 0 to 2"),
        ("-1", "row 3: label '-1' is not an integer from 0"),
        ("-100", "row 3: label '-100' is not an integer from 0"),
        ("nan", "row 3: label 'nan' is not an integer from 0"),
        ("1.5", "row 3: label '1.5' is not an integer from 0"),
        ("", "row 3: no label"),
    ],
)
def test_a_label_out_of_range_is_named_with_its_row(
    pictures: Path, label: str, message: str
) -> None:
    classes = ("cat", "dog") if label == "2" else None
    text = f"path,label\ncat/00.png,0\ncat/01.png,{label}\ndog/00.png,1\n"
    with pytest.raises(ValueError, match=message):
        open_data(table(pictures, text), classes=classes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns none; it needs path and label"),
        ("path,label\n", "no rows below its header"),
        ("file,class\na,b\n", "has the columns file,class; it needs path and label"),
        ("path,label,label\na,b,c\n", "the column 'label' more than once"),
        ("path,label\ncat/00.png\n", "row 2: 1 field for 2 columns"),
        ("path,label\n\ncat/00.png,cat,x\n", "row 3: 3 fields for 2 columns"),
        ("path,label\n,cat\n", "row 2: no path"),
        ("path,label\n../away.png,cat\n", "row 2: the path '../away.png' leaves the folder"),
        ("path,label\n/etc/passwd,cat\n", "row 2: the path '/etc/passwd' leaves the folder"),
        ("path,label\ncat/00.png,cat\n./cat//00.png,dog\n", "row 3 repeats row 2 .cat/00.png"),
        ("path,label,split\ncat/00.png,cat,trian\n", "row 2: split 'trian', allowed are train"),
        (
            "path,label,split\ncat/00.png,a,train\ncat/01.png,b,train\ndog/00.png,c,val\n",
            "row 4: label 'c' is not a training class",
        ),
        ('path,label\n"cat/00.png,cat\n', "row 2: unexpected end of data"),
        ("path,label\ncat/00.png,cat\ncat/01.png,cat\n", "one class only"),
        ("path,label\ncat/00.png,cat\ncat/99.png,dog\n", "row 3 .cat/99.png.: missing"),
        ("path,label\ncat/00.png,cat\ncat,dog\n", "row 3 .cat.: not a regular file"),
    ],
)
def test_an_invalid_csv_is_named_with_its_row(pictures: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_data(table(pictures, text))
    assert "\n" not in str(caught.value)


def test_rows_of_unreadable_files_are_skipped_on_request(pictures: Path) -> None:
    (pictures / "cat" / "02.png").write_bytes(b"on_unreadable")
    os.symlink("/etc/passwd", pictures / "cat" / "link.png")
    os.mkfifo(pictures / "cat" / "pipe.png")
    text = GOOD + "cat/99.png,cat\ncat/link.png,cat\ncat/pipe.png,dog\n"
    before = digest(pictures)
    path = table(pictures, text)
    before = digest(pictures)
    source = open_data(path, split="all", on_unreadable="skip")
    assert len(source) == 7
    assert source.rows == [2, 3, 4, 5, 6, 7, 9]
    assert source.warnings[0] == "4 of 11 files skipped"
    assert any(warning.startswith("skipped row 8 (cat/02.png)") for warning in source.warnings)
    assert digest(pictures) == before


def test_a_csv_survives_strange_names(pictures: Path) -> None:
    strange = [os.fsdecode(b"caf\xe9\xff.png"), "a,b.png", 'q"uote.png', "-rf.png", "x\ny.png"]
    lines = ["path,label"]
    for number, name in enumerate(strange):
        (pictures / name).write_bytes(hostile.saved(hostile.PICTURE, "PNG"))
        quoted = name.replace('"', '""')
        lines.append(f'"{quoted}",class {number % 2}')
    path = table(pictures, "\n".join(lines).encode("utf-8", "surrogateescape"))
    source = open_data(path, split="all", size=8)
    assert names(source) == strange
    assert source.describe(0) == "row 2 (caf\\xe9\\xff.png)"
    assert len(list(batches(source, workers=1))) == 1


def test_a_subset_counts_its_samples(tmp_path: Path) -> None:
    """The denominators of every figure are the kept files: Dataset and warnings agree."""
    root = photos(tmp_path / "set")
    (root / "cat" / "00.png").write_bytes(b"on_unreadable")
    report = scan(root)
    used, warnings = check_entries(report.entries, report.root, "skip", COLOURS)
    assert len(used) == 9
    assert warnings[0] == "1 of 10 files skipped"
    source = open_data(root, split="all", on_unreadable="skip", size=8)
    assert sum(len(batch) for batch in batches(source)) == len(used)

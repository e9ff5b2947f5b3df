"""Embeddings, verification, the order of an epoch by classes, and folders of people."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from plusx.data.batch import Batch
from plusx.data.dataset import Dataset, MemoryItems
from plusx.data.loader import Loader
from plusx.data.modality import ImageModality
from plusx.data.prediction import Embeddings
from plusx.data.readers.layouts import kinds_of
from plusx.data.readers.people import divided, open_people
from plusx.data.sampler import check_sampler, epoch_order
from plusx.metrics.verification import Pairs, Ranking, VerificationMeter, pairs_of
from plusx.recipe import load_recipe, parse_recipe
from plusx.report.run import finding
from plusx.run.datasets import open_train_and_validation
from plusx.run.distributed import DistributedContext
from plusx.run.engines import engine_of
from plusx.tasks.embed import Embed, hardest_distances, with_margin
from plusx.train.state import State


few = settings(max_examples=10)
ALL_SAMPLINGS = ("uniform", "balanced", "pk")
labelled = st.lists(st.integers(0, 4), min_size=8, max_size=60).filter(lambda x: len(set(x)) > 2)


def write_people(root: Path, counts: dict[str, int], side: int = 12, first: int = 0) -> Path:
    """A folder of people, each with a face of their own: the same blocks, other noise."""
    for number, (name, count) in enumerate(counts.items(), first):
        draw = np.random.default_rng(number)
        face = draw.integers(0, 256, (3, 3)).repeat(side // 3, 0).repeat(side // 3, 1)
        (root / name).mkdir(parents=True)
        for index in range(count):
            noise = np.random.default_rng((number, index)).normal(0, 20, face.shape)
            pixels = (0.8 * face + noise + 20).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:02}.png")
    return root


# the order of an epoch


@few
@given(labelled, st.integers(0, 3), st.integers(0, 3), st.sampled_from(ALL_SAMPLINGS))
def test_an_epoch_has_its_length_and_is_a_function_of_seed_and_epoch(labels, seed, epoch, sampling):
    labels = torch.tensor(labels)
    order = epoch_order(sampling, labels, seed, epoch, 6, 2)
    assert len(order) == len(labels)
    assert set((order % len(labels)).tolist()) <= set(range(len(labels)))
    assert len(set(order.tolist())) == len(order)  # copies of a sample have numbers of their own
    assert np.array_equal(order, epoch_order(sampling, labels, seed, epoch, 6, 2))
    if sampling == "uniform":
        assert sorted(order.tolist()) == list(range(len(labels)))


def test_other_epochs_and_other_seeds_have_another_order():
    labels = torch.arange(60) % 6
    for sampling in ALL_SAMPLINGS:
        orders = [epoch_order(sampling, labels, s, e, 12, 3) for s, e in ((0, 0), (0, 1), (1, 0))]
        assert not np.array_equal(orders[0], orders[1])
        assert not np.array_equal(orders[0], orders[2])


@few
@given(labelled, st.integers(0, 99))
def test_a_balanced_epoch_has_equal_numbers_of_each_class(labels, epoch):
    order = epoch_order("balanced", torch.tensor(labels), 3, epoch, 4)
    counts = np.unique(np.array(labels)[order % len(labels)], return_counts=True)[1]
    assert len(counts) == len(set(labels))
    assert counts.max() - counts.min() <= 1
    # a sample comes again only when all others of its class have come as often
    times = np.bincount(order % len(labels), minlength=len(labels))
    for label in set(labels):
        uses = times[np.array(labels) == label]
        assert uses.max() - uses.min() <= 1


def test_a_balanced_multilabel_epoch_has_every_label_equally_often():
    rows = torch.zeros(200, 3)
    rows[:150, 0] = 1
    rows[150:160, 1] = 1  # rare
    rows[160:, 2] = 1
    order = epoch_order("balanced", rows, 0, 0, 10)
    shares = rows[torch.from_numpy(order % len(rows))].mean(0)
    assert torch.allclose(shares, torch.full((3,), 1 / 3), atol=0.01)


@few
@given(labelled, st.integers(1, 4), st.integers(0, 9))
def test_pk_batches_have_groups_of_different_people(labels, pictures, epoch):
    people_of = np.array(labels)
    together = len(set(labels)) - 1
    size = together * pictures
    order = epoch_order("pk", torch.tensor(labels), 1, epoch, size, pictures) % len(labels)
    for start in range(0, len(order) - pictures + 1, pictures):
        group = order[start : start + pictures]
        (person,) = set(people_of[group])
        if (people_of == person).sum() >= pictures:
            assert len(set(group.tolist())) == pictures
    for start in range(0, len(order) - size + 1, size):
        people = people_of[order[start : start + size : pictures]]
        assert len(set(people.tolist())) == together


def test_invalid_class_samplers_are_refused():
    labels = torch.arange(20) % 4
    check_sampler("pk", labels, 16, 4)
    with pytest.raises(ValueError, match="needs 5 classes, and there are 4; batch_size = 16"):
        check_sampler("pk", labels, 20, 4)
    with pytest.raises(ValueError, match="samples_per_class = 9: from 1 to batch_size"):
        check_sampler("pk", labels, 8, 9)
    with pytest.raises(ValueError, match="one class per sample"):
        check_sampler("pk", torch.zeros(4, 2), 4, 2)
    with pytest.raises(ValueError, match="allowed are uniform, balanced, bucketed, pk"):
        check_sampler("fair", labels, 8, 2)


def test_the_loader_follows_the_sampler_in_training_only():
    images = torch.arange(24, dtype=torch.uint8).view(24, 1, 1, 1).expand(24, 1, 2, 2).contiguous()
    source = Dataset(
        name="made",
        split="train",
        classes=("a", "b", "c", "d"),
        labels=torch.arange(24) % 4,
        modality=ImageModality((2, 2), 1, (0.0,), (1.0,)),
        items=MemoryItems(images),
    )
    loader = Loader(source, batch_size=6, seed=5, sampler="pk", samples_per_class=3)
    loaded = torch.cat([batch.inputs[:, 0, 0, 0] * 255 for batch in loader.epoch(2)]).round().long()
    expected = epoch_order("pk", source.labels, 5, 2, 6, 3)
    assert loaded.tolist() == (expected % 24).tolist()
    judged = Loader(source, split="validation", batch_size=6, sampler="pk", samples_per_class=3)
    loaded = torch.cat([batch.targets for batch in judged.epoch(2)])
    assert torch.equal(loaded, source.labels)
    with pytest.raises(ValueError, match="needs 6 classes"):
        Loader(source, batch_size=18, sampler="pk", samples_per_class=3)


# verification


def judged(vectors: np.ndarray, classes: np.ndarray, rate: float = 0.01) -> dict:
    meter = VerificationMeter(rate)
    for part in np.array_split(np.arange(len(vectors)), 3):
        targets = torch.from_numpy(classes[part])
        meter.update(Embeddings(torch.from_numpy(vectors[part])), Batch(targets, targets))
    return meter.compute()


@pytest.mark.slow
def test_metrics_equal_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    classes = np.arange(60) % 8
    vectors = 0.6 * draw.normal(size=(8, 5))[classes] + draw.normal(size=(60, 5))
    metrics = judged(vectors, classes)

    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = np.triu_indices(60, 1)
    same, scores = classes[first] == classes[second], (unit[first] * unit[second]).sum(1)
    false, true, _ = roc_curve(same, scores, drop_intermediate=False)
    expected = brentq(lambda x: 1 - x - np.interp(x, false, true), 0, 1)
    assert metrics["equal_error_rate"] == pytest.approx(expected, abs=2e-3)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(same, scores), abs=1e-9)
    assert metrics["genuine_pairs"] == same.sum()
    assert metrics["impostor_pairs"] == (~same).sum()
    assert (metrics["count"], metrics["people"]) == (60, 8)
    for row in metrics["true_accepts"]:
        assert (scores[~same] >= row["threshold"]).mean() <= row["false_accept_rate"]
        assert (scores[same] >= row["threshold"]).mean() == row["true_accept_rate"]
        # the next lower score would accept too many
        lower = scores[scores < row["threshold"]].max()
        assert (scores[~same] >= lower).mean() > row["false_accept_rate"]
    low, high = metrics["equal_error_rate_interval"]
    assert low < metrics["equal_error_rate"] < high


@pytest.mark.slow
def test_separated_embeddings_have_no_error_and_equal_ones_chance_error():
    classes = np.arange(40) % 4
    apart = judged(np.eye(4)[classes], classes)
    assert (apart["equal_error_rate"], apart["true_accept_rate"], apart["auroc"]) == (0, 1, 1)
    assert apart["rank1"] == 1
    # without any error every bootstrap gives the same, which says nothing of how sure it is
    assert apart["equal_error_rate_interval"] is apart["true_accept_rate_interval"] is None
    alike = judged(np.ones((40, 3)), classes)
    assert alike["equal_error_rate"] == pytest.approx(0.5)
    assert alike["auroc"] == pytest.approx(0.5)
    assert alike["true_accept_rate"] == 0


@few
@given(st.integers(0, 99))
def test_a_pair_of_weight_two_counts_as_two_pairs(seed):
    draw = np.random.default_rng(seed)
    ours, others = draw.normal(0.5, 1, 7).round(1), draw.normal(0, 1, 9).round(1)
    times = draw.integers(0, 3, 16)
    times[[0, 7]] = 1
    weighted = Ranking(ours, others).rates(times[:7].astype(float), times[7:].astype(float))
    repeated = Ranking(ours.repeat(times[:7]), others.repeat(times[7:])).rates()
    assert weighted.equal_error() == pytest.approx(repeated.equal_error())
    assert weighted.area() == pytest.approx(repeated.area())
    assert weighted.at(0.3)[1] == pytest.approx(repeated.at(0.3)[1])


def test_very_many_pairs_are_sampled(monkeypatch):
    draw = np.random.default_rng(1)
    classes = np.arange(300) % 30
    unit = draw.normal(size=(300, 4))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    whole = pairs_of(unit, classes)
    monkeypatch.setattr("plusx.metrics.verification.MAX_PAIRS", 1000)
    some = pairs_of(unit, classes)
    for pairs, same in zip(some, (True, False), strict=True):
        assert isinstance(pairs, Pairs)
        assert 900 < len(pairs.scores) <= 1000
        assert ((pairs.first == pairs.second) == same).all()
    assert set(some[0].scores.round(9)) <= set(whole[0].scores.round(9))


def test_pairs_of_large_classes_are_sampled_without_listing_all(monkeypatch):
    classes = np.arange(4000) % 2
    unit = np.ones((4000, 1))
    monkeypatch.setattr("plusx.metrics.verification.MAX_PAIRS", 1000)
    tracemalloc.start()
    genuine, _ = pairs_of(unit, classes)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(genuine.scores) == 1000
    assert np.bincount(genuine.first).min() > 400
    assert most < 4_000_000  # all four million pairs would take sixteen bytes each


def test_invalid_verification_sets_are_refused():
    meter = VerificationMeter()
    with pytest.raises(ValueError, match="there was no batch"):
        meter.compute()
    with pytest.raises(ValueError, match="no pairs of one class"):
        judged(np.eye(3), np.arange(3))
    with pytest.raises(ValueError, match="no pairs of two classes"):
        judged(np.eye(3), np.zeros(3, np.int64))
    broken = np.eye(3)
    broken[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="1 of 3"):
        judged(broken, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="above 0 and below 1"):
        VerificationMeter(0.0)
    with pytest.raises(ValueError, match="above 0 and below 1"):
        Embed(nn.Identity(), loss="triplet", far=0.0)


# losses


def test_the_margin_is_added_to_the_angle():
    angles = torch.linspace(0.01, math.pi - 0.01, 60, dtype=torch.float64)
    cosines = angles.cos()[:, None].repeat(1, 2)
    targets = torch.zeros(60, dtype=torch.int64)
    turned = with_margin(cosines, targets, 0.4)
    assert torch.equal(turned[:, 1], cosines[:, 1])
    inside = angles < math.pi - 0.4
    assert torch.allclose(turned[inside, 0], (angles[inside] + 0.4).cos(), atol=1e-6)
    assert (turned[1:, 0] < turned[:-1, 0]).all()  # beyond it still falls
    assert torch.allclose(with_margin(cosines, targets, 0.0), cosines, atol=1e-6)
    with pytest.raises(ValueError, match="0 to 1 are allowed"):
        with_margin(cosines, targets + 2, 0.4)


def test_arcface_without_a_margin_is_softmax_over_scaled_cosines():
    task = embedder(loss="arcface", margin=0.0, scale=7.0)
    vectors, targets = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    prototypes = nn.functional.normalize(task.prototypes, dim=1)
    cosines = nn.functional.normalize(vectors, dim=1) @ prototypes.T
    expected = nn.functional.cross_entropy(7 * cosines, targets)
    assert task.loss(vectors, targets).item() == pytest.approx(expected.item(), rel=1e-4)
    assert task.loss(3 * vectors, targets).item() == pytest.approx(expected.item(), rel=1e-4)
    task.margin = 0.3
    assert task.loss(vectors, targets) > expected


def test_the_hardest_examples_of_a_batch_are_selected():
    torch.manual_seed(0)
    unit = nn.functional.normalize(torch.randn(12, 3, dtype=torch.float64), dim=1)
    targets = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 0, 3])
    farthest, nearest, counted = hardest_distances(unit, targets)
    apart = torch.cdist(unit, unit)
    for i in range(12):
        same = targets == targets[i]
        same[i] = False
        other = targets != targets[i]
        assert bool(counted[i]) == bool(same.any())
        if counted[i]:
            assert farthest[i].item() == pytest.approx(apart[i][same].max().item(), abs=1e-6)
            assert nearest[i].item() == pytest.approx(apart[i][other].min().item(), abs=1e-6)


def test_triplets_of_one_person_have_zero_loss_and_a_gradient():
    task = embedder(loss="triplet")
    vectors = torch.randn(4, 6, requires_grad=True)
    loss = task.loss(vectors, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert task.scalars["error"] == 0
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()
    # equal vectors have finite slopes too
    same = torch.ones(4, 6, requires_grad=True)
    task.loss(same, torch.tensor([0, 0, 1, 1])).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().amax((2, 3)))


def embedder(loss="arcface", margin=0.3, scale=8.0, class_names=("a", "b", "c")) -> Embed:
    torch.manual_seed(1)
    return Embed(Tiny(), loss=loss, margin=margin, scale=scale, class_names=class_names)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["arcface", "triplet"])
def test_embeddings_separate_classes_and_have_unit_length(loss):
    task = embedder(loss)
    draw = torch.Generator().manual_seed(0)
    targets = torch.arange(18) % 3
    faces = torch.randn(3, 1, 5, 5, generator=draw)
    images = faces[targets] + 0.3 * torch.randn(18, 1, 5, 5, generator=draw)
    optimizer = torch.optim.SGD(task.parameters(), 0.2, momentum=0.8)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        value = task(Batch(images, targets))
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.7 * losses[0]
    assert task.scalars["error"] < 0.2
    vectors = task.eval().predict(Batch(images)).vectors
    assert torch.allclose(vectors.norm(dim=1), torch.ones(18), atol=1e-5)
    # the prototypes are the task's, so that the network stands alone
    assert set(task.net.state_dict()) == set(Tiny().state_dict())


@pytest.mark.slow
def test_triplets_need_two_people_in_each_process():
    recipe = parse_recipe(
        'epochs = 1\nbatch_size = 12\n[net]\nbase = "resnet20"\n[task]\nkind = "embed"\n'
        'loss = "triplet"\n[data]\nkind = "people"\npath = "."\nsampler = "pk"\n'
        'samples_per_class = 3\n[optim]\nkind = "sgd"\nlr = 0.1\n'
    )
    task = embedder("triplet")
    state = State(task, torch.optim.SGD(task.parameters(), 0.1))
    with pytest.raises(ValueError, match="batch_size = 24 or more"):
        engine_of(recipe, state, DistributedContext(0, 4, 0))


def test_a_task_without_its_classes_predicts_and_does_not_train():
    task = embedder(class_names=None)
    assert task.predict(Batch(torch.zeros(2, 1, 5, 5))).vectors.shape == (2, 6)
    with pytest.raises(ValueError, match="arcface needs class_names"):
        task(Batch(torch.zeros(2, 1, 5, 5), torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(ValueError, match="0 to below pi / 2"):
        embedder(margin=1.6)
    with pytest.raises(ValueError, match="must be above 0"):
        embedder(scale=0.0)


# folders of people


@few
@given(
    st.integers(8, 40),
    st.integers(0, 9),
    st.sampled_from([None, 0, 2, 3, 0.25]),
    st.sampled_from([0, 2, 0.25]),
)
def test_no_person_is_in_two_splits(count, seed, validation, test):
    names = [f"p{number:02}" for number in range(count)]
    splits = divided(names, seed, validation, test)
    assert sorted(name for part in splits.values() for name in part) == names
    assert splits == divided(names, seed, validation, test)
    if isinstance(validation, int):
        assert len(splits["validation"]) == validation
    if isinstance(test, int):
        assert len(splits["test"]) == test


def test_patterns_select_the_people_of_the_test_and_must_match():
    names = [f"s{number:02}" for number in range(1, 31)]
    splits = divided(names, 0, "s0[1-4]", "s2[1-9]|s30")
    assert splits["test"] == names[20:]
    assert splits["validation"] == names[:4]
    assert splits["train"] == names[4:20]
    with pytest.raises(ValueError, match=r"test = 's4\.' matches no name"):
        divided(names, 0, None, "s4.")
    with pytest.raises(ValueError, match="not a regular expression"):
        divided(names, 0, None, "s(")
    with pytest.raises(ValueError, match="that is 29 of 30 people"):
        divided(names, 0, None, 29)
    with pytest.raises(ValueError, match="a fraction below 1"):
        divided(names, 0, None, 1.5)


def test_a_person_with_one_image_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    root = write_people(tmp_path / "faces", {"ann": 3, "bob": 3, "cid": 1, "dan": 3, "eva": 3})
    (root / "fay").mkdir()
    message = r"2 of 6 people cannot be used: cid has one image \(cid/00.png\).*; fay has no image"
    with pytest.raises(ValueError, match=message):
        open_people(root, validation="ann|bob")
    source = open_people(root, validation="ann|bob", on_unreadable="skip", size=(6, 4), channels=1)
    assert source.classes == ("dan", "eva")
    assert source.labels.tolist() == [0] * 3 + [1] * 3
    assert any("cid has one image" in warning for warning in source.warnings)
    assert source.modality.size == (6, 4)
    with pytest.raises(ValueError, match="nobody in test"):
        open_people(root, split="test", on_unreadable="skip", validation="ann|bob")


def test_split_folders_assign_people_and_none_is_in_two(tmp_path, monkeypatch):
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "faces"
    write_people(root / "train", {"ann": 2, "bob": 2})
    write_people(root / "val", {"cid": 2, "dan": 2}, first=2)
    assert open_people(root).classes == ("ann", "bob")
    assert open_people(root, split="validation").classes == ("cid", "dan")
    assert open_people(root, split="all").classes == ("ann", "bob", "cid", "dan")
    with pytest.raises(ValueError, match=r"own \(train, validation\): leave out test = 2"):
        open_people(root, test=2)
    with pytest.raises(ValueError, match=r"leave out validation = 's.'"):
        open_people(root, validation="s.")
    write_people(root / "test", {"bob": 2, "eva": 2}, first=4)
    with pytest.raises(ValueError, match="'bob' is in test and in train"):
        open_people(root)


def test_s8_validation_people_are_drawn_from_training_people(tmp_path, monkeypatch):
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "faces"
    learning = {f"s{number}": 2 for number in range(5)}
    write_people(root / "train", learning)
    write_people(root / "test", {"t1": 2, "t2": 2}, first=5)
    train, validation = (open_people(root, split=split) for split in ("train", "validation"))
    assert sorted((*train.classes, *validation.classes)) == sorted(learning)
    assert len(validation.classes) == 2
    assert open_people(root, split="test").classes == ("t1", "t2")
    assert open_people(root, validation="s[01]").classes == ("s2", "s3", "s4")
    for nobody in (0, ""):
        assert open_people(root, validation=nobody, test=nobody).classes == tuple(learning)


@pytest.mark.parametrize("nobody", ["0", "''"])
def test_s8_a_recipe_leaves_a_split_of_people_out(nobody, tmp_path, monkeypatch):
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    root = write_people(tmp_path / "faces", dict.fromkeys("abcd", 2))
    overrides = [f"data.path={root}", f"data.validation={nobody}", f"data.test={nobody}"]
    train, validation = open_train_and_validation(load_recipe("faces-verify", overrides))
    assert len(train.classes) == 4
    assert validation is None


def test_s11_an_image_of_two_people_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "faces"
    write_people(root / "train", {"ann": 3, "bob": 3})
    write_people(root / "test", {"cid": 3, "dan": 3}, first=2)
    (root / "test" / "cid" / "copy.png").write_bytes((root / "train/ann/00.png").read_bytes())
    with pytest.raises(
        ValueError, match=r"test/cid/copy\.png and train/ann/00\.png are the same image"
    ):
        open_people(root, validation=0)
    source = open_people(root, split="all", on_unreadable="skip")
    assert len(source) == 11
    assert any("are the same image under several people" in text for text in source.warnings)


def test_s11_a_report_warns_of_few_people():
    metrics = {"count": 8, "people": 2, "equal_error_rate": 0.0}
    result = {"name": "net", "validation": metrics, "metrics": ["equal_error_rate"], "data": "x"}
    assert finding(result).endswith(
        "images. They show 2 people only, which says little about others."
    )
    assert finding({**result, "validation": {**metrics, "people": 10}}).endswith("images.")


def test_s11_faces_as_orl_publishes_them(tmp_path, monkeypatch):
    """s1/1.pgm to s40/10.pgm and a README."""
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    root = write_people(tmp_path / "orl", {f"s{number}": 3 for number in range(1, 7)})
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_name(f"{int(path.stem) + 1}.pgm"))
        path.unlink()
    (root / "README").write_text("The ORL face database")
    assert "people" in kinds_of(root)
    source = open_people(root, channels=1, size=(12, 12))
    assert len(source) == 12
    assert source.read(0).tensor.shape == (1, 12, 12)

"""The fast recipe and what it is made of: whitening, six views, its work, and going on."""

import importlib
import shutil
from math import prod
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plusx import store
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset, MemoryItems, images_of
from plusx.data.loader import batches
from plusx.data.modality import ImageModality
from plusx.grammar.spec import Net
from plusx.grammar.words import parse
from plusx.nn.dims import layer_type
from plusx.nn.whitening import whiten
from plusx.recipe import load_recipe, parse_recipe
from plusx.run import build, optim, train
from plusx.run.file_names import LOG, WEIGHTS
from plusx.tasks.classify import Classify
from plusx.tasks.tta import TestTimeAugmented


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = """
steps = 6
batch_size = 16

[net]
stem = "conv2b act"
stem_width = 8
stages = [{ block = { body = "conv3 maxpool2s norm act conv3 norm + act", shortcut = "maxpool2s conv1" }, depth = 1, width = 8, stride = 2 }]
tail = "maxpool3s3 scale.125"
in_channels = 1
num_classes = 10
size = 8

[init]
whiten = true

[data]
kind = "digits"
train = 200

[optim]
kind = "muon"
lr = 0.1
weight_decay = 1e-4
ema = 0.9

[schedule]
kind = "cosine"

[device]
kind = "cpu"
threads = 1

[checkpoint]
every_seconds = 0.0
every_steps = 3
"""  # noqa: E501


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("fast")


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**16), st.data())
def test_whitened_patches_are_uncorrelated_with_unit_variance(
    ndim: int, channels: int, kernel: int, seed: int, data: st.DataObject
) -> None:
    values = channels * kernel**ndim
    count = data.draw(st.integers(1, 2 * values))
    convolution = layer_type("Conv", ndim)(channels, count, kernel, bias=True)
    generator = torch.Generator().manual_seed(seed)
    # enough patches that no direction of them is empty, in two batches
    images = torch.randn(4 * values, channels, *[kernel + 2] * ndim, generator=generator)
    images = images + images.roll(1, dims=-1)
    whiten(convolution, images.split(3 * values), epsilon=0.0)
    assert not convolution.weight.requires_grad
    assert convolution.bias is not None
    assert convolution.bias.requires_grad
    patches = convolution(images).detach().movedim(1, -1).reshape(-1, count)
    half = -(-count // 2)
    moments = patches.T @ patches / len(patches)
    # filters are kept in float32 and divided by as little as 1/100 of the largest deviation
    assert torch.allclose(moments[:half, :half], torch.eye(half), atol=1e-2)
    assert torch.equal(convolution.weight[half:], -convolution.weight[: count - half])


def test_eigenvectors_are_sorted_and_small_eigenvalues_are_bounded() -> None:
    convolution = nn.Conv1d(2, 2, 1, bias=False)
    images = torch.tensor([[[3.0], [1e-4]], [[-3.0], [1e-4]]])
    whiten(convolution, [images], epsilon=0.01)
    first, second = convolution.weight[:, :, 0].abs()
    assert first.tolist() == pytest.approx([1 / (9 + 0.01) ** 0.5, 0], abs=1e-6)
    # the second filter is the negative of the first: a half of them has directions of its own
    assert second.tolist() == first.tolist()


@pytest.mark.parametrize(
    ("net", "images", "error", "message"),
    [
        (nn.Linear(3, 2), [], ValueError, "no convolution"),
        (nn.Conv2d(1, 9, 2), [], ValueError, "at most 8 filters"),
        (nn.Conv2d(2, 2, 3, groups=2), [], ValueError, "groups"),
        (nn.Conv2d(1, 8, 2), [], RuntimeError, "no images"),
    ],
)
def test_networks_that_cannot_be_whitened_are_refused(
    net: nn.Module, images: list[Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        whiten(net, images)


def test_weights_that_are_loaded_are_not_whitened() -> None:
    recipe = load_recipe("digits-resnet20", ["init.whiten=true", "net.weights=some.safetensors"])
    with pytest.raises(ValueError, match=r"whiten: not with \[net\] weights"):
        build.freeze_and_whiten(recipe, nn.Conv2d(1, 2, 2), build.open_split(recipe, "train"))


class Corner(nn.Module):
    """Certain of class 0 where the pixel in the upper left is bright."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([100.0 * (x[:, 0, 0, 0] - 0.5), torch.zeros(len(x))], 1)


@pytest.mark.parametrize(
    ("bright", "share"),
    [((0, 0), 0.25), ((0, 4), 0.25), ((1, 1), 0.25), ((1, 3), 0.25), ((2, 2), 0.0), ((0, 1), 0.0)],
)
def test_six_views_are_three_positions_and_their_mirror_images(
    bright: tuple[int, int], share: float
) -> None:
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, bright[0], bright[1]] = 1.0
    task = TestTimeAugmented(Classify(Corner()), "flip-shift").eval()
    # a corner is seen by one of the two views in the middle, of which each has a quarter; what lies
    # a pixel inside by the one move directly and by the other in the reflected border
    assert float(task.predict(Batch(image)).tensors()["probabilities"][0, 0]) == pytest.approx(
        share, abs=1e-6
    )


def test_every_block_of_the_fast_recipe_adds_its_shortcut_and_its_work_is_within_the_limit(
    fast: ModuleType,
) -> None:
    recipe = load_recipe("cifar10-fast")
    assert isinstance(recipe.net, Net)
    assert all(
        parse(block.body).merge == "add" for stage in recipe.net.stages for block in stage.blocks
    )
    assert recipe.epochs is not None
    assert recipe.data.validation == 0
    steps = recipe.epochs * -(-50_000 // recipe.batch_size)
    work = steps * fast.step_work(recipe) / fast.PETA
    assert 0.9 * fast.LIMIT < work <= fast.LIMIT


def test_the_work_of_a_step_is_counted_by_hand(fast: ModuleType) -> None:
    recipe = parse_recipe(SMALL)
    # multiply-adds: stem 7 x 7 positions; 7 x 7, then 4 x 4; the shortcut's at 4 x 4; the head
    adds = 49 * 4 * 8 + 49 * 72 * 8 + 16 * 72 * 8 + 16 * 8 * 8 + 8 * 4 * 10
    muon = sum(
        3 * 2 * 8 * 8 * (2 * columns + 8) for columns in (prod((8, 3, 3)), prod((8, 3, 3)), 8)
    )
    assert fast.step_work(recipe) == 6 * adds * recipe.batch_size + muon


def test_cells_of_equal_work_have_steps_in_proportion(fast: ModuleType) -> None:
    for name in fast.CONTENDERS:
        recipe = fast.cell_recipe(name, "float32", 0.004, 1)
        assert recipe.seed == 1
        assert recipe.data.validation == fast.HELD_OUT
        done = recipe.steps * fast.step_work(recipe) / fast.PETA
        assert done == pytest.approx(0.004, rel=0.05)


@pytest.mark.slow
def test_a_fast_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    recipe = parse_recipe(SMALL)
    result = train(recipe, tmp_path / "whole")
    assert result["ema"]
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / "result.json").unlink()
    half, last = sorted((tmp_path / "again" / store.CHECKPOINTS).iterdir())[-2:]
    assert store.load_checkpoint(half.parent).step == 6
    shutil.rmtree(last)
    assert store.load_checkpoint(half.parent).step == 3
    (tmp_path / "again" / WEIGHTS).unlink()
    assert train(recipe, tmp_path / "again") == result
    for name in (WEIGHTS, LOG):
        whole, resumed = (tmp_path / folder / name for folder in ("whole", "again"))
        assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.slow
def test_the_frozen_convolution_stays_and_everything_else_moves(tmp_path: Path) -> None:
    recipe = parse_recipe(SMALL)
    sets = build.open_sets(recipe)
    net, _ = build.make_net(recipe)
    build.freeze_and_whiten(recipe, net, sets.train)
    begun = {name: p.detach().clone() for name, p in net.named_parameters()}
    fresh, _ = build.make_net(recipe)
    build.freeze_and_whiten(recipe, fresh, sets.train)
    assert all(torch.equal(p, begun[name]) for name, p in fresh.named_parameters())
    task = Classify(net)
    optimizer = optim.optimizer_of(recipe, task)
    images = sets.train.modality.normalise(images_of(sets.train)[:32])
    task(Batch(images, sets.train.labels[:32])).backward()
    optimizer.step()
    still = [name for name, p in net.named_parameters() if torch.equal(p, begun[name])]
    assert still == ["conv1.weight"]


@pytest.mark.slow
def test_the_benchmark_runs(
    fast: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tiny", "--out", str(tmp_path / "fast.json"), "--cells", str(tmp_path / "cells")]
    assert fast.main(arguments) == 0
    result = store.read_json(tmp_path / "fast.json")
    assert [row["name"] for row in result["rows"]] == list(fast.CONTENDERS)
    assert "resnet20" in (tmp_path / "cells" / "fast.html").read_text()
    capsys.readouterr()
    assert fast.main(arguments) == 0
    assert not capsys.readouterr().out, "what is done is not done again"


def numbered_source() -> Dataset:
    return Dataset(
        name="numbers",
        split="train",
        classes=("a", "b"),
        labels=torch.arange(64) % 2,
        modality=ImageModality(size=(1, 2), channels=1, mean=(0.0,), std=(1.0,)),
        items=MemoryItems(
            torch.stack([torch.arange(64), torch.arange(64, 128)], 1).byte().view(64, 1, 1, 2)
        ),
    )


def mirrored(source: Dataset, augment: str, epoch: int) -> list[bool]:
    """Of every image, by its number, whether it is mirrored in this epoch."""
    flipped = {}
    for batch in batches(source, augment=augment, batch_size=16, seed=3, epoch=epoch):
        for left, right in (batch.inputs[:, 0, 0] * 255).round().int().tolist():
            flipped[min(left, right)] = left > right
    return [flipped[number] for number in range(64)]


@pytest.mark.parametrize("more", ["", " centercrop"])
def test_an_alternating_flip_shows_every_image_from_both_sides_in_two_epochs(more: str) -> None:
    source = numbered_source()
    epochs = [mirrored(source, f"altflip{more}", epoch) for epoch in range(4)]
    assert 16 < sum(epochs[0]) < 48
    assert epochs[1] == [not flipped for flipped in epochs[0]]
    assert epochs[2:] == epochs[:2]
    # a flip is drawn anew
    assert len({tuple(mirrored(source, "flip", epoch)) for epoch in range(4)}) == 4


def test_muon_needs_whole_filters() -> None:
    with pytest.raises(ValueError, match="whole filters"):
        parse_recipe(SMALL.replace("threads = 1", 'parallel = "fsdp"'))

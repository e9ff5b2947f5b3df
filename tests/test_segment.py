"""Segmentation: losses, figures, windows, and a network that learns where things are."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.prediction import PositionProbabilities
from plusx.metrics.segmentation import SegmentationMeter
from plusx.tasks.losses import LOSSES, LossInputs, parse_losses
from plusx.tasks.segment import Segment, balanced
from plusx.tasks.sliding_window import importance, slabs, sliding_window, starts, windows
from plusx.tasks.task import Task
from plusx.tasks.tta import TestTimeAugmented
from plusx.train.loop import evaluate


class Pointwise(nn.Module):
    """What it tells of a position depends on that position alone."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, classes))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * self.weight.view(1, -1, *[1] * (x.ndim - 2))


def outputs_for(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> LossInputs:
    right = targets.flatten(1).long()
    judged = right != 255
    return LossInputs(
        logits.flatten(2).log_softmax(1), torch.where(judged, right, 0), judged, weights
    )


def random_scene(seed: int, n: int = 3, k: int = 4, size: tuple[int, ...] = (5, 6)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, *size, generator=generator)
    targets = torch.randint(0, k, (n, *size), generator=generator, dtype=torch.uint8)
    targets[torch.rand(n, *size, generator=generator) < 0.2] = 255
    return Batch(logits, targets)


def test_cross_entropy_is_torchs_of_each_image() -> None:
    batch = random_scene(0)
    expected = [
        F.cross_entropy(x[None], y[None].long(), ignore_index=255)
        for x, y in zip(batch.inputs, batch.targets)
    ]
    torch.testing.assert_close(
        LOSSES["cross-entropy"](outputs_for(batch.inputs, batch.targets)), torch.stack(expected)
    )


def test_a_focal_loss_is_the_definition() -> None:
    batch = random_scene(1, n=1)
    p = batch.inputs[0].softmax(0)
    losses = [
        -((1 - p[c, y, x]) ** 2) * p[c, y, x].log()
        for y in range(5)
        for x in range(6)
        if (c := int(batch.targets[0, y, x])) != 255
    ]
    torch.testing.assert_close(
        LOSSES["focal"](outputs_for(batch.inputs, batch.targets))[0], torch.stack(losses).mean()
    )


@pytest.mark.parametrize("word", ["dice", "tversky", "lovasz"])
def test_overlap_losses_of_confident_outputs_equal_the_set_formulas(word: str) -> None:
    """Of answers that are sure, they are 1 - the index that they are named after."""
    targets = torch.tensor([[[0, 0, 0, 1], [0, 1, 1, 255]]], dtype=torch.uint8)
    answer = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 0]]])
    logits = 200.0 * F.one_hot(answer, 3).permute(0, 3, 1, 2)
    # class 0: 3 hits, 1 told too much, 1 missed; class 1: 2, 1, 1; class 2 does not occur
    index = {"dice": (6 / 8, 4 / 6), "tversky": (3 / 4, 2 / 3), "lovasz": (3 / 5, 2 / 4)}[word]
    expected = torch.tensor([1 - sum(index) / 2])
    torch.testing.assert_close(LOSSES[word](outputs_for(logits, targets)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("word", LOSSES)
@given(seed=st.integers(0, 1000))
def test_ignored_positions_do_not_change_the_loss(word: str, seed: int) -> None:
    batch = random_scene(seed)
    other = batch.inputs + 9 * torch.randn_like(batch.inputs) * (batch.targets == 255)[:, None]
    one = LOSSES[word](outputs_for(batch.inputs, batch.targets))
    torch.testing.assert_close(LOSSES[word](outputs_for(other, batch.targets)), one)
    assert bool((one >= 0).all())


@pytest.mark.parametrize("word", LOSSES)
def test_an_image_of_ignored_positions_has_zero_loss(word: str) -> None:
    targets = torch.full((1, 2, 2), 255, dtype=torch.uint8)
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = LOSSES[word](outputs_for(logits, targets)).sum()
    assert float(loss.detach()) == 0
    if loss.requires_grad:
        loss.backward()
        assert logits.grad is not None
        assert not bool(logits.grad.any())


def test_parts_of_a_batch_add_up_to_its_loss() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(2, 4, 3, padding=1)
    task = Segment(
        net, loss=" ".join(LOSSES), class_weights=[1.0, 2.0, 0.5, 3.0], class_names=list("abcd")
    )
    batch = Batch(torch.randn(4, 2, 5, 6), random_scene(2, n=4).targets)
    losses = [len(part) / 4 * task(part) for part in batch.split(3)]
    torch.testing.assert_close(torch.stack(losses).sum(), task(batch))


def test_weights_count_positions_of_a_class_more() -> None:
    counts = torch.tensor([90, 9, 1])
    for rule in ("balanced", "root"):
        weights = balanced(counts, rule)
        assert float((weights * counts).sum()) == pytest.approx(100)
    assert balanced(counts).tolist() == pytest.approx([100 / 270, 100 / 27, 100 / 3])
    root = balanced(counts, "root")
    assert float(root[1] / root[0]) == pytest.approx(math.sqrt(10))


def update(meter: SegmentationMeter, predicted: Tensor, targets: Tensor) -> None:
    meter.update(PositionProbabilities(predicted), Batch(targets, targets))


def probabilities(task: Task, x: Tensor) -> Tensor:
    return task.predict(Batch(x)).tensors()["probabilities"]


def test_metrics_equal_those_of_scikit_learn() -> None:
    batch = random_scene(3, n=4, k=5)
    batch.targets[batch.targets == 3] = 2  # a class that is told and never right
    meter = SegmentationMeter(list("abcde"), background=0)
    update(meter, batch.inputs.softmax(1)[:1], batch.targets[:1])
    update(meter, batch.inputs.softmax(1)[1:], batch.targets[1:])
    figures = meter.compute()
    judged = batch.targets != 255
    right, answer = batch.targets[judged].numpy(), batch.inputs.argmax(1)[judged].numpy()
    iou = jaccard_score(right, answer, average=None, labels=range(5), zero_division=0)
    dice = f1_score(right, answer, average=None, labels=range(5), zero_division=0)
    assert figures["mean_iou"] == pytest.approx(iou.mean())
    assert figures["dice"] == pytest.approx(dice[1:].mean())
    assert figures["pixel_accuracy"] == pytest.approx((right == answer).mean())
    assert [row["iou"] for row in figures["per_class"]] == pytest.approx(iou.tolist())
    assert [row["dice"] for row in figures["per_class"]] == pytest.approx(dice.tolist())
    assert figures["count"] == 4
    assert np.array(figures["confusion"]).sum() == figures["positions"] == int(judged.sum())
    images = []
    for x, y in zip(batch.inputs.argmax(1), batch.targets):
        x, y = x[y != 255].numpy(), y[y != 255].numpy()
        occur = sorted((set(x.tolist()) | set(y.tolist())) - {0})
        images += f1_score(y, x, average=None, labels=occur, zero_division=0).tolist()
    assert figures["image_dice"] == pytest.approx(np.mean(images))


def test_an_absent_class_has_no_metrics() -> None:
    meter = SegmentationMeter(["a", "b", "c"])
    answer = F.one_hot(torch.tensor([[[0, 1], [1, 1]]]), 3).permute(0, 3, 1, 2).float()
    update(meter, answer, torch.tensor([[[0, 1], [0, 255]]], dtype=torch.uint8))
    figures = meter.compute()
    assert figures["per_class"][2]["iou"] is None
    assert figures["mean_iou"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert figures["positions"] == 3


def test_metrics_of_no_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="there was no batch"):
        SegmentationMeter().compute()
    meter = SegmentationMeter()
    update(meter, torch.ones(1, 2, 3), torch.full((1, 3), 255, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no position has a class"):
        meter.compute()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.full((1, 2, 2), 3, dtype=torch.uint8), "class 3.*allows 0 to 2, and 255"),
        (torch.zeros(1, 2, 3, dtype=torch.uint8), "shape"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), "int64"),
    ],
)
def test_wrong_targets_are_refused(targets: Tensor, message: str) -> None:
    task = Segment(Pointwise(3))
    with pytest.raises(ValueError, match=message):
        task(Batch(torch.zeros(1, 1, 2, 2), targets))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean dice"):
        parse_losses("cross-entropy dise")
    with pytest.raises(ValueError, match="a loss is listed twice"):
        parse_losses("dice dice")
    with pytest.raises(ValueError, match="empty"):
        Segment(Pointwise(2), loss="")
    with pytest.raises(ValueError, match="background is 'sky'; the classes are a, b"):
        Segment(Pointwise(2), class_names=["a", "b"], background="sky")
    with pytest.raises(ValueError, match="2 numbers for 3 classes"):
        Segment(Pointwise(3), class_names=list("abc"), class_weights=[1.0, 1.0])
    with pytest.raises(ValueError, match="losses cross-entropy and focal"):
        Segment(Pointwise(2), loss="dice", class_weights=[1.0, 1.0])


@pytest.mark.slow
@given(length=st.integers(1, 60), window=st.integers(1, 70), overlap=st.floats(0, 0.99))
def test_windows_cover_all_positions_with_the_given_overlap(
    length: int, window: int, overlap: float
) -> None:
    positions = starts(length, window, overlap)
    assert positions[0] == 0
    assert positions[-1] == max(0, length - window)
    gaps = np.diff(positions)
    assert (gaps > 0).all()
    assert (gaps <= max(1, int(window * (1 - overlap)))).all()


@pytest.mark.parametrize("size", [(23,), (9, 14), (7, 6, 9)])
def test_windowed_predictions_equal_those_of_the_whole(size: tuple[int, ...]) -> None:
    """Of a network that looks at single positions."""
    x = torch.randn(2, 1, *size)
    task = Segment(Pointwise(3)).eval()
    whole = probabilities(task, x)
    assert len(windows(size, [4] * len(size), 0.5)) > 1
    windowed = probabilities(Segment(Pointwise(3), window=[4] * len(size)).eval(), x)
    torch.testing.assert_close(windowed, whole)
    predict = partial(probabilities, task)
    torch.testing.assert_close(sliding_window(predict, x, [100] * len(size), 0.5), whole)
    bands = list(slabs(predict, x, [4] * len(size), 0.5))
    assert [rows.start for rows, _ in bands] == [0, *(rows.stop for rows, _ in bands[:-1])]
    torch.testing.assert_close(
        torch.cat([probabilities_of_slab for _, probabilities_of_slab in bands], 2), whole
    )


def test_large_inputs_are_predicted_in_slabs() -> None:
    x = torch.zeros(1, 1, 4000, 700)
    bands = slabs(partial(probabilities, Segment(Pointwise(2))), x, [700, 700], 0.5)
    sizes = [probabilities_of_slab.shape[2] for _, probabilities_of_slab in bands]
    assert sum(sizes) == 4000
    assert max(sizes) <= 700


def test_predictions_of_views_are_transformed_back() -> None:
    task, x = Segment(Pointwise(3)).eval(), torch.randn(2, 1, 4, 5)
    torch.testing.assert_close(
        probabilities(TestTimeAugmented(task, "flip"), x), probabilities(task, x)
    )


def test_the_middle_of_a_window_weighs_most() -> None:
    weights = importance([9, 8])
    assert weights.shape == (9, 8)
    assert float(weights.max()) <= 1
    assert divmod(int(weights.argmax()), 8)[0] == 4
    assert float(weights.min()) > 0
    torch.testing.assert_close(weights, weights.flip(0))

    def by_window(part: Tensor) -> Tensor:
        """Sure in the middle of what it sees, wrong at its edges."""
        answer = torch.zeros(len(part), 2, 8)
        answer[:, 0, 2:6], answer[:, 1, :2], answer[:, 1, 6:] = 1, 1, 1
        return answer

    blended = sliding_window(by_window, torch.zeros(1, 1, 32), [8], 0.5)
    assert bool((blended[0, 0, 2:-2] > 0.5).all())


@pytest.mark.parametrize(("background", "first"), [("", "mean_iou"), ("sky", "dice")])
def test_the_main_metric_is_first(background: str, first: str) -> None:
    # progress shows the first figure of a log
    task = Segment(Pointwise(2), class_names=["sky", "road"], background=background)
    result = evaluate(task, [random_scene(3, k=2)])
    assert next(iter(result)) == task.metrics[0] == first

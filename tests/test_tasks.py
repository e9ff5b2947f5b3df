"""Classify, against torch's losses and its own promises; prepare, against what it is told."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.prediction import ClassProbabilities
from plusx.tasks.classify import Classify
from plusx.tasks.prepare import Autocast, find_device, prepare
from plusx.tasks.task import Wrapped
from plusx.train.loop import evaluate


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 4.0, 0.0], [1.0, 1.0, -1.0]])
CLASSES = torch.tensor([0, 1, 1, 2])
ROWS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])


def classify(**options) -> Classify:
    return Classify(nn.Identity(), **options)


def test_the_loss_of_class_numbers_is_cross_entropy():
    for smoothing in (0.0, 0.1):
        loss = classify(label_smoothing=smoothing)(Batch(LOGITS, CLASSES))
        expected = F.cross_entropy(LOGITS, CLASSES, label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_t1_class_weights_weigh_each_sample_and_parts_add_up(smoothing):
    """The smoothed part of other classes too is weighed by the weight of the true class."""
    weights = [1.0, 3.0, 0.5]
    task = classify(class_weights=weights, label_smoothing=smoothing)
    losses = F.cross_entropy(LOGITS, CLASSES, reduction="none", label_smoothing=smoothing)
    losses = losses * torch.tensor(weights)[CLASSES]
    torch.testing.assert_close(task(Batch(LOGITS, CLASSES)), losses.mean())
    halves = [task(Batch(LOGITS[p], CLASSES[p])) for p in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, losses.mean())
    assert "class_weights" not in task.state_dict()


def test_soft_targets_agree_with_class_indices():
    one_hot = F.one_hot(CLASSES, 3).float()
    for options in ({}, {"label_smoothing": 0.2}, {"class_weights": [1.0, 3.0, 0.5]}):
        task = classify(**options)
        torch.testing.assert_close(task(Batch(LOGITS, one_hot)), task(Batch(LOGITS, CLASSES)))
    mixed = 0.3 * one_hot + 0.7 * one_hot.roll(1, 0)
    torch.testing.assert_close(
        classify()(Batch(LOGITS, mixed)),
        0.3 * classify()(Batch(LOGITS, CLASSES)) + 0.7 * classify()(Batch(LOGITS, CLASSES.roll(1))),
    )


def test_multilabel_outputs_are_independent():
    task = classify(multilabel=True, class_weights=[1.0, 2.0, 3.0], label_smoothing=0.2)
    expected = F.binary_cross_entropy_with_logits(
        LOGITS, ROWS * 0.8 + 0.1, pos_weight=torch.tensor([1.0, 2.0, 3.0])
    )
    torch.testing.assert_close(task(Batch(LOGITS, ROWS)), expected)
    torch.testing.assert_close(task.predict(Batch(LOGITS)).probabilities, LOGITS.double().sigmoid())
    # (0, 0) right, (0, 1) right, (0, 2) right, row 1 all wrong, row 2 two wrong, row 3 one wrong
    assert float(task.scalars["error"]) == pytest.approx(6 / 12)


def test_the_training_error_holds_no_graph():
    logits = LOGITS.clone().requires_grad_()
    task = classify()
    task(Batch(logits, CLASSES))
    assert float(task.scalars["error"]) == 0.5
    assert not task.scalars["error"].requires_grad
    task(Batch(logits, F.one_hot(CLASSES, 3).float()))
    assert float(task.scalars["error"]) == 0.5


def test_probabilities_and_losses_are_float32_whatever_the_network_gives():
    task = classify()
    half = LOGITS.to(torch.bfloat16)
    assert task.predict(Batch(half)).probabilities.dtype == torch.float32
    assert task(Batch(half, CLASSES)).dtype == torch.float32
    assert task.predict(Batch(LOGITS.double())).probabilities.dtype == torch.float64


@pytest.mark.parametrize("wrong", [-100, -1, 3])
def test_a_class_number_out_of_range_is_refused(wrong):
    targets = CLASSES.clone()
    targets[2] = wrong
    with pytest.raises(ValueError, match=rf"class {wrong}; .* 3 classes allows 0 to 2"):
        classify()(Batch(LOGITS, targets))


@pytest.mark.parametrize(
    ("options", "targets", "words"),
    [
        ({}, torch.rand(4, 2), r"float \(4, 3\)"),
        ({}, torch.rand(4), "class numbers"),
        ({}, torch.zeros(4, 3, dtype=torch.int64), "class numbers"),
        ({"multilabel": True}, CLASSES, "zeros and ones"),
        ({"multilabel": True}, ROWS + 1, "outside 0 to 1"),
        ({"multilabel": True}, ROWS * float("nan"), "outside 0 to 1"),
        ({"class_weights": [1.0, 2.0]}, CLASSES, "2 numbers; the network has 3"),
    ],
)
def test_targets_that_do_not_fit_are_refused(options, targets, words):
    with pytest.raises(ValueError, match=words):
        classify(**options)(Batch(LOGITS, targets))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"class_weights": [1.0, -1.0]}, "finite"),
        ({"class_weights": [1.0, float("inf")]}, "finite"),
        ({"class_weights": [1.0], "class_names": ["a", "b"]}, "1 numbers for 2 classes"),
    ],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        classify(**options)


def test_evaluation_merges_metrics_over_batches():
    figures = evaluate(
        classify(class_names=["a", "b", "c"]),
        [Batch(LOGITS[:3], CLASSES[:3]), Batch(LOGITS[3:], CLASSES[3:])],
    )
    assert figures["accuracy"] == 0.5
    assert figures["loss"] == pytest.approx(float(F.cross_entropy(LOGITS, CLASSES)))
    assert [row["label"] for row in figures["per_class"]] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="there was no batch"):
        evaluate(classify(), [])


def test_prepare_in_float32_gives_the_task_itself_with_channels_last():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(1, 3, 8, 8))
    plain = [p.clone() for p in net.parameters()]
    task = Classify(net)
    assert prepare(task, device="cpu") is task
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(plain, net.parameters()))
    volumes = prepare(Classify(nn.Conv3d(2, 8, 3)), device="cpu")
    assert volumes.net.weight.is_contiguous(memory_format=torch.channels_last_3d)
    contiguous = prepare(Classify(nn.Conv2d(3, 8, 3)), device="cpu", channels_last=False)
    assert contiguous.net.weight.is_contiguous()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_computes_in_16_bits_and_keeps_float32_parameters(precision):
    dtypes = []
    net = nn.Sequential(nn.Linear(3, 3))
    net[0].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    task = prepare(Classify(net), device="cpu", precision=precision)
    assert isinstance(task, Autocast)
    assert task.net is net
    loss = task(Batch(LOGITS, CLASSES))
    loss.backward()
    assert dtypes == [getattr(torch, precision)]
    assert loss.dtype == net[0].weight.grad.dtype == net[0].weight.dtype == torch.float32
    assert task.predict(Batch(LOGITS)).probabilities.dtype == torch.float32
    assert set(task.scalars) == {"error"}


def test_unavailable_devices_and_precisions_are_refused():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match=r"'cup' is not available; this machine has .*cpu"):
        find_device("cup")
    with pytest.raises(ValueError, match="'cuda:99' is not available"):
        find_device("cuda:99")
    with pytest.raises(ValueError, match="'float8'; allowed are"):
        prepare(classify(), device="cpu", precision="float8")


@pytest.mark.gpu
def test_a_prepared_task_trains_on_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))
    task = prepare(Classify(net), device="cuda", precision="float16")
    batch = Batch(torch.randn(4, 1, 8, 8), CLASSES).to(task.device, channels_last=True)
    task(batch).backward()
    assert net[0].weight.grad.isfinite().all()


def test_a_sure_and_wrong_label_costs_its_logit() -> None:
    task = Classify(nn.Identity(), multilabel=True)
    batch = Batch(torch.tensor([[20.0, -20.0]]), torch.tensor([[0.0, 0.0]]))
    figures = evaluate(task, [batch])
    assert figures["loss"] == pytest.approx(10.0, rel=1e-6)  # the mean of 20 and 0


class Confident(Wrapped):
    """Predicts the first class for every input."""

    def predict(self, batch: Batch) -> ClassProbabilities:
        first = torch.zeros(len(batch), dtype=torch.long)
        return ClassProbabilities(F.one_hot(first, 3).float())


def test_a_wrapper_that_overrides_only_predict_is_stored() -> None:
    task = Confident(Classify(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))))
    batch = Batch(torch.randn(5, 1, 2, 2))
    for prediction in (task.predict(batch), *task.predict_slabs(batch)):
        assert torch.equal(prediction.probabilities.argmax(1), torch.zeros(5, dtype=torch.long))

"""Classification with one class per input, or with several labels per input."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.prediction import ClassProbabilities
from plusx.errors import UserError
from plusx.metrics.classification import ClassificationMeter, MultiLabelMeter
from plusx.metrics.meter import Meter
from plusx.tasks.task import Task, run_net


class Classify(Task):
    """Classification.

    Targets are class numbers, int64 (n,), or class probabilities, float (n, k), as MixUp makes
    them. With `multilabel` they are zeros and ones (n, k), and the classes are independent.
    `predict` returns `ClassProbabilities`: softmax, or with `multilabel` a sigmoid per class.

    label_smoothing: Szegedy et al. 2016, section 7: this fraction of each target is distributed
        evenly over the classes (with `multilabel` over 0 and 1).
    class_weights: a factor for each class. It scales the whole loss of a sample of that class, and
        the loss is the mean over the batch, as in scikit-learn and Keras.
        `torch.nn.CrossEntropyLoss` also weights the smoothed part of other classes and divides by
        the sum of the weights in the batch, so that losses of parts of a batch do not add up. With
        `multilabel` the factors are those of the positive labels.
    class_names: for the tables.

    After each forward `scalars["error"]` is the error rate of the batch (with `multilabel`: over
    all labels). Class numbers outside 0..k-1 raise UserError, including -100, which torch ignores.
    """

    metrics: tuple[str, ...] = ("accuracy", "precision", "recall", "f1")
    monitors = ("loss", "accuracy", "auroc")
    tta = ("none", "flip", "flip-shift", "ten-crop", "multi-scale")
    class_weights: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Tensor | None = None,
        multilabel: bool = False,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}; allowed is 0 <= value < 1")
        weights = None if class_weights is None else checked_weights(class_weights, class_names)
        self.net = net
        self.label_smoothing = label_smoothing
        self.multilabel = multilabel
        if multilabel:
            self.metrics = ("auroc", "f1", "precision", "recall", "accuracy")
        self.class_names = None if class_names is None else tuple(class_names)
        # not saved: every run passes it as an argument
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        return self.loss(run_net(self.net, batch), batch.known_targets)

    def loss(
        self, logits: Float[Tensor, "n k"], targets: Shaped[Tensor, "n ..."]
    ) -> Float[Tensor, ""]:
        """Return the loss of logits, and set `scalars`."""
        logits = at_least_float32(logits)
        weights = self.class_weights
        if weights is not None and len(weights) != logits.shape[1]:
            raise UserError(
                f"class_weights has {len(weights)} numbers; the network has {logits.shape[1]} "
                "classes"
            )
        if self.multilabel:
            targets = _labels(targets, logits)
            smoothed = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
            self.scalars = {"error": ((logits.detach() > 0) != (targets > 0.5)).float().mean()}
            return F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)
        targets = _classes(targets, logits)
        true_classes = targets if targets.ndim == 1 else targets.argmax(1)
        self.scalars = {"error": (logits.detach().argmax(1) != true_classes).float().mean()}
        losses = F.cross_entropy(
            logits, targets, label_smoothing=self.label_smoothing, reduction="none"
        )
        if weights is not None and targets.ndim == 1:
            losses = losses * weights[targets]
        elif weights is not None:  # a mixed sample: each class weighted as if it were the only one
            log_probabilities, smoothing = logits.log_softmax(1), self.label_smoothing
            uniform_part = log_probabilities.mean(1, keepdim=True)
            per_class = -((1 - smoothing) * log_probabilities + smoothing * uniform_part)
            losses = (targets * weights * per_class).sum(1)
        return losses.mean()

    def predict(self, batch: Batch) -> ClassProbabilities:
        logits = at_least_float32(run_net(self.net, batch))
        if not self.multilabel:
            return ClassProbabilities(logits.softmax(1))
        # in float32 a confident prediction is rounded to 1, and the loss of a wrong one is lost
        precise = logits if logits.device.type == "mps" else logits.double()
        return ClassProbabilities(precise.sigmoid(), multilabel=True)

    def meters(self) -> list[Meter]:
        return [(MultiLabelMeter if self.multilabel else ClassificationMeter)(self.class_names)]


def checked_weights(
    class_weights: Sequence[float] | Tensor, class_names: Sequence[str] | None
) -> Float[Tensor, "k"]:
    """Return class weights as a tensor. Raises UserError if they are not one number >= 0 per
    class."""
    weights = torch.as_tensor(class_weights, dtype=torch.float32)
    if weights.ndim != 1 or not bool((weights.isfinite() & (weights >= 0)).all()):
        raise UserError("class_weights must be one finite number >= 0 per class")
    if class_names is not None and len(weights) != len(class_names):
        raise UserError(f"class_weights has {len(weights)} numbers for {len(class_names)} classes")
    return weights


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 or float64: losses and probabilities need more than half precision."""
    return x if x.dtype == torch.float64 else x.float()


def _classes(targets: Tensor, logits: Tensor) -> Tensor:
    """Return class numbers (n,) or probabilities (n, k). Raises UserError if they are invalid."""
    n, k = logits.shape
    if targets.ndim == 1 and not targets.is_floating_point():
        low, high = targets.aminmax()
        if bool((low < 0) | (high >= k)):
            wrong = int(low) if low < 0 else int(high)
            raise UserError(
                f"a target is class {wrong}; a network of {k} classes allows 0 to {k - 1}"
            )
        return targets.long()
    if targets.is_floating_point() and targets.shape == logits.shape:
        return targets.to(logits.dtype)
    raise UserError(
        f"targets are {targets.dtype} of shape {tuple(targets.shape)}; allowed are class numbers, "
        f"int64 ({n},), or class probabilities, float ({n}, {k})"
    )


def _labels(targets: Tensor, logits: Tensor) -> Tensor:
    """Return labels (n, k) between 0 and 1. Raises UserError if they are invalid."""
    if targets.shape != logits.shape:
        raise UserError(
            f"targets of shape {tuple(targets.shape)}; with multilabel they must be zeros and "
            f"ones of shape {tuple(logits.shape)}"
        )
    targets = targets.to(logits.dtype)
    # written so that NaN is refused too
    if not bool(((targets >= 0) & (targets <= 1)).all()):
        raise UserError("a target is outside 0 to 1, or NaN")
    return targets

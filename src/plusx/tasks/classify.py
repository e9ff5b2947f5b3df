"""Classification, with one right class for each input or with any number of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.tasks.meters import Classification, Meter, MultiLabel
from plusx.tasks.task import Task


class Classify(Task):
    """Tell classes apart.

    Targets are class numbers, int64 (n,), or shares of the classes, float (n, k), as MixUp makes
    them. With `multilabel` they are n rows of k zeros and ones, and each class is a question of its
    own. `predict` gives probabilities (n, k): softmax, or a sigmoid each with `multilabel`.

    label_smoothing: Szegedy et al. 2016, section 7: this share of each target is spread evenly over
        the classes (with `multilabel` over yes and no).
    class_weights: a factor for each class. The loss is the mean over the batch of weighted losses,
        as in scikit-learn and Keras; `torch.nn.CrossEntropyLoss` divides by the sum of the
        weights in the batch instead, and then parts of a batch do not add up to it.
        With `multilabel` they weigh the positive answers.
    classes: the names, for the tables.

    After each forward `seen["error"]` is the share of the batch (with `multilabel`: of all the
    answers) that was wrong. Class numbers outside 0..k-1 are refused with a UserError, among
    them the -100 that torch would pass over in silence.
    """

    scores: tuple[str, ...] = ("accuracy", "precision", "recall", "f1")
    class_weights: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Tensor | None = None,
        multilabel: bool = False,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}; allowed is 0 <= value < 1")
        weights = None if class_weights is None else checked_weights(class_weights, classes)
        self.net = net
        self.label_smoothing = label_smoothing
        self.multilabel = multilabel
        if multilabel:
            self.scores = ("auroc", "f1", "precision", "recall", "accuracy")
        self.classes = None if classes is None else tuple(classes)
        # Given anew with every run, so not part of what is saved.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        return self.loss(self.net(batch.inputs), batch.targets)

    def loss(
        self, logits: Float[Tensor, "n k"], targets: Shaped[Tensor, "n ..."]
    ) -> Float[Tensor, ""]:
        """The loss of what the network answered, and what was `seen` in it."""
        logits = at_least_float32(logits)
        weights = self.class_weights
        if weights is not None and len(weights) != logits.shape[1]:
            raise UserError(
                f"class_weights has {len(weights)} numbers; the network tells {logits.shape[1]} "
                "classes apart"
            )
        if self.multilabel:
            targets = _answers(targets, logits)
            smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
            self.seen = {"error": ((logits.detach() > 0) != (targets > 0.5)).float().mean()}
            return F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights)
        targets = _classes(targets, logits)
        right = targets if targets.ndim == 1 else targets.argmax(1)
        self.seen = {"error": (logits.detach().argmax(1) != right).float().mean()}
        return F.cross_entropy(
            logits,
            targets,
            weight=weights,
            label_smoothing=self.label_smoothing,
            reduction="none",
        ).mean()

    def predict(self, inputs: Tensor) -> Float[Tensor, "n k"]:
        logits = at_least_float32(self.net(inputs))
        if not self.multilabel:
            return logits.softmax(1)
        # in float32 a sure answer is exactly 1, and the loss of a wrong one is lost
        return (logits if logits.device.type == "mps" else logits.double()).sigmoid()

    def meters(self) -> list[Meter]:
        return [MultiLabel(self.classes) if self.multilabel else Classification(self.classes)]


def checked_weights(
    given: Sequence[float] | Tensor, classes: Sequence[str] | None
) -> Float[Tensor, "k"]:
    """A factor for each class as a tensor. UserError: they are none, or not one a class."""
    weights = torch.as_tensor(given, dtype=torch.float32)
    if weights.ndim != 1 or not bool((weights.isfinite() & (weights >= 0)).all()):
        raise UserError("class_weights has to be one finite number >= 0 for each class")
    if classes is not None and len(weights) != len(classes):
        raise UserError(f"class_weights has {len(weights)} numbers for {len(classes)} classes")
    return weights


def at_least_float32(x: Tensor) -> Tensor:
    """Losses and probabilities lose too much in the half-precision formats."""
    return x if x.dtype == torch.float64 else x.float()


def _classes(targets: Tensor, logits: Tensor) -> Tensor:
    """Class numbers (n,) or shares (n, k), or a UserError that says what is wrong with them."""
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
        f"int64 ({n},), or shares of the classes, float ({n}, {k})"
    )


def _answers(targets: Tensor, logits: Tensor) -> Tensor:
    """Answers (n, k) between 0 and 1, or a UserError that says what is wrong with them."""
    if targets.shape != logits.shape:
        raise UserError(
            f"targets of shape {tuple(targets.shape)}; with multilabel they have to be zeros and "
            f"ones of shape {tuple(logits.shape)}"
        )
    targets = targets.to(logits.dtype)
    # Written so that a target that is no number is refused as well.
    if not bool(((targets >= 0) & (targets <= 1)).all()):
        raise UserError("a target lies outside 0 to 1, or is no number")
    return targets

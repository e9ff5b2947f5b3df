"""Semantic segmentation: a class for every position."""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.data.prediction import PositionProbabilities, Prediction
from plusx.errors import UserError
from plusx.metrics.meter import Meter
from plusx.metrics.segmentation import IGNORE_INDEX, SegmentationMeter, SurfaceDistanceMeter
from plusx.tasks.classify import at_least_float32, checked_weights
from plusx.tasks.losses import AUXILIARY, LOSSES, LossInputs, parse_losses
from plusx.tasks.sliding_window import slabs, sliding_window
from plusx.tasks.task import Task, run_net


# without a window: the largest number of positions predicted at once, and the window above it
MAX_POSITIONS = 2**22
WINDOWS = {1: 2**18, 2: 1024, 3: 128}
OVERLAP = 0.5


class Segment(Task):
    """Semantic segmentation: the class of every position.

    Targets are uint8 (n, *s), where 255 is ignored. The network returns logits (n, k, *s); in
    training it may return a pair, the second from an auxiliary head. `predict` returns
    `PositionProbabilities`.

    loss: names of losses that are added, each a mean over samples (see plusx.tasks.losses).
    class_weights: a factor for each class, for the losses that are means over positions
        (cross-entropy and focal). The divisor is the number of positions, not the sum of their
        weights, so that losses of parts of a batch add up.
    background: the name of the class that the metric `dice` excludes.
    window: positions per dimension that `predict` processes at a time; larger inputs are predicted
        by sliding windows (plusx.tasks.sliding_window) with this `overlap`. None: inputs of up to
        MAX_POSITIONS are predicted as a whole.
    spacing: mm per position, along each dimension, for surface distances.

    After each forward `scalars["error"]` is the fraction of evaluated positions that are wrong, the
    mean over samples. Raises UserError for classes that the network does not have.
    """

    monitors = ("loss",)
    tta = ("none", "flip")
    dense = True
    class_weights: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        loss: str = "cross-entropy",
        class_weights: Sequence[float] | Tensor | None = None,
        class_names: Sequence[str] | None = None,
        background: str = "",
        window: Sequence[int] | None = None,
        overlap: int | float = OVERLAP,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.words = parse_losses(loss)
        weights = None
        if class_weights is not None:
            weights = checked_weights(class_weights, class_names)
            if not {"cross-entropy", "focal"} & set(self.words):
                raise UserError(
                    f"class_weights apply to the losses cross-entropy and focal; loss is {loss!r}"
                )
        if background and background not in (class_names or ()):
            raise UserError(
                f"background is {background!r}; "
                f"the classes are {', '.join(class_names or ('none',))}"
            )
        if not 0 <= overlap < 1:
            raise UserError(f"overlap is {overlap}; allowed is 0 <= value < 1")
        if window is not None and min(window, default=0) < 1:
            raise UserError(f"window is {tuple(window)}; every side is at least 1")
        self.net = net
        self.class_names = None if class_names is None else tuple(class_names)
        self.background = background
        self.window = None if window is None else tuple(window)
        self.overlap = overlap
        self.spacing = None if spacing is None else tuple(spacing)
        # not saved: every run passes it as an argument
        self.register_buffer("class_weights", weights, persistent=False)

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        foremost = ("dice", "mean_iou") if self.background else ("mean_iou", "dice")
        volumes = () if self.spacing is None else ("image_dice",)
        return (*foremost, *volumes, "pixel_accuracy")

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        outputs = run_net(self.net, batch)
        logits, auxiliary = outputs if isinstance(outputs, tuple) else (outputs, None)
        loss = self.loss(logits, batch.known_targets)
        if auxiliary is not None:
            scalars = self.scalars
            loss = loss + AUXILIARY * self.loss(auxiliary, batch.known_targets)
            self.scalars = scalars
        return loss

    def loss(
        self, logits: Float[Tensor, "n k *s"], targets: Shaped[Tensor, "n ..."]
    ) -> Float[Tensor, ""]:
        """Return the loss of logits, and set `scalars`."""
        logits = at_least_float32(logits)
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise UserError(
                f"class_weights has {len(self.class_weights)} numbers; the network has "
                f"{logits.shape[1]} classes"
            )
        classes, evaluated = _classes(targets, logits)
        log_probabilities = logits.flatten(2).log_softmax(1)
        x = LossInputs(log_probabilities, classes, evaluated, self.class_weights)
        wrong = (logits.detach().flatten(2).argmax(1) != classes) & evaluated
        self.scalars = {"error": (wrong.sum(1) / evaluated.sum(1).clamp(min=1)).mean()}
        return torch.stack([LOSSES[word](x) for word in self.words]).sum(0).mean()

    def predict(self, batch: Batch) -> PositionProbabilities:
        window = self._window(batch.inputs)
        return PositionProbabilities(
            sliding_window(self._probabilities, batch.inputs, window, self.overlap)
        )

    def predict_slabs(self, batch: Batch) -> Iterator[Prediction]:
        """Yield the prediction slab by slab; a slab is one row of windows."""
        inputs, window = batch.inputs, self._window(batch.inputs)
        for _, probabilities in slabs(self._probabilities, inputs, window, self.overlap):
            yield PositionProbabilities(probabilities)

    def _window(self, inputs: Tensor) -> tuple[int, ...]:
        size = tuple(inputs.shape[2:])
        if self.window is not None:
            return self.window
        return size if prod(size) <= MAX_POSITIONS else (WINDOWS[len(size)],) * len(size)

    def _probabilities(self, inputs: Tensor) -> Tensor:
        outputs = self.net(inputs)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return at_least_float32(logits).softmax(1)

    def meters(self) -> list[Meter]:
        names = self.class_names
        background = names.index(self.background) if self.background and names else None
        meters: list[Meter] = [SegmentationMeter(names, background)]
        if self.spacing is not None:
            meters.append(SurfaceDistanceMeter(self.spacing, names, background))
        return meters


def balanced(counts: Shaped[Tensor, "k"], rule: str = "balanced") -> Float[Tensor, "k"]:
    """Return a weight for each class from its number of positions; 1 on average over positions.

    "balanced": the inverse of its fraction; "root": the inverse square root of its fraction,
    between no weights and balanced. A class without positions has the weight of a class with one.
    """
    assert rule in ("balanced", "root")
    fractions = counts.double().clamp(min=1) / counts.double().clamp(min=1).sum()
    weights = 1 / fractions if rule == "balanced" else fractions.rsqrt()
    return (weights / (weights * fractions).sum()).float()


def _classes(targets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return classes and whether they are evaluated, both (n, positions). Raises UserError if they
    are invalid."""
    n, k = logits.shape[:2]
    if targets.dtype != torch.uint8 or targets.shape != (n, *logits.shape[2:]):
        raise UserError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; allowed are classes of "
            f"positions, uint8 {(n, *logits.shape[2:])}"
        )
    classes = targets.flatten(1).long()
    evaluated = classes != IGNORE_INDEX
    classes = torch.where(evaluated, classes, 0)
    highest = int(classes.max()) if classes.numel() else 0
    if highest >= k:
        raise UserError(
            f"a target is class {highest}; a network of {k} classes allows 0 to {k - 1}, and "
            f"{IGNORE_INDEX} for ignored positions"
        )
    return classes, evaluated

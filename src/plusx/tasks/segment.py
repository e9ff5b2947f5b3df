"""Segmentation: a class for every position."""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.tasks.classify import at_least_float32, checked_weights
from plusx.tasks.losses import AUXILIARY, LOSSES, Told, parse_losses
from plusx.tasks.meters import Meter
from plusx.tasks.overlap import UNJUDGED, Overlap
from plusx.tasks.surface_distance import SurfaceDistance
from plusx.tasks.task import Task
from plusx.tasks.windows import in_bands, over_windows


# Positions of an input that are asked at once where no window is said, and the window of more.
MOST = 2**22
SIDES = {1: 2**18, 2: 1024, 3: 128}
OVERLAP = 0.5


class Segment(Task):
    """Tell the class of every position.

    Targets are uint8 (n, *s), where 255 is not judged. The network gives logits (n, k, *s), and in
    training it may give two of them, the second of an auxiliary head. `predict` gives
    probabilities (n, k, *s).

    loss: words that are added, each a mean over the samples (see plusx.tasks.losses).
    class_weights: a factor for each class, of the losses that are means over positions
        (cross-entropy and focal). They are divided by the number of positions, not by the sum of
        their weights, so that parts of a batch add up to it.
    background: the name of the class that is what is left over, for the figure `dice`.
    window: positions a dimension that are looked at at a time by `predict`; larger inputs are told
        window by window (plusx.tasks.windows), of which neighbours share `overlap`. None: inputs
        are looked at whole, up to MOST positions.
    spacing: mm a position, along each dimension; the figures of plusx.tasks.surface_distance are
        told then.

    After each forward `seen["error"]` is the share of judged positions that was wrong, the mean
    over the samples. Classes that the network does not tell are refused with a UserError.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        loss: str = "cross-entropy",
        class_weights: Sequence[float] | Tensor | None = None,
        classes: Sequence[str] | None = None,
        background: str = "",
        window: Sequence[int] | None = None,
        overlap: int | float = OVERLAP,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.words = parse_losses(loss)
        weights = None
        if class_weights is not None:
            weights = checked_weights(class_weights, classes)
            if not {"cross-entropy", "focal"} & set(self.words):
                raise UserError(
                    f"class_weights are of the losses cross-entropy and focal; loss is {loss!r}"
                )
        if background and background not in (classes or ()):
            raise UserError(
                f"background is {background!r}; the classes are {', '.join(classes or ('none',))}"
            )
        if not 0 <= overlap < 1:
            raise UserError(f"overlap is {overlap}; allowed is 0 <= value < 1")
        if window is not None and min(window, default=0) < 1:
            raise UserError(f"window is {tuple(window)}; every side is at least 1")
        self.net = net
        self.classes = None if classes is None else tuple(classes)
        self.background = background
        self.window = None if window is None else tuple(window)
        self.overlap = overlap
        self.spacing = None if spacing is None else tuple(spacing)
        # Given anew with every run, so not part of what is saved.
        self.register_buffer("class_weights", weights, persistent=False)

    @property
    def scores(self) -> tuple[str, ...]:  # type: ignore[override]
        foremost = ("dice", "mean_iou") if self.background else ("mean_iou", "dice")
        volumes = () if self.spacing is None else ("image_dice",)
        return (*foremost, *volumes, "position_accuracy")

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        answers = self.net(batch.inputs)
        logits, auxiliary = answers if isinstance(answers, tuple) else (answers, None)
        loss = self.loss(logits, batch.targets)
        if auxiliary is not None:
            seen = self.seen
            loss = loss + AUXILIARY * self.loss(auxiliary, batch.targets)
            self.seen = seen
        return loss

    def loss(
        self, logits: Float[Tensor, "n k *s"], targets: Shaped[Tensor, "n ..."]
    ) -> Float[Tensor, ""]:
        """The loss of what the network answered, and what was `seen` in it."""
        logits = at_least_float32(logits)
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise UserError(
                f"class_weights has {len(self.class_weights)} numbers; the network tells "
                f"{logits.shape[1]} classes apart"
            )
        right, judged = _classes(targets, logits)
        told = Told(logits.flatten(2).log_softmax(1), right, judged, self.class_weights)
        wrong = (logits.detach().flatten(2).argmax(1) != right) & judged
        self.seen = {"error": (wrong.sum(1) / judged.sum(1).clamp(min=1)).mean()}
        return torch.stack([LOSSES[word](told) for word in self.words]).sum(0).mean()

    def predict(self, inputs: Tensor) -> Float[Tensor, "n k *s"]:
        return over_windows(self._probabilities, inputs, self._window(inputs), self.overlap)

    def predict_in_bands(self, inputs: Tensor) -> Iterator[tuple[slice, Float[Tensor, "n k *b"]]]:
        """The same in bands along the first dimension, so that it is never all held at once."""
        return in_bands(self._probabilities, inputs, self._window(inputs), self.overlap)

    def _window(self, inputs: Tensor) -> tuple[int, ...]:
        size = tuple(inputs.shape[2:])
        if self.window is not None:
            return self.window
        return size if prod(size) <= MOST else (SIDES[len(size)],) * len(size)

    def _probabilities(self, inputs: Tensor) -> Tensor:
        answers = self.net(inputs)
        logits = answers[0] if isinstance(answers, tuple) else answers
        return at_least_float32(logits).softmax(1)

    def meters(self) -> list[Meter]:
        place = self.classes.index(self.background) if self.background and self.classes else None
        if self.spacing is None:
            return [Overlap(self.classes, place)]
        return [Overlap(self.classes, place), SurfaceDistance(self.spacing, self.classes, place)]


def balanced(counts: Shaped[Tensor, "k"], rule: str = "balanced") -> Float[Tensor, "k"]:
    """A weight for each class from how many positions it has; 1 on average over positions.

    "balanced": the inverse of its share. "root": of the square root of its share, which is between
    none and balanced. A class without any position has the weight of one that has one.
    """
    assert rule in ("balanced", "root")
    shares = counts.double().clamp(min=1) / counts.double().clamp(min=1).sum()
    weights = 1 / shares if rule == "balanced" else shares.rsqrt()
    return (weights / (weights * shares).sum()).float()


def _classes(targets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Classes and whether they are judged, both (n, positions), or a UserError."""
    n, k = logits.shape[:2]
    if targets.dtype != torch.uint8 or targets.shape != (n, *logits.shape[2:]):
        raise UserError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; allowed are classes of "
            f"positions, uint8 {(n, *logits.shape[2:])}"
        )
    right = targets.flatten(1).long()
    judged = right != UNJUDGED
    right = torch.where(judged, right, 0)
    highest = int(right.max()) if right.numel() else 0
    if highest >= k:
        raise UserError(
            f"a target is class {highest}; a network of {k} classes allows 0 to {k - 1}, and "
            f"{UNJUDGED} for what is not judged"
        )
    return right, judged

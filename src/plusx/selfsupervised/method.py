"""The base classes of methods of self-supervised learning."""

import math
import warnings
from copy import deepcopy
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.data.modality import Modality
from plusx.data.prediction import Prediction
from plusx.errors import UserError
from plusx.metrics.meter import Meter
from plusx.selfsupervised.losses import spread
from plusx.tasks.task import Task, Wrapped


# fraction of the standard deviation of evenly spread vectors below which they have collapsed
COLLAPSED = 0.05


class SelfSupervised(Wrapped):
    """A task whose network is trained without its targets: a wrapper around
    `plusx.tasks.represent.Represent`, which predicts and evaluates the embeddings.

    views: of each image in a batch, one after the other; 1 or 2
    has_teacher: whether a second network follows the trained one
    has_queue: whether it has embeddings of earlier batches
    """

    views: ClassVar[int] = 2
    has_teacher: ClassVar[bool] = False
    has_queue: ClassVar[bool] = False

    def __init__(self, task: Task, modality: Modality) -> None:
        super().__init__(task)
        if modality.sequence or modality.tokens or modality.ndim > 2:
            raise UserError(
                f"for inputs of one size, such as images or recordings, not {modality.inputs}"
            )

    def embed(self, inputs: Float[Tensor, "n c *s"]) -> Float[Tensor, "n width"]:
        """Return the embeddings of inputs."""
        net: Any = self.net
        embeddings: Tensor = net.embed(inputs)
        return embeddings


class TwoViews(SelfSupervised):
    """A method that compares projections of the embeddings of two views of each image.

    After each forward `scalars["projection_std"]` is the standard deviation of the normalised
    projections: 1 / sqrt(width) if they are spread evenly, 0 if they have collapsed to one vector
    (Chen and He 2021, figure 2). Evaluation adds that of the latest training batch to the metrics,
    and warns of a collapse: in evaluation mode, running statistics of batch norm that lag behind
    the weights look like one.

    projector: from embeddings to projections of `width` numbers; it is not part of the network
    """

    projection_std: Tensor

    def __init__(self, task: Task, modality: Modality, projector: nn.Module, width: int) -> None:
        super().__init__(task, modality)
        self.projector = projector
        self.width = width
        self.register_buffer("projection_std", torch.tensor(1 / math.sqrt(width)))

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.task.metrics, "projection_std")

    def project(self, inputs: Float[Tensor, "n c *s"]) -> Float[Tensor, "n width"]:
        """Return the projections of inputs."""
        z: Tensor = self.projector(self.embed(inputs))
        return z

    def observe(self, z: Float[Tensor, "n width"]) -> None:
        """Set the scalars to those of these projections of a training batch."""
        deviation = spread(z)
        self.projection_std.copy_(deviation)
        self.scalars = {"projection_std": deviation}

    def meters(self) -> list[Meter]:
        return [*self.task.meters(), SpreadMeter(self)]


class Teacher(nn.Module):
    """Copies of a network and its projector, whose parameters follow the originals: an exponential
    moving average. Statistics of batch norm are its own."""

    def __init__(self, net: nn.Module, projector: nn.Module, momentum: float) -> None:
        super().__init__()
        self.net, self.projector = deepcopy(net), deepcopy(projector)
        self.requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def forward(self, inputs: Float[Tensor, "n c *s"]) -> Float[Tensor, "n width"]:
        net: Any = self.net
        z: Tensor = self.projector(net.embed(inputs))
        return z

    @torch.no_grad()
    def follow(self, net: nn.Module, projector: nn.Module) -> None:
        """Move every parameter: momentum * its value + (1 - momentum) * the original's."""
        originals = [*net.parameters(), *projector.parameters()]
        copies = [*self.net.parameters(), *self.projector.parameters()]
        for copy, original in zip(copies, originals, strict=True):
            copy.lerp_(original, 1 - self.momentum)


class SpreadMeter(Meter):
    """The spread of the projections of the latest training batch; see TwoViews."""

    def __init__(self, method: TwoViews) -> None:
        super().__init__()
        self.method = method

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        return {}

    def compute(self) -> dict[str, Any]:
        deviation, even = float(self.method.projection_std), 1 / math.sqrt(self.method.width)
        if deviation < COLLAPSED * even:
            warnings.warn(
                "collapse: the projections of all inputs are nearly the same vector; their "
                f"standard deviation is {deviation:.2g}, and {even:.2g} if they were spread evenly "
                "(1 / sqrt(width)). A smaller learning rate, a larger batch or stronger "
                "augmentation can avoid it",
                stacklevel=2,
            )
        return {"projection_std": deviation}


def mlp(
    *widths: int, norm: bool = True, last_norm: bool = False, last_affine: bool = True
) -> nn.Sequential:
    """Return linear layers between these widths, each but the last with batch norm and ReLU.

    norm: whether hidden layers have batch norm
    last_norm: whether the last layer has it too, without ReLU; last_affine: with parameters
    """
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(pairwise(widths), 2):
        last = number == len(widths)
        normed = last_norm if last else norm
        layers.append(nn.Linear(fan_in, fan_out, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(fan_out, affine=last_affine or not last))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def embedding_width(task: Task) -> int:
    """Return the width of the embeddings. Raises UserError if the network has none."""
    width = getattr(task.net, "embed_width", None)
    if width is None:
        raise UserError(f"{type(task.net).__name__} has no embeddings")
    return int(width)

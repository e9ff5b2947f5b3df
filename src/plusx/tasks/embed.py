"""Embeddings: vectors of unit length that are near each other where two inputs show the same."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.tasks.classify import at_least_float32
from plusx.tasks.meters import Meter
from plusx.tasks.task import Task
from plusx.tasks.verification import FALSE_ACCEPTS, Verification


Loss = Literal["arcface", "triplet"]

# Below it the slope of a square root or of an arccosine is too steep for float32.
_SMALLEST = 1e-7


class Embed(Task):
    """Tell whether two inputs are of one class, which need not be among those of the training.

    The answer of the network is the vector; `predict` gives it at unit length (n, width). Targets
    are class numbers, int64 (n,), such as the numbers of people.

    loss      "arcface": additive angular margins between the classes (Deng et al. 2019, equation
              3), whose weights, a direction a class, belong to the task and are not the network's;
              "triplet": batch-hard triplets (Hermans et al. 2017, equation 5): every input with the
              farthest one of its class and the nearest one of another, within the batch, which
              therefore has to have several of each class
    margin    the angle in radians with arcface, the distance between unit vectors with triplet
    scale     of the cosines, with arcface
    classes   the names of the classes that it is trained on; only arcface needs them, to train
    false_accept_rate   at which the share of true accepts is told

    After each forward `seen["error"]` is, with arcface, the share of inputs that are nearer to the
    direction of another class than to their own; with triplet the share whose farthest fellow is
    farther away than the nearest other. With triplet an input without a fellow or without another
    in its batch does not count. UserError: class numbers outside 0..k-1 with arcface.
    """

    scores = ("equal_error_rate", "true_accept_rate", "auroc")
    directions: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        loss: Loss = "arcface",
        margin: float = 0.5,
        scale: float = 64.0,
        classes: Sequence[str] | None = None,
        false_accept_rate: float = FALSE_ACCEPTS,
    ) -> None:
        super().__init__()
        if loss not in ("arcface", "triplet"):
            raise UserError(f"loss is {loss!r}; allowed are 'arcface' and 'triplet'")
        if not margin >= 0 or (loss == "arcface" and not margin < math.pi / 2):
            allowed = "0 to below pi / 2" if loss == "arcface" else "0 and above"
            raise UserError(f"margin is {margin}; with {loss} allowed is {allowed}")
        if not scale > 0:
            raise UserError(f"scale is {scale}; it has to be above 0")
        Verification(false_accept_rate)  # refused now, and not when the first epoch is judged
        self.net = net
        self.loss_kind: Loss = loss
        self.margin, self.scale = margin, scale
        self.false_accept_rate = false_accept_rate
        directions = None
        if loss == "arcface" and classes is not None:
            directions = nn.Parameter(torch.randn(len(classes), embedding_width(net)))
        self.register_parameter("directions", directions)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        vectors = self.net(batch.inputs)
        # half precision would lose the angles
        with torch.autocast(vectors.device.type, enabled=False):
            return self.loss(at_least_float32(vectors), batch.targets)

    def loss(
        self, vectors: Float[Tensor, "n width"], targets: Int64[Tensor, "n"]
    ) -> Float[Tensor, ""]:
        """The loss of what the network answered, of any length, and what was `seen` in it."""
        unit = F.normalize(vectors, dim=1)
        if self.loss_kind == "triplet":
            return self._triplets(unit, targets)
        if self.directions is None:
            raise UserError("the classes of the training are not known: arcface cannot be trained")
        cosines = F.linear(unit, F.normalize(self.directions, dim=1).to(unit.dtype))
        self.seen = {"error": (cosines.detach().argmax(1) != targets).float().mean()}
        return F.cross_entropy(self.scale * with_margin(cosines, targets, self.margin), targets)

    def _triplets(
        self, unit: Float[Tensor, "n width"], targets: Int64[Tensor, "n"]
    ) -> Float[Tensor, ""]:
        farthest, nearest, counted = hardest(unit, targets)
        wrong = (farthest >= nearest) & counted
        self.seen = {"error": wrong.detach().float().sum() / counted.sum().clamp(min=1)}
        missed = F.relu(self.margin + farthest - nearest)
        return torch.where(counted, missed, 0.0).sum() / counted.sum().clamp(min=1)

    def predict(self, inputs: Tensor) -> Float[Tensor, "n width"]:
        return F.normalize(at_least_float32(self.net(inputs)), dim=1)

    def meters(self) -> list[Meter]:
        return [Verification(self.false_accept_rate)]


def with_margin(
    cosines: Float[Tensor, "n k"], targets: Int64[Tensor, "n"], margin: float
) -> Float[Tensor, "n k"]:
    """The cosines, those of the right classes of an angle that is larger by `margin` (radians).

    Beyond an angle of pi - margin, where the cosine would rise again, it goes on falling as
    cos(angle) - margin * sin(margin), as in the authors' code.
    """
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < cosines.shape[1]:
        raise UserError(
            f"targets run from {int(targets.min())} to {int(targets.max())}; of "
            f"{cosines.shape[1]} classes 0 to {cosines.shape[1] - 1} are allowed"
        )
    own = cosines.gather(1, targets[:, None]).clamp(-1 + _SMALLEST, 1 - _SMALLEST)
    sine = (1 - own.square()).sqrt()
    turned = own * math.cos(margin) - sine * math.sin(margin)
    turned = torch.where(own > math.cos(math.pi - margin), turned, own - margin * math.sin(margin))
    return cosines.scatter(1, targets[:, None], turned)


def hardest(
    unit: Float[Tensor, "n width"], targets: Int64[Tensor, "n"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Tensor]:
    """Of each unit vector the distances to the farthest one of its class and to the nearest one of
    another, and whether it has both.
    """
    distances = (2 - 2 * unit @ unit.T).clamp(min=_SMALLEST).sqrt()
    same = targets[:, None] == targets
    alone = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    fellows = same & ~alone
    farthest = distances.masked_fill(~fellows, 0.0).amax(1)
    nearest = distances.masked_fill(same, 2.0).amin(1)
    return farthest, nearest, fellows.any(1) & ~same.all(1)


def embedding_width(net: nn.Module) -> int:
    """How many numbers the network answers with."""
    width = getattr(net.fc, "out_features", None) or getattr(net, "embed_width", None)
    if width is None:
        raise UserError("the network does not say how wide its answer is: give it a head")
    return int(width)

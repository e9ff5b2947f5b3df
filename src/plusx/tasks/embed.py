"""Embeddings: unit vectors that are close to each other for two inputs of the same class."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.prediction import Embeddings
from plusx.errors import UserError
from plusx.metrics.meter import Meter
from plusx.metrics.verification import FAR, VerificationMeter
from plusx.tasks.classify import at_least_float32
from plusx.tasks.task import Task, run_net


Loss = Literal["arcface", "triplet"]

# distance from the singularities of square root and arccosine, whose gradients overflow there
_SMALLEST = 1e-7


class Embed(Task):
    """Embedding: vectors that are close to each other for inputs of one class.

    The classes of later inputs need not be in the training data.

    The network's output is the vector; `predict` returns it normalised, as `Embeddings`. Targets
    are class numbers, int64 (n,), for example of people.

    loss          "arcface": additive angular margins between the classes (Deng et al. 2019,
                  equation 3); its weights, a prototype per class, belong to the task, not the
                  network. "triplet": batch-hard triplets (Hermans et al. 2017, equation 5): every
                  input with the farthest positive and the nearest negative of its batch, which
                  must contain several inputs of each class
    margin        angle in radians with arcface, distance between unit vectors with triplet
    scale         factor of the cosines, with arcface
    class_names   of the training data; required to train with arcface
    far           the false-accept rate for which the true-accept rate is computed

    After each forward `scalars["error"]` is, with arcface, the fraction of inputs that are closer
    to the prototype of another class; with triplet, the fraction whose farthest positive is farther
    away than the nearest negative. With triplet, inputs without a positive or a negative in the
    batch do not count. Raises UserError for class numbers outside 0..k-1 with arcface.
    """

    metrics = ("equal_error_rate", "true_accept_rate", "auroc")
    tta = ("none", "flip", "flip-shift")
    has_labels = False
    prototypes: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        loss: Loss = "arcface",
        margin: float = 0.5,
        scale: float = 64.0,
        class_names: Sequence[str] | None = None,
        far: float = FAR,
    ) -> None:
        super().__init__()
        if loss not in ("arcface", "triplet"):
            raise UserError(f"loss is {loss!r}; allowed are 'arcface' and 'triplet'")
        if not margin >= 0 or (loss == "arcface" and not margin < math.pi / 2):
            allowed = "0 to below pi / 2" if loss == "arcface" else "0 and above"
            raise UserError(f"margin is {margin}; with {loss} allowed is {allowed}")
        if not scale > 0:
            raise UserError(f"scale is {scale}; it must be above 0")
        VerificationMeter(far)  # refuses an invalid rate before training, not after the first epoch
        self.net = net
        self.loss_kind: Loss = loss
        self.margin, self.scale = margin, scale
        self.far = far
        prototypes = None
        if loss == "arcface" and class_names is not None:
            prototypes = nn.Parameter(torch.randn(len(class_names), embedding_width(net)))
        self.register_parameter("prototypes", prototypes)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        vectors = run_net(self.net, batch)
        # angles need more than half precision
        with torch.autocast(vectors.device.type, enabled=False):
            return self.loss(at_least_float32(vectors), batch.known_targets)

    def loss(
        self, vectors: Float[Tensor, "n width"], targets: Int64[Tensor, "n"]
    ) -> Float[Tensor, ""]:
        """Return the loss of vectors of any length, and set `scalars`."""
        unit = F.normalize(vectors, dim=1)
        if self.loss_kind == "triplet":
            return self._triplets(unit, targets)
        if self.prototypes is None:
            raise UserError("arcface needs class_names for training")
        cosines = F.linear(unit, F.normalize(self.prototypes, dim=1).to(unit.dtype))
        self.scalars = {"error": (cosines.detach().argmax(1) != targets).float().mean()}
        return F.cross_entropy(self.scale * with_margin(cosines, targets, self.margin), targets)

    def _triplets(
        self, unit: Float[Tensor, "n width"], targets: Int64[Tensor, "n"]
    ) -> Float[Tensor, ""]:
        farthest, nearest, has_both = hardest_distances(unit, targets)
        wrong = (farthest >= nearest) & has_both
        self.scalars = {"error": wrong.detach().float().sum() / has_both.sum().clamp(min=1)}
        losses = F.relu(self.margin + farthest - nearest)
        return torch.where(has_both, losses, 0.0).sum() / has_both.sum().clamp(min=1)

    def predict(self, batch: Batch) -> Embeddings:
        return Embeddings(F.normalize(at_least_float32(run_net(self.net, batch)), dim=1))

    def meters(self) -> list[Meter]:
        return [VerificationMeter(self.far)]


def with_margin(
    cosines: Float[Tensor, "n k"], targets: Int64[Tensor, "n"], margin: float
) -> Float[Tensor, "n k"]:
    """Return the cosines, with the angle of the true class increased by `margin` (radians).

    For angles beyond pi - margin, where the cosine would increase again, it continues to decrease
    as cos(angle) - margin * sin(margin), as in the authors' code.
    """
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < cosines.shape[1]:
        raise UserError(
            f"targets run from {int(targets.min())} to {int(targets.max())}; of "
            f"{cosines.shape[1]} classes 0 to {cosines.shape[1] - 1} are allowed"
        )
    true = cosines.gather(1, targets[:, None]).clamp(-1 + _SMALLEST, 1 - _SMALLEST)
    sine = (1 - true.square()).sqrt()
    shifted = true * math.cos(margin) - sine * math.sin(margin)
    shifted = torch.where(
        true > math.cos(math.pi - margin), shifted, true - margin * math.sin(margin)
    )
    return cosines.scatter(1, targets[:, None], shifted)


def hardest_distances(
    unit: Float[Tensor, "n width"], targets: Int64[Tensor, "n"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Tensor]:
    """Return for each unit vector the distance to the farthest one of its class, that to the
    nearest one of another class, and whether it has both."""
    distances = (2 - 2 * unit @ unit.T).clamp(min=_SMALLEST).sqrt()
    same = targets[:, None] == targets
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    positives = same & ~itself
    farthest = distances.masked_fill(~positives, 0.0).amax(1)
    nearest = distances.masked_fill(same, 2.0).amin(1)
    return farthest, nearest, positives.any(1) & ~same.all(1)


def embedding_width(net: nn.Module) -> int:
    """Return the width of the network's output."""
    width = getattr(net.fc, "out_features", None) or getattr(net, "embed_width", None)
    if width is None:
        raise UserError("the width of the network's output is unknown: the network needs a head")
    return int(width)

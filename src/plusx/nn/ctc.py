"""The head of networks for connectionist temporal classification."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.grammar.heads import Ctc
from plusx.nn.feature_info import FeatureInfo


class CtcHead(nn.Module):
    """A 1 x 1 convolution with bias from the last map of a 1-D network to the tokens.

    Raises UserError if the network has another number of dimensions.
    """

    def __init__(self, head: Ctc, levels: FeatureInfo, num_classes: int) -> None:
        super().__init__()
        if levels.net.ndim != 1:
            raise UserError(
                f'[head] kind = "ctc" predicts tokens along one dimension; the network has '
                f"{levels.net.ndim}"
            )
        self.conv1 = nn.Conv1d(levels.stages[-1].channels, num_classes, 1)

    def forward(
        self, x: Tensor, stem: Sequence[Tensor], stages: Sequence[Tensor]
    ) -> Float[Tensor, "n k t"]:
        logits: Tensor = self.conv1(stages[-1])
        return logits

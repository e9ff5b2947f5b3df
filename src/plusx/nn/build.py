"""From a model to a network: the one place that chooses a class."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from plusx.errors import UserError
from plusx.grammar.model import External, Model, WithHead
from plusx.grammar.spec import Stride
from plusx.nn.init import initialise
from plusx.nn.network import Network
from plusx.nn.with_head import NetworkWithHead


class Backbone(Protocol):
    """What every network has.

    widths, strides: channels, and input positions a step, at the end of each stage.
    preprocessing: how its inputs are prepared, as a JSON-ready dict, or None where nobody said.
    classes: the names of its outputs, or () where nobody said.
    """

    widths: tuple[int, ...]
    strides: tuple[Stride, ...]
    spec: Model
    preprocessing: dict[str, Any] | None
    classes: tuple[str, ...]

    def __call__(self, x: Tensor) -> Any: ...

    def features(self, x: Tensor, out: Sequence[int] | None = None) -> list[Tensor]: ...

    def embed(self, x: Tensor) -> Tensor: ...

    def reset_head(self, num_classes: int) -> None: ...


def build(model: Model, *, initialised: bool = True) -> nn.Module:
    """The network of a model, its parameters from torch's generator.

    Without `initialised` a spec's parameters are as PyTorch begins them, for weights to be loaded.
    UserError: the model cannot be built.
    """
    if isinstance(model, WithHead):
        return NetworkWithHead(
            build(model.backbone, initialised=initialised), model.head, model.num_classes
        )
    if isinstance(model, External):
        from plusx.nn.external import EXTERNAL  # loads torchvision

        if model.name not in EXTERNAL:
            raise UserError(f"there is no module {model.name!r}; there are {', '.join(EXTERNAL)}")
        external: Any = EXTERNAL[model.name](model.num_classes, model.in_channels)
        external.spec = model
        built: nn.Module = external
        return built
    net = Network(model)
    if initialised:
        initialise(net)
    return net

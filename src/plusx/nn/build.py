"""Build a network from a model: the only place that selects the class."""

import torch

from plusx.errors import UserError
from plusx.grammar.model import External, Model, WithHead
from plusx.nn.init import initialise
from plusx.nn.network import Backbone, Network
from plusx.nn.with_head import NetworkWithHead


def build(model: Model, *, initialised: bool = True) -> Backbone:
    """Return the network of a model, with parameters drawn from torch's generator.

    Without `initialised`, the parameters of a spec are those of PyTorch, to be replaced by loaded
    weights. Raises UserError if the model cannot be built.
    """
    if isinstance(model, WithHead):
        return NetworkWithHead(
            build(model.backbone, initialised=initialised), model.head, model.num_classes
        )
    if isinstance(model, External):
        from plusx.nn.external import EXTERNAL  # loads torchvision

        if model.name not in EXTERNAL:
            raise UserError(f"there is no module {model.name!r}; there are {', '.join(EXTERNAL)}")
        external = EXTERNAL[model.name](model.num_classes, model.in_channels)
        external.spec = model
        return external
    net = Network(model)
    if initialised:
        initialise(net)
    return net


def build_on_meta(model: Model) -> Backbone:
    """Return the network of a model on the meta device: names and shapes, without memory."""
    with torch.device("meta"):
        return build(model, initialised=False)

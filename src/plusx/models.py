"""Create networks by name or by model.

Torchvision, which external networks and published weights need, takes as long to import as torch
and is imported only for them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from plusx import zoo
from plusx.errors import UserError
from plusx.grammar.backbone import backbone_of
from plusx.grammar.model import Model, WithHead
from plusx.grammar.spec import Net
from plusx.nn.build import build


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of networks that match a shell pattern such as `resnet*`."""
    return zoo.names(pattern, headed=True)


def find(name: str) -> Model:
    """Return the network of that name: a Net, an External, or a WithHead. Raises UserError if there
    is none."""
    return zoo.find_model(name)


def create_model(
    name_or_spec: str | Model,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
) -> Any:
    """Build a network by its name or from a model.

    `num_classes=0` removes the head; of a network with a head on its features it returns the
    backbone. `weights` is a name of torchvision's weights such as "IMAGENET1K_V2", or a safetensors
    file; a file for the network of that name contains its own spec, with its number of classes. If
    `num_classes` differs, the head is new. The network's `preprocessing` and `classes` are those of
    its weights. With a `seed` the parameters are reproducible, and torch's random state is left
    unchanged.

    Raises UserError for an unknown name (with the nearest ones), an invalid spec, or weights that
    do not match.
    """
    for key, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and type(value) is not int:
            raise UserError(f"{key} is {value!r}; a whole number is needed")
    if seed is not None and not (type(seed) is int and -(2**63) <= seed < 2**64):
        raise UserError(f"seed is {seed!r}; a whole number of at most 64 bits is needed")
    name = name_or_spec if isinstance(name_or_spec, str) else None
    model = zoo.find_model(name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    stored = None
    if weights is not None:
        from plusx.weights.fetch import find_weights, load_into, model_of_file

        stored = find_weights(name, weights)
        if name is not None and (stored.model == name or isinstance(model, WithHead)):
            model = model_of_file(stored, model)
    changed = _changed(model, num_classes, in_channels)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        net = build(changed)
    if stored is not None:
        same_head = stored.head is not None or not isinstance(model, WithHead)
        load_into(net, name, stored, new_head=num_classes is not None or not same_head)
    return net


def _changed(model: Model, num_classes: int | None, in_channels: int | None) -> Model:
    """Return the model for other classes or channels; for a model with a head and no classes, its
    backbone."""
    if isinstance(model, WithHead):
        backbone = _changed(model.backbone, 0, in_channels)
        assert not isinstance(backbone, WithHead)
        if num_classes == 0:
            return backbone_of(backbone, model.head) if isinstance(backbone, Net) else backbone
        return replace(model, backbone=backbone, num_classes=num_classes or model.num_classes)
    return replace(
        model,
        num_classes=model.num_classes if num_classes is None else num_classes,
        in_channels=model.in_channels if in_channels is None else in_channels,
    )

"""Networks by name or by spec."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plusx import zoo
from plusx.grammar.spec import Net
from plusx.nn.init import initialise
from plusx.nn.network import Network
from plusx.nn.plain import PLAIN
from plusx.weights import load_named_or_file


def list_models(pattern: str = "*") -> list[str]:
    """Names of the zoo that match a shell pattern, as `resnet*`."""
    return zoo.names(pattern)


def create_model(
    name_or_spec: str | Net,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
) -> Any:
    """Build a network of the zoo, or the one that a spec describes.

    `num_classes=0` has no head. `weights` is a safetensors file or the name of torchvision's
    weights, as "IMAGENET1K_V2". With a `seed` the parameters are the same every time, and torch's
    own generator is left as it was.

    Raises ValueError for an unknown name (with the nearest ones), a spec that is not legal, or
    weights that do not fit.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        net = _build(name_or_spec, num_classes, in_channels, weights is not None)
    if weights is not None:
        name = name_or_spec if isinstance(name_or_spec, str) else None
        load_named_or_file(net, name, weights)
        if num_classes is not None and _classes(net) != num_classes:
            net.reset_head(num_classes)
    return net


def _build(
    name_or_spec: str | Net, num_classes: int | None, in_channels: int | None, loaded: bool
) -> nn.Module:
    spec = zoo.find(name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    changes = {"num_classes": num_classes, "in_channels": in_channels}
    spec = replace(spec, **{key: value for key, value in changes.items() if value is not None})
    if isinstance(spec, Net):
        net = Network(spec)
        initialise(net)
        return net
    assert isinstance(name_or_spec, str)
    return PLAIN[name_or_spec](num_classes=spec.num_classes, in_channels=spec.in_channels)


def _classes(net: nn.Module) -> int:
    return int(getattr(net.fc, "out_features", 0))

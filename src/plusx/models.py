"""Networks by name or by spec.

What only some networks need is imported when one of them is made: torchvision, which plain modules
and published weights take from, is as slow to import as torch itself.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plusx import zoo
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.nn.init import GATE_BIAS, initialise
from plusx.nn.network import Network
from plusx.zoo.with_head import HEADED


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

    The names of `plusx.zoo.with_head.DENSE` are those of torchvision's networks with a head on their
    features, as "fcn_resnet50", and give a `plusx.nn.with_head.NetworkWithHead`.
    `num_classes=0` has no head. `weights` is the name of torchvision's weights, as "IMAGENET1K_V2",
    or a safetensors file; a file that was made for the network of that name brings its own spec,
    with its number of classes. Where `num_classes` is another one the head is new. With a `seed`
    the parameters are the same every time, and torch's own generator is left as it was.

    Raises UserError for an unknown name (with the nearest ones), a spec that is not legal, or
    weights that do not fit.
    """
    for key, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and type(value) is not int:
            raise UserError(f"{key} is {value!r}; a whole number is needed")
    if isinstance(name_or_spec, str) and name_or_spec in HEADED:
        return _with_head(name_or_spec, num_classes, in_channels, weights, seed)
    name = name_or_spec if isinstance(name_or_spec, str) else None
    spec = zoo.find(name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    found = None
    if weights is not None:
        from plusx.weights.fetch import find_weights, load_found, own_spec

        found = find_weights(name, weights)
        if name is not None and found.model == name:
            spec = own_spec(found, spec)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        net = _build(name, spec, num_classes, in_channels)
    if found is not None:
        load_found(net, name, found, new_head=num_classes is not None)
    return net


def _with_head(
    name: str,
    num_classes: int | None,
    in_channels: int | None,
    weights: str | Path | None,
    seed: int | None,
) -> nn.Module:
    """A network with a head on its features, of those that torchvision has."""
    from plusx.nn.with_head import NetworkWithHead

    known, found = HEADED[name], None
    spec = replace(find_net(known.base), num_classes=0, size=known.size)
    head, classes = known.head, known.num_classes
    if weights is not None:
        from plusx.weights.fetch import find_weights, load_found

        found = find_weights(name, weights)
        if found.head is not None:
            head, classes = found.head, found.head_classes
    if in_channels is not None:
        spec = replace(spec, in_channels=in_channels)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        net = NetworkWithHead(initialised(spec), head, num_classes or classes)
    if found is not None:
        load_found(net, name, found, new_head=num_classes is not None or found.head is None)
    return net


def find_net(name: str) -> Net:
    """The network of the zoo that is a sentence."""
    found = zoo.find(name)
    assert isinstance(found, Net)
    return found


def initialised(
    spec: Net,
    rule: str | None = None,
    zero_last_gamma: bool = False,
    gate_bias: float = GATE_BIAS,
) -> Network:
    """The network of a spec, its parameters from torch's generator; see `initialise`."""
    net = Network(spec)
    initialise(net, rule, zero_last_gamma, gate_bias)
    return net


def _build(
    name: str | None, spec: Net | zoo.Plain, num_classes: int | None, in_channels: int | None
) -> nn.Module:
    spec = replace(
        spec,
        num_classes=spec.num_classes if num_classes is None else num_classes,
        in_channels=spec.in_channels if in_channels is None else in_channels,
    )
    if isinstance(spec, Net):
        return initialised(spec)
    assert name is not None
    from plusx.nn.external import EXTERNAL

    return EXTERNAL[name](spec.num_classes, spec.in_channels)

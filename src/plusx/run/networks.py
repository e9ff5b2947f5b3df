"""From a recipe's [net], [init] and [head] to the network that it trains."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.grammar.validate import validate
from plusx.models import create_model, initialised
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe import NetByName, Recipe
from plusx.recipe.tables import Init
from plusx.run.task_factory import TASKS
from plusx.run.transfer import weights_at
from plusx.weights.fetch import find_weights, load_found, own_spec
from plusx.zoo import External, find


_NO_SPEC = ("base", "weights", "train", "freeze_norms")  # of [net]


def spec_of(net: NetByName | Net) -> Net | str:
    """The spec that a recipe's [net] describes, checked; the name of an external module as it is.

    A file of weights that says what network it is for is believed: another library's shortcuts
    can be other ones than the zoo's under the same name.
    """
    if isinstance(net, Net):
        validate(net)
        return net
    found: Net | External = find(net.base)
    given = net.weights and weights_at(net.weights)
    if given and Path(given).is_file():
        weights = find_weights(net.base, given)
        if weights.model == net.base:
            found = own_spec(weights, found)
    said = {
        field.name: getattr(net, field.name)
        for field in fields(net)
        if field.name not in _NO_SPEC and getattr(net, field.name) is not None
    }
    if isinstance(found, External):
        changed = sorted(set(said) - {"num_classes", "in_channels", "size"})
        if changed:
            raise UserError(
                f"[net] {changed[0]}: {net.base} is an external module; only num_classes and "
                "in_channels can be changed"
            )
        return net.base
    spec = replace(found, **said)
    validate(spec)
    return spec


def make_net(recipe: Recipe) -> tuple[nn.Module, dict[str, Any] | None]:
    """The recipe's network, and the preprocessing of the weights it begins with, if it has any."""
    spec = spec_of(recipe.net)
    table = recipe.net
    net: nn.Module
    if isinstance(spec, Net):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            said = recipe.init
            net = initialised(spec, said.rule, said.zero_last_gamma, said.gate_bias)
    else:
        if recipe.init != Init():
            raise UserError(
                f"[init]: {spec} is an external module, which begins in a way of its own"
            )
        assert isinstance(table, NetByName)
        classes, channels = table.num_classes, table.in_channels
        net = create_model(spec, num_classes=classes, in_channels=channels, seed=recipe.seed)
    net = _with_head(recipe, net, table.num_classes)
    if isinstance(table, Net) or not table.weights:
        return net, None
    found = find_weights(table.base, weights_at(table.weights))
    load_found(net, table.base, found, new_head=True)
    return net, found.preprocessing


def _with_head(recipe: Recipe, net: nn.Module, classes: int | None) -> nn.Module:
    """The network with the recipe's [head] on its features, if it says one."""
    kinds = TASKS[recipe.task.kind].heads
    if recipe.head is None:
        if not kinds:
            return net
        raise UserError(
            f'[task] kind = "{recipe.task.kind}" needs a [head]: kind = {" or ".join(kinds)}'
        )
    if recipe.head.kind not in kinds:
        fitting = f"which takes {' or '.join(kinds)}" if kinds else "which takes none"
        raise UserError(
            f'[head] kind = "{recipe.head.kind}" is not for [task] kind = "{recipe.task.kind}", '
            f"{fitting}"
        )
    assert classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return NetworkWithHead(net, recipe.head, classes)


def blank_net(recipe: Recipe, classes: int) -> nn.Module:
    """The recipe's network for so many classes, for weights to be loaded into it."""
    outputs = classes if TASKS[recipe.task.kind].has_classes else recipe.net.num_classes
    net = create_model(spec_of(recipe.net), num_classes=outputs, seed=recipe.seed)
    return _with_head(recipe, net, classes)

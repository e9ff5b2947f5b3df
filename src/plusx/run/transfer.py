"""Beginning where another training ended: whose weights, and what of them is trained on."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from plusx.errors import UserError
from plusx.nn.frozen import freeze_below, freeze_norms, head_depth, rates_by_depth
from plusx.recipe import NetByName, Recipe
from plusx.recipe.tables import Muon


KEPT = "model.safetensors"  # in a run's folder, once the run is finished


def weights_at(text: str) -> str:
    """The file or the name of weights that a recipe means: a run's folder stands for its own.

    UserError: a folder that is no run's, or whose run is not finished.
    """
    place = Path(text).expanduser()
    if not place.is_dir():
        return str(place) if place.is_file() else text
    if (place / KEPT).is_file():
        return str(place / KEPT)
    if (place / "recipe.toml").is_file():
        raise UserError(f"[net] weights: the run {place} is not finished, it has no {KEPT} yet")
    inside = sorted(found.parent.name for found in place.glob(f"*/{KEPT}"))
    near = difflib.get_close_matches(place.name, inside, 1, 0.0)
    hint = f"; did you mean {place / near[0]}?" if near else ""
    raise UserError(f"[net] weights: {place} is not a run's folder: it has no {KEPT}{hint}")


def freeze(recipe: Recipe, net: nn.Module) -> None:
    """Leave as they are the parameters, and the statistics of norms, that are not to be trained.

    UserError: there are not so many stages, or nothing is left to be trained.
    """
    table = recipe.net
    if not isinstance(table, NetByName):
        return
    if table.freeze_norms and not freeze_norms(net):
        raise UserError(f"[net] freeze_norms: {table.base} has no batch norms")
    if table.train == "all":
        return
    head = head_depth(net)
    if table.train == "head":
        freeze_below(net, head)
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise UserError('[net] train = "head": the network has no head')
        return
    if table.train >= head:
        raise UserError(
            f'[net] train = {table.train}: {table.base} has {head - 1} stages; "all" trains them '
            "and the stem"
        )
    freeze_below(net, head - table.train)


def left_as_drawn(recipe: Recipe) -> str:
    """What to say of a network that is trained in part although it has no weights; else empty."""
    table = recipe.net
    if not isinstance(table, NetByName) or table.train == "all" or table.weights:
        return ""
    return (
        f"[net] train = {json.dumps(table.train)} without [net] weights: what is not trained stays "
        "as it was drawn by chance"
    )


def layer_lr_scales(recipe: Recipe, net: nn.Module) -> Mapping[Tensor, float] | None:
    """What the rate of each parameter is multiplied with; None where all have one rate."""
    share = 1.0 if isinstance(recipe.optim, Muon) else recipe.optim.layer_decay
    if share == 1:
        return None
    by_name = rates_by_depth(net, share)
    return {parameter: by_name[name] for name, parameter in net.named_parameters()}

"""How strongly the layers of a network respond, with and without shortcuts: He et al. 2015, section
4.2 and figure 7.

Residual functions are generally closer to zero than those of plain networks, and in deeper residual
networks each layer changes the signal less.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.nn.block import ResidualBlock
from plusx.nn.init import CONVOLUTIONS
from plusx.recipe import Recipe
from plusx.recipe.studies import Responses
from plusx.report.figures import band, lines_figure
from plusx.statistics import spread
from plusx.study.blocks import preserved, require_network
from plusx.study.experiment import (
    ERROR,
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    column,
    listed,
    network_trials,
    open_trial,
    some_batches,
    spec,
)
from plusx.study.figures import relative
from plusx.study.trial import Measurement, Trial


IMAGES = 256


@dataclass(frozen=True)
class Response:
    """The standard deviation of what one layer gives, over images, channels and positions.

    `name` is the module's whose output was taken: the norm behind the convolution, or the
    convolution where none follows it.
    """

    name: str
    std: float


def responses(net: nn.Module, inputs: Iterable[Tensor]) -> list[Response]:
    """The response of every 3 x 3 layer, in order: after batch norm, before anything else.

    That is before the nonlinearity and before the sum, as in the paper. `inputs` are batches
    (n, ...); the network is run in evaluation mode, and is left as it was.

    UserError: the network is not made of blocks, has no such layer, or `inputs` are empty.
    """
    net = require_network(net)
    layers = three_by_three(net)
    if not layers:
        raise UserError("the network has no layer of 3 x 3, so there is no response to measure")
    moments = {name: torch.zeros(3, dtype=torch.float64) for name in layers}

    def keep(name: str, output: Tensor) -> None:
        values = output.detach().double()
        moments[name] += torch.stack(
            [torch.tensor(values.numel()).double(), values.sum().cpu(), values.square().sum().cpu()]
        )

    with preserved(net), torch.no_grad(), watched(layers, keep):
        net.eval()
        for batch in inputs:
            net(batch)
    if any(count == 0 for count, _, _ in moments.values()):
        raise UserError("there are no inputs to measure responses with")
    return [
        Response(name, float((squares / count - (total / count) ** 2).clamp(min=0).sqrt()))
        for name, (count, total, squares) in moments.items()
    ]


def three_by_three(net: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs are the responses, by name and in the order of the forward pass."""
    net = require_network(net)
    layers = _responding("", net, net.stem)
    for name, block in net.named_modules():
        if isinstance(block, ResidualBlock):
            layers |= _responding(f"{name}.", block, (*block.lead, *block.branch, *block.after))
    return layers


def _responding(prefix: str, owner: nn.Module, words: Iterable[str]) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {}
    ahead = [*words, ""]
    for word, following in pairwise(ahead):
        layer = getattr(owner, word)
        if isinstance(layer, CONVOLUTIONS) and set(layer.kernel_size) == {3}:
            taken = following if following.startswith(("bn", "norm")) else word
            layers[prefix + taken] = getattr(owner, taken)
    return layers


@contextmanager
def watched(layers: dict[str, nn.Module], keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Pass each layer's output to `keep` before an activation can overwrite it."""

    def watcher(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: keep(name, output)

    handles = [layer.register_forward_hook(watcher(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure_responses(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The response of every layer of the trained network, as JSON: `layers` and `std`."""
    net, sets = open_trial(recipe, folder)
    measured = responses(net, [batch.inputs for batch in some_batches(sets.train, IMAGES)])
    return {
        "layers": [response.name for response in measured],
        "std": [response.std for response in measured],
    }


def _trials(recipe: Recipe, table: Responses, source: Dataset) -> list[Trial]:
    for network in table.networks:
        spec(network)  # UserError for an external module
    return network_trials(recipe, table.networks, source, Measurement("responses"))


def _row(group: Group) -> dict[str, Any]:
    seeds = [answer["std"] for answer in group.measured("responses")]
    return {
        "layers": len(seeds[0]),
        "response": spread([mean(layers) for layers in seeds]),
        "smallest": spread([min(layers) for layers in seeds]),
        "largest": spread([max(layers) for layers in seeds]),
        **group.errors,
    }


def _finding(rows: Sequence[Row]) -> str:
    order = sorted(rows, key=lambda row: row["response"]["mean"])
    strengths = listed([f"{row['name']} {row['response']['mean']:.2f}" for row in order])
    return (
        f"Standard deviation of the response, mean over the layers, the weakest first: {strengths}."
    )


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    seeds = {
        group.name: [answer["std"] for answer in group.measured("responses")] for group in groups
    }
    y = {"title": "standard deviation", "scale": "linear"}
    return [
        lines_figure(
            "Response of every layer",
            "After batch norm, before the nonlinearity and the sum (He 2015, figure 7, top).",
            [band(name, relative(len(s[0])), s) for name, s in seeds.items()],
            x={"title": "position of the layer", "scale": "linear"},
            y=y,
        ),
        lines_figure(
            "Responses in order of their strength",
            "The same, sorted (He 2015, figure 7, bottom).",
            [
                band(name, relative(len(s[0])), [sorted(answer, reverse=True) for answer in s])
                for name, s in seeds.items()
            ],
            x={"title": "rank of the layer", "scale": "linear"},
            y=y,
        ),
    ]


RESPONSES = Experiment[Responses](
    title="Responses",
    question="How strongly do layers respond, with and without shortcuts?",
    trials=_trials,
    columns=lambda table, groups: [
        column("layers", "Layers of 3 x 3", kind="count"),
        column("response", "Mean response", "std"),
        column("smallest", "Smallest", "std"),
        column("largest", "Largest", "std"),
        TRAIN_ERROR,
        ERROR,
    ],
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        f"Measured in evaluation mode on at most {IMAGES} training images, not augmented. In "
        "pre-activation networks no norm follows the second convolution of a block, and its own "
        "output is taken."
    ),
)

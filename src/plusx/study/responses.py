"""Response study: the standard deviation of layer responses with and without shortcuts (He et al.
2015, section 4.2 and figure 7)."""

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
from plusx.nn.dims import CONVOLUTIONS
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
    """The standard deviation of one layer's output over images, channels and positions.

    `name` is the module that is measured: the norm after the convolution, or the convolution if
    none follows.
    """

    name: str
    std: float


def responses(net: nn.Module, inputs: Iterable[Tensor]) -> list[Response]:
    """Return the response of every 3 x 3 layer, in order.

    It is measured after batch norm, before the nonlinearity and the sum, as in the paper. `inputs`
    are batches (n, ...); the network runs in evaluation mode, and is left unchanged. Raises
    UserError if the network is not made of blocks or has no such layer, or if `inputs` are empty.
    """
    net = require_network(net)
    layers = three_by_three(net)
    if not layers:
        raise UserError("the network has no 3 x 3 layer whose response could be measured")
    moments = {name: torch.zeros(3, dtype=torch.float64) for name in layers}

    def add_moments(name: str, output: Tensor) -> None:
        values = output.detach().double()
        moments[name] += torch.stack(
            [torch.tensor(values.numel()).double(), values.sum().cpu(), values.square().sum().cpu()]
        )

    with preserved(net), torch.no_grad(), output_hooks(layers, add_moments):
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
    """Return the modules whose outputs are the responses, by name and in forward order."""
    net = require_network(net)
    layers = _responding("", net, net.stem)
    for name, block in net.named_modules():
        if isinstance(block, ResidualBlock):
            layers |= _responding(f"{name}.", block, (*block.lead, *block.branch, *block.after))
    return layers


def _responding(prefix: str, owner: nn.Module, words: Iterable[str]) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {}
    names = [*words, ""]
    for word, following in pairwise(names):
        layer = getattr(owner, word)
        if isinstance(layer, CONVOLUTIONS) and set(layer.kernel_size) == {3}:
            measured = following if following.startswith(("bn", "norm")) else word
            layers[prefix + measured] = getattr(owner, measured)
    return layers


@contextmanager
def output_hooks(
    layers: dict[str, nn.Module], hook: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `hook` with each layer's name and output, before an activation can overwrite it."""

    def forward_hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: hook(name, output)

    handles = [layer.register_forward_hook(forward_hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure_responses(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Measure the response of every layer of the trained network, as JSON: `layers` and `std`."""
    net, sets = open_trial(recipe, folder)
    measured = responses(net, [batch.inputs for batch in some_batches(sets.train, IMAGES)])
    return {
        "layers": [response.name for response in measured],
        "std": [response.std for response in measured],
    }


def _trials(recipe: Recipe, table: Responses, source: Dataset) -> list[Trial]:
    for network in table.networks:
        spec(network)  # raises UserError for an external module
    return network_trials(recipe, table.networks, source, Measurement("responses"))


def _row(group: Group) -> dict[str, Any]:
    seeds = [result["std"] for result in group.measured("responses")]
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
        group.name: [result["std"] for result in group.measured("responses")] for group in groups
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
                band(name, relative(len(s[0])), [sorted(result, reverse=True) for result in s])
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

"""What a finished run says of its network, and the weights that it keeps."""

from pathlib import Path
from typing import Any

from torch import nn

from plusx.data.source import Source
from plusx.grammar.shapes import measure
from plusx.grammar.spec import Net
from plusx.recipe import Recipe
from plusx.run import parts
from plusx.weights import write_weights


def write_kept(path: Path, recipe: Recipe, source: Source, net: nn.Module) -> None:
    """Write the network's weights with all that is needed to use them.

    source: the images that it was trained on. OSError: they cannot be written.
    """
    write_weights(
        path,
        net,
        model=_name(recipe),
        preprocessing=source.preprocessing.to_dict(),
        classes=source.classes,
        multilabel=recipe.task.multilabel,
        view="whole" if source.in_memory else "middle",
    )


def described(recipe: Recipe, net: nn.Module) -> dict[str, Any]:
    """The network's name and counts, for result.json."""
    spec = parts.spec_of(recipe.net)
    counted = measure(spec) if isinstance(spec, Net) else parts.plain_figures(spec)
    return {
        "name": _name(recipe) or "inline",
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "multiply_adds": counted.multiply_adds,
    }


def _name(recipe: Recipe) -> str | None:
    return None if isinstance(recipe.net, Net) else recipe.net.base

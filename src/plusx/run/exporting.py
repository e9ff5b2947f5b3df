"""A trained network to an ONNX file, which is checked against torch before it is kept."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

import plusx
from plusx import export, store
from plusx.data.collate import MULTIPLE
from plusx.data.image_file import printable
from plusx.data.modality import ImageModality, VolumeModality
from plusx.errors import UserError
from plusx.grammar.arithmetic import each_dimension
from plusx.grammar.spec import Net
from plusx.grammar.words import parse
from plusx.models import create_model
from plusx.nn.network import Network
from plusx.recipe import NetByName
from plusx.run.folder import UNFINISHED, Run, load_run, load_weights_as
from plusx.run.quantising import quantised
from plusx.run.task_factory import to_dict as task_to_dict
from plusx.tasks.segment import Segment
from plusx.weights.fetch import find_weights
from plusx.weights.files import Weights, describe, open_network, read_weights
from plusx.zoo import find


Tell = Callable[[str], None]


@dataclass(frozen=True)
class _Opened:
    """A network to be exported; `run` is None where it takes no images."""

    net: nn.Module
    sizes: tuple[int, ...]  # of an input
    any_size: bool  # whether its height and width may be others
    tokens: int  # size of the vocabulary; 0 where an input is numbers
    outputs: tuple[str, ...] | None  # names of the outputs; None: the usual ones
    metadata: dict[str, str]
    run: Run | None


def export_onnx(
    trained: str | Path,
    to: str | Path,
    *,
    weights: str | None = None,
    int8: bool = False,
    data: str | Path | None = None,
    on_unreadable: Literal["error", "skip"] = "error",
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Write a run, a file of weights, or a network of the zoo with `weights`, as an ONNX file.

    The file is checked against torch before it is kept: see `plusx.export.compare`. With `int8` it
    is quantised on training images of the run's own data, or of `data`, its choices made on
    validation images; the test set is not touched. `tell` hears how far that is.

    Gives the error that was found and what is allowed, and with `int8` what eight bits cost and
    gain on validation images that had no part in the choices.
    UserError: it cannot be exported, or there are too few images. RuntimeError: the file does not
    compute what the network does; nothing is written then.
    """
    to = Path(to)
    if to.suffix != ".onnx":
        raise UserError(f"{printable(to)}: what is exported is an .onnx file")
    if data is not None and not int8:
        raise UserError("--data gives images to calibrate with, and goes with --int8")
    opened = _open(trained, weights)
    run, metadata = opened.run, opened.metadata
    if int8 and run is None:
        raise UserError("eight bits are chosen by images, and this network takes none")
    if int8 and run is not None and not run.classifies:
        raise UserError(f"{printable(trained)}: --int8 is for classifiers")
    count = 2 if run is not None and run.task.dense else export.NUM_INPUTS
    inputs = export.example_inputs(opened.sizes, opened.tokens, count)
    content = export.to_onnx(
        opened.net, inputs[:1], outputs=opened.outputs, any_size=opened.any_size
    )
    agreement = export.compare(opened.net, content, inputs)
    result: dict[str, Any] = {
        "out": str(to),
        "model": metadata.get("model"),
        "input": list(opened.sizes),
        "error": agreement.error,
        "allowed": agreement.allowed,
        "largest": agreement.largest,
        "inputs": agreement.inputs,
        "warnings": [],
    }
    if run is not None:
        result["classes"] = list(run.classes)
    if run is not None and not run.finished:
        result["warnings"].append(f"{printable(run.path)}: {UNFINISHED}")
    if run is not None and run.assumed:
        result["warnings"].append("how images are prepared is not known: the usual way is assumed")
    if int8:
        assert run is not None
        content, said = quantised(run, content, data, on_unreadable, tell)
        result["warnings"] += said.pop("warnings")
        result["int8"] = said
        kept = ("weights", "activations", "full_range", "calibration", "float_layers", "images")
        metadata = {**metadata, "int8": json.dumps({key: said[key] for key in kept})}
    content = export.with_digest(content, metadata)
    export.checked(content, str(to))
    store.make_folder(to.parent)
    store.write_bytes(to, content)
    return {**result, "bytes": len(content)}


def _open(trained: str | Path, weights: str | None) -> _Opened:
    run, net, found = _found(trained, weights)
    if isinstance(net, export.OnnxNetwork):
        raise UserError(f"{printable(trained)} is an ONNX file already")
    sizes: tuple[int, ...]
    if run is None:
        assert isinstance(net, Network)
        assert found is not None
        sizes, tokens = input_of(net.spec)
        metadata = describe(net, found.model, found.preprocessing, found.classes, found.source)
        metadata |= {"plusx": plusx.__version__, "multilabel": str(found.multilabel).lower()}
        if found.view:
            metadata["view"] = found.view
        return _Opened(net, sizes, False, tokens, None, metadata, None)
    modality = run.preprocessing
    space = modality.space if isinstance(modality, VolumeModality) else None
    window = run.task.window if isinstance(run.task, Segment) else None
    sizes = (run.preprocessing.channels, *run.preprocessing.size)
    if space is not None:
        sizes = (run.preprocessing.channels, *(window or space.patch))
    elif run.task.dense and not run.sized:
        sizes = (run.preprocessing.channels, *(window or (256, 256)))
    model = found.model if found is not None else None
    task = found.task if found is not None else None
    classes: tuple[str, ...] | None = run.classes if run.named else None
    if run.recipe is not None:
        task = task_to_dict(run.recipe.task)
        if isinstance(run.recipe.net, NetByName):
            model = run.recipe.net.base
    if run.embeds:
        classes = None
    metadata = describe(
        net, model, run.preprocessing.to_dict(), classes, found.source if found else ""
    )
    metadata |= {
        "plusx": plusx.__version__,
        "multilabel": str(run.multilabel).lower(),
        "input_steps": json.dumps(input_steps(run)),
    }
    if task is not None:
        metadata["task"] = json.dumps(task)
    any_size = run.task.dense and not run.sized and space is None
    outputs = (export.EMBEDDING,) if run.embeds else None
    return _Opened(net, sizes, any_size, 0, outputs, metadata, run)


def input_steps(run: Run) -> list[dict[str, Any]]:
    """Everything that happens to a stored image before the network sees it, in order."""
    preprocessing = run.preprocessing
    size = list(preprocessing.size)
    filters = {"interpolation": "bilinear", "antialias": True}
    steps: list[dict[str, Any]] = []
    if isinstance(preprocessing, VolumeModality):
        steps += [{"step": "resample", **asdict(preprocessing.space)}, {"step": "windows"}]
    elif run.task.dense and run.sized:
        steps += [
            {"step": "resize", "mode": "fit", "size": size, **filters},
            {"step": "pad", "side": "bottom right", "size": size, "value": "mean"},
        ]
    elif run.task.dense:
        steps.append({"step": "pad", "side": "bottom right", "multiple": MULTIPLE, "value": "mean"})
    elif not isinstance(preprocessing, ImageModality) or preprocessing.resize == "stretch":
        steps.append({"step": "resize", "mode": "stretch", "size": size, **filters})
    else:
        covered = [round(side / preprocessing.crop_fraction) for side in size]
        steps += [
            {
                "step": "resize",
                "mode": "shorter_side",
                "size": covered,
                "interpolation": preprocessing.interpolation,
                "antialias": True,
            },
            {"step": "center_crop", "size": size},
        ]
    low, high = preprocessing.low, preprocessing.high
    steps.append({"step": "scale", "low": low, "high": high})
    mean, std = list(preprocessing.mean), list(preprocessing.std)
    return [*steps, {"step": "normalise", "mean": mean, "std": std}]


def input_of(spec: Net) -> tuple[tuple[int, ...], int]:
    """The sizes of an input, and how many different tokens there are; 0 where it is numbers."""
    space = each_dimension(spec.size, spec.ndim)
    if any(word.kind == "embed" for word in parse(spec.stem).words[:1]):
        return space, spec.in_channels
    return (spec.in_channels, *space), 0


def _found(
    trained: str | Path, weights: str | None
) -> tuple[Run | None, nn.Module, Weights | None]:
    """The run where it takes images, the network, and what a file of weights says of it."""
    if weights is not None:
        name, spec = str(trained), find(str(trained))
        found = find_weights(name, weights)
        if isinstance(spec, Net) and (spec.ndim != 2 or spec.in_channels not in (1, 3)):
            return None, create_model(name, weights=weights).eval(), found
        run = load_weights_as(name, weights)
        return run, run.net, found
    path = Path(trained)
    if path.is_file() and path.suffix == ".safetensors":
        found = read_weights(path)
        if found.preprocessing is None and (found.spec is not None or found.external is not None):
            net, found = open_network(path)
            if not isinstance(net, Network) or (net.spec.ndim == 2 and net.spec.num_classes):
                raise UserError(f"{printable(path)} does not say how images are to be prepared")
            return None, net, found
        run = load_run(path)
        return run, run.net, found
    run = load_run(path)
    return run, run.net, None

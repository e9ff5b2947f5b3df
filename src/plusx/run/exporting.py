"""Export of a trained network to an ONNX file, which is compared with torch."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import plusx
from plusx import export, store
from plusx.data.image_file import printable
from plusx.errors import UserError
from plusx.grammar.arithmetic import each_dimension
from plusx.grammar.heads import DECODERS
from plusx.grammar.spec import Net
from plusx.models import create_model
from plusx.nn.network import Backbone, Network
from plusx.run.folder import UNFINISHED, Run, load_run, load_weights_as
from plusx.run.quantising import quantised
from plusx.tasks.classify import Classify
from plusx.tasks.transcribe import Transcribe
from plusx.weights.fetch import find_weights
from plusx.weights.files import Weights, describe, open_network, read_weights
from plusx.zoo import find


_EXAMPLE_LENGTH = 512  # positions of the example input for networks of sequences of any length

Progress = Callable[[str], None]


def export_onnx(
    trained: str | Path,
    to: str | Path,
    *,
    weights: str | None = None,
    int8: bool = False,
    data: str | Path | None = None,
    on_unreadable: Literal["error", "skip"] = "error",
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Export a run, a weight file, or a zoo network with `weights` to an ONNX file.

    The outputs are compared with torch's before the file is written (`plusx.export.compare`). With
    `int8`, the network is quantised on training samples of the run's own data, or of `data`; the
    calibration is chosen on validation samples. The test set is not used. `progress` is called with
    a line of text.

    Returns the largest difference of the outputs and the allowed one, and with `int8` accuracy and
    speed on other validation samples. Raises UserError if the network cannot be exported or there
    are too few samples, RuntimeError if the outputs differ; nothing is written then.
    """
    to = Path(to)
    if to.suffix != ".onnx":
        raise UserError(f"{printable(to)}: the name of the file must end with .onnx")
    if data is not None and not int8:
        raise UserError("--data is for calibration; give it only with --int8")
    run, net, stored = _opened(trained, weights)
    if net.head_spec is not None and net.head_spec.kind in DECODERS:
        raise UserError(
            f"{printable(trained)} generates text token by token, by a head "
            f"{net.head_spec.kind!r}: one ONNX graph cannot do that; use its weight file"
        )
    if int8 and run is None:
        raise UserError("--int8 needs a network that states its preprocessing, to read data")
    if int8 and run is not None and not isinstance(run.task, (Classify, Transcribe)):
        raise UserError(f"{printable(trained)}: --int8 is only for classes and transcripts")
    if int8 and run is not None and run.preprocessing.tokens:
        raise UserError(f"{printable(trained)}: --int8 is for images and recordings, not for texts")
    metadata = _metadata(run, net, stored)
    if run is None:
        sizes, tokens = input_of(net.spec)
    else:
        sizes, tokens = _input_shape(run), net.in_channels if net.style.takes_tokens else 0
    any_length = run is not None and run.preprocessing.sequence
    dense = run is not None and run.task.dense
    inputs = export.example_inputs(sizes, tokens, 2 if dense else export.NUM_INPUTS)
    content = export.to_onnx(
        net,
        inputs[:1],
        outputs=(export.EMBEDDING,) if run is not None and run.embeds else None,
        any_size=run is not None
        and (any_length or (dense and not run.sized and run.preprocessing.ndim == 2)),
    )
    agreement = export.compare(net, content, inputs)
    if any_length:
        export.compare(net, content, inputs[..., : -(-inputs.shape[-1] // 2)])
    result: dict[str, Any] = {
        "out": str(to),
        "model": metadata.get("model"),
        "input": list(sizes),
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
        result["warnings"].append("the preprocessing is unknown: that of ImageNet is assumed")
    if int8:
        assert run is not None
        content, summary = quantised(run, content, data, on_unreadable, progress)
        result["warnings"] += summary.pop("warnings")
        result["int8"] = summary
        keys = ("weights", "activations", "full_range", "calibration", "float_layers", "images")
        metadata = {**metadata, "int8": json.dumps({key: summary[key] for key in keys})}
    content = export.with_digest(content, metadata)
    export.checked(content, str(to))
    store.make_folder(to.parent)
    store.write_bytes(to, content)
    return {**result, "bytes": len(content)}


def _input_shape(run: Run) -> tuple[int, ...]:
    """Return the shape of an input of the exported file, without the batch."""
    modality = run.preprocessing
    window = getattr(run.task, "window", None)
    if modality.grid is not None:
        return (modality.channels, *(window or modality.grid.patch))
    if run.task.dense and not run.sized:
        return (modality.channels, *(window or (256, 256)))
    if modality.sequence:  # of any length: an example that is quick to compute
        *others, length = modality.input_shape
        return (*others, min(length, _EXAMPLE_LENGTH))
    return modality.input_shape


def _metadata(run: Run | None, net: Backbone, stored: Weights | None) -> dict[str, str]:
    """Return the metadata of the file, with which it can be used without torch."""
    model = stored.model if stored is not None else None
    task = stored.task if stored is not None else None
    source = stored.source if stored is not None else ""
    if run is None:
        assert stored is not None
        metadata = describe(net, model, stored.preprocessing, stored.classes, source)
        return metadata | {
            "plusx": plusx.__version__,
            "multilabel": str(stored.multilabel).lower(),
            **({"data": stored.data} if stored.data else {}),
        }
    if run.recipe is not None:
        task, model = asdict(run.recipe.task), run.recipe.net_name or model
    classes = run.classes if run.named and not run.embeds else None
    metadata = describe(net, model, run.preprocessing.to_dict(), classes, source)
    metadata |= {
        "plusx": plusx.__version__,
        "multilabel": str(run.multilabel).lower(),
        "input_steps": json.dumps(run.preprocessing.input_steps(run.task.dense)),
        **({"data": run.data} if run.data else {}),
    }
    return metadata | ({"task": json.dumps(task)} if task is not None else {})


def input_of(spec: Net) -> tuple[tuple[int, ...], int]:
    """Return the shape of an input, and the size of the vocabulary; 0 if inputs are not tokens."""
    space = each_dimension(spec.size, spec.ndim)
    return (space, spec.in_channels) if spec.takes_tokens else ((spec.in_channels, *space), 0)


def _opened(
    trained: str | Path, weights: str | None
) -> tuple[Run | None, Backbone, Weights | None]:
    """Return the run (None if the preprocessing is unknown), the network, and the weight file."""
    path = Path(trained)
    if weights is not None:
        name, spec = str(trained), find(str(trained))
        stored = find_weights(name, weights)
        if spec.ndim != 2 or (isinstance(spec, Net) and spec.in_channels not in (1, 3)):
            return None, create_model(name, weights=weights).eval(), stored
        run = load_weights_as(name, weights)
    elif path.is_file() and path.suffix == ".safetensors":
        stored = read_weights(path)
        if stored.preprocessing is None and stored.spec is not None:
            net, stored = open_network(path)
            if not isinstance(net, Network) or (net.spec.ndim == 2 and net.num_classes):
                raise UserError(f"{printable(path)} does not state its preprocessing")
            return None, net, stored
        run = load_run(path)
    else:
        run, stored = load_run(path), None
    if not isinstance(run.net, Backbone):
        raise UserError(f"{printable(trained)} is already an ONNX file")
    return run, run.net, stored

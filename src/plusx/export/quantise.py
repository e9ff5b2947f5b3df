"""Static int8 quantisation by onnxruntime.quantization, with the calibration chosen on images.

Weights are int8 with a scale for each output channel, activations uint8 (Jacob et al. 2018). On a
processor without VNNI or a similar instruction, the sum of two products of full range saturates in
16 bits; weights have 7 bits there.
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plusx.errors import UserError
from plusx.export.graph import INPUT
from plusx.export.runtime import require_onnx
from plusx.export.session import OnnxNetwork


MIN_IMAGES = 16  # for calibration
ENOUGH_IMAGES = 128
MIN_AGREEMENT = 0.99  # below it, the first and last layer in float32 are tried too
CALIBRATIONS = ("minmax", "percentile")  # entropy chose the same ranges as minmax

Progress = Callable[[str], None]
Inputs = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Trial:
    """One configuration of the quantisation, and its error on held-out images."""

    calibration: str
    float_layers: tuple[str, ...]
    error: float  # squared error of the logits over their squared deviation from their mean
    agreement: float  # fraction of images whose best class is the same


@dataclass(frozen=True)
class Quantised:
    """The int8 model, and the trials from which it was chosen."""

    content: bytes
    full_range: bool
    images: int
    held_out: int
    chosen: Trial
    trials: tuple[Trial, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all but the model, as JSON-ready data."""
        return {
            "weights": "int8, a scale for each channel" + ("" if self.full_range else ", 7 bits"),
            "activations": "uint8",
            "full_range": self.full_range,
            "calibration": self.chosen.calibration,
            "float_layers": list(self.chosen.float_layers),
            "images": self.images,
            "held": self.held_out,
            "trials": [asdict(trial) for trial in self.trials],
        }


def quantise(
    content: bytes, images: Inputs, held_out: Inputs, full_range: bool, progress: Progress
) -> Quantised:
    """Quantise a float32 model from `to_onnx`.

    `images` (m, ...) are for calibration. `held_out` (h, ...) are other images, on which the method
    of CALIBRATIONS with the smallest error of the logits is chosen. If it changes the best class of
    more than 1 - MIN_AGREEMENT of them, the first and the last layer in float32 are tried too.
    Inputs of different lengths are sequences of tensors (c, t).
    Raises UserError if there are fewer than MIN_IMAGES images.
    """
    if len(images) < MIN_IMAGES:
        raise UserError(
            f"{len(images)} inputs for calibration: at least {MIN_IMAGES} are needed, "
            f"{ENOUGH_IMAGES} or more are better"
        )
    expected = outputs_for(content, held_out)
    quantised: dict[Trial, bytes] = {}

    def attempt(calibration: str, float_layers: tuple[str, ...]) -> Trial:
        progress(f"calibration by {calibration}, {len(images)} inputs")
        model = in_eight_bits(content, images, calibration, full_range, float_layers)
        trial = Trial(calibration, float_layers, *distance(outputs_for(model, held_out), expected))
        quantised[trial] = model
        progress(f"{calibration}: {trial.agreement:.2%} of the best classes are unchanged")
        return trial

    chosen = min((attempt(name, ()) for name in CALIBRATIONS), key=lambda trial: trial.error)
    layers = weighted_nodes(content)
    if chosen.agreement < MIN_AGREEMENT and len(layers) > 2:
        ends = attempt(chosen.calibration, (layers[0], layers[-1]))
        chosen = ends if ends.agreement > chosen.agreement else chosen
    return Quantised(
        quantised[chosen], full_range, len(images), len(held_out), chosen, tuple(quantised)
    )


def in_eight_bits(
    content: bytes,
    images: Inputs,
    calibration: str,
    full_range: bool,
    float_layers: tuple[str, ...] = (),
) -> bytes:
    """Return the model with QuantizeLinear and DequantizeLinear around its int8 operators."""
    require_onnx()
    from onnx import ModelProto
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,  # 99.999
    }
    logging.getLogger().addFilter(_no_advice)
    try:
        # the library prints its progress
        with tempfile.TemporaryDirectory(prefix="plusx-") as folder, redirect_stdout(StringIO()):
            file = Path(folder) / "int8.onnx"
            quantize_static(
                ModelProto.FromString(content),
                file,
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=not full_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=methods[calibration],
                nodes_to_exclude=list(float_layers),
                op_types_to_quantize=list(_op_types(content)),
                # one batch at a time: activations of all images may not fit into memory
                extra_options={"CalibStridedMinMax": 1},
            )
            return file.read_bytes()
    finally:
        logging.getLogger().removeFilter(_no_advice)


def weighted_nodes(content: bytes) -> list[str]:
    """Return the names of the convolutions and linear layers in order."""
    from onnx import ModelProto

    nodes = ModelProto.FromString(content).graph.node
    return [node.name for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")]


def outputs_for(content: bytes, images: Inputs, batch_size: int = 32) -> Tensor:
    """Return the logits (n, k) of a file for images (n, ...). A position of a sequence of logits
    (n, k, t) is a row."""
    file = OnnxNetwork(content)
    outputs = [file(batch) for batch in _batches(images, batch_size)]
    return torch.cat([output.movedim(1, -1).flatten(0, -2) for output in outputs])


def distance(logits: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the relative squared error of logits, and the fraction of equal best classes."""
    spread = (expected - expected.mean(0)).square().sum().clamp(min=1e-12)
    same = (logits.argmax(1) == expected.argmax(1)).float().mean()
    return float((logits - expected).square().sum() / spread), float(same)


class _Reader:
    """A CalibrationDataReader of onnxruntime over batches of images."""

    def __init__(self, images: Inputs, batch_size: int = 16) -> None:
        self.all_batches = _batches(images, batch_size)
        self.set_range(0, len(self.all_batches))

    def __len__(self) -> int:
        return len(self.all_batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.batches = iter(self.all_batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def _batches(inputs: Inputs, batch_size: int) -> Sequence[Tensor]:
    """Return batches of inputs of one size, or a batch for each of different lengths."""
    if isinstance(inputs, Tensor):
        return inputs.split(batch_size)
    return [sequence[None] for sequence in inputs]


def _op_types(content: bytes) -> set[str]:
    """Return the types of operators to quantise: layers with weights, pooling, and sums.

    A sum that a batch norm reads (pre-activation) stays in float32: int8 would save nothing there,
    and round the output of every block.
    """
    from onnx import ModelProto

    nodes = ModelProto.FromString(content).graph.node
    kinds = {"Conv", "Gemm", "MatMul", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool"}
    return kinds if any(node.op_type == "BatchNormalization" for node in nodes) else kinds | {"Add"}


def _no_advice(record: logging.LogRecord) -> bool:
    """Filter out the library's advice to run its preprocessing, which torch.onnx has done."""
    return "pre-processing" not in str(record.msg).lower()

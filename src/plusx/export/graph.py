"""Export of a network to an ONNX graph by torch.onnx."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.export.runtime import require_onnx
from plusx.nn.with_head import NetworkWithHead, is_two_stage


OPSET = 20
IR_VERSION = 10  # readable by onnx 1.16 and later
MAX_BYTES = 2**31 - 2**20  # largest size of an ONNX file
INPUT, LOGITS, EMBEDDING = "input", "logits", "embedding"
REGIONS, MASK_REGIONS = "regions", "mask_regions"


class TwoStageParts(nn.Module):
    """The three learned parts of Faster and Mask R-CNN as one graph.

    `input` is mapped to the pyramid's feature maps, objectness and box deltas of every level;
    `regions`, features (p, c, 7, 7) pooled from those maps, to classes and boxes; `mask_regions`,
    features (m, c, 14, 14), to masks. `OnnxNetwork` runs the steps between without weights:
    proposals, pooling, non-maximum suppression.
    """

    def __init__(self, net: NetworkWithHead) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, regions: Tensor, *mask_regions: Tensor) -> list[Tensor]:
        head: Any = self.net.detector
        _, stages = self.net.maps(x)
        maps = list(head.fpn({str(i): stages[j] for i, j in enumerate(head.indices)}).values())
        objectness, deltas = head.rpn.head(maps)
        heads = head.roi_heads
        outputs = [*maps, *objectness, *deltas, *heads.box_predictor(heads.box_head(regions))]
        if mask_regions:
            outputs.append(heads.mask_predictor(heads.mask_head(mask_regions[0])))
        return outputs


def output_names(net: nn.Module) -> list[str]:
    """Return the names of the outputs of the exported graph."""
    head = getattr(net, "head_spec", None)
    if head is None or head.task in ("segment", "transcribe"):
        return [LOGITS]
    levels = range(len(net.level_strides))  # type: ignore[arg-type]
    if not head.two_stage:
        return [f"level{i}" for i in levels]
    names = [f"{kind}{i}" for kind in ("map", "objectness", "deltas") for i in levels]
    names += ["class_logits", "box_deltas"]
    return [*names, "mask_logits"] if head.has_masks else names


def example_regions(net: NetworkWithHead, count: int) -> dict[str, Tensor]:
    """Return random features of `count` regions for the other inputs of a two-stage detector."""
    random = torch.Generator().manual_seed(1)
    width: int = net.head_spec.width  # type: ignore[union-attr]
    inputs = {REGIONS: torch.randn(count, width, 7, 7, generator=random)}
    if net.head_spec.has_masks:
        inputs[MASK_REGIONS] = torch.randn(count, width, 14, 14, generator=random)
    return inputs


def to_onnx(
    net: nn.Module,
    example: Tensor,
    *,
    outputs: Sequence[str] | None = None,
    any_size: bool = False,
) -> bytes:
    """Return the bytes of an ONNX file of the network in eval mode.

    `example` is one or more inputs (n, ...). The file takes inputs of its size; with `any_size`
    every height and width, or length. `outputs` are the names of the outputs, by default
    `output_names(net)`.
    Raises UserError if torch.onnx cannot export the network or it is too large for a file,
    RuntimeError if the extra `onnx` is not installed.
    """
    require_onnx()
    size = sum(tensor.nbytes for tensor in net.state_dict().values())
    if size > MAX_BYTES:
        raise UserError(f"the network has {size:,} bytes of weights, more than {MAX_BYTES:,}")
    # torch.export specialises a dimension of size 1
    inputs = {INPUT: example[:1].expand(2, *example.shape[1:]).contiguous()}
    module = net
    if is_two_stage(net):
        module = TwoStageParts(net)
        inputs |= example_regions(net, 3)
    shapes: list[dict[int, Any]] = [{0: torch.export.Dim(f"n_{name}")} for name in inputs]
    if any_size:
        first_space = 2 if example.is_floating_point() else 1
        shapes[0] |= dict.fromkeys(range(first_space, example.ndim), torch.export.Dim.DYNAMIC)
    # the third input of Mask R-CNN is an element of *mask_regions
    dynamic: Any = (*shapes[:2], tuple(shapes[2:])) if len(shapes) > 2 else tuple(shapes)
    with _eval_mode(net), _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(outputs or output_names(net)),
                opset_version=OPSET,
                dynamic_shapes=dynamic,
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise UserError(f"torch.onnx cannot export the network: {reason}") from None
    assert program is not None
    return _without_traces(program.model_proto)


def _stable_sort(
    x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    """Translate a stable sort, which torch.onnx does not support, to TopK, which is stable."""
    from onnxscript import opset20 as ops

    size = ops.Shape(x, start=dim, end=dim + 1 or None)
    return ops.TopK(x, size, axis=dim, largest=int(descending), sorted=1)


def _without_traces(model: Any) -> bytes:
    """Return the model as bytes without the exporter's stack traces, which contain local paths."""
    graph = model.graph
    graph.name, graph.doc_string, model.doc_string = "plusx", "", ""
    model.producer_name, model.producer_version, model.ir_version = "plusx", "", IR_VERSION
    del model.metadata_props[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]
    content: bytes = model.SerializeToString(deterministic=True)
    return content


@contextmanager
def _eval_mode(net: nn.Module) -> Iterator[None]:
    """Set all modules to eval mode inside the block, and restore their modes afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's messages about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""ONNX files: export by torch.onnx, comparison with torch, quantisation, and inference."""

from plusx.export.agreement import NUM_INPUTS, Agreement, compare, example_inputs
from plusx.export.file import OnnxFile, checked, read_onnx, with_digest
from plusx.export.graph import EMBEDDING, to_onnx
from plusx.export.quantise import Quantised, quantise
from plusx.export.session import OnnxNetwork


__all__ = [
    "EMBEDDING",
    "NUM_INPUTS",
    "Agreement",
    "OnnxFile",
    "OnnxNetwork",
    "Quantised",
    "checked",
    "compare",
    "example_inputs",
    "quantise",
    "read_onnx",
    "to_onnx",
    "with_digest",
]

"""Networks as ONNX files: written, checked against torch, quantised, opened again."""

from plusx.export.agreement import Agreement, compare, example_inputs
from plusx.export.file import OnnxFile, checked, read_onnx, sealed
from plusx.export.graph import to_onnx
from plusx.export.quantise import Quantised, quantise
from plusx.export.session import OnnxNetwork


__all__ = [
    "Agreement",
    "OnnxFile",
    "OnnxNetwork",
    "Quantised",
    "checked",
    "compare",
    "example_inputs",
    "quantise",
    "read_onnx",
    "sealed",
    "to_onnx",
]

"""Reading, writing, loading and converting weight files."""

from plusx.weights.convert import Conversion, convert
from plusx.weights.fetch import load_named_or_file
from plusx.weights.files import Weights, open_network, read_weights, save_network
from plusx.weights.load import LoadReport, load_weights
from plusx.weights.rules import SOURCES


__all__ = [
    "SOURCES",
    "Conversion",
    "LoadReport",
    "Weights",
    "convert",
    "load_named_or_file",
    "load_weights",
    "open_network",
    "read_weights",
    "save_network",
]

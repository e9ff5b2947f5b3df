"""The safetensors format as bytes: named tensors in, bytes out, and back.

Written out here for two reasons. The same tensors must give the same bytes, and the safetensors
library writes its metadata in an order that changes from process to process. And a file from
somewhere else must be refused by one clear `UserError` before anything is allocated, within
caps of our own. Both directions are tested against the library.

Format: https://huggingface.co/docs/safetensors (eight bytes of header length, little-endian; a
JSON header; the tensors' bytes, without gaps).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plusx.errors import UserError
from plusx.store.canonical import refuse_constant, unique_keys
from plusx.store.files import read_bytes, write_bytes


MAX_HEADER_BYTES = 4 << 20  # AdamW of ResNet-1202 takes over 1 MiB
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 8

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file; equal input gives equal bytes.

    Tensors may lie on any device and share memory (each is then written whole).
    Raises UserError for a type of number that the format's list here does not have, and for
    more tensors than a reader would accept.
    """
    if len(tensors) > MAX_TENSORS:
        raise UserError(f"{len(tensors):,} tensors; a file holds at most {MAX_TENSORS:,}")
    header: dict[str, Any] = {}
    if metadata:
        header[_METADATA] = {key: str(metadata[key]) for key in sorted(metadata)}
    parts = []
    begin = 0
    # Wide numbers first, so that each tensor starts at a multiple of its own width.
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise UserError(
                f"tensor {name!r} is {tensor.dtype}; a file holds {', '.join(_DTYPES)} only"
            )
        if name == _METADATA:
            raise UserError(f"no tensor can be called {_METADATA!r}")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + len(data)],
        }
        parts.append(data)
        begin += len(data)
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise UserError(
            f"names and metadata take {len(text):,} bytes; at most {MAX_HEADER_BYTES:,} are allowed"
        )
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def decode(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file given as bytes.

    `where` is how messages name the file. Every size is checked against the bytes at hand before
    a tensor is made. Raises UserError for anything that is not exactly the format.
    """
    header, start = _header(data, where)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UserError(f"{where}: the metadata must be a table of texts")
    if len(header) > MAX_TENSORS:
        raise UserError(f"{where}: {len(header):,} tensors; at most {MAX_TENSORS:,} are allowed")
    spans = {name: _span(name, entry, where) for name, entry in header.items()}
    end = 0
    for name in sorted(spans, key=lambda name: spans[name][2:]):
        if spans[name][2] != end:
            raise UserError(
                f"{where}: tensor {name!r} starts at byte {spans[name][2]}, not at {end} where the "
                "one before it ends"
            )
        end = spans[name][3]
    if end != len(data) - start:
        raise UserError(
            f"{where}: the tensors need {end:,} bytes after the header, {len(data) - start:,} are "
            "there; the file is cut short or not a safetensors file"
        )
    tensors = {}
    for name, (dtype, shape, first, last) in spans.items():
        if first == last:
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        # Each tensor has a buffer of its own: aligned, writable, and freed by itself.
        buffer = bytearray(memoryview(data)[start + first : start + last])
        if dtype == torch.bool and max(buffer) > 1:
            raise UserError(f"{where}: tensor {name!r} is BOOL but holds bytes other than 0 and 1")
        tensors[name] = torch.frombuffer(buffer, dtype=dtype).reshape(shape)
    return tensors, metadata


def _header(data: bytes, where: str) -> tuple[dict[str, Any], int]:
    if len(data) < 8:
        raise UserError(f"{where}: {len(data)} bytes are too few for a safetensors file")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise UserError(
            f"{where}: this is not a safetensors file (its header would take {length:,} bytes; at "
            f"most {MAX_HEADER_BYTES:,} are allowed)"
        )
    if length > len(data) - 8:
        raise UserError(f"{where}: the file is cut short inside its header")
    try:
        header = json.loads(
            data[8 : 8 + length].decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_constant=refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: the header is not valid: {error}") from None
    if not isinstance(header, dict):
        raise UserError(f"{where}: the header must be a table of tensors")
    return header, 8 + length


def _span(name: str, entry: Any, where: str) -> tuple[torch.dtype, list[int], int, int]:
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or set(entry) != keys:
        raise UserError(f"{where}: tensor {name!r} must have dtype, shape and data_offsets")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise UserError(
            f"{where}: tensor {name!r} has type {entry['dtype']!r}; allowed are "
            f"{', '.join(_DTYPES)}"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise UserError(f"{where}: tensor {name!r} has an impossible shape: {str(shape)[:80]}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(f"{where}: tensor {name!r} has impossible offsets: {str(offsets)[:80]}")
    size = math.prod(shape) * dtype.itemsize
    if size != offsets[1] - offsets[0]:
        raise UserError(
            f"{where}: tensor {name!r} of shape {shape} needs {size:,} bytes, its offsets give "
            f"{offsets[1] - offsets[0]:,}"
        )
    return dtype, shape, offsets[0], offsets[1]


def _counts(value: Any) -> bool:
    # A bool is an int in Python, not in the format; 2**63 no longer fits a torch shape.
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file; equal tensors and metadata give equal bytes."""
    write_bytes(path, encode(tensors, metadata))


def load_tensors(
    path: str | Path, *, finite: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises UserError where the file is not exactly that, or (`finite`) where a number in it is
    infinite or not a number.
    """
    tensors, metadata = decode(read_bytes(path), str(path))
    if finite:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise UserError(f"{path}: tensor {name!r} holds numbers that are not finite")
    return tensors, metadata

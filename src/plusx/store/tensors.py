"""Named tensors as safetensors files, by the safetensors library, within our limits.

Equal tensors and metadata give equal bytes: the library writes metadata in an order that differs
between processes, so they are added to the header here, sorted. Headers are checked before the
library reads a file, so that an invalid file raises a clear `UserError`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from plusx.errors import UserError
from plusx.store.canonical import refuse_constant, unique_keys
from plusx.store.files import read_bytes, write_bytes


MAX_HEADER_BYTES = 4 << 20  # AdamW of ResNet-1202 takes over 1 MiB
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 8
DTYPES = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64,
}  # fmt: skip
_NAMES = ("BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64")
_METADATA = "__metadata__"


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a safetensors file; equal input gives equal bytes.

    Tensors may be on any device and share memory (each is then written in full). Raises UserError
    for a dtype that is not in DTYPES, and for files beyond the limits.
    """
    if len(tensors) > MAX_TENSORS:
        raise UserError(f"{len(tensors):,} tensors; a file holds at most {MAX_TENSORS:,}")
    copies = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise UserError(f"tensor {name!r} is {tensor.dtype}; a file holds {', '.join(_NAMES)}")
        if name == _METADATA:
            raise UserError(f"a tensor cannot be named {_METADATA!r}")
        copies[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    data = safetensors.torch.save(copies)
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    if metadata:
        header = {_METADATA: {key: str(metadata[key]) for key in sorted(metadata)}} | header
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise UserError(
            f"names and metadata take {len(text):,} bytes; at most {MAX_HEADER_BYTES:,} are allowed"
        )
    return b"".join([len(text).to_bytes(8, "little"), text, data[length:]])


def decode(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of the bytes of a safetensors file. `where` names the file in
    messages. Raises UserError, before a tensor is created, if the bytes are not valid."""
    header = _header(data, where)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UserError(f"{where}: the metadata must be a table of texts")
    if len(header) > MAX_TENSORS:
        raise UserError(f"{where}: {len(header):,} tensors; at most {MAX_TENSORS:,} are allowed")
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise UserError(f"{where}: tensor {name!r} must have dtype, shape and data_offsets")
        if entry["dtype"] not in _NAMES:
            raise UserError(
                f"{where}: tensor {name!r} has type {entry['dtype']!r}; allowed are "
                f"{', '.join(_NAMES)}"
            )
        for key, max_length in (("shape", MAX_DIMENSIONS), ("data_offsets", 2)):
            if not _counts(entry[key], max_length):
                raise UserError(
                    f"{where}: tensor {name!r} has impossible {key}: {str(entry[key])[:80]}"
                )
    try:
        loaded = safetensors.torch.load(data)
    except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{where}: corrupt, or not a safetensors file: {error}") from None
    tensors = {name: loaded[name] for name in header}  # in the order of the file
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise UserError(f"{where}: tensor {name!r} is BOOL but holds bytes other than 0 and 1")
    return tensors, metadata


def _header(data: bytes, where: str) -> dict[str, Any]:
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
    return header


def _counts(value: Any, max_length: int) -> bool:
    """Whether the value is a list of at most `max_length` non-negative integers (not bools)."""
    return (
        isinstance(value, list)
        and len(value) <= max_length
        and all(type(v) is int and 0 <= v < 1 << 63 for v in value)
    )


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; equal tensors and metadata give equal bytes."""
    write_bytes(path, encode(tensors, metadata))


def load_tensors(
    path: str | Path, *, finite: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file. Raises UserError if the file is not valid,
    or (`finite`) a value is not finite."""
    tensors, metadata = decode(read_bytes(path), str(path))
    if finite:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise UserError(f"{path}: tensor {name!r} holds numbers that are not finite")
    return tensors, metadata

"""A script that reads another library's weight file and writes safetensors to its output.

This file runs alone (`python -I foreign.py FILE KIND ROOM [KEY]`), so that as little code as
possible handles untrusted data. Only this module opens pickles, by torch with
`weights_only`: tensors and plain data, no code. The process cannot write files and can allocate at
most ROOM bytes of memory.

The metadata of the output has `key`, the key of the checkpoint that the tensors come from (dotted;
"" if they are at the top), and `others`, further keys that hold tensors (JSON).
"""

import json
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save


# the usual keys of the weights in a checkpoint, in order of preference
KEYS = ("state_dict", "model", "model_state_dict", "net", "weights")
MAX_NESTING = 3  # levels of dictionaries that are searched for tensors


def main(path: str, kind: str, room: int, key: str = "") -> None:
    """Write the tensors of a file to standard output as safetensors."""
    limit(room)
    state_dicts = {"": read_npz(path)} if kind == "npz" else read_torch(path)
    chosen = choose(list(state_dicts), key)
    others = [name for name in state_dicts if name != chosen]
    metadata = {"key": chosen, "others": json.dumps(others)}
    sys.stdout.buffer.write(
        save({name: plain(name, t) for name, t in state_dicts[chosen].items()}, metadata)
    )


def choose(keys: list[str], requested: str) -> str:
    """Return the key of the tensors to read; `requested` unless it is "".

    Raises ValueError if the key is missing, or several are possible."""
    listed = ", ".join(map(repr, keys))
    if requested:
        if requested not in keys:
            raise ValueError(f"it holds no tensors under {requested!r}; tensors are under {listed}")
        return requested
    if not keys:
        raise ValueError("it holds no tensors")
    usual = [key for key in ("", *KEYS) if key in keys]
    if not usual and len(keys) > 1:
        raise ValueError(f"it holds tensors under {listed}; choose one (--key)")
    return usual[0] if usual else keys[0]


def read_torch(path: str) -> dict[str, dict[str, torch.Tensor]]:
    """Return the state dicts in a checkpoint by their dotted keys; "" is the checkpoint itself."""
    # a file object: torch.load interprets a path by its ending
    with open(path, "rb") as file:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"it holds a {type(checkpoint).__name__}, not a dictionary of tensors")
    return dict(state_dicts_in(checkpoint, ()))


def state_dicts_in(
    values: Mapping[Any, Any], path: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield (dotted key, tensors) of each dictionary with tensors, the outer ones first."""
    tensors = {
        name: value
        for name, value in values.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if tensors:
        yield ".".join(path), tensors
    for name, value in values.items() if len(path) < MAX_NESTING else ():
        if isinstance(name, str) and isinstance(value, Mapping):
            yield from state_dicts_in(value, (*path, name))


def read_npz(path: str) -> dict[str, torch.Tensor]:
    """Return the arrays of a NumPy archive as tensors."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: plain(name, torch.from_numpy(np.array(arrays[name]))) for name in arrays}


def plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy of a tensor. Raises ValueError if it has no plain data."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"the tensor {name!r} is sparse, quantized or without data")
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def limit(room: int) -> None:
    """Forbid writing files, and limit memory to `room` bytes more than the process has now."""
    try:
        import resource

        with open("/proc/self/statm") as status:
            now = int(status.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return  # not Linux: torch's own checks remain
    resource.setrlimit(resource.RLIMIT_AS, (now + room, now + room))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def reason(error: BaseException) -> str:
    """Return one line about an error, without torch's advice to load without `weights_only`."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        match = re.search(r"(?:GLOBAL|Unsupported class|class) ([\w.]+)", text)
        name = f" ({match[1]})" if match else ""
        return f"it holds more than tensors and plain data{name}; none of its code was run"
    if isinstance(error, MemoryError) or "alloc" in text:
        return "it asks for more memory than the network's weights can need"
    return " ".join(text.split())[:300] or type(error).__name__


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    except Exception as error:
        print(reason(error), file=sys.stderr)
        sys.exit(3)

"""Read another library's weight file in a process of its own; write safetensors to its output.

This file is run by path and alone (`python -I foreign.py FILE KIND ROOM`), so that no more code
than needed stands beside data that nobody vouches for. It is the only place of plusx where a pickle
is opened, and torch reads it with `weights_only`: tensors and plain data, no code. While it reads,
the process cannot write files and can take ROOM bytes of memory at most.
"""

import pickle
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save


# where training scripts keep the weights among other things, the first found is taken
PLACES = ("state_dict", "model", "model_state_dict", "net", "weights")


def main(path: str, kind: str, room: int) -> None:
    limit(room)
    tensors = read_npz(path) if kind == "npz" else read_torch(path)
    if not tensors:
        raise ValueError("it holds no tensors")
    sys.stdout.buffer.write(save(tensors))


def read_torch(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, or of the first of PLACES in a larger dictionary."""
    # given a name, torch goes by its ending; what the file is has been told from its content
    with open(path, "rb") as file:
        held = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(held, Mapping):
        raise ValueError(f"it holds a {type(held).__name__}, not a dictionary of tensors")
    for place in PLACES:
        if isinstance(held.get(place), Mapping):
            held = held[place]
            break
    return {name: plain(name, tensor) for name, tensor in held.items() if is_tensor(name, tensor)}


def read_npz(path: str) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: plain(name, torch.from_numpy(np.array(arrays[name]))) for name in arrays}


def is_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"the tensor {name!r} is sparse, quantized or without data")
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def limit(room: int) -> None:
    """No files written, and `room` bytes of memory beyond what the process has now."""
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
    """One line of what went wrong. torch's own text advises to load without `weights_only`."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"(?:GLOBAL|Unsupported class|class) ([\w.]+)", text)
        what = f" ({found[1]})" if found else ""
        return f"it holds more than tensors and plain data{what}; nothing of it was run"
    if isinstance(error, MemoryError) or "alloc" in text:
        return "it asks for more memory than the network's weights can need"
    return " ".join(text.split())[:300] or type(error).__name__


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except Exception as error:
        print(reason(error), file=sys.stderr)
        sys.exit(3)

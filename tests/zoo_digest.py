"""What each network of the zoo computes with fixed weights, in a few numbers.

Two definitions can share a count: the digest of the outputs tells them apart. The weights come
from arithmetic on the names and shapes of the parameters, not from a random generator, and the
sums are in float64, so that the figures hold on every processor to about nine digits.

    python tests/zoo_digest.py            print what differs from tests/golden/zoo_digests.json
    python tests/zoo_digest.py --write    write that file anew
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from plusx.grammar.arithmetic import each_dimension, measure
from plusx.grammar.spec import Net, Stride
from plusx.grammar.words import parse
from plusx.nn.external import EXTERNAL
from plusx.nn.network import Network
from plusx.zoo import External, find, names


GOLDEN = Path(__file__).parent / "golden" / "zoo_digests.json"
SMALL: dict[Stride, Stride] = {  # the network's own input size: one that is quick to compute
    512: 64,
    224: 64,
    256: 64,
    32: 16,
    (101, 40): (24, 12),
    16000: 512,
    98: 48,
    1024: 128,
    1000: 40,
    100: 20,
    (16, 112, 112): (4, 32, 32),
}
TABLE = 1_048_583  # a prime, so that no layer's width divides it


def small(spec: Net | External) -> Net | External:
    """The same network for a smaller input, if it can be smaller."""
    fives = isinstance(spec, Net) and len(spec.stages) == 5 and spec.size == 32  # VGG's poolings
    return spec if fives else replace(spec, size=SMALL[spec.size])


def build(name: str, spec: Net | External | None = None) -> nn.Module:
    """The network of that name, for its own input size or as `spec` says."""
    spec = spec or find(name)
    unchanged = {"kaiming_uniform_": lambda w, **_: w, "uniform_": lambda w, *_: w}
    with patch.multiple(nn.init, **unchanged):  # every number is replaced; the largest take seconds
        if isinstance(spec, External):
            return EXTERNAL[name](spec.num_classes, spec.in_channels)
        return Network(spec)


def uniform_table() -> np.ndarray:
    """Numbers from -1 to 1 that pass for random: a 32-bit mix of 0, 1, 2, ... (exact anywhere)."""
    mix = np.arange(TABLE, dtype=np.uint64) * np.uint64(0x9E3779B1)
    mask = np.uint64(0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mix &= mask
        mix ^= mix >> np.uint64(shift)
        mix *= np.uint64(factor)
    mix &= mask
    mix ^= mix >> np.uint64(16)
    return mix.astype(np.float64) / 2**31 - 1


UNIFORM = torch.from_numpy(uniform_table())


def numbers(name: str, shape: Iterable[int]) -> Tensor:
    """A tensor of the table's numbers, begun at a place that the name decides."""
    shape = tuple(shape)
    start, count = crc32(name.encode()) % TABLE, prod(shape)
    if start + count > TABLE:
        rounds = (start + count) // TABLE + 1
        return UNIFORM.repeat(rounds)[start : start + count].reshape(shape)
    return UNIFORM[start : start + count].reshape(shape)


def fill(net: nn.Module, spec: Net | External) -> None:
    """Give every parameter and statistic its fixed numbers, in place.

    Convolutions keep the variance, but on branches that are added: there it is divided by the
    number of blocks, so that a thousand of them stay finite. Norms and their statistics are
    perturbed, and biases are not 0.
    """
    blocks = [] if isinstance(spec, External) else [b for s in spec.stages for b in s.blocks]
    adds = any(parse(block.body).merge == "add" for block in blocks)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if not tensor.is_floating_point():
                continue
            u, last = numbers(name, tensor.shape).to(tensor.dtype), name.rpartition(".")[2]
            if last == "running_var":
                tensor.copy_(1 + 0.3 * u)
            elif last == "running_mean" or last == "bias" or last == "pos":
                tensor.copy_(0.1 * u)
            elif last == "gamma":
                tensor.copy_(0.5 + 0.2 * u)
            elif tensor.ndim == 1:
                tensor.copy_(1 + 0.2 * u)
            else:
                deviation = (2 / prod(tensor.shape[1:])) ** 0.5
                if adds and name.startswith("layer") and "downsample" not in name:
                    deviation *= len(blocks) ** -0.25
                tensor.copy_(3**0.5 * deviation * u)


def inputs(spec: Net | External, batch: int = 2) -> Tensor:
    """Fixed inputs of the spec's size: float64 images from -1 to 1, or tokens."""
    size = each_dimension(spec.size, 2 if isinstance(spec, External) else spec.ndim)
    if isinstance(spec, Net) and spec.stem.startswith("embed"):
        tokens = (numbers("input", (batch, *size)) + 1) / 2 * spec.in_channels
        return tokens.long()
    return numbers("input", (batch, spec.in_channels, *size))


def digest(name: str) -> dict[str, Any]:
    """Parameters, a hash of the tensors' names, the first logits, and a mean for each stage.

    The means are there because little of what the first blocks do is left at the end of a very
    deep network; so each stage speaks for itself.
    """
    whole = find(name)
    spec = small(whole)
    net = build(name, spec).double().eval()
    fill(net, spec)
    means: list[float] = []
    for child, module in net.named_children():
        if child.startswith("layer"):
            module.register_forward_hook(
                lambda *arguments: means.append(arguments[2].abs().mean().item())
            )
    with torch.no_grad():
        logits = net(inputs(spec))
    count = whole.parameters if isinstance(whole, External) else measure(whole).parameters
    keys = "\n".join(net.state_dict())
    return {
        "parameters": count,
        "names": hashlib.sha256(keys.encode()).hexdigest()[:16],
        "logits": [float(f"{value:.9g}") for value in logits[0, :4]],
        "means": [float(f"{value:.9g}") for value in (*means, logits.abs().mean())],
    }


def differs(ours: dict[str, Any], golden: dict[str, Any]) -> str:
    """What differs between two digests, or nothing."""
    for key in ("parameters", "names"):
        if ours[key] != golden[key]:
            return f"{key}: {ours[key]}, recorded {golden[key]}"
    for key, least in (("logits", 1e-6 * golden["means"][-1]), ("means", 0.0)):
        if not np.allclose(ours[key], golden[key], rtol=1e-6, atol=least):
            return f"{key}: {ours[key]}, recorded {golden[key]}"
    return ""


def main(arguments: list[str]) -> int:
    """Print or write; 1 where something differs."""
    ours = {}
    for name in names():
        start = time.perf_counter()
        ours[name] = digest(name)
        print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    if "--write" in arguments:
        lines = [f'  "{name}": {json.dumps(values)}' for name, values in ours.items()]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return 0
    golden = json.loads(GOLDEN.read_text())
    changed = {
        name: differs(values, golden[name]) if name in golden else "not recorded"
        for name, values in ours.items()
    }
    for name, why in changed.items():
        if why:
            print(f"{name}: {why}")
    return int(any(changed.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

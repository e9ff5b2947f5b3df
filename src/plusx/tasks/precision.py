"""Selection of the faster precision on a device: float32, or bfloat16 under autocast."""

import time
from functools import lru_cache

import torch
from torch.nn import functional as F


# Speed-up from which bfloat16 is selected: a smaller one disappears in small networks, and
# float32 is more precise.
GAIN = 1.15
ROUNDS = 7


def faster_precision(device: torch.device) -> str:
    """Return "bfloat16" if it is faster on this device, else "float32".

    CUDA devices have fast bfloat16 from compute capability 8.0 on. Processors without bfloat16
    instructions use float32; others are measured, in half a second, because the instructions alone
    do not decide: AMD Zen 4 is faster in bfloat16, Intel with AVX512_BF16 and without AMX is
    slower.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    if device.type != "cpu" or not has_bfloat16():
        return "float32"
    return "bfloat16" if bfloat16_gain() >= GAIN else "float32"


def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products."""
    capabilities = torch.cpu.get_capabilities()
    names = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16", "arm_bf16")
    return any(bool(capabilities.get(name)) for name in names)


@lru_cache(maxsize=1)
def bfloat16_gain() -> float:
    """Return the speed-up of convolutions in bfloat16, forward and backward, on one core."""
    layout = torch.channels_last
    weight = torch.ones(64, 64, 3, 3).contiguous(memory_format=layout).requires_grad_()
    images = torch.ones(8, 64, 28, 28).contiguous(memory_format=layout).requires_grad_()

    def seconds(enabled: bool) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hidden = F.conv2d(images, weight, padding=1).relu()
            outputs = F.conv2d(hidden, weight, padding=1)
        outputs.sum().backward()
        return time.perf_counter() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds(True), seconds(False)
        # alternating, so that other load on the machine affects both
        pairs = [(seconds(False), seconds(True)) for _ in range(ROUNDS)]
    finally:
        torch.set_num_threads(threads)
    return min(full for full, _ in pairs) / min(half for _, half in pairs)

"""Which precision is quicker on a device: float32, or bfloat16 under autocast."""

import time
from functools import lru_cache

import torch
from torch.nn import functional as F


# A training step in bfloat16 has to be so many times as quick: less is lost in small networks, and
# float32 is the more exact.
GAIN = 1.15
ROUNDS = 7


def quicker_precision(device: torch.device) -> str:
    """bfloat16 where it is quicker on this device, else float32.

    CUDA devices have fast bfloat16 from compute capability 8.0 on. Of processors, those without
    instructions for it compute in float32; others are measured, in half a second: whether
    torch's convolution gains depends on the processor and not on the instructions alone (an AMD
    Zen 4 gains, an Intel with AVX512_BF16 and without AMX loses a half).
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    if device.type != "cpu" or not has_bfloat16():
        return "float32"
    return "bfloat16" if bfloat16_gain() >= GAIN else "float32"


def has_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16."""
    capabilities = torch.cpu.get_capabilities()
    names = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16", "arm_bf16")
    return any(bool(capabilities.get(name)) for name in names)


@lru_cache(maxsize=1)
def bfloat16_gain() -> float:
    """How many times as quick convolutions are in bfloat16, forward and backward, on one core."""
    layout = torch.channels_last
    weight = torch.ones(64, 64, 3, 3).contiguous(memory_format=layout).requires_grad_()
    images = torch.ones(8, 64, 28, 28).contiguous(memory_format=layout).requires_grad_()

    def seconds(enabled: bool) -> float:
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hidden = F.conv2d(images, weight, padding=1).relu()
            outputs = F.conv2d(hidden, weight, padding=1)
        outputs.sum().backward()
        return time.perf_counter() - begin

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds(True), seconds(False)
        # in turn, so that other work on the machine slows both
        pairs = [(seconds(False), seconds(True)) for _ in range(ROUNDS)]
    finally:
        torch.set_num_threads(threads)
    return min(full for full, _ in pairs) / min(half for _, half in pairs)

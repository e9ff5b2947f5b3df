"""The machine of a run: what has to be equal for two runs to be equal bit for bit, and which
precision is quicker on it.
"""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from plusx import store
from plusx.errors import UserError
from plusx.tasks.precision import faster_precision


_PACKAGES = ("torch", "torchvision", "numpy", "pillow")
# What may differ without a bit of the result changing.
_HARMLESS = ("platform", "processor_flags", "plusx")


def environment(device: torch.device, processes: int = 1, parallel: str = "none") -> dict[str, Any]:
    """Versions, processor, device and threads of this process, one of so many of its run."""
    model, flags = processor()
    return {
        "plusx": _version("plusx"),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": model,
        "processor_flags": flags,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "processes": processes,
        "parallel": parallel,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else model,
    }


def exact_eight_bits() -> bool:
    """Whether this processor adds products of eight bits in 32 bits, where sums cannot saturate.

    False if unknown.
    """
    _, flags = processor()
    exact = ("vnni", "amx_int8", "asimddp")
    return any(name in flag for flag in flags.split() for name in exact)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two environments in a way that can change bits."""
    before = {"processes": 1, "parallel": "none", **before}  # absent in older files
    keys = [key for key in now if key not in (*_HARMLESS, "cores")]
    return [f"{key} {before.get(key)} -> {now[key]}" for key in keys if before.get(key) != now[key]]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def processor() -> tuple[str, str]:
    """The processor's name, and those of its abilities that kernels are chosen by."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ""
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    flags = fields.get("flags", fields.get("Features", "")).split()
    kernels = ("avx", "fma", "amx", "asimd", "sve", "bf16", "neon")
    chosen = sorted(flag for flag in flags if flag.startswith(kernels))
    return fields.get("model name", platform.machine()), " ".join(chosen)


def remembered_precision(device: torch.device) -> str:
    """plusx.tasks.precision.faster_precision, kept in the cache folder for this processor and
    version of torch, so that all runs of a machine compute alike however busy it is.
    """
    if device.type != "cpu":
        return faster_precision(device)
    path = store.cache_folder() / "precision.json"
    name = f"{', '.join(processor())}, torch {torch.__version__}"
    try:
        remembered = store.read_json(path)
        if remembered.get(name) in ("float32", "bfloat16"):
            return str(remembered[name])
    except (OSError, UserError, AttributeError):
        remembered = {}
    precision = faster_precision(device)
    with suppress(OSError):  # it is measured again the next time
        store.make_folder(path.parent)
        store.write_json(path, {**remembered, name: precision})
    return precision

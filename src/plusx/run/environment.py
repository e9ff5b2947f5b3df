"""The environment that determines whether runs are bit-identical, and the faster precision."""

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from plusx import store
from plusx.errors import UserError
from plusx.tasks.precision import faster_precision


_PACKAGES = ("torch", "torchvision", "numpy", "pillow")
# keys whose difference does not change results
_HARMLESS = ("platform", "processor_flags", "plusx")


def environment(device: torch.device, processes: int = 1, parallel: str = "none") -> dict[str, Any]:
    """Return versions, processor, device and threads of this process."""
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


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Compute with this number of CPU threads inside the block; 0: unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def has_exact_int8() -> bool:
    """Whether int8 products are summed in 32 bits and cannot saturate; False if unknown."""
    _, flags = processor()
    exact = ("vnni", "amx_int8", "asimddp")
    return any(name in flag for flag in flags.split() for name in exact)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two environments that can change results."""
    before = {"processes": 1, "parallel": "none", **before}  # absent in older files
    keys = [key for key in now if key not in (*_HARMLESS, "cores")]
    return [f"{key} {before.get(key)} -> {now[key]}" for key in keys if before.get(key) != now[key]]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def processor() -> tuple[str, str]:
    """Return the processor's name, and the flags by which libraries choose kernels."""
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


def cached_precision(device: torch.device) -> str:
    """Return `faster_precision`, cached in a file for this processor and version of torch.

    All runs of a machine then use the same precision, independent of its load.
    """
    if device.type != "cpu":
        return faster_precision(device)
    path = store.cache_folder() / "precision.json"
    name = f"{', '.join(processor())}, torch {torch.__version__}"
    try:
        cache = store.read_json(path)
        if cache.get(name) in ("float32", "bfloat16"):
            return str(cache[name])
    except (OSError, UserError, AttributeError):
        cache = {}
    precision = faster_precision(device)
    with suppress(OSError):  # measured again in the next run
        store.make_folder(path.parent)
        store.write_json(path, {**cache, name: precision})
    return precision

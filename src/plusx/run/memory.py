"""Estimates of the memory of an update, and advice if it does not fit."""

import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from plusx.errors import UserError
from plusx.grammar.memory import PLANS, Plan, saved_bytes
from plusx.grammar.sizes import format_size
from plusx.grammar.spec import Net
from plusx.memory import save_memory
from plusx.recipe import Recipe


# in messages of RuntimeErrors for exhausted memory
EXHAUSTED = ("can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")
# fraction of the available memory that an update may use; workspaces and fragmentation need more
USABLE = 0.9


@dataclass(frozen=True)
class Estimate:
    """Estimated bytes of one update."""

    plan: Plan
    accumulation_steps: int
    images: int  # in one forward pass
    saved: int  # activations for the backward pass
    state: int  # weights, gradients, optimizer, averaged weights

    @property
    def total(self) -> int:
        return self.saved + self.state


def apply_plan(recipe: Recipe, net: nn.Module) -> None:
    """Apply the recipe's memory plan. Raises UserError if it is not supported."""
    plan = recipe.device.memory
    if plan != "keep" and recipe.device.compile:
        raise UserError(
            f'[device] memory = "{plan}" with compile = true: torch.compile has its own '
            "recomputation; use one of the two"
        )
    save_memory(net, plan)


def estimate(
    recipe: Recipe, net: nn.Module, plan: Plan, accumulation_steps: int
) -> Estimate | None:
    """Estimate the memory of one update; None for a network without a spec."""
    spec = getattr(net, "spec", None)
    if not isinstance(spec, Net):
        return None
    images = -(-recipe.batch_size // (accumulation_steps * _num_processes()))
    saved = saved_bytes(spec, plan, images)
    if recipe.device.precision != "float32":
        saved //= 2
    numbers = sum(parameter.numel() for parameter in net.parameters())
    if recipe.optim.kind == "sgd":
        copies = 2 + (recipe.optim.momentum > 0)
    else:
        copies = 4
    state = 4 * numbers * (copies + (recipe.optim.ema > 0))
    return Estimate(plan, accumulation_steps, images, saved, state)


def _num_processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def first_fitting(recipe: Recipe, net: nn.Module, limit: int) -> Estimate | None:
    """Return the first plan that fits `limit` bytes, then with more accumulation steps; or None."""
    plans = PLANS[PLANS.index(recipe.device.memory) :]
    if recipe.device.compile or (_num_processes() > 1 and recipe.device.parallel == "fsdp"):
        plans = plans[:1]  # neither supports another plan
    steps = recipe.optim.accumulation_steps
    while steps <= recipe.batch_size:
        for plan in plans:
            needed = estimate(recipe, net, plan, steps)
            if needed is not None and needed.total <= USABLE * limit:
                return needed
        steps *= 2
    return None


def warn(recipe: Recipe, net: nn.Module, device: torch.device) -> None:
    """Warn if the recipe needs more memory than is available."""
    needed = estimate(recipe, net, recipe.device.memory, recipe.optim.accumulation_steps)
    limit = available_bytes(device)
    if needed is None or limit is None or needed.total <= limit:
        return
    warnings.warn(f"{_needs(needed, limit)}{_advice(recipe, net, limit)}", stacklevel=2)


@contextmanager
def explain_exhaustion(recipe: Recipe, net: nn.Module, device: torch.device) -> Iterator[None]:
    """Turn errors for exhausted memory into a RuntimeError that states what would fit."""
    limit = available_bytes(device)
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not out_of_memory and not any(text in str(error).lower() for text in EXHAUSTED):
            raise
        text = "the batch does not fit in memory"
        needed = estimate(recipe, net, recipe.device.memory, recipe.optim.accumulation_steps)
        if needed is None or limit is None:
            smaller = max(recipe.optim.accumulation_steps * 2, 2)
            raise RuntimeError(f"{text}: try optim.accumulation_steps={smaller}") from error
        # the estimate was exceeded, so advise less
        limit = min(limit, int(needed.total / USABLE) - 1)
        raise RuntimeError(
            f"{text}: {_needs(needed, limit)}{_advice(recipe, net, limit)}"
        ) from error


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes that this process can still allocate on the device; None if unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    if device.type != "cpu":
        return None
    limits = [
        limit for limit in (_of_machine(), _of_control_group(), _of_process()) if limit is not None
    ]
    return min(limits) if limits else None


def _of_machine() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_control_group() -> int | None:
    """Return the bytes left in the control group of this process (version 2, then 1)."""
    root = Path("/sys/fs/cgroup")
    for limit_file, usage_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _lines(root / limit_file), _lines(root / usage_file)
        if limit and used and limit[0].isdigit() and used[0].isdigit():
            statistics = _lines((root / limit_file).parent / "memory.stat")
            file_cache = sum(
                int(row.split()[1]) for row in statistics if row.startswith("inactive_file ")
            )
            return max(int(limit[0]) - int(used[0]) + file_cache, 0)
    return None


def _of_process() -> int | None:
    """Return the bytes left of `ulimit -v`."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    sizes = _lines("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not sizes:
        return None
    return max(limit - int(sizes[0].split()[0]) * resource.getpagesize(), 0)


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _needs(needed: Estimate, limit: int) -> str:
    return (
        f"an update with {needed.images} samples at a time needs about {format_size(needed.total)} "
        f"({format_size(needed.saved)} for the backward pass, {format_size(needed.state)} for "
        f"weights, gradients and optimizer), and {format_size(limit)} are available; "
    )


def _advice(recipe: Recipe, net: nn.Module, limit: int) -> str:
    fits = first_fitting(recipe, net, limit)
    if fits is None:
        return "no plan fits: use smaller inputs, a smaller batch_size or a smaller network"
    changes = []
    if fits.plan != recipe.device.memory:
        changes.append(f"device.memory={fits.plan}")
    if fits.accumulation_steps != recipe.optim.accumulation_steps:
        changes.append(f"optim.accumulation_steps={fits.accumulation_steps}")
    batch = "" if fits.accumulation_steps == 1 else f", {fits.images} samples at a time"
    return f"{' '.join(changes) or 'the same recipe'} needs {format_size(fits.total)}{batch}"

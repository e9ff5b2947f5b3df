"""Whether a batch fits: what a step holds by arithmetic, what there is, and what would fit."""

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


# What libraries say where the memory is at its end, besides torch.OutOfMemoryError and MemoryError.
EXHAUSTED = ("can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")
# Of what is there, a step may take this share: workspaces and fragments need some as well.
USABLE = 0.9


@dataclass(frozen=True)
class Need:
    """Bytes of one update by arithmetic."""

    plan: Plan
    parts: int  # in which the batch is worked off
    images: int  # of the batch at a time
    saved: int  # for the backward pass
    state: int  # weights, gradients, optimizer, averaged weights

    @property
    def total(self) -> int:
        return self.saved + self.state


def follow(recipe: Recipe, net: nn.Module) -> None:
    """Let the network train by the recipe's plan. UserError where that is not offered."""
    plan = recipe.device.memory
    if plan != "keep" and recipe.device.compile:
        raise UserError(
            f'[device] memory = "{plan}" with compile = true: a compiled network decides itself '
            "what it makes again; choose one of the two"
        )
    save_memory(net, plan)


def need(recipe: Recipe, net: nn.Module, plan: Plan, parts: int) -> Need | None:
    """What one update needs; None for a network that arithmetic knows nothing of."""
    spec = getattr(net, "spec", None)
    if not isinstance(spec, Net):
        return None
    images = -(-recipe.batch_size // (parts * _world()))
    saved = saved_bytes(spec, plan, images)
    if recipe.device.precision != "float32":
        saved //= 2
    numbers = sum(parameter.numel() for parameter in net.parameters())
    if recipe.optim.kind == "sgd":
        copies = 2 + (recipe.optim.momentum > 0)
    else:
        copies = 4
    return Need(plan, parts, images, saved, 4 * numbers * (copies + (recipe.optim.ema > 0)))


def _world() -> int:
    """The processes that share a batch."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def fitting(recipe: Recipe, net: nn.Module, limit: int) -> Need | None:
    """The first that fits: another plan, then more parts of the batch too; None where none does."""
    plans = PLANS[PLANS.index(recipe.device.memory) :]
    if recipe.device.compile or (_world() > 1 and recipe.device.parallel == "fsdp"):
        plans = plans[:1]  # neither goes with a plan
    parts = recipe.optim.accumulation_steps
    while parts <= recipe.batch_size:
        for plan in plans:
            needed = need(recipe, net, plan, parts)
            if needed is not None and needed.total <= USABLE * limit:
                return needed
        parts *= 2
    return None


def warn(recipe: Recipe, net: nn.Module, device: torch.device) -> None:
    """A warning where the recipe needs more than there is."""
    needed, limit = (
        need(recipe, net, recipe.device.memory, recipe.optim.accumulation_steps),
        left(device),
    )
    if needed is None or limit is None or needed.total <= limit:
        return
    warnings.warn(f"{_needs(needed, limit)}{_advice(recipe, net, limit)}", stacklevel=2)


@contextmanager
def explaining(recipe: Recipe, net: nn.Module, device: torch.device) -> Iterator[None]:
    """RuntimeError that says what would fit, where the memory comes to its end."""
    limit = left(device)
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not out_of_memory and not any(text in str(error).lower() for text in EXHAUSTED):
            raise
        text = "the batch does not fit in memory"
        needed = need(recipe, net, recipe.device.memory, recipe.optim.accumulation_steps)
        if needed is None or limit is None:
            smaller = max(recipe.optim.accumulation_steps * 2, 2)
            raise RuntimeError(f"{text}: try optim.accumulation_steps={smaller}") from error
        # what arithmetic says may be less than what libraries took: then less has to do
        limit = min(limit, int(needed.total / USABLE) - 1)
        raise RuntimeError(
            f"{text}: {_needs(needed, limit)}{_advice(recipe, net, limit)}"
        ) from error


def left(device: torch.device) -> int | None:
    """Bytes that this process can still take on the device; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    if device.type != "cpu":
        return None
    limits = [limit for limit in (_machine(), _group(), _process()) if limit is not None]
    return min(limits) if limits else None


def _machine() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group() -> int | None:
    """What the control group of this process allows (version 2, then 1)."""
    mounted = Path("/sys/fs/cgroup")
    for most, now in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _lines(mounted / most), _lines(mounted / now)
        if limit and used and limit[0].isdigit() and used[0].isdigit():
            statistics = _lines((mounted / most).parent / "memory.stat")
            files = sum(
                int(row.split()[1]) for row in statistics if row.startswith("inactive_file ")
            )
            return max(int(limit[0]) - int(used[0]) + files, 0)
    return None


def _process() -> int | None:
    """What `ulimit -v` leaves."""
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


def _needs(needed: Need, limit: int) -> str:
    return (
        f"an update of {needed.images} images at a time takes about {format_size(needed.total)} "
        f"({format_size(needed.saved)} for the backward pass, {format_size(needed.state)} for "
        f"weights, gradients and optimizer), and {format_size(limit)} are there; "
    )


def _advice(recipe: Recipe, net: nn.Module, limit: int) -> str:
    fits = fitting(recipe, net, limit)
    if fits is None:
        return "no plan fits: take smaller images, a smaller batch_size or a smaller network"
    changes = []
    if fits.plan != recipe.device.memory:
        changes.append(f"device.memory={fits.plan}")
    if fits.parts != recipe.optim.accumulation_steps:
        changes.append(f"optim.accumulation_steps={fits.parts}")
    batch = "" if fits.parts == 1 else f", {fits.images} images at a time"
    return f"{' '.join(changes) or 'the same'} takes {format_size(fits.total)}{batch}"

"""The memory plans, and the depths of a family, that fit in a given memory: by arithmetic, without
torch."""

import re
from collections.abc import Iterator
from typing import Any

from plusx.errors import UserError
from plusx.grammar.arithmetic import measure
from plusx.grammar.memory import PLANS, saved_bytes
from plusx.grammar.reversible import reversible_bytes
from plusx.grammar.sizes import format_size
from plusx.grammar.spec import Net
from plusx.zoo import ZOO, External


# bytes per parameter in float32: its weight, its gradient, the momentum of SGD
STATE = {"weights": 4, "gradients": 4, "optimizer": 4}


def memory_report(name: str, net: Net | External, memory: int, batch: int) -> dict[str, Any]:
    """Return the plans with which a batch of images trains in this number of bytes.

    plans: one row each, with the bytes that training holds for the backward pass of the batch;
    state_bytes: weights, gradients and SGD's momentum; family: the same network in other depths,
    with the first plan that fits, or None.

    Raises UserError for an external network without arithmetic, or a batch without images.
    """
    if batch < 1:
        raise UserError(f"--batch-size {batch}: a batch has at least one image")
    state = _state(net)
    plans = [
        {
            "plan": plan,
            "saved_bytes_per_image": saved / batch,
            "saved_bytes": saved,
            "total_bytes": saved + sum(state.values()),
            "fits": saved + sum(state.values()) <= memory,
        }
        for plan, saved in _saved(name, net, batch)
    ]
    return {
        "memory": memory,
        "batch": batch,
        "state_bytes": state,
        "plans": plans,
        "family": [
            {"name": relative, "plan": _first_plan(relative, memory, batch)}
            for relative in family(name)
        ],
    }


def family(name: str) -> list[str]:
    """Return the networks of the zoo whose names differ from this one only in the first number."""
    if name not in ZOO:
        return []
    pattern = re.compile(re.sub(r"\d+", r"(\\d+)", re.escape(name), count=1))
    if not pattern.groups:
        return [name]
    size = ZOO[name].net.size
    depths = [
        (int(match[1]), other)
        for other, entry in ZOO.items()
        if (match := pattern.fullmatch(other)) and entry.net.size == size
    ]
    return [other for _, other in sorted(depths)]


def memory_text(result: dict[str, Any]) -> str:
    """Return a memory report as text for a terminal."""
    batch, state = result["batch"], sum(result["state_bytes"].values())
    lines = [
        "",
        f"  training a batch of {batch} images in {format_size(result['memory'])}",
        f"  {format_size(state)} of it for weights, gradients and SGD's momentum",
        "",
        f"  {'plan':11} {'an image':>9} {'the batch':>10} {'with state':>11}",
    ]
    lines += [
        f"  {row['plan']:11} {format_size(round(row['saved_bytes_per_image'])):>9} "
        f"{format_size(row['saved_bytes']):>10} {format_size(row['total_bytes']):>11}  "
        f"{'fits' if row['fits'] else 'does not fit'}"
        for row in result["plans"]
    ]
    relatives = [
        f"{row['name']} ({row['plan']})" if row["plan"] else f"{row['name']} (does not fit)"
        for row in result["family"]
    ]
    if len(relatives) > 1:
        lines += ["", f"  of its family: {', '.join(relatives)}"]
    return "\n".join(lines)


def _first_plan(name: str, memory: int, batch: int) -> str | None:
    net = ZOO[name].net
    state = sum(_state(net).values())
    for plan, saved in _saved(name, net, batch):
        if saved + state <= memory:
            return plan
    return None


def _saved(name: str, net: Net | External, batch: int) -> Iterator[tuple[str, int]]:
    """Yield every plan, the fastest first, and the bytes held for the backward pass."""
    if isinstance(net, Net):
        for plan in PLANS:
            yield plan, saved_bytes(net, plan, batch)
    elif net.reversible is not None:
        yield "reversible", reversible_bytes(net.reversible, batch)
    else:
        raise UserError(
            f"{name} is an external module, whose memory arithmetic cannot count; use "
            f"`plusx bench memory {name}`"
        )


def _state(net: Net | External) -> dict[str, int]:
    count = net.parameters if isinstance(net, External) else measure(net).parameters
    return {key: count * size for key, size in STATE.items()}

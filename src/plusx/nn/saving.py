"""Plans that trade time for the memory of training, on networks that are built."""

from difflib import get_close_matches
from typing import TypeVar

from torch import nn

from plusx.errors import UserError
from plusx.grammar.plans import rule_of
from plusx.grammar.remember import PLANS
from plusx.nn.block import ResidualBlock
from plusx.nn.network import Network


Backbone = TypeVar("Backbone", bound=nn.Module)


def save_memory(net: Backbone, plan: str) -> Backbone:
    """Let a network keep less for the backward pass, and return it; results stay the same.

    "recompute" keeps about half: norms, activations, sums, concatenations and light convolutions
    are made again. "segments" keeps about a fifth: heavier convolutions are made again as well.
    "keep" is PyTorch's own way. Gradients differ from the plain run's by rounding only, running
    statistics and random numbers not at all. `plusx.grammar.memory` says what is held.

    UserError: no such plan, or a network that no plan is offered for.
    """
    if plan not in PLANS:
        near = get_close_matches(plan, PLANS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no plan {plan!r}: there are {', '.join(map(repr, PLANS))}{hint}")
    chosen = PLANS[PLANS.index(plan)]
    if isinstance(net, Network):
        net.memory = rule_of(net.spec, chosen)
        kept = net.memory.blocks if net.memory else frozenset()
        blocks = (module for module in net.modules() if isinstance(module, ResidualBlock))
        for number, block in enumerate(blocks):
            block.kept = number in kept
    elif plan != "keep":
        name = getattr(net, "plain", type(net).__name__)
        said = (
            "it makes its activations again from its outputs already"
            if getattr(net, "reverses", False)
            else "it is a module of its own, and plans are for networks of sentences"
        )
        raise UserError(f"no plan saves memory in {name}: {said}")
    return net

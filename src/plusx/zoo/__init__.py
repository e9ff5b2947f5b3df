"""The literature as data: every network by its name.

    >>> from plusx.zoo import find
    >>> find("resnet20").stages[0].block.body
    'conv3s norm act conv3 norm + act'

Endings of names: `_a`, `_b`, `_c` are the shortcuts of He 2015 (CIFAR networks without
an ending have A, ImageNet networks B), `_v1` the stride of the paper, `_cifar` the small stem,
`_bn` batch norm, `_narrow` 19 channels instead of 45, `_nodrop` without dropout. After `resnet110_`
or `resnet164_` it is a row of tables 1 to 3 of He 2016.
"""

from difflib import get_close_matches
from fnmatch import fnmatchcase

from plusx.errors import UserError
from plusx.grammar.model import External, Model, WithHead
from plusx.grammar.spec import Net
from plusx.grammar.validate import validate
from plusx.zoo.cifar import CIFAR
from plusx.zoo.entry import Entry
from plusx.zoo.image import IMAGE
from plusx.zoo.papers import PAPERS
from plusx.zoo.sequence import SEQUENCE
from plusx.zoo.volume import VOLUME
from plusx.zoo.with_head import HEADED, HeadedEntry


__all__ = [
    "HEADED",
    "PAPERS",
    "ZOO",
    "Entry",
    "External",
    "HeadedEntry",
    "find",
    "find_model",
    "names",
]

ZOO: dict[str, Entry] = {**IMAGE, **CIFAR, **SEQUENCE, **VOLUME}


def find_model(name: str) -> Model:
    """Return the network of that name, with a head or without, validated. Raises UserError, with
    close matches, if there is none."""
    if name in HEADED:
        return HEADED[name].net
    entry = ZOO.get(name)
    if entry is None:
        near = get_close_matches(name.lower(), [*ZOO, *HEADED], n=5, cutoff=0.6)
        hint = f"did you mean {', '.join(near)}?" if near else "`plusx models` lists all names"
        if name.endswith(".toml"):
            hint = "write a spec of your own into the recipe, as [net] with its stages"
        raise UserError(f"unknown network {name!r}: {hint}")
    if isinstance(entry.net, Net):
        validate(entry.net)
    return entry.net


def find(name: str) -> Net | External:
    """Return the network of that name, without a head. Raises UserError as `find_model`, and for
    one with a head."""
    model = find_model(name)
    if isinstance(model, WithHead):
        base = HEADED[name].base
        raise UserError(f"{name} has a head on its features; its backbone is {base}")
    return model


def names(pattern: str = "*", *, headed: bool = False) -> list[str]:
    """Return the names that match a shell pattern such as "resnet*_b", in the order of the zoo.

    headed: include networks with a head on their features.
    """
    all_names = [*ZOO, *HEADED] if headed else [*ZOO]
    return [name for name in all_names if fnmatchcase(name, pattern)]

"""The entry of a network in the zoo."""

from typing import NamedTuple

from plusx.grammar.model import External
from plusx.grammar.spec import Net


class Entry(NamedTuple):
    """A network and its source: a paper of `papers.PAPERS`, and the place in it.

    depth: the layers as the paper counts them, if not those with weights along the branches
    """

    net: Net | External
    source: str
    depth: int | None = None

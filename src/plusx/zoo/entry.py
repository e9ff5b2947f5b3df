"""What the zoo keeps of a network: its model, and where it comes from."""

from typing import NamedTuple

from plusx.grammar.model import External
from plusx.grammar.spec import Net


class Entry(NamedTuple):
    """A network and where it comes from: a paper of `papers.PAPERS`, and the place in it."""

    net: Net | External
    source: str

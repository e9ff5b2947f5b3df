"""The colours of networks: a hue for a family, deeper networks in the stronger shade."""

import re
from collections.abc import Sequence


# (shallow, deep) in light and in dark, each at least 3:1 against the page; plain networks are warm.
_HUES = {
    "plain": (("#cf7a24", "#9c3a0c"), ("#f5c48a", "#ee7a3a")),
    "resnet": (("#4a93d1", "#12508c"), ("#a6d0f5", "#4a9bec")),
    "third": (("#3d9a6c", "#14603c"), ("#9fdcbb", "#3fb27d")),
    "fourth": (("#a06cc4", "#61308a"), ("#d3b4ea", "#a974d6")),
    "fifth": (("#7c828a", "#3c4249"), ("#c9ced4", "#8b929a")),
}


def family(name: str) -> str:
    """A name without its numbers: plain20 and plain56 are of one family."""
    return re.sub(r"\d+", "", name)


def depth(name: str) -> int:
    """The first number of a name, 0 without one."""
    found = re.search(r"\d+", name)
    return int(found[0]) if found else 0


def colours(names: Sequence[str]) -> list[tuple[str, str]]:
    """For each network its colour in light and in dark."""
    families = list(dict.fromkeys(family(name) for name in names))
    hues = dict.fromkeys(families, "")
    free = [hue for hue in _HUES if hue not in families]
    for index, each in enumerate(other for other in families if other not in _HUES):
        hues[each] = (free or list(_HUES))[index % len(free or _HUES)]
    chosen = []
    for name in names:
        ends = _HUES[hues[family(name)] or family(name)]
        siblings = sorted({depth(other) for other in names if family(other) == family(name)})
        place = siblings.index(depth(name)) / (len(siblings) - 1) if len(siblings) > 1 else 1.0
        light, dark = (_between(*pair, place) for pair in ends)
        chosen.append((light, dark))
    return chosen


def _between(first: str, second: str, place: float) -> str:
    parts = zip(bytes.fromhex(first[1:]), bytes.fromhex(second[1:]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * place):02x}" for a, b in parts)

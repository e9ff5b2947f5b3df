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
    "sixth": (("#d05c7e", "#9a1f4b"), ("#f4b6c8", "#e66a93")),
    "seventh": (("#2f97a0", "#0d5560"), ("#93dbe0", "#35aab4")),
    "eighth": (("#93852b", "#5a4f08"), ("#ddd08a", "#b3a233")),
}
# Of a surface, the lowest first, in light and in dark: the more, the further from the paper.
SHADES = tuple(
    zip(
        ("#f1f4f3", "#dfe9ed", "#cadee8", "#b1d1e1", "#95c1d9", "#77b0cf", "#599cc3", "#3f86b5",
         "#2c70a3", "#1d5b8e", "#124575", "#0b315a"),
        ("#1d252b", "#1e303c", "#1f3d4f", "#1f4962", "#215776", "#25668a", "#2e769f", "#4087b0",
         "#5a9ac0", "#79aecf", "#9dc5de", "#c8e0ee"),
        strict=True,
    )
)  # fmt: skip
_WANTED = {"plain": "plain", "resnet": "resnet", "residual": "resnet"}
_NUMBER = r"\d+(?:\.\d+)?"


def family(name: str) -> str:
    """A name without its numbers: plain20 and plain56 are of one family."""
    return re.sub(_NUMBER, "", name)


def depth(name: str) -> tuple[float, ...]:
    """The numbers of a name, by which those of a family are ordered."""
    return tuple(float(number) for number in re.findall(_NUMBER, name))


class Palette:
    """The colours of a page: a name has the same one in its every figure, where they suffice.

    With more families than hues (`shared` is False), every figure has colours of its own.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(dict.fromkeys(names))
        self.colours = colours(self._names)
        self.shared = len({family(name) for name in self._names}) <= len(_HUES)

    def of(self, names: Sequence[str]) -> list[int]:
        """The number of each name's colour among `colours`."""
        own = list(dict.fromkeys(names))
        if self.shared and set(own) <= set(self._names):
            return [self._names.index(name) for name in names]
        first = len(self.colours)
        self.colours += colours(own)
        return [first + own.index(name) for name in names]


def colours(names: Sequence[str]) -> list[tuple[str, str]]:
    """For each network its colour in light and in dark."""
    families = list(dict.fromkeys(family(name) for name in names))
    hues: dict[str, str] = {}
    for each in families:
        wanted = next((hue for start, hue in _WANTED.items() if each.startswith(start)), "")
        if wanted and wanted not in hues.values():
            hues[each] = wanted
    free = [hue for hue in list(_HUES)[2:] + list(_HUES)[:2] if hue not in hues.values()]
    for index, each in enumerate(other for other in families if other not in hues):
        hues[each] = (free or list(_HUES))[index % len(free or _HUES)]
    chosen = []
    for name in names:
        ends = _HUES[hues[family(name)]]
        siblings = sorted({depth(other) for other in names if family(other) == family(name)})
        place = siblings.index(depth(name)) / (len(siblings) - 1) if len(siblings) > 1 else 1.0
        light, dark = (_between(*pair, place) for pair in ends)
        chosen.append((light, dark))
    return chosen


def _between(first: str, second: str, place: float) -> str:
    parts = zip(bytes.fromhex(first[1:]), bytes.fromhex(second[1:]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * place):02x}" for a, b in parts)

"""Names at the things that they name: at the ends of lines, and beside points."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import IdentityTransform

from plusx.report.drawing import LINE, apart, extent, write


ASIDE = 18.0  # from the edge of the panel to the names at its right
NEAR = 9.0  # from a point to its name
_UNITS = IdentityTransform()


@dataclass(frozen=True)
class Label:
    """The lines of a name, its colour, and the place that it names, in units of the drawing."""

    parts: list[str]
    colour: str
    x: float
    y: float

    @property
    def width(self) -> float:
        return max(extent(part, bold=True) for part in self.parts)


@dataclass(frozen=True)
class Box:
    """A part of the drawing, in units from its lower left corner."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: "Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top


def label_ends(figure: Figure, panel: Box, labels: Sequence[Label]) -> None:
    """Names to the right of the panel, at the heights of their ends, apart where they touch."""
    for label, foot in _placed(panel, labels):
        if panel.right - label.x > 12 or abs(foot - label.y) > LINE / 2:
            _lead(figure, label, (label.x + 4, panel.right + ASIDE - 3), foot)
        _write(figure, label, panel.right + ASIDE, foot, "left")


def label_points(figure: Figure, panel: Box, labels: Sequence[Label]) -> None:
    """Names beside their points, for those of which `beside_points` says that there is room."""
    for label, foot, away in _sides(panel, labels):
        moved = abs(foot - label.y) > LINE / 2
        start = label.x + away * (NEAR + 7 * moved)
        if moved:
            _lead(figure, label, (label.x + away * 4, start - away * 2), foot)
        _write(figure, label, start, foot, "left" if away > 0 else "right")


def beside_points(panel: Box, labels: Sequence[Label]) -> bool:
    """Whether names beside their points would cover neither one another nor other points."""
    points = [Box(label.x - 4, label.y - 4, label.x + 4, label.y + 4) for label in labels]
    taken = list(points)
    for label, foot, away in _sides(panel, labels):
        start = label.x + away * (NEAR + 7)
        half = LINE * len(label.parts) / 2
        ends = sorted((start, start + away * label.width))
        own = Box(ends[0], foot - half, ends[1], foot + half)
        if own.left < 0 or any(own.meets(other) for other in taken):
            return False
        taken.append(own)
    return True


def _sides(panel: Box, labels: Sequence[Label]) -> list[tuple[Label, float, int]]:
    """The labels with their heights, and whether they stand right (1) or left (-1) of a point."""
    right = [label for label in labels if label.x + NEAR + 7 + label.width <= panel.right + 8]
    left = [label for label in labels if label not in right]
    return [
        (label, foot, away)
        for side, away in ((right, 1), (left, -1))
        for label, foot in _placed(panel, side)
    ]


def _placed(panel: Box, labels: Sequence[Label]) -> list[tuple[Label, float]]:
    """The labels from the lowest, each with the height of its middle."""
    ordered = sorted(labels, key=lambda label: label.y)
    sizes = [LINE * len(label.parts) + 2.0 for label in ordered]
    ends = panel.bottom - LINE / 2, panel.top + LINE / 2
    feet = apart([label.y for label in ordered], sizes, *ends)
    return list(zip(ordered, feet, strict=True))


def _lead(figure: Figure, label: Label, across: tuple[float, float], foot: float) -> None:
    """A thin line from the place to its name."""
    upward = (label.y, foot)
    figure.add_artist(
        Line2D(across, upward, color=label.colour, linewidth=0.7, alpha=0.6, transform=_UNITS)
    )


def _write(figure: Figure, label: Label, x: float, foot: float, align: str) -> None:
    for row, part in enumerate(label.parts):
        middle = foot + LINE * ((len(label.parts) - 1) / 2 - row)
        write(figure, x, middle, part, colour=label.colour, bold=True, align=align)

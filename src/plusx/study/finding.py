"""The finding of a comparison, in one sentence that its numbers carry.

A difference is claimed only where the intervals of the two networks lie apart. Networks are
evaluated on the same images, so for a comparison the doubt about the images in an interval is too
wide rather than too narrow. Where one network is compared with several, the intervals are corrected
for that.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plusx import statistics
from plusx.report.metrics import better, metric
from plusx.statistics import Interval


Row = Mapping[str, Any]


def metric_interval(
    key: str, values: Sequence[float], count: int, *, comparisons: int = 1
) -> Interval | None:
    """The interval of a metric's mean over the seeds; of a share of images it knows the doubt about
    the images too."""
    if metric(key).of_images:
        return statistics.share_interval(values, count, comparisons=comparisons)
    return statistics.mean_interval(values, bounds=(0.0, 1.0), comparisons=comparisons)


def comparison_finding(
    rows: Sequence[Row], *, count: int, split: str, key: str = "accuracy"
) -> str:
    """One sentence about rows of a comparison: a plain network and its residual twin if it has
    them, else the best network and what is known to be worse. `count` is the number of images, and
    `key` that of the metric that is compared."""
    return _Finding(rows, count, split, key).text()


class _Finding:
    def __init__(self, rows: Sequence[Row], count: int, split: str, key: str) -> None:
        self.rows, self.count, self.key = rows, count, key
        self.named = f"{split} {metric(key).title}"

    def text(self) -> str:
        by_name = {row["name"]: row for row in self.rows}
        twins = sorted(
            (int(match[1]), name, f"resnet{match[1]}")
            for name in by_name
            if (match := re.fullmatch(r"plain(\d+)", name)) and f"resnet{match[1]}" in by_name
        )
        if min(len(row[self.key]["seeds"]) for row in self.rows) < 2:
            known = _listed([f"{row['name']} {self._percent(row)}" for row in self.rows])
            return f"One seed, {self.named}: {known}; how far seeds differ is not known."
        if not twins:
            return self._ranking()
        depth, plain, residual = twins[-1]
        text, differ = self._about_twins(by_name[plain], by_name[residual])
        if not differ:
            return f"{text}."
        shallow = twins[0][0]
        if shallow == depth or not self._harder(by_name[plain], by_name[f"plain{shallow}"]):
            return f"{text}: at this depth the skips make the difference."
        if self._worse(by_name[residual], by_name[f"resnet{shallow}"]):
            return f"{text}: depth hurts without skips, and less with them."
        return f"{text}: depth hurts without skips."

    def _about_twins(self, plain: Row, residual: Row) -> tuple[str, bool]:
        """About a plain network and its twin, and whether the twin is better."""
        low, high = (f"{row['name']} reaches {self._percent(row)}" for row in (plain, residual))
        if self._worse(residual, plain):
            return f"{high} {self.named} where {low}: here the skips did not help", False
        if self._worse(plain, residual):
            return f"{low} {self.named} where {high}", True
        both = f"{self._with_percent(plain)} and {self._with_percent(residual)}"
        return f"{both} do not differ in {self.named} by more than chance allows", False

    def _harder(self, deep: Row, shallow: Row) -> bool:
        """Whether the deeper network is worse and already on its training images: not
        overfitting."""
        if "train_error" not in deep:
            return False
        harder = deep["train_error"]["mean"] > shallow["train_error"]["mean"]
        return harder and self._worse(deep, shallow)

    def _ranking(self) -> str:
        key = self.key
        best, *others = sorted(self.rows, key=lambda row: -better(key, row[key]["mean"]))
        behind = [self._worse(row, best, comparisons=len(others)) for row in others]
        worse = [self._with_percent(row) for row, is_worse in zip(others, behind) if is_worse]
        alike = [self._with_percent(row) for row, is_worse in zip(others, behind) if not is_worse]
        parts = [f"{best['name']} reaches {self._percent(best)} {self.named}"]
        if worse:
            parts.append(f"{_listed(worse)} {'is' if len(worse) == 1 else 'are'} behind")
        if alike:
            verb = "does" if len(alike) == 1 else "do"
            parts.append(f"{_listed(alike)} {verb} not differ from it by more than chance allows")
        return "; ".join(parts) + "."

    def _worse(self, row: Row, other: Row, comparisons: int = 1) -> bool:
        """Whether a network is known to be worse than another."""
        first, second = (
            metric_interval(self.key, r[self.key]["seeds"], self.count, comparisons=comparisons)
            for r in (row, other)
        )
        if metric(self.key).less:
            first, second = second, first
        return first is not None and second is not None and first.below(second)

    def _percent(self, row: Row) -> str:
        """A mean as a percentage, with a decimal only where it is needed near 100 %."""
        value = 100 * row[self.key]["mean"]
        return f"{value:.1f} %" if value >= 90 else f"{value:.0f} %"

    def _with_percent(self, row: Row) -> str:
        return f"{row['name']} ({self._percent(row)})"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))

"""What the figures of maps come to, in words that the figures carry."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, Literal

from plusx.explain.faithfulness import WORTHLESS
from plusx.statistics import mean_interval


Side = Literal["better", "worse", "undecided"]
OPPONENTS = {"random": "random maps", "centre": "a blob in the middle"}
FEWEST = 9  # positions of a map, below which ranks agree by chance


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over images, and how far the map is ahead of its opponents, image by image.

    A lead is positive where the map is better: deletion lower, insertion higher. Its interval of
    95 % is Student's over the images; None for fewer than three.
    """
    found: dict[str, Any] = {"count": len(rows)}
    for measure, sign in (("deletion", -1), ("insertion", 1)):
        told: dict[str, Any] = {}
        for name in ("map", *OPPONENTS):
            values = [row[measure][name] for row in rows]
            told[name] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
        for name in OPPONENTS:
            leads = [sign * (row[measure]["map"] - row[measure][name]) for row in rows]
            told[name]["lead"] = mean(leads)
            told[name]["interval"] = _interval(leads)
        found[measure] = told
    return found


def side(told: Mapping[str, Any]) -> Side:
    """Whether the map is better than an opponent: where the interval of its lead leaves out 0."""
    if told["interval"] is None:
        return "undecided"
    low, high = told["interval"]
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def finding(
    title: str, faith: Mapping[str, Any] | None, forgotten: Sequence[Mapping[str, Any]]
) -> str:
    """One sentence: a map that survives forgetting is worthless, whatever else it does."""
    if worthless(forgotten):
        last = forgotten[-1]["rank_correlation"]["mean"]
        return (
            f"These maps are worthless: with all weights of the network shuffled they hardly "
            f"change (rank correlation {last:z.2f}), so they do not show what it has learned."
        )
    if faith is None:
        return f"{title} of these images; whether the maps are faithful was not asked."
    count = faith["count"]
    images = "the one image" if count == 1 else f"these {count} images"
    if count < 3:
        return f"{title} of {images}: too few to say whether the maps beat chance."
    sides = {
        (measure, name): side(faith[measure][name])
        for measure in ("deletion", "insertion")
        for name in OPPONENTS
    }
    won = [name for name in OPPONENTS if _sides(sides, name) == {"better"}]
    if len(won) == 2:
        return (
            f"On {images} {title} marks what the network uses: by deletion and by insertion it "
            "beats random maps and a blob in the middle."
        )
    if won:
        (other,) = (name for name in OPPONENTS if name not in won)
        lost = "worse" in _sides(sides, other) and "better" not in _sides(sides, other)
        rest = (
            f"{OPPONENTS[other]} does better"
            if lost
            else f"it is not shown to be better than {OPPONENTS[other]}"
        )
        return (
            f"On {images} {title} beats {OPPONENTS[won[0]]} by deletion and insertion, but {rest}."
        )
    ahead = {
        measure: [OPPONENTS[name] for name in OPPONENTS if sides[measure, name] == "better"]
        for measure in ("deletion", "insertion")
    }
    beaten = [f"{' and '.join(names)} by {measure}" for measure, names in ahead.items() if names]
    if beaten:
        return (
            f"On {images} {title} beats {', and '.join(beaten)}; more is not shown, so read the "
            "maps with care."
        )
    return (
        f"On {images} {title} is not shown to be better than random maps or a blob in the middle: "
        "do not read the maps as what the network uses."
    )


def worthless(forgotten: Sequence[Mapping[str, Any]]) -> bool:
    """Whether maps hardly change when the network has forgotten everything.

    So it is where the interval of their rank correlation lies above WORTHLESS, or for fewer than
    three values their mean.
    """
    if not forgotten:
        return False
    last = forgotten[-1]["rank_correlation"]
    return bool((last["interval"] or [last["mean"]])[0] > WORTHLESS)


def about_forgetting(forgotten: Sequence[Mapping[str, Any]], positions: int) -> str:
    """What the randomised weights say, in plain words."""
    last = forgotten[-1]["rank_correlation"]["mean"]
    if worthless(forgotten):
        return (
            f"With all weights shuffled the rank correlation is still {last:z.2f}, above "
            f"{WORTHLESS}: the map does not change with what the network has learned. A map that "
            "does not change is worthless as an explanation."
        )
    if last > WORTHLESS:
        return (
            f"With all weights shuffled the rank correlation is {last:z.2f}, but it varies too "
            "much to say that the map does not change with what the network has learned. More "
            "images would tell."
        )
    if positions < FEWEST:
        return (
            f"With all weights shuffled the rank correlation is {last:z.2f}; maps of {positions} "
            "positions agree by chance too easily to be judged by that."
        )
    return (
        f"With all weights shuffled the rank correlation is {last:z.2f}, not above {WORTHLESS}: "
        "the map depends on what the network has learned."
    )


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and the interval of the mean, Student's of 95 %."""
    return {
        "mean": mean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "interval": _interval(values),
    }


def _sides(sides: Mapping[tuple[str, str], Side], name: str) -> set[Side]:
    return {sides[measure, name] for measure in ("deletion", "insertion")}


def _interval(values: Sequence[float]) -> list[float] | None:
    found = mean_interval(values, bounds=(-1.0, 1.0)) if len(values) > 2 else None
    return None if found is None else list(found)


def told(result: Mapping[str, Any]) -> str:
    """What an explanation found, as tables for a terminal."""
    rows = result["images"]
    width = max(len(row["path"]) for row in rows)
    label = max(len(row["label"]) for row in rows)
    lines = [
        f"{row['path']:{width}}  {row['label']:{label}}  {row['probability']:7.2%}"
        + (f"  map for {row['class']}" if row["class"] != row["label"] else "")
        for row in rows
    ]
    faith = result["faithfulness"]
    if faith is not None:
        lines += [
            "",
            f"{'':22} deletion  insertion   ({faith['count']} images, lower / higher is better)",
        ]
        for key, name in (("map", result["title"]), *OPPONENTS.items()):
            areas = [faith[measure][key]["mean"] for measure in ("deletion", "insertion")]
            lines.append(f"{name:22} {areas[0]:8.3f}  {areas[1]:9.3f}")
    if result["forgotten"]:
        lines += ["", "rank correlation with the map, the more weights are shuffled"]
        lines += [
            f"{each['title']:22} {each['rank_correlation']['mean']:z8.2f}"
            for each in result["forgotten"]
        ]
        lines += ["", result["about_forgetting"]]
    return "\n".join([*lines, "", result["finding"]])

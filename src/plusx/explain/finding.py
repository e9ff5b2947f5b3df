"""What the measurements of maps mean, in words that their intervals carry."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, Literal

from plusx.explain.faithfulness import UNINFORMATIVE, interval_of


Side = Literal["better", "worse", "undecided"]
BASELINES = {"random": "random maps", "centre": "a blob in the middle"}
FEWEST = 9  # positions of a map, below which ranks agree by chance


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over images, and how far the map is ahead of its baselines, image by image.

    A lead is positive where the map is better: deletion lower, insertion higher. Its interval of
    95 % is Student's over the images; None for fewer than three.
    """
    result: dict[str, Any] = {"count": len(rows)}
    for measure, sign in (("deletion", -1), ("insertion", 1)):
        areas: dict[str, Any] = {}
        for name in ("map", *BASELINES):
            values = [row[measure][name] for row in rows]
            areas[name] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
        for name in BASELINES:
            leads = [sign * (row[measure]["map"] - row[measure][name]) for row in rows]
            areas[name]["lead"] = mean(leads)
            areas[name]["interval"] = interval_of(leads)
        result[measure] = areas
    return result


def side(area: Mapping[str, Any]) -> Side:
    """Whether the map is better than a baseline: where the interval of its lead leaves out 0."""
    if area["interval"] is None:
        return "undecided"
    low, high = area["interval"]
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def finding(
    title: str, faith: Mapping[str, Any] | None, shuffled: Sequence[Mapping[str, Any]]
) -> str:
    """One sentence: a map that does not change with the weights is uninformative, whatever else it
    does."""
    if uninformative(shuffled):
        last = shuffled[-1]["rank_correlation"]["mean"]
        return (
            "These maps are uninformative: with all weights of the network shuffled they hardly "
            f"change (rank correlation {last:z.2f}), so they do not show what it has learned."
        )
    if faith is None:
        return f"{title} of these images; whether the maps are faithful was not measured."
    count = faith["count"]
    images = "the one image" if count == 1 else f"these {count} images"
    if count < 3:
        return f"{title} of {images}: too few to say whether the maps beat chance."
    sides = {
        name: {measure: side(faith[measure][name]) for measure in ("deletion", "insertion")}
        for name in BASELINES
    }
    won = [name for name in BASELINES if set(sides[name].values()) == {"better"}]
    if len(won) == 2:
        return (
            f"On {images} {title} marks what the network uses: by deletion and by insertion it "
            "beats random maps and a blob in the middle."
        )
    if won:
        (other,) = set(BASELINES) - set(won)
        lost = set(sides[other].values()) in ({"worse"}, {"worse", "undecided"})
        rest = (
            f"{BASELINES[other]} does better"
            if lost
            else f"it is not shown to be better than {BASELINES[other]}"
        )
        return (
            f"On {images} {title} beats {BASELINES[won[0]]} by deletion and insertion, but {rest}."
        )
    ahead = {
        measure: [BASELINES[name] for name in BASELINES if sides[name][measure] == "better"]
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


def uninformative(shuffled: Sequence[Mapping[str, Any]]) -> bool:
    """Whether maps hardly change when all weights are shuffled: the interval of their rank
    correlation lies above UNINFORMATIVE, or for fewer than three values their mean.
    """
    if not shuffled:
        return False
    last = shuffled[-1]["rank_correlation"]
    return bool((last["interval"] or [last["mean"]])[0] > UNINFORMATIVE)


def about_shuffling(shuffled: Sequence[Mapping[str, Any]], positions: int) -> str:
    """What the shuffled weights show, in plain words."""
    last = shuffled[-1]["rank_correlation"]["mean"]
    if uninformative(shuffled):
        return (
            f"With all weights shuffled the rank correlation is still {last:z.2f}, above "
            f"{UNINFORMATIVE}: the map does not depend on what the network has learned and is "
            "uninformative as an explanation."
        )
    if last > UNINFORMATIVE:
        return (
            f"With all weights shuffled the rank correlation is {last:z.2f}, but it varies too "
            "much to say that the map does not change with what the network has learned. More "
            "images are needed."
        )
    if positions < FEWEST:
        return (
            f"With all weights shuffled the rank correlation is {last:z.2f}; maps of {positions} "
            "positions agree by chance too easily to conclude anything."
        )
    return (
        f"With all weights shuffled the rank correlation is {last:z.2f}, not above "
        f"{UNINFORMATIVE}: the map depends on what the network has learned."
    )


def explanation_text(result: Mapping[str, Any]) -> str:
    """An explanation as tables for a terminal."""
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
        for key, name in (("map", result["title"]), *BASELINES.items()):
            areas = [faith[measure][key]["mean"] for measure in ("deletion", "insertion")]
            lines.append(f"{name:22} {areas[0]:8.3f}  {areas[1]:9.3f}")
    if result["shuffled_weights"]:
        lines += ["", "rank correlation with the map, the more weights are shuffled"]
        lines += [
            f"{row_of_part['title']:22} {row_of_part['rank_correlation']['mean']:z8.2f}"
            for row_of_part in result["shuffled_weights"]
        ]
        lines += ["", result["about_shuffling"]]
    return "\n".join([*lines, "", result["finding"]])

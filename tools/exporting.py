"""The tables about exported files in docs/benchmarks.md."""

from collections.abc import Mapping
from typing import Any

from scaling import where


def latency(found: Mapping[str, Any]) -> str:
    """The time of one image, by others over ours."""
    lines = ["| network | threads | other | its time / ours | 95 % interval | target |"]
    lines.append("|---|---:|---|---:|---|---|")
    said = found["recipe"]
    for row in found["rows"]:
        targets = {"eager": said["target_eager"], row["best"]: said["target_best"]}
        for name, each in row["ratios"].items():
            verdict = ""
            if name in targets:
                verdict = f"{targets[name]}: {_met(each['value'] >= targets[name])}"
            lines.append(
                f"| `{row['model']}` | {row['threads']} | {name} | {each['value']:.3f} "
                f"| {each['low']:.3f} to {each['high']:.3f} | {verdict} |"
            )
    return "\n".join([*lines, "", where(found)])


def eight_bits(found: Mapping[str, Any]) -> str:
    """What eight bits gain and lose."""
    said = found["recipe"]
    lines = ["| network | file | accuracy | points lost (95 %) | same prediction | bytes |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for row in found["rows"]:
        for name, each in row.get("quality", {}).items():
            lost = each["lost"]
            between = f"{100 * lost['low']:.2f} to {100 * lost['high']:.2f}"
            lines.append(
                f"| `{row['model']}` | {name} | {100 * each['accuracy']:.2f} % "
                f"| {100 * lost['value']:.2f} ({between}) | {100 * each['agreement']:.2f} % "
                f"| {each['bytes']:,} |"
            )
    lines += ["", "| network | threads | images | file | float32 time / its time | 95 % interval |"]
    lines.append("|---|---:|---:|---|---:|---|")
    reached = []
    for row in found["rows"]:
        for threads, by_count in row["speed"].items():
            reached.append(by_count["1"]["ours"]["value"] >= said["target_speed"])
            lines += [
                f"| `{row['model']}` | {threads} | {count} | {name} | {each['value']:.2f} "
                f"| {each['low']:.2f} to {each['high']:.2f} |"
                for count, ratios in by_count.items()
                for name, each in ratios.items()
            ]
    judged = [row["quality"]["ours"] for row in found["rows"] if "quality" in row]
    lost_met = all(each["lost"]["value"] <= said["most_lost"] for each in judged)
    alike_met = all(each["agreement"] >= said["least_agreement"] for each in judged)
    verdict = (
        f"Targets of ours: {said['target_speed']} times float32 for one image: reached "
        f"{sum(reached)} of {len(reached)} times; at most {100 * said['most_lost']:.1f} points "
        f"lost: {_met(lost_met)}; {100 * said['least_agreement']:.1f} % same prediction: "
        f"{_met(alike_met)}."
    )
    return "\n".join([*lines, "", verdict, "", where(found)])


def _met(reached: bool) -> str:
    return "reached" if reached else "missed"

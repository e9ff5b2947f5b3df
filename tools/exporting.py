"""The tables of exported files and of sound in docs/benchmarks.md."""

from collections.abc import Mapping
from typing import Any

from scaling import where


def latency(result: Mapping[str, Any]) -> str:
    """The time of one image, other runtimes over ours."""
    lines = ["| network | threads | other | its time / ours | 95 % interval | target |"]
    lines.append("|---|---:|---|---:|---|---|")
    recipe = result["recipe"]
    for row in result["rows"]:
        targets = {"eager": recipe["target_eager"], row["best"]: recipe["target_best"]}
        for name, ratio in row["ratios"].items():
            verdict = ""
            if name in targets:
                verdict = f"{targets[name]}: {_met(ratio['value'] >= targets[name])}"
            lines.append(
                f"| `{row['model']}` | {row['threads']} | {name} | {ratio['value']:.3f} "
                f"| {ratio['low']:.3f} to {ratio['high']:.3f} | {verdict} |"
            )
    return "\n".join([*lines, "", where(result)])


def eight_bits(result: Mapping[str, Any]) -> str:
    """The speed and the accuracy of quantised files."""
    recipe = result["recipe"]
    lines = ["| network | file | accuracy | points lost (95 %) | same prediction | bytes |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for row in result["rows"]:
        for name, values in row.get("quality", {}).items():
            lost = values["lost"]
            between = f"{100 * lost['low']:.2f} to {100 * lost['high']:.2f}"
            lines.append(
                f"| `{row['model']}` | {name} | {100 * values['accuracy']:.2f} % "
                f"| {100 * lost['value']:.2f} ({between}) | {100 * values['agreement']:.2f} % "
                f"| {values['bytes']:,} |"
            )
    lines += ["", "| network | threads | images | file | float32 time / its time | 95 % interval |"]
    lines.append("|---|---:|---:|---|---:|---|")
    reached = []
    for row in result["rows"]:
        for threads, by_count in row["speed"].items():
            reached.append(by_count["1"]["ours"]["value"] >= recipe["target_speed"])
            lines += [
                f"| `{row['model']}` | {threads} | {count} | {name} | {values['value']:.2f} "
                f"| {values['low']:.2f} to {values['high']:.2f} |"
                for count, ratios in by_count.items()
                for name, values in ratios.items()
            ]
    qualities = [row["quality"]["ours"] for row in result["rows"] if "quality" in row]
    loss_met = all(values["lost"]["value"] <= recipe["most_lost"] for values in qualities)
    agreement_met = all(values["agreement"] >= recipe["least_agreement"] for values in qualities)
    verdict = (
        f"Targets of ours: {recipe['target_speed']} times float32 for one image: reached "
        f"{sum(reached)} of {len(reached)} times; at most {100 * recipe['most_lost']:.1f} points "
        f"lost: {_met(loss_met)}; {100 * recipe['least_agreement']:.1f} % same prediction: "
        f"{_met(agreement_met)}."
    )
    return "\n".join([*lines, "", verdict, "", where(result)])


def sound(result: Mapping[str, Any]) -> str:
    """Spectrograms, loading and a keyword network, the peer's time over ours."""
    lines = ["| what | peer | ours | ratio | 95 % interval | at least |"]
    lines.append("|---|---:|---:|---:|---|---:|")
    for row in result["rows"]:
        seconds, ratio = row["seconds"], row["ratio"]
        met = "" if ratio["value"] >= row["target"] else ", missed"
        lines.append(
            f"| {row['name']} | {1000 * seconds['peer']:.0f} ms | {1000 * seconds['ours']:.0f} ms "
            f"| {ratio['value']:.3f} | {ratio['low']:.3f} to {ratio['high']:.3f} "
            f"| {row['target']}{met} |"
        )
    return "\n".join([*lines, "", where(result)])


def _met(reached: bool) -> str:
    return "reached" if reached else "missed"

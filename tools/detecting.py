"""The table about detectors in docs/seeing.md."""

from collections.abc import Mapping
from typing import Any

from scaling import where


def detectors(found: Mapping[str, Any]) -> str:
    """How long one image takes, and its quality where that is known."""
    lines = ["| detector | image | parameters | threads | one image | mAP at 0.5 | mAP |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for row in found["rows"]:
        seconds, size = row["seconds"], " x ".join(map(str, row["size"]))
        between = f"{1000 * seconds['low']:.0f} to {1000 * seconds['high']:.0f}"
        figures = [row.get("map50"), row.get("map")]
        told = " | ".join("" if each is None else f"{each:.3f}" for each in figures)
        lines.append(
            f"| {row['name']} | {size} | {row['parameters']:,} | {row['threads']} "
            f"| {1000 * seconds['value']:.0f} ms ({between}) | {told} |"
        )
    return "\n".join([*lines, "", where(found)])

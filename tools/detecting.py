"""The table of detectors in docs/seeing.md."""

from collections.abc import Mapping
from typing import Any

from scaling import where


def detectors(result: Mapping[str, Any]) -> str:
    """The time of one image for each detector, and the average precision of trained ones."""
    titles = ("detector", "weights", "image", "parameters", "threads", "one image",
              "mAP at 0.5", "mAP", "mAP of")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", f"|---|---|---|{'---:|' * 5}---|"]
    for row in result["rows"]:
        seconds, size = row["seconds"], " x ".join(map(str, row["size"]))
        between = f"{1000 * seconds['low']:.0f} to {1000 * seconds['high']:.0f}"
        scores = [row.get("map50"), row.get("map")]
        cells = " | ".join("" if score is None else f"{score:.3f}" for score in scores)
        lines.append(
            f"| {row['name']} | {row['weights']} | {size} | {row['parameters']:,} "
            f"| {row['threads']} | {1000 * seconds['value']:.0f} ms ({between}) | {cells} "
            f"| {row.get('split', '')} |"
        )
    return "\n".join([*lines, "", where(result)])

"""The published accuracy of a network, and the one measured in a folder of results."""

from pathlib import Path
from typing import Any

from plusx import store
from plusx.evidence.claim import CLAIMS, PROTOCOLS, Claim


def known_accuracies(name: str, results: Path) -> dict[str, Any]:
    """Return {"published", "measured"}: each {accuracy, data, source}, or None if unknown.

    Published is 1 minus the error of a claim, preferably one that plusx can test. Measured is from
    a file in the folder `results`: of a recipe on its split, or of published weights on the test
    images.
    """
    return {"published": _published(name), "measured": _measured(name, results)}


def _published(name: str) -> dict[str, Any] | None:
    claims = [claim for claim in CLAIMS.values() if claim.network == name and _is_error(claim)]
    if not claims:
        return None
    # prefer a claim that plusx can test, then the shortest id
    claim = min(claims, key=lambda candidate: (bool(candidate.missing), len(candidate.id)))
    split = PROTOCOLS[claim.protocol].split
    return {
        "accuracy": round(1 - claim.value, 6),
        "data": f"{claim.data} {split}",
        "source": claim.source,
    }


def _is_error(claim: Claim) -> bool:
    return (
        claim.kind == "training"
        and claim.metric in ("test error", "validation error")
        and claim.side == "most"
        and not claim.against
        and not claim.overrides
    )


def _measured(name: str, results: Path) -> dict[str, Any] | None:
    if not results.is_dir():
        return None
    rows = []
    for path in sorted(results.glob("*.json")):
        try:
            content = store.read_json(path)
        except ValueError:
            continue
        rows += _rows(content, path.name, name) if isinstance(content, dict) else []
    # prefer test images, then the highest accuracy
    return max(rows, key=lambda row: ("test" in row["data"], row["accuracy"]), default=None)


def _rows(content: dict[str, Any], file: str, name: str) -> list[dict[str, Any]]:
    """Return the accuracies of the network in a file of results."""
    metric, value = content.get("metric"), content.get("value")
    if content.get("network") == name and isinstance(value, float) and isinstance(metric, str):
        if not metric.endswith(" accuracy"):
            return []
        recipe = str(content.get("name"))
        split = metric.removesuffix(" accuracy")
        return [{"accuracy": value, "data": f"{recipe} {split}", "source": file}]
    rows = content.get("rows")
    if content.get("data") != "cifar10, split test" or not isinstance(rows, list):
        return []
    return [
        {"accuracy": row["accuracy"], "data": "cifar10 test", "source": f"{file}, {row['source']}"}
        for row in rows
        if row.get("model") == name
    ]

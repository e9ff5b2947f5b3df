"""What accuracy is known of a network: published, and measured into a folder of results."""

from pathlib import Path
from typing import Any

from plusx import store
from plusx.evidence.claim import CLAIMS, PROTOCOLS, Claim


def known_accuracies(name: str, results: Path) -> dict[str, Any]:
    """Under "published" and "measured" {accuracy, data, source}, or None where nothing is known.

    Published is one less the error of the ledger of claims, of the first row that plusx could run.
    Measured is what a file of the folder `results` says: of a recipe, on its split, or of published
    weights, on the test images.
    """
    return {"published": _published(name), "measured": _measured(name, results)}


def _published(name: str) -> dict[str, Any] | None:
    found = [claim for claim in CLAIMS.values() if claim.network == name and _is_error(claim)]
    if not found:
        return None
    # of several, one that plusx can run, and of those the one without an ending
    claim = min(found, key=lambda each: (bool(each.missing), len(each.id)))
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
    found = []
    for path in sorted(results.glob("*.json")):
        try:
            kept = store.read_json(path)
        except ValueError:
            continue
        found += _rows(kept, path.name, name) if isinstance(kept, dict) else []
    # the test images before others, and of those the best weights
    return max(found, key=lambda each: ("test" in each["data"], each["accuracy"]), default=None)


def _rows(kept: dict[str, Any], file: str, name: str) -> list[dict[str, Any]]:
    """What a file of results says about the network."""
    metric, value = kept.get("metric"), kept.get("value")
    if kept.get("network") == name and isinstance(value, float) and isinstance(metric, str):
        if not metric.endswith(" accuracy"):
            return []
        recipe = str(kept.get("name"))
        split = metric.removesuffix(" accuracy")
        return [{"accuracy": value, "data": f"{recipe} {split}", "source": file}]
    rows = kept.get("rows")
    if kept.get("data") != "cifar10, split test" or not isinstance(rows, list):
        return []
    return [
        {"accuracy": row["accuracy"], "data": "cifar10 test", "source": f"{file}, {row['source']}"}
        for row in rows
        if row.get("model") == name
    ]

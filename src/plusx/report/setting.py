"""Where something was run, in the words of a report."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any


def setting(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Machine, system and versions from a run's environment; what is not known is left out."""
    cores = environment.get("cores")
    machine = [
        environment.get("processor"),
        cores and f"{cores} {'core' if cores == 1 else 'cores'}",
        environment.get("instructions"),
    ]
    if environment.get("device", "cpu") != "cpu":
        machine.insert(0, environment.get("device_name"))
    packages = ("plusx", "python", "torch", "torchvision", "numpy")
    versions = [f"{name} {environment[name]}" for name in packages if environment.get(name)]
    return [
        ("Machine", ", ".join(str(part) for part in machine if part)),
        ("System", str(environment.get("platform") or "")),
        ("Versions", ", ".join(versions)),
    ]


def moment(date: str) -> str:
    """A date of a file (ISO 8601) to the minute."""
    when = datetime.fromisoformat(date)
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip()

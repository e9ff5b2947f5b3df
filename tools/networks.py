"""The tables of networks in README.md and docs/networks.md, by arithmetic on the specs.

python tools/networks.py [main|image|cifar|sequence|volume]        Markdown; without a group: all
"""

import sys
from collections.abc import Sequence

from plusx.describe import list_networks
from plusx.zoo.cifar import CIFAR
from plusx.zoo.image import IMAGE
from plusx.zoo.sequence import SEQUENCE
from plusx.zoo.volume import VOLUME
from plusx.zoo.with_head import HEADED


GROUPS: dict[str, Sequence[str]] = {
    "main": (
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("preact_resnet50", "wide_resnet50_2", "resnext50_32x4d", "se_resnet50"),
        *("densenet121", "convnext_tiny", "vit_base_patch16_gap"),
        *("resnet20", "plain20", "resnet56", "plain56", "resnet110", "preact_resnet164"),
        *("wrn28_10", "resnext29_8x64d", "densenet_bc100_12", "highway19"),
        *("resnet18_1d", "vdcnn29", "r3d_18"),
    ),
    "image": tuple(IMAGE),
    "cifar": tuple(CIFAR),
    "sequence": tuple(SEQUENCE),
    "volume": tuple(VOLUME),
    "headed": tuple(HEADED),
}


def table(group: str | None = None) -> str:
    """The networks of a group, or all, as a Markdown table without a newline at its end."""
    rows = {row["name"]: row for row in list_networks()}
    lines = [
        "| network | parameters | MACs | layers | input | classes | source |",
        "|---|---:|---:|---:|---|---:|---|",
    ]
    for name in GROUPS[group] if group else rows:
        row = rows[name]
        size = " x ".join(map(str, row["input"]))
        lines.append(
            f"| `{name}` | {row['parameters']:,} | {row['multiply_adds']:,} | {row['depth']} "
            f"| {size} | {row['classes']:,} | {row['source']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    groups = sys.argv[1:]
    if len(groups) > 1 or not set(groups) <= set(GROUPS):
        sys.exit(f"usage: python tools/networks.py [{'|'.join(GROUPS)}]")
    print(table(*groups))

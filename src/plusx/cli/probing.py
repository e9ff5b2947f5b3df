"""The command that asks what a network's embeddings tell."""

import sys
from typing import Annotated, Any

from cyclopts import Parameter

from plusx.cli.shell import Device, Json, OnUnreadable, about, app, opened, print_json


@app.command(
    help_epilogue="Examples:\n  plusx probe runs/digits-resnet20\n"
    "  plusx probe runs/photos --data other-photos\n"
    "  plusx probe resnet18 --weights IMAGENET1K_V1 --data cifar10"
)
def probe(
    trained: Annotated[
        str, Parameter(name="RUN", help="A run's folder, a safetensors file, or a name.")
    ],
    /,
    *,
    weights: Annotated[
        str | None, about("With a network's name: its file, or the name of torchvision's weights.")
    ] = None,
    data: Annotated[str | None, about("Default: what the run was trained on.")] = None,
    split: Annotated[str, about("validation or test; a use of test is recorded.")] = "validation",
    neighbours: Annotated[int, about("That vote.")] = 20,
    images: Annotated[int, about("That are learned from at most.")] = 10_000,
    on_unreadable: OnUnreadable = "error",
    batch_size: Annotated[int, about("Images at a time.")] = 128,
    workers: Annotated[int, about("Processes that decode files.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Nearest neighbours and logistic regression on a network's embeddings: what they tell."""
    from plusx.run.probing import probe as probed

    result = probed(
        opened(trained, weights),
        data=data,
        split=split,
        neighbours=neighbours,
        images=images,
        batch_size=batch_size,
        workers=workers,
        device=device,
        on_unreadable=on_unreadable,
    )
    for notice in result.get("notices", ()):
        print(f"plusx: {notice}", file=sys.stderr)
    if as_json:
        print_json(result)
        return
    print(
        f"{result['data']} {result['split']}, {result['count']:,} images, by embeddings of "
        f"{result['width']:,} numbers, from {result['learned_from']:,} training images:"
    )
    nearest = f"{result['neighbours']['k']} nearest neighbours"
    print(f"  {nearest:24} {_line(result['neighbours'])}")
    print(f"  {'logistic regression':24} {_line(result['logistic'])}")


def _line(figures: dict[str, Any]) -> str:
    area = "" if figures["auroc"] is None else f", AUROC {figures['auroc']:.3f}"
    return f"accuracy {figures['accuracy']:.2%}, F1 {figures['f1']:.3f}{area}"

"""The command that writes ONNX files."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from plusx.cli.shell import Json, OnUnreadable, about, app, print_json, tell


@app.command(
    help_epilogue="Examples:\n  plusx export runs/photos --to photos.onnx\n"
    "  plusx export resnet50 --weights IMAGENET1K_V2 --to resnet50.onnx\n"
    "  plusx export runs/photos --int8 --to photos-int8.onnx\n"
    "  plusx export model.safetensors --int8 --data photos --to model-int8.onnx --json"
)
def export(
    trained: Annotated[
        str,
        Parameter(name="RUN", help="A run's folder, a safetensors file, or a network's name."),
    ],
    /,
    *,
    to: Annotated[Path, about("The .onnx file.")],
    weights: Annotated[
        str | None, about("With a network's name: its file, or the name of torchvision's weights.")
    ] = None,
    int8: Annotated[
        bool, Parameter(negative="", help="Eight bits, chosen on training and validation images.")
    ] = False,
    data: Annotated[
        str | None, about("Images for --int8: a set's name, a folder or a CSV. Default: the run's.")
    ] = None,
    on_unreadable: OnUnreadable = "error",
    as_json: Json = False,
) -> None:
    """Write an ONNX file, checked against torch, that `plusx predict` and others run."""
    from plusx.run.exporting import export_onnx

    result = export_onnx(
        trained, to, weights=weights, int8=int8, data=data, on_unreadable=on_unreadable, tell=tell
    )
    for notice in result["notices"]:
        print(f"plusx: {notice}", file=sys.stderr)
    if as_json:
        print_json(result)
        return
    sizes = " x ".join(map(str, result["input"]))
    print(f"{to}: {result['bytes']:,} bytes, inputs (n, {sizes})")
    print(
        f"  float32       logits differ from torch's by {result['error']:.2g} at most, "
        f"{result['allowed']:.2g} are allowed"
    )
    if int8:
        _print_eight_bits(result["int8"])


def _print_eight_bits(said: dict[str, Any]) -> None:
    kept = ", ".join(said["float_layers"]) or "none"
    print(f"  int8          {said['weights']}; activations {said['activations']}")
    print(f"  ranges        {said['calibration']}, of {said['images']:,} training images")
    print(f"  in float32    {kept}")
    print(f"  {'':13} {'float32':>12} {'int8':>12}")
    print(f"  {'bytes':13} {said['bytes_float32']:12,} {said['bytes']:12,}")
    print(f"  {'accuracy':13} {said['accuracy_float32']:12.2%} {said['accuracy']:12.2%}")
    print(f"  {'images':13} {said['count']:12,} {said['agreement']:12.2%} told alike")
    threads = "thread" if said["threads"] == 1 else "threads"
    print(f"  {'speed':13} {1:12.2f} {said['speed']:12.2f} ({said['threads']} {threads})")

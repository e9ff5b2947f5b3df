"""Commands that use what was trained."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from plusx.cli.shell import (
    Device,
    Json,
    OnUnreadable,
    TtaOption,
    about,
    app,
    command,
    figures_line,
    opened,
    print_json,
    run_name,
    tell,
)
from plusx.errors import UserError


@app.command(
    help_epilogue="Examples:\n  plusx evaluate runs/digits-resnet20\n"
    "  plusx evaluate runs/digits-resnet20 --split test\n"
    "  plusx evaluate resnet18 --weights IMAGENET1K_V1 --data imagenet/val"
)
def evaluate(
    trained: Annotated[
        str,
        Parameter(name="RUN", help="A run's folder, a safetensors or ONNX file, or a name."),
    ],
    /,
    *,
    weights: Annotated[
        str | None, about("With a network's name: its file, or the name of torchvision's weights.")
    ] = None,
    data: Annotated[
        str | None, about("digits, fashion-mnist, cifar10, cifar100, a folder or a CSV.")
    ] = None,
    split: Annotated[str, about("validation, test, train or all; a use of test is recorded.")] = (
        "validation"
    ),
    tta: TtaOption = None,
    on_unreadable: OnUnreadable = "error",
    batch_size: Annotated[int, about("Images at a time.")] = 128,
    workers: Annotated[int, about("Processes that decode files.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a run, or a network with weights: accuracy, precision, recall, F1 and more."""
    from plusx import run

    result = run.evaluate(
        opened(trained, weights),
        data=data,
        split=split,
        tta=tta,
        on_unreadable=on_unreadable,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    if as_json:
        print_json(result)
        return
    print(f"{result['data']} {result['split']}: {figures_line(result, result['metrics'])}")
    if result.get("per_class"):
        from plusx.report.metrics import class_rows

        _print_classes(class_rows(result))
    if "hd95" in result:
        print(f"\nClasses told or there alone, without an HD95: {result['hd95_missed']}")
    for notice in result.get("notices", ()):
        print(f"plusx: {notice}", file=sys.stderr)
    if "test_uses" in result:
        times = "once" if result["test_uses"] == 1 else f"{result['test_uses']} times"
        print(f"\nThis run has looked at the test set {times} (test_uses.jsonl).")


def _print_classes(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each class, with the figures that the task has of it."""
    from plusx.report.metrics import metric

    # what is neither a number nor an interval is for --json
    keys = [
        key
        for key in rows[0]
        if key != "label"
        and all(
            isinstance(row[key], int | float | None) or key.endswith("_interval") for row in rows
        )
        and any(row[key] is not None for row in rows)
    ]
    named = {"count": "images", "auroc_interval": "       of 95 %"}
    titles = [named.get(key) or f"{metric(key).title} {metric(key).unit}".strip() for key in keys]
    names = max(5, *(len(row["label"]) for row in rows))
    print(f"\n  {'class':{names}} " + " ".join(f"{title:>9}" for title in titles))
    for row in rows:
        cells = []
        for key, title in zip(keys, titles, strict=True):
            value = row[key]
            if isinstance(value, float):
                value = f"{value:.3f}"
            elif isinstance(value, int):
                value = f"{value:,}"
            elif isinstance(value, list):
                value = f"{value[0]:.3f} to {value[1]:.3f}"
            cells.append(f"{'none' if value is None else value:>{max(9, len(title))}}")
        print(f"  {row['label']:{names}} " + " ".join(cells))


def _print_predictions(rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    """A line for each image: its class, its labels, or what is where in it."""
    width = max(len(row["path"]) for row in rows)
    if "labels" in rows[0]:
        for row in rows:
            chances = sorted(zip(row["probabilities"], classes, strict=True), reverse=True)
            sure = ", ".join(f"{name} {chance:.1%}" for chance, name in chances if chance >= 0.5)
            likely = f"no label (the likeliest is {row['label']}, {row['probability']:.1%})"
            print(f"{row['path']:{width}}  {sure or likely}")
        return
    if "probability" in rows[0]:
        label = max(len(row["label"]) for row in rows)
        for row in rows:
            print(f"{row['path']:{width}}  {row['label']:{label}}  {row['probability']:7.2%}")
        return
    if "embedding" in rows[0]:
        for row in rows:
            print(f"{row['path']:{width}}  a vector of {len(row['embedding'])} (--json or --out)")
        return
    from plusx.report.seen import said

    for row in rows:
        print(f"{row['path']:{width}}  {said(row)}")


@app.command(
    help_epilogue="Examples:\n  plusx predict runs/photos holiday.jpg\n"
    "  plusx predict runs/photos new-photos --out answers --tta flip\n"
    "  plusx predict model.safetensors *.png --json\n"
    "  plusx predict model.onnx *.png"
)
def predict(
    trained: Annotated[
        str,
        Parameter(name="RUN", help="A run's folder, or a safetensors or ONNX file of plusx."),
    ],
    /,
    *paths: Annotated[str, about("Images, and folders of images.")],
    out: Annotated[
        Path | None,
        about("Where predictions.json and .csv go; masks and boxes are drawn there too."),
    ] = None,
    tta: TtaOption = None,
    batch_size: Annotated[int, about("Images at a time.")] = 64,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say what is on images: a class, or where what is. Files that cannot be used are named."""
    if not paths:
        raise UserError("predict: name images or folders of images")
    from plusx import run

    result = run.predict(
        opened(trained, None), paths, out=out, tta=tta, batch_size=batch_size, device=device
    )
    for each in result["failed"]:
        print(f"plusx: {each['path']}: {each['reason']}", file=sys.stderr)
    written = run.write_predictions(out, result) if out is not None else []
    if as_json:
        print_json(result)
        return
    _print_predictions(result["predictions"], result["classes"])
    for path in written:
        print(f"plusx: wrote {path}", file=sys.stderr)


@app.command(
    help_epilogue="Examples:\n  plusx explain runs/photos new-photos --out why\n"
    "  plusx explain runs/photos cat.jpg --class dog\n"
    "  plusx explain model.safetensors *.png --method occlusion --json"
)
def explain(
    trained: Annotated[
        str, Parameter(name="RUN", help="A run's folder or a safetensors file that plusx wrote.")
    ],
    /,
    *paths: Annotated[str, about("Images, and folders of images.")],
    out: Annotated[Path | None, about("The folder. Default: runs/explain- and the name.")] = None,
    method: Annotated[
        Literal["grad-cam", "integrated-gradients", "occlusion"],
        about("The latter two need the extra: pip install 'plusx[explain]'."),
    ] = "grad-cam",
    class_name: Annotated[
        str | None,
        Parameter(name="--class", help="Class to explain (default: the predicted class)."),
    ] = None,
    stage: Annotated[
        str | None,
        about("Layer to explain, for example layer2 (default: the last layer before pooling)."),
    ] = None,
    checked: Annotated[
        int, about("Images whose maps are tested for faithfulness; 0 for none.")
    ] = 32,
    seed: Annotated[int, about("Seed of random maps and shuffled weights.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Explain predictions by maps over the images, and test the maps for faithfulness."""
    if not paths:
        raise UserError("explain: name images or folders of images")
    folder = out or Path("runs") / f"explain-{run_name(Path(trained).resolve().name, ())}"
    from plusx.explain.explain import explain as explain_images

    result = explain_images(
        opened(trained, None),
        paths,
        folder,
        method=method,
        class_name=class_name,
        stage=stage,
        checked=checked,
        seed=seed,
        device=device,
        command=command(),
        progress=_seldom(tell),
    )
    for each in result["failed"]:
        print(f"plusx: {each['path']}: {each['reason']}", file=sys.stderr)
    if as_json:
        print_json({"out": str(folder), **result})
        return
    from plusx.explain.finding import explanation_text

    print(f"{explanation_text(result)}\n\n{folder / 'explain.html'}")


def _seldom(show: Callable[[str], None], seconds: float = 5) -> Callable[[str], None]:
    """A function that shows a line of progress if none was shown for so many seconds."""
    last = time.monotonic()

    def progress(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            show(line)

    return progress

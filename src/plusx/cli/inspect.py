"""Commands that show networks, recipes, reports, data sets and the machine."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from plusx.cli.shell import (
    INSPECT,
    Json,
    about,
    app,
    data_progress,
    print_json,
    terminal_width,
)
from plusx.errors import UserError


@app.command(
    group=INSPECT,
    help_epilogue="Examples:\n  plusx models\n  plusx models 'resnet*'\n  plusx models --json",
)
def models(
    pattern: Annotated[str, about("A shell pattern, in quotes so that the shell keeps it.")] = "*",
    /,
    *,
    as_json: Json = False,
) -> None:
    """List the networks of the zoo, with parameters and MACs (multiply-accumulates per input)."""
    from plusx.describe import list_networks

    rows = list_networks(pattern)
    if as_json:
        print_json({"models": rows})
        return
    width = max(len(row["name"]) for row in rows)
    print(f"{'name':{width}} {'parameters':>13} {'MACs':>16} {'depth':>5}  source")
    for row in rows:
        print(
            f"{row['name']:{width}} {row['parameters']:>13,} {row['multiply_adds']:>16,} "
            f"{row['depth']:>5}  {row['source']}"
        )


@app.command(
    group=INSPECT,
    help_epilogue="Examples:\n  plusx describe resnet50\n"
    "  plusx describe resnet20 num_classes=100 act=silu\n  plusx describe my-network.toml --json\n"
    "  plusx describe resnet50 --memory 4GB --batch-size 64",
)
def describe(
    model: Annotated[str, about("The name of a network, or a TOML file with a spec.")],
    /,
    *fields: Annotated[str, about("FIELD=VALUE changes a field: num_classes=100 act=silu ...")],
    memory: Annotated[
        str | None, about("Memory limit (4GB, 512MiB, 1.5GB): list the memory plans that fit.")
    ] = None,
    batch_size: Annotated[int | None, about("Batch size, with --memory. Default: 64.")] = None,
    as_json: Json = False,
) -> None:
    """Describe a network: its sentences, stages, parameters and MACs."""
    from plusx.describe import describe_memory, describe_network, description

    if memory is None and batch_size is not None:
        raise UserError("--batch-size needs --memory: give both, or neither")
    network = describe_network(model, fields)
    fits = None
    if memory is not None:
        fits = describe_memory(model, fields, memory, 64 if batch_size is None else batch_size)
    if as_json:
        print_json(network | (fits or {}))
        return
    print(description(network))
    if fits is not None:
        from plusx.zoo.memory_report import memory_text

        print(memory_text(fits))


@app.command(
    group=INSPECT,
    help_epilogue="Examples:\n  plusx report runs/digits-resnet20\n  plusx report demo",
)
def report(
    folder: Annotated[Path, Parameter(name="DIR", help="A finished run, comparison or study.")],
    /,
    *,
    as_json: Json = False,
) -> None:
    """Write report.html, which needs no network and no other file, into the folder of results."""
    from plusx.report import write_report

    written = write_report(folder)
    if as_json:
        print_json({"report": str(written)})
    else:
        print(written)


@app.command(group=INSPECT, help_epilogue="Examples:\n  plusx recipes\n  plusx recipes --json")
def recipes(*, as_json: Json = False) -> None:
    """List the recipes that come with plusx, each with its first sentence."""
    from plusx.shipped import summaries

    rows = summaries()
    if as_json:
        print_json({"recipes": rows})
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:{width}}  {row['summary']}")


@app.command(
    group=INSPECT,
    help_epilogue="Examples:\n  plusx info photos\n  plusx info photos.csv --out photos.html\n"
    "  plusx info BCCD --json\n  plusx info digits\n  plusx info",
)
def info(
    path: Annotated[
        str | None,
        about("A folder or file with data, or the name of a data set. Default: this machine."),
    ] = None,
    /,
    *,
    kind: Annotated[
        str | None,
        about("Read the path as this kind: folder, csv, coco ... (default: the likeliest)."),
    ] = None,
    out: Annotated[
        Path | None, about("Write a page with charts and examples: a file, or a folder for it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a data set: kind, splits, classes, sizes, problems, and the command that trains on it;
    without a path, this machine: versions, devices, folders of data.
    """
    if path is None:
        if kind is not None or out is not None:
            raise UserError("--kind and --out are about data: name it, as in plusx info photos")
        _machine(as_json)
        return
    from plusx.data.summaries import content_stamp, read_summary
    from plusx.report.inspection import inspection_text

    values = None if out is not None else read_summary(path, kind, content_stamp(path))
    if values is None:
        from plusx.run.inspecting import inspect

        with data_progress():
            values = inspect(path, out, kind)
    if as_json:
        print_json(values)
        return
    print(inspection_text(values, terminal_width()))
    if "page" in values:
        print(f"\npage:\n  {values['page']}")


def _machine(as_json: bool) -> None:
    import torch

    from plusx.data.sets.download import data_folders
    from plusx.run.environment import environment
    from plusx.shipped import shipped_recipes
    from plusx.tasks.prepare import find_device

    values = {
        **environment(find_device("auto")),
        "data": [{"path": str(folder), "there": folder.is_dir()} for folder in data_folders()],
        "recipes": shipped_recipes(),
        "cuda": torch.version.cuda,
    }
    if as_json:
        print_json(values)
        return
    for key, value in values.items():
        if key == "data":
            value = ", ".join(
                f"{folder['path']}{'' if folder['there'] else ' (none)'}" for folder in value
            )
        elif key == "cuda":
            value = f"{value} (of this build of torch)" if value else "none (torch without it)"
        elif isinstance(value, list):
            value = ", ".join(value)
        print(f"{key:16} {value}")

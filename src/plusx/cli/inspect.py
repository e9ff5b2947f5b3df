"""Commands that show what there is: recipes, networks, results, this machine."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from plusx.cli.shell import (
    INSPECT,
    Json,
    about,
    app,
    print_json,
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
        str | None, about("Which memory plan trains within this: 4GB, 512MiB, 1.5GB.")
    ] = None,
    batch_size: Annotated[int | None, about("Batch size, with --memory. Default: 64.")] = None,
    as_json: Json = False,
) -> None:
    """Describe a network: its sentences, stages, parameters and MACs."""
    from plusx.describe import describe_memory, describe_network, description

    if memory is None and batch_size is not None:
        raise UserError(
            "--batch-size is the number of images that are to fit into --memory: give both"
        )
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


@app.command(group=INSPECT, help_epilogue="Examples:\n  plusx info\n  plusx info --json")
def info(*, as_json: Json = False) -> None:
    """Show versions, devices, recipes, and the folders that are searched for data."""
    import torch

    from plusx.data.sets.download import places
    from plusx.run.environment import environment
    from plusx.shipped import shipped_recipes
    from plusx.tasks.prepare import find_device

    values = {
        **environment(find_device("auto")),
        "data": [{"path": str(place), "there": place.is_dir()} for place in places()],
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
        elif isinstance(value, list):
            value = ", ".join(value)
        print(f"{key:16} {value}")

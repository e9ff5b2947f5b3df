"""Commands about networks and their weights."""

from typing import Annotated

from cyclopts import Parameter

from plusx.cli.shell import Json, about, app, print_json
from plusx.errors import UserError


@app.command(
    help_epilogue="Examples:\n  plusx models\n  plusx models 'resnet*'\n  plusx models --json"
)
def models(
    pattern: Annotated[str, about("A shell pattern, in quotes so that the shell keeps it.")] = "*",
    /,
    *,
    as_json: Json = False,
) -> None:
    """List the networks that plusx knows, with their parameters and multiply-adds."""
    from plusx.describe import list_networks

    rows = list_networks(pattern)
    if as_json:
        print_json({"models": rows})
        return
    width = max(len(row["name"]) for row in rows)
    print(f"{'name':{width}} {'parameters':>13} {'multiply-adds':>16} {'depth':>5}  source")
    for row in rows:
        print(
            f"{row['name']:{width}} {row['parameters']:>13,} {row['multiply_adds']:>16,} "
            f"{row['depth']:>5}  {row['source']}"
        )


@app.command(
    help_epilogue="Examples:\n  plusx describe resnet50\n"
    "  plusx describe resnet20 num_classes=100 act=silu\n  plusx describe my-network.toml --json\n"
    "  plusx describe resnet50 --memory 4GB --batch 64"
)
def describe(
    model: Annotated[str, about("The name of a network, or a TOML file with a spec.")],
    /,
    *fields: Annotated[str, about("FIELD=VALUE changes a field: num_classes=100 act=silu ...")],
    memory: Annotated[
        str | None, about("Say which plan trains in this: 4GB, 512MiB, 1.5GB.")
    ] = None,
    batch: Annotated[int | None, about("Images at a time, with --memory. Default: 64.")] = None,
    as_json: Json = False,
) -> None:
    """Describe a network: its sentences, its stages and what it costs, by arithmetic."""
    from plusx.describe import describe_memory, describe_network, description

    if memory is None and batch is not None:
        raise UserError("--batch says how many images are to fit into --memory: give both")
    found = describe_network(model, fields)
    fits = None
    if memory is not None:
        fits = describe_memory(model, fields, memory, 64 if batch is None else batch)
    if as_json:
        print_json(found | (fits or {}))
        return
    print(description(found))
    if fits is not None:
        from plusx.zoo.fits import fitting

        print(fitting(fits))


@app.command(
    help_epilogue="Examples:\n"
    "  plusx convert resnet20.th --as resnet20 --source akamaster --to resnet20.safetensors"
)
def convert(
    file: Annotated[str, Parameter(name="FILE", help="What another library wrote.")],
    /,
    *,
    model: Annotated[str, Parameter(name="--as", help="The network that it is for.")],
    source: Annotated[str, about("akamaster, torchvision, timm or keras.")],
    to: Annotated[str, about("The safetensors file to write.")],
    as_json: Json = False,
) -> None:
    """Turn another library's weights into a safetensors file of ours."""
    from plusx.weights import convert as convert_weights

    done = convert_weights(file, model, source, to)
    if as_json:
        print_json(
            {
                "to": str(done.to),
                "model": done.model,
                "source": done.source,
                "tensors": done.tensors,
                "parameters": done.parameters,
                "num_classes": done.num_classes,
                "preprocessing": done.preprocessing,
                "classes": None if done.classes is None else list(done.classes),
            }
        )
        return
    print(
        f"{done.to}: {done.model or model} from {done.source}, {done.tensors} tensors, "
        f"{done.parameters:,} parameters, {done.num_classes:,} classes"
    )

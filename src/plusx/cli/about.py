"""Commands about results and about this machine."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from plusx.cli.shell import Json, app, print_json


@app.command(help_epilogue="Examples:\n  plusx report runs/digits-resnet20\n  plusx report demo")
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


@app.command(help_epilogue="Examples:\n  plusx info\n  plusx info --json")
def info(*, as_json: Json = False) -> None:
    """Show versions, devices, recipes, and where data is looked for."""
    import torch

    from plusx.data.sets.download import places
    from plusx.recipe import shipped_recipes
    from plusx.run.environment import environment
    from plusx.tasks.prepare import find_device

    found = {
        **environment(find_device("auto")),
        "data": [{"path": str(place), "there": place.is_dir()} for place in places()],
        "recipes": shipped_recipes(),
        "cuda": torch.version.cuda,
    }
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        if key == "data":
            value = ", ".join(
                f"{each['path']}{'' if each['there'] else ' (none)'}" for each in value
            )
        elif isinstance(value, list):
            value = ", ".join(value)
        print(f"{key:16} {value}")

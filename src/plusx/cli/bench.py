"""What networks cost on this machine. `plusx bench memory` is about their memory alone."""

from typing import Annotated

from cyclopts import App

from plusx.cli.shell import Json, about, app, print_json


bench = App(
    name="bench",
    help_format="plaintext",
    help_epilogue="Examples:\n  plusx bench\n  plusx bench resnet20 resnet56 --json",
    version_flags=(),
)
app.command(bench)


@bench.default
def networks(
    *names: Annotated[str, about("Names of networks.")],
    as_json: Json = False,
) -> None:
    """Measure networks on this machine."""
    from plusx.describe import list_networks

    rows = [row for name in names or ("resnet20",) for row in list_networks(name)]
    if as_json:
        print_json({"rows": rows})
        return
    for row in rows:
        print(f"{row['name']} {row['parameters']:,} {row['multiply_adds']:,}")

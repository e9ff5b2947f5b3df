"""What networks cost on this machine. `plusx bench memory` is about their memory alone."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from plusx.cli.shell import (
    Device,
    Json,
    about,
    app,
    command,
    print_json,
    tell,
    terminal_width,
)


bench = App(
    name="bench",
    help_format="plaintext",
    help_epilogue="Examples:\n  plusx bench\n  plusx bench resnet20 resnet56 wrn16_4 --batch 128\n"
    "  plusx bench resnet18 resnet50 --size 160 --threads 1 --json",
    version_flags=(),
)
app.command(bench)


@bench.default
def networks(
    *names: Annotated[str, about("Names of networks. Default: ResNet-20 to 56 of CIFAR.")],
    size: Annotated[int | None, about("Pixels a side. Default: each network's own.")] = None,
    batch: Annotated[int, about("Images at a time, for throughput and training.")] = 32,
    threads: Annotated[int, about("Of the CPU; 0 is torch's choice.")] = 0,
    device: Device = "auto",
    seconds: Annotated[float, about("Of measuring, for each network.")] = 5.0,
    out: Annotated[Path, about("The folder of bench.json and bench.html.")] = Path("runs/bench"),
    results: Annotated[Path, about("The folder that measured accuracies are in.")] = Path(
        "results"
    ),
    as_json: Json = False,
) -> None:
    """Measure networks on this machine: time for an image, images a second, training and memory."""
    from plusx.bench.bench import bench as measured

    result = measured(
        names,
        out,
        size=size,
        batch=batch,
        threads=threads,
        device=device,
        seconds=seconds,
        results=results,
        command=command(),
        tell=tell,
    )
    if as_json:
        print_json({"out": str(out), **result})
    else:
        from plusx.report.bench import columns, flat, sources
        from plusx.report.text_table import rows_table

        rows = result["rows"]
        print(rows_table(columns(rows, batch), [flat(row) for row in rows], terminal_width()))
        print("\n".join(["", *sources(rows), result["finding"]]))
        print(f"\n{out / 'bench.html'}")
    if result["stopped_by"] is not None:
        from plusx.bench.bench import Stopped

        raise Stopped(result["stopped_by"], result["rounds"])


@bench.command(
    help_epilogue="Examples:\n  plusx bench memory\n  plusx bench memory resnet20 --family\n"
    "  plusx bench memory resnet50 densenet121 --size 128 --batch 4 --json"
)
def memory(
    *networks: Annotated[
        str, about("Names, or patterns of names. Default: some of CIFAR, and reversible ones.")
    ],
    family: Annotated[
        bool, Parameter(negative="", help="Each network in all depths that the zoo has.")
    ] = False,
    size: Annotated[int | None, about("Pixels a side. Default: each network's own.")] = None,
    batch: Annotated[int, about("Images at a time.")] = 8,
    count_only: Annotated[
        bool,
        Parameter(negative="", help="Measure no memory of fresh processes beside, which is slow."),
    ] = False,
    out: Annotated[Path, about("The folder of memory.json and memory.html.")] = Path(
        "runs/bench-memory"
    ),
    as_json: Json = False,
) -> None:
    """Count what training holds for the backward pass, by every plan that keeps less."""
    from plusx.bench.memory import memory as counted

    result = counted(
        networks,
        out,
        families=family,
        size=size,
        batch=batch,
        resident=not count_only,
        command=command(),
        tell=tell,
    )
    if as_json:
        print_json({"out": str(out), **result})
        return
    from plusx.report.memory import COLUMNS, flat
    from plusx.report.text_table import rows_table

    print(rows_table(COLUMNS, [flat(row) for row in result["rows"]], terminal_width()))
    print(f"\n{result['finding']}\n\n{out / 'memory.html'}")

"""Commands for research: studies, claims, tables of papers, benchmarks."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from plusx.cli.shell import (
    RESEARCH,
    Device,
    Json,
    Overrides,
    about,
    app,
    command,
    output_folder,
    print_excluded,
    print_json,
    print_line,
    run_name,
    terminal_width,
)
from plusx.errors import UserError


@app.command(
    group=RESEARCH,
    help_epilogue="Examples:\n  plusx study\n  plusx study degradation --out degradation\n"
    "  plusx study degradation data.kind=cifar10 study.depths=[20,32,44]",
)
def study(
    recipe: Annotated[
        str | None, about("A recipe with a table [study]. Without it, all studies are listed.")
    ] = None,
    /,
    *overrides: Overrides,
    out: Annotated[Path | None, output_folder("Folder (default: runs/study-NAME).")] = None,
    jobs: Annotated[int | None, about("Trials at a time (default: one per core).")] = None,
    as_json: Json = False,
) -> None:
    """Run a study: many trials, their measurements, tables and charts in report.html."""
    if recipe is None:
        from plusx.study.catalogue import EXPERIMENTS

        if as_json:
            print_json(
                {"studies": [{"kind": k, "question": s.question} for k, s in EXPERIMENTS.items()]}
            )
            return
        width = max(map(len, EXPERIMENTS))
        for kind, experiment in EXPERIMENTS.items():
            print(f"{kind:{width}}  {experiment.question}")
        return
    from plusx.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    folder = out or Path("runs") / f"study-{run_name(recipe, overrides)}"
    from plusx.study.runner import study as make_study

    result = make_study(loaded, folder, jobs=jobs, command=command())
    if as_json:
        print_json({"out": str(folder), **result})
        return
    from plusx.report.text_table import study_tables

    print(study_tables(result, terminal_width()))
    print_excluded(result["marked"])
    print(f"\n{result['finding']}\n\n{folder / 'report.html'}")


@app.command(
    group=RESEARCH,
    help_epilogue="Examples:\n  plusx claims\n  plusx claims 'error-*-cifar10'\n"
    "  plusx claims 'erratum-*' --json\n  plusx claims --kind property",
)
def claims(
    pattern: Annotated[str, about("A claim's name or a shell pattern in quotes.")] = "*",
    /,
    *,
    kind: Annotated[str | None, about("arithmetic, property or training.")] = None,
    results: Annotated[Path, about("Folder of results.")] = Path("results"),
    as_json: Json = False,
) -> None:
    """List claims of the literature, with the verdict of those that were tested."""
    from plusx.evidence.ledger import ledger, ledger_table

    rows = ledger(pattern, kind, results)
    if not results.exists():
        print_line(f"there is no folder {results}: nothing was tested (--results names another)")
    if as_json:
        print_json({"claims": rows})
    else:
        print(ledger_table(rows, terminal_width()))


@app.command(
    group=RESEARCH,
    help_epilogue="Examples:\n  plusx reproduce parameters-resnet110\n"
    "  plusx reproduce gradient-identity\n  plusx reproduce 'erratum-*'\n"
    "  plusx reproduce error-resnet20-cifar10 --quick\n"
    "  plusx reproduce convergence-digits --seeds 10\n"
    "  plusx reproduce error-resnet20-cifar10 --decide --budget 48",
)
def reproduce(
    claim: Annotated[str, Parameter(name="CLAIM", help="A claim's name or a pattern in quotes.")],
    /,
    *,
    quick: Annotated[
        bool,
        Parameter(negative="", help="Run a smaller version; the result says what is smaller."),
    ] = False,
    seeds: Annotated[
        int | None,
        about("Number of seeds, 2 or more (default: 5 if they take a core-hour or less, else 3)."),
    ] = None,
    decide: Annotated[
        bool,
        Parameter(negative="", help="Add seeds until the claim is decided (at most 30)."),
    ] = False,
    budget: Annotated[float | None, about("Hours that --decide may take.")] = None,
    kind: Annotated[str | None, about("With a pattern: only claims of this kind.")] = None,
    out: Annotated[Path, output_folder("Folder whose claims.json keeps the result.")] = Path(
        "results"
    ),
    work: Annotated[Path, about("Folder of the training runs, which claims share.")] = Path(
        "runs/claims"
    ),
    as_json: Json = False,
) -> None:
    """Test a claim: PASS, MISS, IN PART or INCONCLUSIVE, and the distance from the paper.

    It prints the chance that an exact reproduction passes before it trains.
    """
    from plusx.evidence.ledger import select_claims

    names, several = select_claims(claim, kind)
    from plusx.evidence.reproduce import record_text, reproduce_all
    from plusx.evidence.reproduce import reproduce as reproduce_one

    if not several:
        record = reproduce_one(
            names[0],
            quick=quick,
            seeds=seeds,
            decide=decide,
            budget=budget,
            out=out,
            work=work,
            command=command(),
            progress=print_line,
        )
        if as_json:
            print_json(record)
        else:
            print(record_text(record))
        return
    results = reproduce_all(
        names,
        quick=quick,
        seeds=seeds,
        decide=decide,
        budget=budget,
        out=out,
        work=work,
        progress=print_line,
    )
    if as_json:
        print_json(results)
    else:
        print("\n".join(record_text(record) for record in results["claims"]))
    if results["failed"]:
        raise RuntimeError(
            f"{len(results['failed'])} of {len(names)} claims could not be tested: "
            + "; ".join(
                f"{failure['id']}: {failure['reason']}" for failure in results["failed"][:3]
            )
        )


@app.command(
    group=RESEARCH,
    name="check-tables",
    help_epilogue="Examples:\n  plusx check-tables tables.toml\n"
    "  plusx check-tables runs/study-tables/tables.toml --json",
)
def check_tables(
    file: Annotated[Path, Parameter(name="FILE", help="Tables in TOML, see docs/studies.md.")],
    /,
    *,
    as_json: Json = False,
) -> None:
    """Check tables about networks for contradictions: rounding, averages, units, counts, speed."""
    from plusx.study.consistency import check, confirm
    from plusx.study.printed import read_tables

    tables = read_tables(file)
    try:
        complaints, confirmations = check(tables), confirm(tables)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if as_json:
        print_json(
            {
                "file": str(file),
                "complaints": [asdict(complaint) for complaint in complaints],
                "consistent": [asdict(confirmation) for confirmation in confirmations],
            }
        )
    else:
        print("\n".join(map(str, complaints)) or f"{file}: no contradictions")
        if confirmations:
            print("\nconsistent:", *(f"  {line}" for line in confirmations), sep="\n")
    if complaints:
        raise RuntimeError(
            f"{file}: {len(complaints)} contradiction{'' if len(complaints) == 1 else 's'}"
        )


bench = App(
    name="bench",
    group=RESEARCH,
    help_format="plaintext",
    help_epilogue="Examples:\n  plusx bench\n  plusx bench resnet20 resnet56 wrn16_4 "
    "--batch-size 128\n"
    "  plusx bench resnet18 resnet50 --size 160 --threads 1 --json",
    version_flags=(),
)
app.command(bench)


@bench.default
def networks(
    *names: Annotated[str, about("Names of networks (default: ResNet-20 to 56 of CIFAR).")],
    size: Annotated[int | None, about("Pixels per side (default: each network's own).")] = None,
    batch_size: Annotated[int, about("Batch size, for throughput and training.")] = 32,
    threads: Annotated[int, about("CPU threads (0: torch's choice).")] = 0,
    device: Device = "auto",
    seconds: Annotated[float, about("Seconds of measuring for each network.")] = 5.0,
    out: Annotated[Path, output_folder("Folder of bench.json and bench.html.")] = Path(
        "runs/bench"
    ),
    results: Annotated[Path, about("Folder of measured accuracies.")] = Path("results"),
    as_json: Json = False,
) -> None:
    """Measure networks on this machine: latency, throughput, training steps and memory."""
    from plusx.bench.bench import bench as measure

    result = measure(
        names,
        out,
        size=size,
        batch=batch_size,
        threads=threads,
        device=device,
        seconds=seconds,
        results=results,
        command=command(),
        progress=print_line,
    )
    if as_json:
        print_json({"out": str(out), **result})
    else:
        from plusx.bench.bench import columns, flat, sources
        from plusx.report.text_table import rows_table

        rows = result["rows"]
        print(rows_table(columns(rows, batch_size), [flat(row) for row in rows], terminal_width()))
        print("\n".join(["", *sources(rows), result["finding"]]))
        print(f"\n{out / 'bench.html'}")
    if result["stopped_by"] is not None:
        from plusx.bench.bench import Stopped

        raise Stopped(result["stopped_by"], result["rounds"])


@bench.command(
    help_epilogue="Examples:\n  plusx bench memory\n  plusx bench memory resnet20 --family\n"
    "  plusx bench memory resnet50 densenet121 --size 128 --batch-size 4 --json"
)
def memory(
    *networks: Annotated[
        str, about("Names or patterns (default: some networks of CIFAR, and reversible ones).")
    ],
    family: Annotated[
        bool, Parameter(negative="", help="Include every depth of each network's family.")
    ] = False,
    size: Annotated[int | None, about("Pixels per side (default: each network's own).")] = None,
    batch_size: Annotated[int, about("Batch size.")] = 8,
    count_only: Annotated[
        bool,
        Parameter(
            negative="", help="Do not measure the memory of fresh processes too, which is slow."
        ),
    ] = False,
    out: Annotated[Path, output_folder("Folder of memory.json and memory.html.")] = Path(
        "runs/bench-memory"
    ),
    as_json: Json = False,
) -> None:
    """Count the bytes saved for the backward pass, under every memory plan."""
    from plusx.bench.memory import memory as count

    result = count(
        networks,
        out,
        families=family,
        size=size,
        batch=batch_size,
        resident=not count_only,
        command=command(),
        progress=print_line,
    )
    if as_json:
        print_json({"out": str(out), **result})
        return
    from plusx.bench.memory import COLUMNS, flat
    from plusx.report.text_table import rows_table

    print(rows_table(COLUMNS, [flat(row) for row in result["rows"]], terminal_width()))
    print(f"\n{result['finding']}\n\n{out / 'memory.html'}")

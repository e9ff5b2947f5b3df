"""Commands that hold what was written against what is so."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from plusx.cli.shell import Json, about, app, command, print_json, tell, terminal_width


@app.command(
    help_epilogue="Examples:\n  plusx claims\n  plusx claims 'error-*-cifar10'\n"
    "  plusx claims 'erratum-*' --json\n  plusx claims --kind property"
)
def claims(
    pattern: Annotated[str, about("A claim's name or a shell pattern in quotes.")] = "*",
    /,
    *,
    kind: Annotated[str | None, about("arithmetic, property or training.")] = None,
    results: Annotated[Path, about("The folder with what is known of them.")] = Path("results"),
    as_json: Json = False,
) -> None:
    """List what the literature claims, with what came out where it was run."""
    from plusx.evidence.ledger import ledger, ledger_table

    rows = ledger(pattern, kind, results)
    if as_json:
        print_json({"claims": rows})
    else:
        print(ledger_table(rows, terminal_width()))


@app.command(
    help_epilogue="Examples:\n  plusx reproduce parameters-resnet110\n"
    "  plusx reproduce gradient-identity\n  plusx reproduce 'erratum-*'\n"
    "  plusx reproduce error-resnet20-cifar10 --quick"
)
def reproduce(
    claim: Annotated[str, Parameter(name="CLAIM", help="A claim's name, or a pattern of several.")],
    /,
    *,
    quick: Annotated[
        bool,
        Parameter(negative="", help="A smaller version, which says in what it is smaller."),
    ] = False,
    kind: Annotated[str | None, about("With a pattern: only claims of this kind.")] = None,
    out: Annotated[Path, about("The folder whose claims.json keeps the result.")] = Path("results"),
    work: Annotated[Path, about("The folder of the runs it takes, which claims share.")] = Path(
        "runs/claims"
    ),
    as_json: Json = False,
) -> None:
    """Run a claim against its number: PASS, MISS or INCONCLUSIVE, and the distance."""
    from plusx.evidence.ledger import chosen

    names, several = chosen(claim, kind)
    from plusx.evidence.reproduce import described, reproduce_all
    from plusx.evidence.reproduce import reproduce as reproduce_one

    if not several:
        record = reproduce_one(
            names[0], quick=quick, out=out, work=work, command=command(), progress=tell
        )
        if as_json:
            print_json(record)
        else:
            print(described(record))
        return
    found = reproduce_all(names, quick=quick, out=out, work=work, progress=tell)
    if as_json:
        print_json(found)
    else:
        print("\n".join(described(record) for record in found["claims"]))
    if found["failed"]:
        raise RuntimeError(
            f"{len(found['failed'])} of {len(names)} claims could not be run: "
            + "; ".join(f"{each['id']}: {each['reason']}" for each in found["failed"][:3])
        )


@app.command(
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
    """Check whether tables about networks can be true: rounding, averages, units and counts."""
    from plusx.study.consistency import check, described
    from plusx.study.printed import read_tables

    tables = read_tables(file)
    found = check(tables)
    if as_json:
        print_json({"file": str(file), "complaints": [described(each) for each in found]})
    else:
        print("\n".join(map(str, found)) or f"{file}: nothing contradicts anything else")
    if found:
        raise RuntimeError(
            f"{file}: {len(found)} {'figure or row' if len(found) == 1 else 'figures or rows'} "
            "cannot be as printed"
        )

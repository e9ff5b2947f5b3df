"""The command line. Each command imports what it needs when it runs, so that help, `models` and
`describe` answer at once; a result goes to standard output, all else to standard error.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Parameter

import plusx


app = App(
    name="plusx",
    help="Residual learning, y = F(x) + x: build, train, compare, evaluate and use networks.",
    help_format="plaintext",
    version=plusx.__version__,
)
app["--help"].group = app["--version"].group = "Other"

Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print one JSON object and nothing else.")
]
Out = Annotated[Path | None, Parameter(name="--out")]


@app.command
def models(pattern: str = "*", /, *, as_json: Json = False) -> None:
    """List the networks that plusx knows, with their parameters and multiply-adds.

    Examples:
        plusx models
        plusx models 'resnet*'
        plusx models '*110*' --json

    Parameters
    ----------
    pattern
        A shell pattern of names, in quotes so that the shell leaves it alone.
    """
    from plusx.describe import list_networks

    rows = list_networks(pattern)
    if as_json:
        return _print_json({"models": rows})
    width = max(len(row["name"]) for row in rows)
    print(f"{'name':{width}} {'parameters':>13} {'multiply-adds':>16} {'depth':>5}  source")
    for row in rows:
        print(
            f"{row['name']:{width}} {row['parameters']:>13,} {row['multiply_adds']:>16,} "
            f"{row['depth']:>5}  {row['source']}"
        )


@app.command
def describe(model: str, /, *fields: str, as_json: Json = False) -> None:
    """Describe a network: its sentences, its stages and what it costs, by arithmetic.

    Examples:
        plusx describe resnet50
        plusx describe resnet20 num_classes=100 act=silu
        plusx describe my-network.toml --json

    Parameters
    ----------
    model
        The name of a network, or a TOML file with a spec.
    fields
        FIELD=VALUE changes a field of the network: num_classes, in_channels, size, norm, act ...
    """
    from plusx.describe import describe_network, description

    found = describe_network(model, fields)
    if as_json:
        return _print_json(found)
    print(description(found))


def main() -> NoReturn:
    """Run the command that the shell gave, and exit with a documented code (docs/exit-codes.md)."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    code = _run([argument for argument in arguments if argument != "--debug"], debug=debug)
    try:
        sys.stdout.flush()
    except OSError:
        code = _stdout_closed()
    raise SystemExit(code)


def _run(arguments: list[str], *, debug: bool) -> int:
    """Run one command; the exit code that it earned."""
    try:
        app(arguments, exit_on_error=False, print_error=False, help_on_error=False)
    except BrokenPipeError:
        return _stdout_closed()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (CycloptsError, ValueError) as error:
        if debug and not isinstance(error, CycloptsError):
            raise
        return _fail(str(error), 2)
    except Exception as error:
        if debug:
            raise
        stopped_by = getattr(error, "signal_number", None)
        if stopped_by is not None:
            return _fail(str(error), 128 + stopped_by)
        known = isinstance(error, RuntimeError | OSError | ArithmeticError | MemoryError)
        name = "" if known and str(error) else f"{type(error).__name__}: "
        return _fail(f"{name}{error}", 1)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"plusx: {' '.join(message.split())}", file=sys.stderr)
    return code


def _stdout_closed() -> int:
    """Who read our output has left, as `head` does: what is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _print_json(result: dict[str, Any]) -> None:
    import json

    print(json.dumps(result, ensure_ascii=True, allow_nan=False))

"""The command line. A command imports what it needs when it runs, so that help, `models` and
`describe` answer at once. Results go to standard output, all else to standard error.
"""

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from types import FrameType
from typing import NoReturn, TextIO

from cyclopts import CycloptsError

from plusx.cli import inspect, research, train, use
from plusx.cli.shell import app
from plusx.errors import UserError


__all__ = ["app", "inspect", "main", "research", "run", "train", "use"]


# fields of a recipe that are often given as options
OVERRIDES = ("epochs", "steps", "seed", "batch_size", "lr", "data", "net", "optim")


class _Terminated(BaseException):
    """SIGTERM came while nothing was there to be saved."""


def main() -> NoReturn:
    """Run the command that the shell gave, and exit with a documented code (docs/exit-codes.md)."""
    signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = _warn
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        code = _stdout_closed()
    raise SystemExit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command, and say what is wrong in one line; the exit code that it earned."""
    debug = "--debug" in arguments
    try:
        app(
            [argument for argument in arguments if argument != "--debug"],
            exit_on_error=False,
            print_error=False,
            help_on_error=False,
            result_action="return_value",
        )
    except BrokenPipeError:
        return _stdout_closed()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except _Terminated:
        return _fail("terminated", 143)
    except CycloptsError as error:
        return _fail(f"{error}{_override_hint(arguments)}", 2)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        stopped_by = getattr(error, "signal_number", None)
        if stopped_by is not None:
            return _fail(str(error), 128 + stopped_by)
        known = isinstance(error, ValueError | RuntimeError | OSError | FloatingPointError)
        name = "" if known and str(error) else f"{type(error).__name__}: "
        return _fail(f"{name}{error}", 2 if isinstance(error, UserError) else 1)
    return 0


def _override_hint(arguments: Sequence[str]) -> str:
    """How to write a field of a recipe that was given as an option: epochs=5 for --epochs 5."""
    if arguments[:1] not in (["train"], ["compare"], ["study"]):
        return ""
    for option, value in pairwise([*arguments, "VALUE"]):
        name, given, text = option.removeprefix("--").replace("-", "_").partition("=")
        if option.startswith("--") and name in OVERRIDES:
            return (
                f"; a recipe's field is written without dashes: {name}={text if given else value}"
            )
    return ""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"plusx: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str, code: int) -> int:
    print(f"plusx: {' '.join(message.split())}", file=sys.stderr)
    return code


def _stdout_closed() -> int:
    """Who read our output has left, as `head` does: what is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141

"""The command line. Results go to standard output, everything else to standard error.

Each command imports what it needs when it runs, so that help, `models` and `describe` are fast.
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

from plusx.cli import inspect, listen, research, robustness, stream, train, tune, use
from plusx.cli.shell import app
from plusx.errors import UserError, printable


__all__ = [
    "app",
    "inspect",
    "listen",
    "main",
    "research",
    "robustness",
    "run",
    "stream",
    "train",
    "tune",
    "use",
]


# fields of a recipe that are often given as options
OVERRIDES = ("epochs", "steps", "seed", "batch_size", "lr", "data", "net", "optim")


class _Terminated(BaseException):
    """SIGTERM arrived outside a training."""


def main() -> NoReturn:
    """Run the command line, and exit with a code of docs/exit-codes.md."""
    signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = _warn
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        code = _stdout_closed()
    raise SystemExit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; an error is printed in one line."""
    debug = "--debug" in arguments
    if ("--out", "") in pairwise(arguments) or "--out=" in arguments:
        return _fail("--out is empty: name a file or a folder", 2)
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
        return _fail(_override_given_as_option(arguments) or str(error), 2)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        stopped_by = getattr(error, "signal_number", None)
        if stopped_by is not None:
            return _fail(str(error), 128 + stopped_by)
        has_message = isinstance(error, ValueError | RuntimeError | OSError | FloatingPointError)
        name = "" if has_message and str(error) else f"{type(error).__name__}: "
        text = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{error.filename}: {error.strerror}"  # without the number of the error
        return _fail(f"{name}{text}", 2 if isinstance(error, UserError) else 1)
    return 0


def _override_given_as_option(arguments: Sequence[str]) -> str:
    """Return the error for a recipe field that is given as an option (--epochs 5), else ""."""
    if arguments[:1] not in (["train"], ["compare"], ["study"], ["stream"], ["tune"]):
        return ""
    for option, value in pairwise([*arguments, "VALUE"]):
        name, equals, text = option.removeprefix("--").replace("-", "_").partition("=")
        if option.startswith("--") and name in OVERRIDES:
            override = f"{name}={text if equals else value}"
            return f"{option.partition('=')[0]} is a field of the recipe: write {override}"
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
    print(f"plusx: warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)


def _fail(message: str, code: int) -> int:
    print(f"plusx: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _stdout_closed() -> int:
    """Discard buffered output after its reader has closed it, as `head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141

"""Imports plusx once, then forks one command of it for every line on standard input.

A line is JSON: {"arguments": [...], "output": a file for its output, "log": the file that it logs
to, "signals": [[lines, seconds, number], ...]}. A signal is sent so many seconds after the log has
so many lines and the signal before was sent, if the command is still running then. The answer is a
line of JSON on standard output: {"exit": code or minus the signal that ended it, "landed": the
lines of the log at each signal that found it running, "seconds": how long it ran}.
"""

import contextlib
import json
import os
import signal
import sys
import time

import torch

from plusx import cli
from plusx.recipe import load_recipe
from plusx.run import train


def command(order: dict) -> None:
    code = 70
    try:
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["plusx", *order["arguments"]]
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def lines_in(path: str) -> int:
    try:
        with open(path, "rb") as log:
            return log.read().count(b"\n")
    except FileNotFoundError:
        return 0


def held(child: int) -> int | None:
    """Stops the child where it stands; its status if it had ended before, else None."""
    os.kill(child, signal.SIGSTOP)
    _, status = os.waitpid(child, os.WUNTRACED)
    return None if os.WIFSTOPPED(status) else status


def serve(order: dict) -> dict:
    begun = time.monotonic()
    child = os.fork()
    if not child:
        command(order)
    landed = []
    status = None
    for lines, seconds, number in [*order["signals"], [1 << 40, 0, signal.SIGKILL]]:
        end = None
        while status is None and (end is None or time.monotonic() < end):
            if end is None and lines_in(order["log"]) >= lines:
                end = time.monotonic() + seconds
            pid, ended = os.waitpid(child, os.WNOHANG)
            status = ended if pid else None
            if time.monotonic() > begun + 240:  # it hangs
                break
            time.sleep(0.0002)
        if status is None:
            # A process that has ended takes a signal without a word until it is waited for, and
            # this one may have been away for long: what stands still can be neither too late nor
            # further on than its log says.
            status = held(child)
        if status is None:
            landed.append(lines_in(order["log"]))
            os.kill(child, number)
            os.kill(child, signal.SIGCONT)
            if number == signal.SIGKILL:
                _, status = os.waitpid(child, 0)
    assert status is not None
    return {
        "exit": os.waitstatus_to_exitcode(status),
        "landed": landed,
        "seconds": time.monotonic() - begun,
    }


def main() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    recipe, scratch = sys.argv[1:]
    # once here, so that no child has anything left to import
    train(load_recipe(recipe, ["steps=1"]), scratch, progress=False)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

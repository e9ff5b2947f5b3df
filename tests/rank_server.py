"""Imports plusx once, then forks the processes of one run for every line on standard input.

A line is JSON: {"arguments": [...], "ranks": how many, "output": a file for each, whose
rank is put behind it, "log": the file that the run logs to, "faulty": the rank that raises an error
or null, "hanging": the one that does not go on, "signals": [[lines, rank, number], ...]}. A signal
is sent once the log has so many lines, and one more than it began with (a process that has only
begun does not take signals yet), to a process that stands still: one that has ended, or went on
for a while unseen, is not what was to be found. The answer is a line of JSON: {"exits": [code, or
minus the signal that ended it, ...], "landed": the lines of the log at each signal that found its
process running}.
"""

import json
import os
import signal
import socket
import sys
import threading
import time

from jaxtyping import install_import_hook


with install_import_hook(["plusx.run", "plusx.train"], "beartype.beartype"):
    from crash_server import command, held, lines_in
    from plusx.errors import UserError
    from plusx.recipe import load_recipe
    from plusx.run import distributed, train
    from plusx.train import loop
    from plusx.train.loop import reseed

import torch
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.nn.parallel


LONGEST = 240.0  # seconds, after which a run hangs
assert distributed


def reserved() -> socket.socket:
    """A port of the loopback that nobody else is given, and that rank 0 can listen on."""
    held_open = socket.socket()
    held_open.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held_open.bind(("127.0.0.1", 0))
    return held_open


def fault(seed: int, step: int, device: torch.device) -> None:
    """What a rank does at its fifth step in the place of `reseed`."""
    if step == 4:
        raise UserError("the images are upside down")
    reseed(seed, step, device)


def hang(seed: int, step: int, device: torch.device) -> None:
    """The same for a rank that does not go on, though it lives."""
    if step == 4:
        threading.Event().wait()
    reseed(seed, step, device)


def start(order: dict, rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(order["ranks"]),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    if rank == order["faulty"]:
        loop.reseed = fault
    if rank == order["hanging"]:
        loop.reseed = hang
    command({**order, "output": f"{order['output']}{rank}"})
    raise AssertionError  # it does not come back


def serve(order: dict) -> dict:
    end = time.monotonic() + LONGEST
    before = lines_in(order["log"])
    with reserved() as port:
        running = {r: start(order, r, port.getsockname()[1]) for r in range(order["ranks"])}
        exits: dict[int, int] = {}
        landed = []
        stopped = set()

        def reap() -> None:
            for rank, child in list(running.items()):
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    exits[rank] = os.waitstatus_to_exitcode(status)
                    del running[rank]

        for lines, rank, number in order["signals"]:
            lines = max(lines, before + 1)
            while rank in running and lines_in(order["log"]) < lines and time.monotonic() < end:
                reap()
                time.sleep(0.001)
            if rank in running:
                status = held(running[rank])
                if status is not None:
                    exits[rank] = os.waitstatus_to_exitcode(status)
                    del running[rank]
                    continue
                landed.append(lines_in(order["log"]))
                if number == signal.SIGSTOP:
                    stopped.add(rank)
                    continue
                os.kill(running[rank], number)
                os.kill(running[rank], signal.SIGCONT)
        while set(running) - stopped and time.monotonic() < end:
            reap()
            time.sleep(0.005)
        for rank, child in running.items():
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            exits[rank] = os.waitstatus_to_exitcode(status)
    return {"exits": [exits[rank] for rank in range(order["ranks"])], "landed": landed}


def main() -> None:
    torch.set_num_threads(1)
    recipe, scratch = sys.argv[1:]
    # once here, so that no child has anything left to import
    train(load_recipe(recipe, ["steps=1"]), scratch, progress=False)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

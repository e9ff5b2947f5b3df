"""Start the processes of one run on this machine with torch's elastic agent, on the loopback.

The same as `torchrun --nproc-per-node N --rdzv-backend c10d --rdzv-conf store_type=file
--local-addr 127.0.0.1 -m plusx train ...` with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, except that
the exit code is that of the run.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence


def launch(arguments: Sequence[str], processes: int, restarts: int = 0) -> int:
    """Run `plusx` with these arguments in so many processes of one world; its exit code.

    restarts: how often all are started again, from the newest checkpoint, after one has failed.
    SIGTERM and SIGINT are passed on: the run is saved, and 143 or 130 the code.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # with it shared, restarts can hang
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // processes)))
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    # the processes print their own errors
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_configs={"store_type": "file"},  # a file of this user's own, no port for others
        local_addr="127.0.0.1",
        max_restarts=restarts,
    )
    try:
        launch_agent(config, sys.executable, ["-P", "-m", "plusx", *arguments])
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as error:
        return _exit_code({rank: failure.exitcode for rank, failure in error.failures.items()})
    return 0


def _exit_code(codes: Mapping[int, int]) -> int:
    """The exit code of the run from those of its ranks; names a rank that a signal ended."""
    failed = [code for code in codes.values() if code > 0]
    for rank, code in codes.items():
        # the agent ends the others by SIGTERM after one has failed with a message of its own
        if code < 0 and not (failed and -code == signal.SIGTERM):
            print(f"plusx: rank {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr)
            return 1
    return max(failed, default=1)

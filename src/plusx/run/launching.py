"""Start the processes of a run on this machine with torch's elastic agent, on the loopback.

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
    """Run `plusx` with these arguments in several processes; return the exit code.

    restarts: how often all are restarted, from the newest checkpoint, after one has failed
    SIGTERM and SIGINT are passed on: the run saves a checkpoint, and the code is 143 or 130.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # with a shared store, restarts can hang
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
        rdzv_configs={"store_type": "file"},  # a private file instead of an open port
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
    """Return the exit code of the run from those of its ranks; name a rank ended by a signal."""
    failed = [code for code in codes.values() if code > 0]
    for rank, code in codes.items():
        # after one rank has failed, the agent ends the others by SIGTERM
        if code < 0 and not (failed and -code == signal.SIGTERM):
            print(f"plusx: rank {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr)
            return 1
    return max(failed, default=1)

"""Making the runs of a comparison or a study: those that are missing, several at a time."""

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from plusx.errors import UserError
from plusx.grammar.shapes import measure
from plusx.grammar.spec import Net
from plusx.recipe import Recipe
from plusx.study.crew import DIVERGED, Crew, End, Job
from plusx.study.progress import Going, Progress, Tail
from plusx.zoo import find


LOOK = 0.25  # seconds between two looks at the runs
_STOPPING = "stopping; what was trained is saved, and the same command goes on from there"


class Planned(NamedTuple):
    """A run to be made, and the recipe that it is made by.

    images: how many an epoch has, beside those of the other runs.
    """

    job: Job
    recipe: Recipe
    images: int | float = 1

    @property
    def cost(self) -> float:
        """What it costs beside the others, in no unit: multiply-adds times images, roughly."""
        net = self.recipe.net
        found = net if isinstance(net, Net) else find(net.base)
        each = (measure(found) if isinstance(found, Net) else found).multiply_adds
        if self.recipe.steps is not None:
            return float(each) * self.recipe.steps * self.recipe.batch_size
        return float(each) * self.images * (self.recipe.epochs or 1)


def at_a_time(recipe: Recipe, threads: int) -> int:
    """How many runs are made at a time where nobody said."""
    kind = recipe.device.kind
    accelerated = kind.startswith(("cuda", "mps"))
    if kind == "auto" and (sys.platform == "darwin" or os.path.exists("/dev/nvidiactl")):
        import torch

        accelerated = torch.accelerator.is_available()
    if accelerated:
        return 1
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, cores // threads)


def make(crew: Crew, planned: Sequence[Planned], stream: TextIO) -> int:
    """Make the runs that are not finished, the costliest first, and return how many those were.

    So the processes end at about the same time. A run that may diverge and does is told of in its
    folder, and is not made again. UserError: what was given is wrong. RuntimeError: runs failed,
    named with their seeds; the others are kept.
    """
    from plusx import store  # loads torch, as the crew does meanwhile

    missing = [each for each in planned if not each.job.finished]
    failed: list[End] = []
    shown = Progress(stream, len(planned), sum(each.cost for each in planned))
    shown.finished = len(planned) - len(missing)
    shown.paid = shown.cost - sum(each.cost for each in missing)
    if shown.finished and missing:
        shown.say(f"{shown.finished} of {len(planned)} runs are finished already; going on")
    waiting = sorted(missing, key=lambda each: -each.cost)
    try:
        with shown:
            while waiting or crew.jobs:
                while waiting and crew.free:
                    chosen = waiting.pop(0)
                    job, recipe, _ = chosen
                    crew.start(job)
                    tail = Tail(job.folder / "log.jsonl")
                    length = (recipe.epochs, recipe.steps)
                    shown.going.append(Going(job.name, job.seed, tail, chosen.cost, *length))
                for end in crew.ended(LOOK):
                    shown.show()
                    shown.end(end.job.name, end.job.seed, end.error)
                    if end.fault:
                        raise UserError(f"{end.job}: {end.error}")
                    if end.diverged and end.job.may_diverge:
                        store.write_json(end.job.folder / DIVERGED, {"why": end.error})
                    elif end.error:
                        failed.append(end)
                shown.show()
    except BaseException as stop:
        if not isinstance(stop, Exception):  # Ctrl-C or SIGTERM
            print(_STOPPING, file=stream, flush=True)
        raise
    if failed:
        said = "; ".join(f"{end.job}: {end.error}" for end in failed)
        raise RuntimeError(
            f"{len(failed)} of {len(planned)} runs failed: {said}. The others are kept; the same "
            "command tries again"
        )
    return len(missing)


def length_of(recipe: Recipe) -> str:
    """How long the runs of a recipe are, in words."""
    if recipe.epochs:
        return f"{recipe.epochs} {'epoch' if recipe.epochs == 1 else 'epochs'}"
    return f"{recipe.steps:,} {'step' if recipe.steps == 1 else 'steps'}"


def crew_of(size: int, threads: int) -> str:
    """How many runs were made at a time, in words."""
    runs, count = "run" if size == 1 else "runs", "thread" if threads == 1 else "threads"
    return f"{size} {runs} of {threads} {count}"

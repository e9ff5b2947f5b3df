"""Memory and time of a training step with and without checkpointing, against the peers.

    pip install --requirement benchmarks/requirements.txt
    python benchmarks/memory.py

A step is forward, cross-entropy and backward, in channels_last, not compiled. Three networks:

    resnet50     torchvision's, plain and with torch.utils.checkpoint_sequential, against ours,
                 plain and with the plans "recompute" and "segments"
    densenet121  torchvision's, plain and with memory_efficient=True, against ours
    depth 110    ours of He et al. 2015, and reversible (Gomez et al. 2017): with stored
                 activations, through memcnn, and with our reversal

Gradients are first compared in float64, from equal weights. Two sizes are counted besides the
times. "saved" is the peak size of what autograd or a plan saves for the backward pass, without
parameters and buffers; it is exact and deterministic. "live" is the peak size of all existing
tensors, without parameters and their gradients. It is counted for all contenders, and is the only
count for checkpoints and memcnn, whose storage autograd does not see. A ratio of times is relative
to the first contender of the network: below 1 is faster.

Writes results/benchmark_memory.json. Missed targets are printed and recorded; exit status 1.
"""

import argparse
import sys
import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torchvision
from timing import RESULTS, SEED, Estimate, in_turns, load, ratio, record
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint_sequential

import plusx
from plusx.memory import SavedBytes
from plusx.nn.external import EXTERNAL


SEGMENTS = 4  # of checkpoint_sequential: the square root of resnet50's 16 blocks
TOLERANCE = 1e-7  # of gradients in float64, relative

Step = Callable[[], None]


@dataclass(frozen=True)
class Target:
    """The largest size and time allowed, as fractions of the base."""

    base: str
    bytes: float
    time: float


@dataclass(frozen=True)
class Case:
    """Equivalent, or nearly equivalent, networks; the first is the base of the ratios."""

    model: str
    size: int
    batch_size: int
    whole: int  # second image size at which bytes are counted; 0: none


CASES = (
    Case("resnet50", 96, 8, 224),
    Case("densenet121", 96, 4, 224),
    Case("depth 110", 32, 64, 0),
)
TARGETS = {
    ("resnet50", "ours recompute"): Target("ours", 0.52, 1.10),
    ("resnet50", "ours segments"): Target("ours", 0.20, 1.35),
    ("depth 110", "ours revnet110"): Target("ours resnet110", 0.11, 1.35),
}


class Checkpointed(nn.Module):
    """torchvision's ResNet with checkpoint_sequential, as in PyTorch's documentation."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        stages = (net.layer1, net.layer2, net.layer3, net.layer4)
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.blocks = [stem, *(block for stage in stages for block in stage)]

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint_sequential(self.blocks, SEGMENTS, x, use_reentrant=False)
        return self.net.fc(self.net.avgpool(y).flatten(1))


class Invertible(nn.Module):
    """One of our reversible units through memcnn."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        import memcnn

        coupling = memcnn.AdditiveCoupling(Fm=unit.f, Gm=unit.g, split_dim=1)
        self.wrapped = memcnn.InvertibleModuleWrapper(coupling, keep_input=False)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
        return self.wrapped(torch.cat([x1, x2], dim=1)).chunk(2, dim=1)


def networks(case: Case) -> dict[str, nn.Module]:
    """The contenders by name; equivalent ones have the same weights."""
    torch.manual_seed(SEED)
    if case.model == "depth 110":
        stored = EXTERNAL["revnet110"](10, 3)
        stored.reverses = False
        reversing = deepcopy(stored)
        reversing.reverses = True
        nets = {
            "ours resnet110": plusx.create_model("resnet110", seed=SEED),
            "ours revnet110, stored": stored,
            "ours revnet110": reversing,
        }
        if memcnn_error() == "":
            theirs = deepcopy(stored)
            for stage in (theirs.layer1, theirs.layer2, theirs.layer3):
                for i, unit in enumerate(stage):
                    if unit.downsample is None:
                        stage[i] = Invertible(unit)
            nets["memcnn revnet110"] = theirs
        return nets
    ours = plusx.create_model(case.model, seed=SEED)
    if case.model == "resnet50":
        theirs = torchvision.models.resnet50()
        theirs.load_state_dict(ours.state_dict())
        others = {"torchvision checkpoints": Checkpointed(deepcopy(theirs))}
    else:
        theirs = torchvision.models.densenet121()
        ours.load_state_dict(
            dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
        )
        frugal = torchvision.models.densenet121(memory_efficient=True)
        frugal.load_state_dict(theirs.state_dict())
        others = {"torchvision memory_efficient": frugal}
    plans = {
        f"ours {plan}": plusx.save_memory(deepcopy(ours), plan)
        for plan in ("recompute", "segments")
    }
    return {"torchvision": theirs, **others, "ours": ours, **plans}


def memcnn_error() -> str:
    """Why memcnn cannot be used; "" if it can."""
    try:
        import memcnn  # noqa: F401
    except Exception as error:  # an old library may raise anything with a new torch
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def data(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(SEED)
    x = torch.randn((case.batch_size, 3, case.size, case.size), generator=random).to(dtype)
    classes = 10 if case.model == "depth 110" else 1000
    y = torch.randint(classes, (case.batch_size,), generator=random)
    return x.to(memory_format=torch.channels_last), y


def one_step(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    net.zero_grad(set_to_none=False)
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    return loss.detach()


def gradient(net: nn.Module) -> float:
    """The norm of the whole gradient, which does not depend on the order of the parameters."""
    squares = [p.grad.square().sum() for p in net.parameters()]
    return float(torch.stack(squares).sum().sqrt())


def check_equal(case: Case) -> dict[str, float]:
    """Relative differences of loss and gradient from the first equivalent network, in float64.

    Raises ValueError if one is above TOLERANCE.
    """
    small = replace(case, size=min(case.size, 64), batch_size=min(case.batch_size, 4))
    x, y = data(small, torch.float64)
    references: dict[str, tuple[float, float]] = {}
    differences = {}
    for name, net in networks(case).items():
        net = net.double().train()
        loss = float(one_step(net, x, y))
        values = loss, gradient(net)
        kind = "resnet110" if name.endswith("resnet110") else case.model
        base = references.setdefault(kind, values)
        differences[name] = max(abs(a / b - 1) for a, b in zip(values, base, strict=True))
        if not differences[name] <= TOLERANCE:
            raise ValueError(f"{case.model}: {name} is another network: {values}, not {base}")
    return differences


class LiveBytes(TorchDispatchMode):
    """Records the peak size of the existing tensors, except for the storages in `state`."""

    def __init__(self, state: set[int]) -> None:
        super().__init__()
        self.state, self.peak = state, 0
        self.storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                if storage._cdata not in self.state:
                    self.storages[storage._cdata] = weakref.ref(storage)
        live = 0
        for key, reference in list(self.storages.items()):
            storage = reference()
            if storage is None:
                del self.storages[key]
            else:
                live += storage.nbytes()
        self.peak = max(self.peak, live)
        return result


def bytes_per_image(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    """Bytes per image: "saved" and "live"."""
    one_step(net, x, y)  # allocates the gradients
    with SavedBytes(net) as saved:
        one_step(net, x, y)
    state = (*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters()))
    with LiveBytes({tensor.untyped_storage()._cdata for tensor in state}) as live:
        one_step(net, x, y)
    return {"saved": saved.peak // len(x), "live": live.peak // len(x)}


def measure(case: Case, threads: int, rounds: int, tiny: bool) -> tuple[list[dict[str, Any]], dict]:
    """A row for each contender, and the ratios of times by name."""
    torch.set_num_threads(threads)
    nets = {
        name: net.train().to(memory_format=torch.channels_last)
        for name, net in networks(case).items()
    }
    x, y = data(case)
    sizes = {name: bytes_per_image(net, x, y) for name, net in nets.items()}
    larger_sizes = {}
    if case.whole and threads == 1 and not tiny:
        larger = data(replace(case, size=case.whole, batch_size=1))
        # batch norm can use a single image here, since its maps have more than one position
        larger_sizes = {name: bytes_per_image(net, *larger) for name, net in nets.items()}
    steps: dict[str, Step] = {
        name: (lambda net=net: one_step(net, x, y)) for name, net in nets.items()
    }
    times = in_turns(steps, rounds)
    rows, ratios = [], {}
    for name, taken in times.items():
        target = TARGETS.get((case.model, name))
        base = target.base if target else next(iter(nets))
        time_ratio = ratio(taken.wall, times[base].wall)
        ratios[f"{case.model}, {name} / {base}, {threads} thread(s)"] = time_ratio
        share = sizes[name]["saved"] / sizes[base]["saved"]
        out_of_sight = "checkpoints" in name or "memcnn" in name or "efficient" in name
        row = {
            **asdict(case),
            "name": name,
            "threads": threads,
            "rounds": rounds,
            "base": base,
            "bytes_per_image": sizes[name],
            "whole_bytes_per_image": larger_sizes.get(name),
            "saved_share": None if out_of_sight else share,
            "live_share": sizes[name]["live"] / sizes[base]["live"],
            "time": asdict(time_ratio),
            "processor_time": asdict(ratio(taken.processor, times[base].processor)),
            "target": None if target is None else asdict(target),
            "missed": [] if target is None else missed(target, share, time_ratio),
        }
        rows.append(row)
    return rows, ratios


def missed(target: Target, share: float, time: Estimate) -> list[str]:
    """The parts of a target that were missed, as lines."""
    failures = []
    if share > target.bytes:
        failures.append(f"bytes {share:.3f}, asked {target.bytes}")
    if time.value > target.time:
        failures.append(f"time {time.value:.3f}, asked {target.time}")
    return failures


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Memory of training, ours and the peers'.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_memory.json")
    parser.add_argument(
        "--tiny", action="store_true", help="two small rounds to check that it runs, no targets"
    )
    args = parser.parse_args(arguments)
    rounds = 2 if args.tiny else args.rounds
    cases = [replace(case, size=32, batch_size=2) if args.tiny else case for case in CASES]
    load_before, before = load(), torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    estimates: dict[str, Estimate] = {}
    differences = {case.model: check_equal(case) for case in cases}
    for threads, case in product(args.threads, cases):
        new_rows, ratios = measure(case, threads, rounds, args.tiny)
        rows += new_rows
        estimates |= ratios
        for row in new_rows:
            share = row["saved_share"] or row["live_share"]
            print(
                f"{case.model:11} {row['name']:28} {threads} thread(s)  bytes {share:.3f}  "
                f"time {row['time']['value']:.3f} of {row['base']}"
            )
    torch.set_num_threads(before)
    error = memcnn_error()
    record(
        args.out,
        rows,
        estimates,
        recipe={
            "segments": SEGMENTS,
            "gradients_apart": differences,
            "memcnn": error or "took part",
        }
        | {"rounds": rounds, "compile": False, "channels_last": True},
        versions={} if error else {"memcnn": version("memcnn")},
        load_before=load_before,
    )
    failures = [(row, failure) for row in rows for failure in row["missed"]]
    for row, failure in () if args.tiny else failures:
        print(f"missed: {row['model']}, {row['name']}: {failure}", file=sys.stderr)
    if error:
        print(f"memcnn takes no part: {error}", file=sys.stderr)
    return int(bool(failures) and not args.tiny)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

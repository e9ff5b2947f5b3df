"""What training holds, and what holding less costs in time, against what others offer.

    pip install --requirement benchmarks/requirements.txt
    python benchmarks/memory.py

A step is forward, cross-entropy and backward, channels innermost, not compiled. Three networks:

    resnet50     torchvision's, plain and through torch.utils.checkpoint_sequential, against ours as
                 it is and by the plans "recompute" and "segments"
    densenet121  torchvision's, plain and with memory_efficient=True, against ours
    depth 110    ours of He et al. 2015, and reversible (Gomez et al. 2017): activations stored,
                 through memcnn, and as we reverse it

Gradients are compared first, in float64, from equal weights. Two counts stand beside the times.
"saved" is the most that autograd, or a plan in its place, holds of a step (parameters and buffers
not), which is exact and the same every time. "live" is the most bytes of all tensors that are there
at one time, parameters and their gradients not: it is asked of everyone alike, and of checkpoints
and memcnn alone, which keep what they keep out of autograd's sight. A ratio of times is the time
over that of the first of its network: below 1 is faster.

Writes results/benchmark_memory.json; a target that is missed is printed, recorded, and status 1.
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
    """The most bytes and the most time that a contender may take, as shares of the base."""

    base: str
    bytes: float
    time: float


@dataclass(frozen=True)
class Case:
    """Networks that compute the same, or nearly, by name; the first is the base of the ratios."""

    model: str
    size: int
    batch_size: int
    whole: int  # pixels a side at which bytes are counted as well; 0: at no other


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
    """torchvision's ResNet through checkpoint_sequential, as PyTorch's documentation uses it."""

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
    """The contenders, all of a kind with the same weights."""
    torch.manual_seed(SEED)
    if case.model == "depth 110":
        stored = EXTERNAL["revnet110"](10, 3)
        stored.reverses = False
        reversing = deepcopy(stored)
        reversing.reverses = True
        found = {
            "ours resnet110": plusx.create_model("resnet110", seed=SEED),
            "ours revnet110, stored": stored,
            "ours revnet110": reversing,
        }
        if memcnn_said() == "":
            theirs = deepcopy(stored)
            for stage in (theirs.layer1, theirs.layer2, theirs.layer3):
                for i, unit in enumerate(stage):
                    if unit.downsample is None:
                        stage[i] = Invertible(unit)
            found["memcnn revnet110"] = theirs
        return found
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


def memcnn_said() -> str:
    """Why memcnn takes no part, or nothing where it does."""
    try:
        import memcnn  # noqa: F401
    except Exception as error:  # whatever an old library raises with a new torch
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
    """The norm of the whole gradient: the same whatever order the parameters are in."""
    squares = [p.grad.square().sum() for p in net.parameters()]
    return float(torch.stack(squares).sum().sqrt())


def check_equal(case: Case) -> dict[str, float]:
    """Relative differences of loss and gradient from the first of the same network, in float64.

    ValueError: one is above TOLERANCE.
    """
    small = replace(case, size=min(case.size, 64), batch_size=min(case.batch_size, 4))
    x, y = data(small, torch.float64)
    known: dict[str, tuple[float, float]] = {}
    apart = {}
    for name, net in networks(case).items():
        net = net.double().train()
        found = float(one_step(net, x, y)), 0.0
        found = found[0], gradient(net)
        kind = "resnet110" if name.endswith("resnet110") else case.model
        base = known.setdefault(kind, found)
        apart[name] = max(abs(a / b - 1) for a, b in zip(found, base, strict=True))
        if not apart[name] <= TOLERANCE:
            raise ValueError(f"{case.model}: {name} is another network: {found}, not {base}")
    return apart


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that are there at one time, those of `state` not counted."""

    def __init__(self, state: set[int]) -> None:
        super().__init__()
        self.state, self.peak = state, 0
        self.known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                if storage._cdata not in self.state:
                    self.known[storage._cdata] = weakref.ref(storage)
        live = 0
        for key, found in list(self.known.items()):
            storage = found()
            if storage is None:
                del self.known[key]
            else:
                live += storage.nbytes()
        self.peak = max(self.peak, live)
        return result


def counted(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    """Bytes an image: "saved" and "live"."""
    one_step(net, x, y)  # gradients are there
    with SavedBytes(net) as saved:
        one_step(net, x, y)
    parts = (*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters()))
    with LiveBytes({part.untyped_storage()._cdata for part in parts}) as live:
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
    held = {name: counted(net, x, y) for name, net in nets.items()}
    whole = {}
    if case.whole and threads == 1 and not tiny:
        larger = data(replace(case, size=case.whole, batch_size=1))
        # a batch of one image is no batch for statistics of 1 x 1 positions; there are more
        whole = {name: counted(net, *larger) for name, net in nets.items()}
    steps: dict[str, Step] = {
        name: (lambda net=net: one_step(net, x, y)) for name, net in nets.items()
    }
    times = in_turns(steps, rounds)
    rows, ratios = [], {}
    for name, own in times.items():
        target = TARGETS.get((case.model, name))
        base = target.base if target else next(iter(nets))
        each = ratio(own.wall, times[base].wall)
        ratios[f"{case.model}, {name} / {base}, {threads} thread(s)"] = each
        share = held[name]["saved"] / held[base]["saved"]
        out_of_sight = "checkpoints" in name or "memcnn" in name or "efficient" in name
        row = {
            **asdict(case),
            "name": name,
            "threads": threads,
            "rounds": rounds,
            "base": base,
            "bytes_per_image": held[name],
            "whole_bytes_per_image": whole.get(name),
            "saved_share": None if out_of_sight else share,
            "live_share": held[name]["live"] / held[base]["live"],
            "time": asdict(each),
            "processor_time": asdict(ratio(own.processor, times[base].processor)),
            "target": None if target is None else asdict(target),
            "missed": [] if target is None else missed(target, share, each),
        }
        rows.append(row)
    return rows, ratios


def missed(target: Target, share: float, time: Estimate) -> list[str]:
    """What of a target was not reached; the bytes to a hundredth, the time by its median."""
    wrong = []
    if share > target.bytes:
        wrong.append(f"bytes {share:.3f}, asked {target.bytes}")
    if time.value > target.time:
        wrong.append(f"time {time.value:.3f}, asked {target.time}")
    return wrong


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Memory of training, ours and the peers'.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_memory.json")
    parser.add_argument(
        "--tiny", action="store_true", help="two small rounds to see that it runs; judges nothing"
    )
    said = parser.parse_args(arguments)
    rounds = 2 if said.tiny else said.rounds
    cases = [replace(case, size=32, batch_size=2) if said.tiny else case for case in CASES]
    load_before, before = load(), torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    estimates: dict[str, Estimate] = {}
    apart = {case.model: check_equal(case) for case in cases}
    for threads, case in product(said.threads, cases):
        found, ratios = measure(case, threads, rounds, said.tiny)
        rows += found
        estimates |= ratios
        for row in found:
            share = row["saved_share"] or row["live_share"]
            print(
                f"{case.model:11} {row['name']:28} {threads} thread(s)  bytes {share:.3f}  "
                f"time {row['time']['value']:.3f} of {row['base']}"
            )
    torch.set_num_threads(before)
    why = memcnn_said()
    record(
        said.out,
        rows,
        estimates,
        recipe={"segments": SEGMENTS, "gradients_apart": apart, "memcnn": why or "took part"}
        | {"rounds": rounds, "compile": False, "channels_last": True},
        versions={} if why else {"memcnn": version("memcnn")},
        load_before=load_before,
    )
    wrong = [(row, said) for row in rows for said in row["missed"]]
    for row, what in () if said.tiny else wrong:
        print(f"missed: {row['model']}, {row['name']}: {what}", file=sys.stderr)
    if why:
        print(f"memcnn takes no part: {why}", file=sys.stderr)
    return int(bool(wrong) and not said.tiny)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

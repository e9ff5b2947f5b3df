"""The time until one image is told, on the CPU: our exported file, torchvision, ONNX Runtime and
OpenVINO.

    pip install --requirement benchmarks/requirements.txt
    python benchmarks/inference.py

torchvision's network with perturbed statistics is run by itself, and as torch.onnx.export writes it
by ONNX Runtime and OpenVINO. Ours has the same weights, is written by plusx.export, and runs as
`plusx predict FILE.onnx` runs it. In turns, batch 1, 224 x 224, with

    eager          torchvision's network in inference mode (the peer's default)
    channels_last  the same with channels innermost (the peer's best documented setting)
    ours           plusx.export.OnnxNetwork: tensors in, tensors out
    ort            ONNX Runtime at its defaults, but for the number of threads
    ort still      the same, with threads that neither spin while they wait nor take large parts of
                   the work (what its documentation has for processors that others use too)
    openvino       OpenVINO in float32 for latency, one stream, as its documentation advises

Logits have to be equal first, by the measure that `plusx export` has. Between two turns there is a
pause, so that threads of one library that still spin do not take the time of the next. A ratio is a
peer's time over ours: above 1 we are faster.

Writes results/benchmark_inference.json. Status 1 says that a target was missed: TARGET_EAGER times
eager, and TARGET_BEST of the best of the other libraries.
"""

import argparse
import contextlib
import copy
import io
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
import torchvision
from timing import RESULTS, SEED, Estimate, in_turns, load, ratio, record
from torch import Tensor, nn

import plusx
from plusx.export import OnnxNetwork, to_onnx
from plusx.export.agreement import TOLERANCE


TARGET_EAGER, TARGET_BEST = 1.45, 0.97
NETWORKS = ("resnet18", "resnet50")
PAUSE = 0.003  # seconds: longer than ONNX Runtime's threads spin
OTHERS = ("ort", "ort still", "openvino")

Answer = Callable[[], np.ndarray]


def networks(name: str) -> tuple[nn.Module, nn.Module]:
    """torchvision's network, with statistics as if trained, and ours with the same weights."""
    torch.manual_seed(SEED)
    peer: nn.Module = torchvision.models.get_model(name).eval()
    for part in peer.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    ours: nn.Module = plusx.create_model(name)
    ours.load_state_dict(peer.state_dict())
    return peer, ours.eval()


def peer_file(peer: nn.Module, image: Tensor) -> bytes:
    """torchvision's network as PyTorch's own exporter writes it."""
    batch = torch.export.Dim("batch")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        program = torch.onnx.export(
            peer, (torch.cat([image, image]),), dynamo=True, dynamic_shapes=({0: batch},),
            input_names=["input"], output_names=["logits"], verbose=False,
        )  # fmt: skip
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def by_onnxruntime(content: bytes, image: Tensor, threads: int, spins: bool) -> Answer:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not spins:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.intra_op.dynamic_block_base", "4")
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    given = {"input": image.numpy()}
    return lambda: session.run(None, given)[0]


def by_openvino(content: bytes, image: Tensor, threads: int) -> Answer:
    core = openvino.Core()
    model = core.read_model(content, b"")
    model.reshape({"input": list(image.shape)})
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        },
    )
    request, given = compiled.create_infer_request(), {"input": image.numpy()}
    return lambda: request.infer(given)[compiled.output(0)]


def contenders(
    peer: nn.Module, theirs: bytes, ours: bytes, image: Tensor, threads: int
) -> dict[str, Answer]:
    """Everyone with the same image, and `threads` threads each."""
    inner = image.contiguous(memory_format=torch.channels_last)
    last = copy.deepcopy(peer).to(memory_format=torch.channels_last)
    file = OnnxNetwork(ours)
    return {
        "eager": lambda: peer(image).numpy(),
        "channels_last": lambda: last(inner).numpy(),
        "ours": lambda: file(image).numpy(),
        "ort": by_onnxruntime(theirs, image, threads, spins=True),
        "ort still": by_onnxruntime(theirs, image, threads, spins=False),
        "openvino": by_openvino(theirs, image, threads),
    }


def check_equal(answers: dict[str, Answer]) -> float:
    """The largest difference of a logit from the peer's, over what is allowed.

    ValueError: it is above 1, so that what is timed would not be the same work.
    """
    wanted = answers["eager"]()
    allowed = TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    apart = {name: float(np.abs(ask() - wanted).max()) / allowed for name, ask in answers.items()}
    furthest = max(apart, key=lambda name: apart[name])
    if not apart[furthest] <= 1:
        raise ValueError(f"{furthest} is another network: {apart[furthest]} of what is allowed")
    return apart[furthest]


def apart(answers: dict[str, Answer]) -> dict[str, Callable[[], object]]:
    """With a pause after each."""
    spaced: dict[str, Callable[[], object]] = {}
    for name, ask in answers.items():
        spaced |= {name: ask, f"after {name}": lambda: time.sleep(PAUSE)}
    return spaced


def measure(name: str, size: int, threads: list[int], rounds: int) -> list[dict[str, Any]]:
    """A row for each number of threads."""
    peer, net = networks(name)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(SEED))
    began = time.perf_counter()
    ours = to_onnx(net, image)
    our_seconds = time.perf_counter() - began
    began = time.perf_counter()
    theirs = peer_file(peer, image)
    peer_seconds = time.perf_counter() - began
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        with torch.inference_mode():
            answers = contenders(peer, theirs, ours, image, count)
            difference = check_equal(answers)
            for ask in answers.values():
                ask()
            times = in_turns(apart(answers), rounds)
        others = {each: times[each].wall for each in answers if each != "ours"}
        best = min(OTHERS, key=lambda each: float(np.median(others[each])))
        rows.append(
            {
                "model": name,
                "size": size,
                "threads": count,
                "rounds": rounds,
                "difference": difference,
                "export_seconds": {"plusx": our_seconds, "torch.onnx": peer_seconds},
                "seconds": {each: float(np.median(times[each].wall)) for each in answers},
                "best": best,
                "ratios": {
                    each: asdict(ratio(taken, times["ours"].wall)) for each, taken in others.items()
                },
                "processor_time_ratios": {
                    each: asdict(ratio(times[each].processor, times["ours"].processor))
                    for each in others
                },
            }
        )
    return rows


def missed(row: dict[str, Any]) -> list[str]:
    """The targets that a row misses, by the value of its ratio."""
    asked = {"eager": TARGET_EAGER, row["best"]: TARGET_BEST}
    where = f"{row['model']}, {row['threads']} thread(s)"
    return [
        f"{where}: {row['ratios'][name]['value']:.3f} times {name}, the target is {target}"
        for name, target in asked.items()
        if row["ratios"][name]["value"] < target
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="One image told, by us and by others.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_inference.json")
    parser.add_argument(
        "--tiny", action="store_true", help="a few small rounds to see that it runs; judges nothing"
    )
    said = parser.parse_args(arguments)
    load_before, before = load(), torch.get_num_threads()
    names, size = (NETWORKS[:1], 32) if said.tiny else (NETWORKS, 224)
    rounds = 3 if said.tiny else said.rounds
    rows = [row for name in names for row in measure(name, size, said.threads, rounds)]
    torch.set_num_threads(before)
    estimates = {
        f"{row['model']}, {row['threads']} thread(s), {name}": Estimate(**each)
        for row in rows
        for name, each in row["ratios"].items()
    }
    for name, each in estimates.items():
        print(f"{name:40} {each}")
    record(
        said.out,
        rows,
        estimates,
        recipe={"batch": 1, "rounds": rounds, "pause": PAUSE}
        | {"target_eager": TARGET_EAGER, "target_best": TARGET_BEST},
        versions={name: version(name) for name in ("onnx", "onnxruntime", "openvino")},
        load_before=load_before,
    )
    failed = [] if said.tiny else [line for row in rows for line in missed(row)]
    for line in failed:
        print(f"missed: {line}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

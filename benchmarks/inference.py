"""Inference time of one image on the CPU: our exported file, torchvision, ONNX Runtime, OpenVINO.

    pip install --requirement benchmarks/requirements.txt
    python benchmarks/inference.py

torchvision's network with perturbed statistics runs in torch, and as exported by torch.onnx.export
in ONNX Runtime and OpenVINO. Ours has the same weights, is exported by plusx.export, and runs as
in `plusx predict FILE.onnx`. The contenders alternate, with batch size 1 at 224 x 224:

    eager          torchvision's network in inference mode (the peer's default)
    channels_last  the same in channels_last (the peer's best documented setting)
    ours           plusx.export.OnnxNetwork: tensors in, tensors out
    ort            ONNX Runtime with default options, except for the number of threads
    ort still      the same without spinning and with small work blocks (what its documentation
                   recommends for shared processors)
    openvino       OpenVINO in float32 for latency, one stream, as its documentation advises

Logits first have to agree within the tolerance of `plusx export`. A pause after each turn keeps
the spinning threads of one library from slowing the next. A ratio is a peer's time over ours:
above 1 we are faster.

Writes results/benchmark_inference.json. Exits with status 1 if a target is missed: TARGET_EAGER
times eager, and TARGET_BEST times the fastest of the other libraries.
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
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours: nn.Module = plusx.create_model(name)
    ours.load_state_dict(peer.state_dict())
    return peer, ours.eval()


def peer_file(peer: nn.Module, image: Tensor) -> bytes:
    """torchvision's network as exported by torch.onnx.export."""
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
    inputs = {"input": image.numpy()}
    return lambda: session.run(None, inputs)[0]


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
    request, inputs = compiled.create_infer_request(), {"input": image.numpy()}
    return lambda: request.infer(inputs)[compiled.output(0)]


def contenders(
    peer: nn.Module, theirs: bytes, ours: bytes, image: Tensor, threads: int
) -> dict[str, Answer]:
    """All contenders, with the same image and `threads` threads each."""
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
    """The largest difference of a logit from the peer's, as a fraction of the tolerance.

    Raises ValueError if it is above 1.
    """
    expected = answers["eager"]()
    tolerance = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    differences = {
        name: float(np.abs(answer() - expected).max()) / tolerance
        for name, answer in answers.items()
    }
    furthest = max(differences, key=lambda name: differences[name])
    if not differences[furthest] <= 1:
        raise ValueError(
            f"{furthest} is another network: its logits differ by {differences[furthest]} times "
            "the tolerance"
        )
    return differences[furthest]


def with_pauses(answers: dict[str, Answer]) -> dict[str, Callable[[], object]]:
    """The contenders, with a pause after each."""
    spaced: dict[str, Callable[[], object]] = {}
    for name, answer in answers.items():
        spaced |= {name: answer, f"after {name}": lambda: time.sleep(PAUSE)}
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
            for answer in answers.values():
                answer()
            times = in_turns(with_pauses(answers), rounds)
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
    """The targets that a row misses, as lines."""
    targets = {"eager": TARGET_EAGER, row["best"]: TARGET_BEST}
    where = f"{row['model']}, {row['threads']} thread(s)"
    return [
        f"{where}: {row['ratios'][name]['value']:.3f} times {name}, the target is {target}"
        for name, target in targets.items()
        if row["ratios"][name]["value"] < target
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Inference of one image, ours and the peers'.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_inference.json")
    parser.add_argument(
        "--tiny", action="store_true", help="a few small rounds to check that it runs, no targets"
    )
    args = parser.parse_args(arguments)
    load_before, before = load(), torch.get_num_threads()
    names, size = (NETWORKS[:1], 32) if args.tiny else (NETWORKS, 224)
    rounds = 3 if args.tiny else args.rounds
    rows = [row for name in names for row in measure(name, size, args.threads, rounds)]
    torch.set_num_threads(before)
    estimates = {
        f"{row['model']}, {row['threads']} thread(s), {name}": Estimate(**estimate)
        for row in rows
        for name, estimate in row["ratios"].items()
    }
    for name, estimate in estimates.items():
        print(f"{name:40} {estimate}")
    record(
        args.out,
        rows,
        estimates,
        recipe={"batch": 1, "rounds": rounds, "pause": PAUSE}
        | {"target_eager": TARGET_EAGER, "target_best": TARGET_BEST},
        versions={name: version(name) for name in ("onnx", "onnxruntime", "openvino")},
        load_before=load_before,
    )
    failed = [] if args.tiny else [line for row in rows for line in missed(row)]
    for line in failed:
        print(f"missed: {line}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

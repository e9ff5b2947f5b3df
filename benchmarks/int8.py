"""8-bit quantisation, ours and ONNX Runtime's: speed-up and lost accuracy.

    pip install --requirement benchmarks/requirements.txt
    PLUSX_DATA=... python benchmarks/int8.py --weights FOLDER

FOLDER has akamaster's resnet20-12fca82f.th and resnet56-4bfd9763.th, which are converted first.
Both are quantised by

    ours      plusx.export.quantise: per channel, ranges chosen on images (full range if the
              processor has VNNI, else 7 bits; the other one is evaluated as well, but not timed)
    default   onnxruntime.quantization.quantize_static, QDQ, uint8 activations and int8 weights,
              otherwise with default options: per tensor, full range, minimum and maximum
    s8s8      the same with int8 activations, the default type

from the same CALIBRATING training images of CIFAR-10. Accuracy and agreement with float32 are
measured on its 10,000 test images, which are used for no choice. (--split train uses training
images instead.) Times are those of 1 image and of 32 images. resnet18 and resnet50 at 224 x 224
have random weights and images and are only timed.

Writes results/benchmark_int8.json. Exits with status 1 if a target is missed: TARGET_SPEED times
our float32 for every network at batch size 1, MAX_LOSS, MIN_AGREEMENT.
"""

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import RESAMPLES, RESULTS, SEED, Estimate, in_turns, load, ratio, record
from torch import Tensor, nn

import plusx
from plusx.data.dataset import Dataset, images_of
from plusx.data.modality import ImageModality
from plusx.data.readers.open import open_data
from plusx.data.splits import stratified_order
from plusx.export import OnnxNetwork, quantise, to_onnx
from plusx.export.quantise import outputs_for
from plusx.run.environment import has_exact_int8
from plusx.weights import convert, open_network


TARGET_SPEED, MAX_LOSS, MIN_AGREEMENT = 1.85, 0.003, 0.985
CIFAR = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
LARGE = ("resnet18", "resnet50")
CALIBRATING, CHOOSING = 256, 256


def peer_quantised(content: bytes, images: Tensor, signed: bool) -> bytes:
    """The file quantised by ONNX Runtime's static quantisation with its defaults."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts = iter(images.split(16))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.parts, None)
            return None if part is None else {"input": part.numpy()}

    quiet = contextlib.redirect_stdout(io.StringIO())
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, quiet:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        before.write_bytes(content)
        quantize_static(
            before,
            after,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        logging.disable(logging.NOTSET)
        return after.read_bytes()


def ways(
    content: bytes, images: Tensor, choosing: Tensor
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The file quantised in every way, and the choices made for ours."""
    full = has_exact_int8()
    ours = quantise(content, images, choosing, full, lambda line: None)
    other = quantise(content, images, choosing, not full, lambda line: None)
    files = {
        "float32": content,
        "ours": ours.content,
        "ours, 7 bits" if full else "ours, full range": other.content,
        "default": peer_quantised(content, images, signed=False),
        "s8s8": peer_quantised(content, images, signed=True),
    }
    return files, ours.to_dict()


def times(
    files: dict[str, bytes], images: Tensor, threads: int, rounds: int
) -> dict[str, dict[str, Estimate]]:
    """Speed-ups over float32, by batch size and name."""
    torch.set_num_threads(threads)
    timed = [name for name in files if not name.startswith("ours,")]
    nets = {name: OnnxNetwork(files[name]) for name in timed}
    ratios_by_count: dict[str, dict[str, Estimate]] = {}
    for count in (1, 32) if len(images) >= 32 else (1,):
        calls: dict[str, Callable[[], object]] = {
            name: lambda net=net, part=images[:count]: net(part) for name, net in nets.items()
        }
        for call in calls.values():
            call()
        taken = in_turns(calls, rounds if count == 1 else max(3, rounds // 8))
        ratios_by_count[str(count)] = {
            name: ratio(taken["float32"].wall, taken[name].wall)
            for name in timed
            if name != "float32"
        }
    return ratios_by_count


def quality(files: dict[str, bytes], images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy, accuracy lost against float32 with an interval, and agreement with float32."""
    predictions = {name: outputs_for(content, images).argmax(1) for name, content in files.items()}
    right = {name: predictions[name] == labels for name in files}
    rows = {}
    for name in files:
        lost = right["float32"].int() - right[name].int()
        rows[name] = {
            "accuracy": float(right[name].float().mean()),
            "lost": asdict(share(lost)),
            "agreement": float((predictions[name] == predictions["float32"]).float().mean()),
            "bytes": len(files[name]),
        }
    return rows


def share(changes: Tensor) -> Estimate:
    """The mean of -1, 0 and 1, and the interval of drawing the images again."""
    counts = np.array([int((changes == each).sum()) for each in (-1, 0, 1)])
    resampled = np.random.default_rng(SEED).multinomial(
        len(changes), counts / len(changes), RESAMPLES
    )
    means = (resampled[:, 2] - resampled[:, 0]) / len(changes)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float((counts[2] - counts[0]) / len(changes)), float(low), float(high))


def inputs(source: Dataset, net: dict[str, Any], count: int) -> tuple[Tensor, Tensor]:
    """So many images, every class in its share, as the network sees them; and their labels."""
    chosen = source.subset(stratified_order(source.labels, SEED)[:count].tolist())
    return ImageModality.from_dict(net).normalise(images_of(chosen)), chosen.labels


def measure_cifar(
    name: str, weights: Path, split: str, count: int, threads: list[int], rounds: int
) -> dict[str, Any]:
    """A converted network: its quality, and its times by threads and batch size."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder, "net.safetensors")
        convert(weights / CIFAR[name], name, "akamaster", ours)
        net, info = open_network(ours)
    assert info.preprocessing is not None
    train = open_data("cifar10", split="train", validation=0)
    images, _ = inputs(train, info.preprocessing, CALIBRATING + CHOOSING)
    test_images, labels = inputs(
        open_data("cifar10", split=split, validation=0), info.preprocessing, count
    )
    content = to_onnx(net, images[:1])
    files, chosen = ways(content, images[:CALIBRATING], images[CALIBRATING:])
    row = {"model": name, "size": 32, "split": split, "count": len(test_images), "chosen": chosen}
    row["quality"] = quality(files, test_images, labels)
    row["speed"] = {str(t): times(files, test_images[:32], t, rounds) for t in threads}
    return row


def measure_large(name: str, size: int, threads: list[int], rounds: int) -> dict[str, Any]:
    """A network with random weights: its times."""
    torch.manual_seed(SEED)
    net: nn.Module = plusx.create_model(name, seed=SEED).eval()
    images = torch.randn(32, 3, size, size)
    content = to_onnx(net, images[:1])
    full = has_exact_int8()
    files = {
        "float32": content,
        "ours": quantise(content, images[:16], images[16:20], full, lambda line: None).content,
        "default": peer_quantised(content, images[:16], signed=False),
        "s8s8": peer_quantised(content, images[:16], signed=True),
    }
    return {
        "model": name,
        "size": size,
        "speed": {str(t): times(files, images[:1], t, rounds) for t in threads},
    }


def missed(row: dict[str, Any]) -> list[str]:
    """The targets that a row misses, as lines."""
    failures = []
    for threads, ratios_by_count in row["speed"].items():
        speed = ratios_by_count["1"]["ours"]["value"]
        if speed < TARGET_SPEED:
            failures.append(
                f"{speed:.2f} times float32 with {threads} thread(s), not {TARGET_SPEED}"
            )
    if "quality" in row:
        ours = row["quality"]["ours"]
        if ours["lost"]["value"] > MAX_LOSS:
            failures.append(
                f"{100 * ours['lost']['value']:.2f} points lost, not {100 * MAX_LOSS:.1f}"
            )
        if ours["agreement"] < MIN_AGREEMENT:
            failures.append(f"{ours['agreement']:.2%} same class, not {MIN_AGREEMENT:.1%}")
    return [f"{row['model']}: {failure}" for failure in failures]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="8-bit quantisation, ours and ONNX Runtime's.")
    default_weights = Path(os.environ.get("PLUSX_DATA", "data")) / "weights" / "akamaster_cifar10"
    parser.add_argument("--weights", type=Path, default=default_weights)
    parser.add_argument("--split", choices=("test", "train"), default="test")
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_int8.json")
    parser.add_argument(
        "--tiny", action="store_true", help="a few small rounds to check that it runs, no targets"
    )
    args = parser.parse_args(arguments)
    load_before, before = load(), torch.get_num_threads()
    rounds = 3 if args.tiny else args.rounds
    rows = []
    if not args.tiny:
        rows = [
            measure_cifar(name, args.weights, args.split, 10_000, args.threads, rounds)
            for name in CIFAR
        ]
    large, size = (("resnet20",), 32) if args.tiny else (LARGE, 224)
    rows += [measure_large(name, size, args.threads, max(3, rounds // 4)) for name in large]
    torch.set_num_threads(before)
    estimates: dict[str, Estimate] = {}
    for row in rows:
        for name, each in row.get("quality", {}).items():
            if name != "float32":
                estimates[f"{row['model']}, points lost, {name}"] = Estimate(**each["lost"])
        for threads, ratios_by_count in row["speed"].items():
            for count, ratios in ratios_by_count.items():
                where = f"{row['model']}, {threads} thread(s), {count} image(s)"
                estimates |= {f"{where}, {name}": each for name, each in ratios.items()}
                ratios_by_count[count] = {name: asdict(each) for name, each in ratios.items()}
    for name, each in estimates.items():
        print(f"{name:52} {each}")
    for row in rows:
        for name, each in row.get("quality", {}).items():
            print(
                f"{row['model']}: {name:12} {each['accuracy']:.2%}, alike {each['agreement']:.2%}"
            )
    targets = {"target_speed": TARGET_SPEED, "most_lost": MAX_LOSS}
    record(
        args.out,
        rows,
        estimates,
        recipe={"calibrating": CALIBRATING, "choosing": CHOOSING, "rounds": rounds}
        | targets
        | {"least_agreement": MIN_AGREEMENT},
        versions={name: version(name) for name in ("onnx", "onnxruntime")},
        load_before=load_before,
    )
    failed = [] if args.tiny else [line for row in rows for line in missed(row)]
    for line in failed:
        print(f"missed: {line}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

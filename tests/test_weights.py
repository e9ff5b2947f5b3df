"""Files of weights: what is written comes back, what does not fit is named, nothing is run."""

import json
import pickle
import struct
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as peer_save
from torch import nn

import plusx
from plusx import store, zoo
from plusx.data.modality import TextModality
from plusx.data.tokenizer import PAD, UNKNOWN, Tokenizer
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.toml import from_toml
from plusx.nn.external import EXTERNAL
from plusx.nn.network import Network
from plusx.weights import (
    load_named_or_file,
    load_weights,
    open_network,
    read_weights,
    save_network,
)
from plusx.weights.files import describe


CLASSES = ("cat", "dog", "caf\xe9", "<script>")
PREPROCESSING = {"size": [8, 8], "channels": 1, "mean": [0.5], "std": [0.25]}


def small(**changes: object) -> Net:
    block = Block(body="conv3s norm act conv3 norm + act", shortcut="pad/2")
    stages = (Stage(block=block, depth=1, width=4), Stage(block=block, depth=1, width=8, stride=2))
    fields = {"in_channels": 1, "num_classes": 4, "size": 8} | changes
    return Net(stem="conv3 norm act", stem_width=4, stages=stages, **fields)


def stirred(net: nn.Module) -> nn.Module:
    """Every number another than a fresh network has, the statistics of batch norms too."""
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            else:
                tensor.add_(torch.rand_like(tensor) * 0.1)
    return net.eval()


def test_a_file_builds_and_fills_exactly_its_network(tmp_path: Path) -> None:
    net = stirred(Network(small()))
    path = tmp_path / "net.safetensors"
    save_network(net, path, model="mine", preprocessing=PREPROCESSING, classes=CLASSES, source="me")

    reopened, weights = open_network(path)

    assert reopened.spec == net.spec
    assert (weights.model, weights.source, weights.classes) == ("mine", "me", CLASSES)
    assert weights.preprocessing == PREPROCESSING
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(reopened(x), net(x))
    for name, tensor in net.state_dict().items():
        assert torch.equal(reopened.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "name", ["resnet8_keras", "googlenet", pytest.param("alexnet", marks=pytest.mark.slow)]
)
def test_external_modules_round_trip_too(name: str, tmp_path: Path) -> None:
    net = stirred(EXTERNAL[name](3, 2))
    save_network(net, tmp_path / "net.safetensors")
    reopened, weights = open_network(tmp_path / "net.safetensors")
    assert (weights.spec.name, weights.spec.num_classes, weights.spec.in_channels) == (name, 3, 2)
    x = torch.rand(2, 2, 64, 64)
    assert torch.equal(reopened(x), net(x))


@pytest.mark.parametrize(
    "name", ["resnet50_d", "densenet40_12", "convnext_tiny", "r3d_18", "resnet18_1d", "wrn16_4"]
)
def test_the_description_of_a_network_is_read_back(name: str) -> None:
    with torch.device("meta"):
        net = Network(zoo.find(name))
    assert from_toml(describe(net, name, None, None, "")["net"]) == net.spec


def test_x8_the_number_of_names_is_the_number_of_outputs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 names of classes for 4 outputs"):
        save_network(Network(small()), tmp_path / "net.safetensors", classes=CLASSES[:3])
    assert not list(tmp_path.iterdir())


def test_a_new_head_changes_the_written_spec(tmp_path: Path) -> None:
    net = Network(small())
    net.reset_head(2)
    save_network(net, tmp_path / "net.safetensors", classes=("no", "yes"))
    assert open_network(tmp_path / "net.safetensors")[0].spec.num_classes == 2
    net.reset_head(0)
    save_network(net, tmp_path / "net.safetensors")
    assert isinstance(open_network(tmp_path / "net.safetensors")[0].fc, nn.Identity)


# ------------------------------------------------------------------------ what does not fit


def trouble(change: object) -> tuple[Network, dict[str, torch.Tensor]]:
    tensors = dict(stirred(Network(small())).state_dict())
    change(tensors)
    return Network(small()), tensors


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("fc.weight"), r"1 missing: fc\.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "1 unused: extra"),
        (
            lambda t: t.update({"fc.weight": t["fc.weight"].T}),
            r"fc\.weight is 8 x 4, not 4 x 8, tr",
        ),
        (lambda t: t.update({"fc.weight": torch.ones(9, 8)}), r"fc\.weight is 9 x 8, not 4 x 8"),
        (
            lambda t: t.update({"fc.bias": torch.ones(4).int()}),
            r"fc\.bias is of type int32, not flo",
        ),
        (lambda t: t.update({"fc.bias": torch.ones(4) * 1j}), r"fc\.bias is of type complex64"),
        (
            lambda t: t.update({"head.weight": t.pop("fc.weight")}),
            r"1 missing: fc\.weight.*1 unused: head\.weight \(nearest: fc\.weight\)",
        ),
        (
            lambda t: t.update({"layer1.0.convolution1.weight": t.pop("layer1.0.conv1.weight")}),
            r"missing: layer1\.0\.conv1\.weight \(nearest: layer1\.0\.convolution1\.weight\)",
        ),
        (lambda t: [t.pop(n) for n in list(t) if "layer" in n], r"20 missing: (\S+.*?, ){5}\.\.\."),
    ],
)
def test_strict_loading_names_what_does_not_fit(change: object, expected: str) -> None:
    net, tensors = trouble(change)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=expected):
        load_weights(net, tensors)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


def test_partial_loading_reports_what_was_loaded() -> None:
    net, tensors = trouble(lambda t: t.pop("fc.weight"))
    report = load_weights(net, tensors, strict=False)
    total = sum(parameter.numel() for parameter in net.parameters())
    assert report.share == (total - 32) / total
    assert f"{100 * report.share:.1f} % of the parameters fit" in str(report)
    assert "1 missing: fc.weight" in str(report)
    assert torch.equal(net.state_dict()["conv1.weight"], tensors["conv1.weight"])


def test_partial_loading_without_a_matching_key_is_an_error() -> None:
    net, _ = trouble(lambda t: None)
    with pytest.raises(ValueError, match=r"no weight fits.* 0\.0 % of the parameters"):
        load_weights(net, {"other": torch.ones(1)}, strict=False)


def test_a_missing_num_batches_tracked_is_zero() -> None:
    net, tensors = trouble(lambda t: [t.pop(n) for n in list(t) if n.endswith("tracked")])
    stirred(net)
    assert load_weights(net, tensors).complete
    assert net.bn1.num_batches_tracked == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(number: float, tmp_path: Path) -> None:
    net, tensors = trouble(lambda t: t["fc.bias"].__setitem__(0, number))
    with pytest.raises(ValueError, match=r"fc\.bias.* not finite"):
        load_weights(net, tensors)
    store.save_tensors(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(ValueError, match=r"fc\.bias.*not finite"):
        read_weights(tmp_path / "bad.safetensors")


def test_half_precision_files_load_into_float32() -> None:
    net, tensors = trouble(lambda t: t.update({k: v.half() for k, v in t.items() if v.ndim}))
    load_weights(net, tensors)
    assert net.fc.weight.dtype == torch.float32


# ------------------------------------------------------------------- through create_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Weights of a ResNet-20 for 7 classes, as a source of its own pads them."""
    spec = zoo.find("resnet20")
    net = plusx.create_model("resnet20", num_classes=7, seed=0)
    save_network(stirred(net), tmp_path / "r20.safetensors", model="resnet20")
    assert net.spec != spec
    return tmp_path / "r20.safetensors"


def test_create_model_takes_the_files_own_classes(saved: Path) -> None:
    assert plusx.create_model("resnet20", weights=saved).fc.out_features == 7


def test_create_model_with_other_classes_has_a_new_head_and_the_old_body(saved: Path) -> None:
    old = plusx.create_model("resnet20", weights=saved)
    new = plusx.create_model("resnet20", weights=saved, num_classes=3)
    bare = plusx.create_model("resnet20", weights=str(saved), num_classes=0)
    x = torch.rand(2, 3, 32, 32)
    assert new.eval()(x).shape == (2, 3)
    assert torch.equal(old.eval().embed(x), new.embed(x))
    assert torch.equal(bare.eval()(x), new.embed(x))


def test_weights_of_another_network_are_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="are for resnet20, not for resnet32"):
        plusx.create_model("resnet32", weights=saved)
    with pytest.raises(ValueError, match="are for resnet20, not for resnet8_keras"):
        plusx.create_model("resnet8_keras", weights=saved)
    half = zoo.find("resnet20_b")
    with pytest.raises(ValueError, match=r"stages\[0\]\.block\.shortcut 'pad', here 'conv1s norm'"):
        plusx.create_model(half, weights=saved)
    with pytest.raises(ValueError, match="are for resnet20, not for plain20"):
        plusx.create_model("plain20", weights=saved)  # every tensor would fit


def test_the_head_is_replaced_only_on_request(saved: Path) -> None:
    net = plusx.create_model("resnet20")
    with pytest.raises(ValueError, match=r"fc\.weight is 7 x 64, not 10 x 64"):
        load_named_or_file(net, "resnet20", saved)
    report = load_named_or_file(net, "resnet20", saved, new_head=True)
    assert "fc is for 7 classes, the network has 10" in str(report)
    assert report.parameters - report.loaded_parameters == 650


# --------------------------------------------------------------------------- hostile files


class Payload:
    """A pickle of this writes the canary when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.canary, "ran")


def test_the_malicious_pickle_of_these_tests_works(tmp_path: Path) -> None:
    """The control of the tests below: opened as a pickle, it does run."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


SUFFIXES = ("pt", "pth", "ckpt", "bin", "pkl", "safetensors", "npz", "npy", "pt2")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_never_opened_under_any_name(
    suffix: str, protocol: int, tmp_path: Path
) -> None:
    path = tmp_path / f"evil.{suffix}"
    path.write_bytes(pickle.dumps({"state_dict": Payload(tmp_path / "canary")}, protocol))
    with pytest.raises(ValueError, match="plusx convert"):
        read_weights(path)
    assert not (tmp_path / "canary").exists()


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


MALFORMED = {
    "nothing": b"",
    "seven bytes": b"1234567",
    "a header of 2**62": safetensors({}, length=1 << 62),
    "a header of 100 MB": safetensors({}, length=100 << 20),
    "overlap": safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
    "gap": safetensors({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, bytes(12)),
    "trailing bytes": safetensors({"a": tensor([1], 0, 4)}, bytes(8)),
    "cut short": safetensors({"a": tensor([4], 0, 16)}, bytes(8)),
    "twice": safetensors(
        b'{"a":%s,"a":%s}' % ((json.dumps(tensor([1], 0, 4)).encode(),) * 2), bytes(4)
    ),
    "huge shape": safetensors({"a": tensor([1 << 40, 1 << 40], 0, 4)}, bytes(4)),
    "negative": safetensors({"a": tensor([-1], 0, 4)}, bytes(4)),
    "not UTF-8": safetensors(b'{"\xff":1}'),
    "nested deeply": safetensors(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "unknown type": safetensors({"a": tensor([1], 0, 4, "F5")}, bytes(4)),
    "metadata of numbers": safetensors({"__metadata__": {"a": 1}}),
    "100,000 tensors": safetensors({f"{i}": tensor([0], 0, 0) for i in range(100_000)}),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(MALFORMED[name])
    start = time.process_time()
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        read_weights(path)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "metadata",
    [
        {"net": "stem = 'conv3'"},
        {"net": "stem = [", "model": "x"},
        {"net": "import os"},
        {
            "net": 'stem = "conv3 norm act"\nstem_width = 4\n[[stages]]\n'
            'block = "conv3 +"\ndepth = 1000000000\nwidth = 4\n'
        },
        {"external": '{"name": "os.system", "num_classes": 1, "in_channels": 1}'},
        {"external": '{"name": "alexnet", "num_classes": 1e12, "in_channels": 1}'},
        {"external": '{"name": "alexnet", "num_classes": -1, "in_channels": 1}'},
        {"classes": '{"a": 1}'},
        {
            "classes": '["a", "b", "c"]',
            "external": '{"name": "alexnet", "num_classes": 4, "in_channels": 3}',
        },
        {"preprocessing": "[1]"},
        {"preprocessing": "[" * 100_000},
    ],
)
def test_invalid_metadata_is_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(peer_save({"a": torch.ones(1)}, {"format": "plusx weights 1", **metadata}))
    with pytest.raises(ValueError, match=r"the metadata of .*bad\.safetensors"):
        read_weights(path)


def test_a_file_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    metadata = describe(Network(small()), None, None, None, "")
    metadata["net"] = metadata["net"].replace("width = 8", "width = 1048576")
    store.save_tensors(path, {"a": torch.ones(1)}, metadata)
    with pytest.raises(ValueError, match="larger network than it has weights for"):
        open_network(path)


def test_another_librarys_safetensors_are_opened_without_a_network(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(peer_save({"a": torch.ones(2)}, {"format": "pt"}))
    weights = read_weights(path)
    assert weights.model is weights.spec is weights.classes is None
    assert torch.equal(weights.tensors["a"], torch.ones(2))
    with pytest.raises(ValueError, match="does not state its network"):
        open_network(path)


def test_a_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        read_weights(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is a folder"):
        read_weights(tmp_path)
    (tmp_path / "link.safetensors").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="not a regular file"):
        read_weights(tmp_path / "link.safetensors")


def test_loading_gives_no_warning(saved: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_network(saved)


def test_a_file_whose_preprocessing_is_not_that_of_its_network_is_refused(tmp_path: Path) -> None:
    texts = TextModality(Tokenizer("words", (PAD, UNKNOWN, "a")))
    path = tmp_path / "a.safetensors"
    net = plusx.create_model("resnet5_text", num_classes=2, in_channels=4)
    save_network(net, path, model="resnet5_text", preprocessing=texts.to_dict(), classes=("x", "y"))
    with pytest.raises(plusx.UserError, match="its preprocessing, of texts, is not that of its"):
        plusx.load(path)

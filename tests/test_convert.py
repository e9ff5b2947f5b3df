"""Another library's files become ours, exactly, and nothing in them is ever run."""

import ast
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import plusx
from plusx import cli, store, zoo
from plusx.grammar.toml import to_toml
from plusx.nn.external import EXTERNAL
from plusx.nn.network import Network
from plusx.weights import convert, open_network, read_weights
from plusx.weights.convert import with_shortcut


# each of the tests that start the reading process takes a few seconds
either_kind = pytest.mark.parametrize(
    "legacy",
    [pytest.param(False, id="zip"), pytest.param(True, id="legacy", marks=pytest.mark.slow)],
)


def akamaster(num_classes: int = 10) -> tuple[Network, dict[str, Tensor]]:
    """A ResNet-20 as that repository computes it, and its tensors under that repository's names."""
    spec = with_shortcut(zoo.find("resnet20"), {"pad": "pad/2"})
    net = plusx.create_model(spec, num_classes=num_classes, seed=3).eval()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "running" in name:
                tensor.uniform_(0.5, 1.5)
    theirs = {
        f"module.{name}".replace(".fc.", ".linear."): tensor
        for name, tensor in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    return net, theirs


@either_kind
def test_a_torch_file_is_converted_exactly(legacy: bool, tmp_path: Path) -> None:
    net, theirs = akamaster()
    file, to = tmp_path / "net.th", tmp_path / "net.safetensors"
    held = {"best_prec1": 91.7, "epoch": 3, "state_dict": theirs, "optimizer": {"lr": 0.1}}
    torch.save(held, file, _use_new_zipfile_serialization=not legacy)
    done = convert(file, "resnet20", "akamaster", to)
    assert (done.parameters, done.num_classes, done.tensors) == (269_722, 10, 116)

    converted, weights = open_network(to)
    assert converted.spec == net.spec
    assert converted.spec.stages[1].block.shortcut == "pad/2"
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(converted(x), net(x))
    assert weights.classes[3] == "cat"
    assert weights.preprocessing["mean"] == [0.485, 0.456, 0.406]
    # the name of the network is enough: the file says what is done differently
    assert torch.equal(plusx.create_model("resnet20", weights=to).eval()(x), net(x))


@pytest.mark.slow
def test_t9_of_several_weights_in_a_checkpoint_one_is_chosen_and_the_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, theirs = akamaster()
    averaged = {name: tensor + 1 for name, tensor in theirs.items()}
    file, to = tmp_path / "net.pth", tmp_path / "net.safetensors"
    torch.save({"state_dict": theirs, "ema": {"module": averaged}, "step": 3}, file)
    arguments = [
        "convert",
        str(file),
        "--as",
        "resnet20",
        "--source",
        "akamaster",
        "--out",
        str(to),
    ]
    assert cli.run(arguments) == 0
    out = capsys.readouterr().out
    assert "removed the prefix 'module.' from every name" in out
    assert "weights of 'state_dict'; the file has more, which --key selects: 'ema.module'" in out
    assert torch.equal(open_network(to)[0].conv1.weight, net.conv1.weight)
    assert cli.run([*arguments, "--key", "ema.module"]) == 0
    assert torch.equal(open_network(to)[0].conv1.weight, net.conv1.weight + 1)
    assert cli.run([*arguments, "--key", "best"]) == 2
    assert "no tensors under 'best'; tensors are under 'state_dict', 'ema.module'" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_t9_weights_under_unknown_keys_are_found_or_named(tmp_path: Path) -> None:
    net, theirs = akamaster()
    file, to = tmp_path / "net.pth", tmp_path / "net.safetensors"
    torch.save({"student": theirs}, file)
    assert convert(file, "resnet20", "akamaster", to).key == "student"
    assert torch.equal(open_network(to)[0].conv1.weight, net.conv1.weight)
    torch.save({"student": theirs, "teacher": theirs}, file)
    with pytest.raises(
        ValueError, match=r"tensors under 'student', 'teacher'; choose one \(--key\)"
    ):
        convert(file, "resnet20", "akamaster", to)
    torch.save({"epoch": 3}, file)
    with pytest.raises(ValueError, match="it holds no tensors"):
        convert(file, "resnet20", "akamaster", to)


@pytest.mark.slow
def test_the_number_of_classes_comes_from_the_file(tmp_path: Path) -> None:
    _, theirs = akamaster(7)
    torch.save(theirs, tmp_path / "net.pth")
    done = convert(tmp_path / "net.pth", "resnet20", "akamaster", tmp_path / "to.safetensors")
    assert (done.num_classes, done.classes) == (7, None)
    assert open_network(tmp_path / "to.safetensors")[0].fc.out_features == 7


@pytest.mark.slow
def test_a_keras_archive_is_converted(tmp_path: Path) -> None:
    """Against the same convolutions said in Keras's order and padded by hand."""
    generator = np.random.default_rng(0)
    net = EXTERNAL["resnet8_keras"](10, 3)
    theirs = keras_arrays(generator, net)
    np.savez(tmp_path / "net.npz", **theirs)
    convert(tmp_path / "net.npz", "resnet8_keras", "keras", tmp_path / "net.safetensors")
    net, weights = open_network(tmp_path / "net.safetensors")
    assert weights.preprocessing["std"] == [1 / 255] * 3
    assert net.bn1.eps == 1e-3
    x = torch.rand(1, 3, 32, 32)
    block = net.layer2[0]
    kernel = torch.from_numpy(theirs["conv2d_3.kernel"]).permute(3, 2, 0, 1)
    bias = torch.from_numpy(theirs["conv2d_3.bias"])
    maps = net.features(x)
    padded = torch.nn.functional.pad(maps[0], (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, kernel, bias, stride=2)
    assert torch.allclose(block.conv1(maps[0]), expected, atol=1e-6)
    head = torch.from_numpy(theirs["dense.kernel"])
    expected = net.embed(x) @ head + torch.from_numpy(theirs["dense.bias"])
    assert torch.allclose(net(x), expected, atol=1e-6)


def keras_arrays(generator: np.random.Generator, net: torch.nn.Module) -> dict[str, np.ndarray]:
    """Arrays under Keras's names and in its axes, for the layers in the order of its counting."""
    order = "conv1 layer1.0.conv1 layer1.0.conv2 layer2.0.conv1 layer2.0.conv2"
    order += " layer2.0.downsample.0 layer3.0.conv1 layer3.0.conv2 layer3.0.downsample.0"
    arrays = {}
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    for i, name in enumerate(order.split()):
        o, c, h, w = shapes[f"{name}.weight"]
        layer = f"conv2d_{i}" if i else "conv2d"
        arrays[f"{layer}.kernel"] = generator.normal(size=(h, w, c, o)) / 10
        arrays[f"{layer}.bias"] = generator.normal(size=o)
    for i, width in enumerate((16, 16, 16, 32, 32, 64, 64)):
        layer = f"batch_normalization_{i}" if i else "batch_normalization"
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            arrays[f"{layer}.{part}"] = generator.uniform(0.5, 1.5, size=width)
    arrays["dense.kernel"] = generator.normal(size=(64, 10))
    arrays["dense.bias"] = generator.normal(size=10)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def test_foreign_safetensors_are_converted_without_a_process(tmp_path: Path) -> None:
    net, theirs = akamaster()
    store.save_tensors(tmp_path / "theirs.safetensors", theirs)
    convert(tmp_path / "theirs.safetensors", "resnet20", "akamaster", tmp_path / "to.safetensors")
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(open_network(tmp_path / "to.safetensors")[0](x), net(x))


def test_a_spec_of_the_users_own_can_be_named(tmp_path: Path) -> None:
    spec = zoo.find("resnet20")
    net = plusx.create_model(spec, seed=0)
    (tmp_path / "mine.toml").write_text(to_toml(spec))
    store.save_tensors(tmp_path / "theirs.safetensors", net.state_dict())
    done = convert(
        tmp_path / "theirs.safetensors",
        str(tmp_path / "mine.toml"),
        "timm",
        tmp_path / "to.safetensors",
    )
    assert done.model is None
    assert open_network(tmp_path / "to.safetensors")[0].spec == spec


# ------------------------------------------------------------------------------ refusals


@pytest.fixture
def file(tmp_path: Path) -> Path:
    store.save_tensors(tmp_path / "theirs.safetensors", akamaster()[1])
    return tmp_path / "theirs.safetensors"


@pytest.mark.parametrize(
    ("model", "source", "expected"),
    [
        ("resnet20", "akamster", "unknown source 'akamster'; sources are .*akamaster"),
        ("resnet20", "plusx", "unknown source 'plusx'"),
        ("resnet2O", "akamaster", "unknown network 'resnet2O'.*resnet20"),
        ("resnet32", "akamaster", "60 missing: layer1.3.conv1.weight, "),
        ("resnet20_b", "akamaster", "missing: layer2.0.downsample.0.weight"),
        ("resnet20", "timm", r"2 missing: fc.weight.*2 unused: linear.bias"),
        ("none.toml", "timm", "the spec none.toml: .*No such file"),
    ],
)
def test_errors_are_named_and_nothing_is_written(
    model: str, source: str, expected: str, file: Path, tmp_path: Path
) -> None:
    before = file.read_bytes()
    with pytest.raises(ValueError, match=expected):
        convert(file, model, source, tmp_path / "to.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == before


def test_the_target_is_a_safetensors_file_and_not_the_source(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end with \.safetensors"):
        convert(file, "resnet20", "akamaster", tmp_path / "to.pth")
    with pytest.raises(ValueError, match="is the input file"):
        convert(file, "resnet20", "akamaster", file)


@pytest.mark.slow
def test_numbers_that_are_not_finite_are_not_converted(tmp_path: Path) -> None:
    _, theirs = akamaster()
    theirs["module.linear.bias"] = torch.full((10,), float("nan"))
    np.savez(tmp_path / "x.npz", **{name: tensor.numpy() for name, tensor in theirs.items()})
    with pytest.raises(ValueError, match=r"'fc\.bias' has 10 numbers that are not finite"):
        convert(tmp_path / "x.npz", "resnet20", "akamaster", tmp_path / "to.safetensors")


# ------------------------------------------------------------------------- hostile files


class Payload:
    """A pickle of this writes the canary when it is opened without care."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.canary, "ran")


def converted(path: Path, kind: str = "akamaster") -> None:
    convert(path, "resnet20", kind, path.parent / "to.safetensors")


def test_the_malicious_pickle_of_these_tests_works(tmp_path: Path) -> None:
    """The control of the tests below: torch runs it when it is not told to take care."""
    torch.save({"state_dict": Payload(tmp_path / "canary")}, tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "canary").exists()


@either_kind
def test_a_torch_file_with_code_is_refused(legacy: bool, tmp_path: Path) -> None:
    evil = {"state_dict": {"w": torch.ones(1)}, "note": Payload(tmp_path / "canary")}
    path = tmp_path / "evil.safetensors"  # the name says nothing
    torch.save(evil, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        ValueError, match=r"more than tensors and plain data.*none of its code was run"
    ):
        convert(path, "resnet20", "akamaster", tmp_path / "to.safetensors")
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_is_refused_unread(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "canary"), protocol))
    with pytest.raises(ValueError, match="`plusx convert` reads"):
        converted(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    array = np.array([Payload(tmp_path / "canary")], dtype=object)
    np.savez(tmp_path / "evil.npz", **{"conv2d.kernel": array})
    with pytest.raises(ValueError, match=r"evil\.npz cannot be converted: .*allow_pickle=False"):
        convert(tmp_path / "evil.npz", "resnet8_keras", "keras", tmp_path / "to.safetensors")
    assert not (tmp_path / "canary").exists()


READERS = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"torch.load", "torch.jit.load", "torch.package", "torch.export.load", "np.load"}


def test_pickles_are_opened_in_one_place_only() -> None:
    """Only in the child of `convert`, where torch and NumPy are told to take care.

    Arrays that NumPy reads elsewhere can be no pickles either.
    """
    source = Path(plusx.__file__).parent
    calls = []
    for path in sorted(source.rglob("*.py"), key=lambda path: path.name):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            calls += [(path.name, name) for name in names if name.split(".")[0] in READERS]
            if isinstance(node, ast.Call) and (call := ast.unparse(node.func)) in CALLS:
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                calls.append(
                    (path.name, call, keywords.get("weights_only"), keywords.get("allow_pickle"))
                )
    assert calls == [
        ("foreign.py", "pickle"),  # for the name of its error
        ("foreign.py", "torch.load", "True", None),
        ("foreign.py", "np.load", None, "False"),
        # what we wrote into the cache folder ourselves
        *[("volume_files.py", "np.load", None, "False")] * 2,
    ]


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_small_file_that_unpacks_to_a_large_one_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    path.write_bytes(zipped({"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(96 << 20)}))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"100,6.* bytes when unpacked.*it was not opened"):
        converted(path)


@pytest.mark.slow
def test_a_tensor_that_claims_more_than_its_bytes_is_refused(tmp_path: Path) -> None:
    """The pickle says a number of elements, the archive has the bytes: they must agree."""
    path = tmp_path / "lying.pth"
    torch.save({"w": torch.ones(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    stem = next(iter(entries)).split("/")[0]
    entries[f"{stem}/data/0"] = b"1234"
    path.write_bytes(zipped(entries))
    with pytest.raises(ValueError, match=r"lying\.pth cannot be converted"):
        converted(path)


@pytest.mark.slow
def test_a_small_file_that_asks_for_memory_gets_none(tmp_path: Path) -> None:
    """One number said to be a gigabyte of them: the reading process has a bound of its own."""
    path = tmp_path / "large.pth"
    torch.save({"w": torch.ones(1).expand(1 << 28)}, path)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match="asks for more memory than the network"):
        converted(path)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "is empty"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file"),
        (zipped({"a.txt": b"x"}), "a zip archive"),
        (zipped({"a/data.pkl": b"", "a/constants.pkl": b""}), "a TorchScript archive"),
        (b"PK\x03\x04" + bytes(100), "a corrupt zip archive"),
        (b"<html>404</html>", "not a weight file"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
    ],
)
def test_file_formats_are_recognised_by_content(data: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=expected):
        converted(path)
    with pytest.raises(ValueError, match=expected):
        read_weights(path)


@pytest.mark.slow
def test_a_truncated_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save(akamaster()[1], tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"net\.pth cannot be converted"):
        converted(tmp_path / "net.pth")

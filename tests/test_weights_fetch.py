"""Weights by their published name: from a server on this machine, good and bad."""

import contextlib
import hashlib
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision.models

import plusx
from plusx import store, zoo
from plusx.grammar.spec import Net
from plusx.weights import fetch as fetching
from plusx.weights.fetch import fetch
from plusx.weights.files import open_network
from plusx.weights.published import Published, published, published_names


IMAGENET = {"size": [224, 224], "channels": 3}
IMAGENET |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with what `files` has; a name that begins with `cut` is cut short."""

    files: dict[str, bytes] = {}  # noqa: RUF012 the handler's class is all that a test can reach
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.asked.append(name)
        if name not in self.files:
            self.send_error(404)
            return
        data = self.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked may have had enough
            self.wfile.write(data[: len(data) // 2] if name.startswith("cut") else data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    return torchvision.models.resnet18(num_classes=1000).eval()


@pytest.fixture(scope="module")
def data(net: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("published") / "net.pth"
    torch.save(net.state_dict(), path)
    return path.read_bytes()


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    Server.files, Server.asked = {}, []
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def item(address: str, data: bytes, prefix: str = "resnet18") -> Published:
    """The published entry of ResNet-18, with the address and the hash of a file of our own."""
    digest = hashlib.sha256(data).hexdigest()[:8]
    Server.files = {f"{prefix}-{digest}.pth": data}
    entry = published("resnet18", "IMAGENET1K_V1")
    url = f"{address}/{prefix}-{digest}.pth"
    return replace(entry, url=url, digest=digest, size=len(data))


def cached(tmp_path: Path) -> set[str]:
    folder = tmp_path / "cache" / "weights"
    return {path.suffix for path in folder.iterdir()} if folder.exists() else set()


@pytest.mark.slow
def test_a_file_is_fetched_once_checked_converted_and_kept(
    address: str, net: torch.nn.Module, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = item(address, data)
    monkeypatch.setattr(fetching, "published", lambda model, name: entry)
    ours = plusx.create_model("resnet18", weights="IMAGENET1K_V1").eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(x), net(x))
    assert Server.asked == [entry.file]
    assert cached(tmp_path) == {".safetensors", ".sha256"}

    # a second time nothing is asked for; another number of classes has a new head
    three = plusx.create_model("resnet18", weights="IMAGENET1K_V1", num_classes=3).eval()
    with torch.inference_mode():
        assert torch.equal(three.embed(x), ours.embed(x))
    assert Server.asked == [entry.file]


@pytest.mark.slow
def test_a_corrupt_cached_file_is_downloaded_again(address: str, data: bytes) -> None:
    entry = item(address, data)
    path = fetch(entry)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.warns(UserWarning, match="is corrupt and is converted again"):
        assert fetch(entry) == path
    assert path.read_bytes() == whole
    assert len(Server.asked) == 2
    assert open_network(path)[1].source == "torchvision"


@pytest.mark.slow
def test_a_file_placed_by_hand_is_used_and_not_moved(
    address: str, data: bytes, tmp_path: Path
) -> None:
    entry = replace(item(address, data), url="http://127.0.0.1:9/" + item(address, data).file)
    with pytest.raises(OSError, match="Download it yourself and put it at ") as caught:
        fetch(entry)
    path = Path(str(caught.value).rpartition("put it at ")[2])
    path.write_bytes(data)
    assert fetch(entry).exists()
    assert path.read_bytes() == data


def test_without_a_network_the_error_names_url_and_folder(
    address: str, data: bytes, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    entry = replace(item(address, data), url=f"http://127.0.0.1:{port}/resnet18-aaaaaaaa.pth")
    path = tmp_path / "cache" / "weights" / "resnet18-aaaaaaaa.pth"
    with pytest.raises(OSError, match="could not be downloaded") as caught:
        fetch(entry)
    assert entry.url in str(caught.value)
    assert str(caught.value).endswith(f"put it at {path}")
    assert "\n" not in str(caught.value)
    assert not cached(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda e: replace(e, digest="0" * 8),
            r"is not the published one \(its sha256 is \w{64}, not 0{8}\)",
        ),
        (lambda e: replace(e, url=e.url + ".gone"), "HTTP 404 Not Found"),
        (
            lambda e: replace(e, size=1000),
            "more than 1,049,676 bytes were received",
        ),
    ],
)
def test_a_file_with_another_hash_is_not_kept(
    change: object, expected: str, address: str, data: bytes, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match=expected) as caught:
        fetch(change(item(address, data)))
    assert "put it at" in str(caught.value)
    assert not cached(tmp_path)


def test_a_truncated_download_is_not_kept(address: str, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="could not be downloaded"):
        fetch(item(address, data, prefix="cut"))
    assert not cached(tmp_path)


def test_a_wrong_file_placed_by_hand_is_named_and_not_deleted(address: str, tmp_path: Path) -> None:
    entry = item(address, b"published")
    path = tmp_path / "cache" / "weights" / entry.file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    with pytest.raises(OSError, match=r"is not the file that was published.*delete it"):
        fetch(entry)
    assert path.exists()
    assert not Server.asked


def test_a_file_with_the_right_hash_and_the_wrong_content_is_refused(
    address: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="not a weight file"):
        fetch(item(address, b"<html>"))
    assert ".safetensors" not in cached(tmp_path)


@pytest.mark.slow
def test_every_published_name_of_the_zoo_is_known() -> None:
    names_of = {name: published_names(name) for name in zoo.names() if published_names(name)}
    assert {"resnet50", "densenet161", "vgg11_bn", "convnext_tiny", "alexnet"} < names_of.keys()
    for model, names in names_of.items():
        figures = zoo.find(model)
        for name in names:
            entry = published(model, name)
            assert entry.url.startswith("https://download.pytorch.org/models/"), entry
            assert entry.file.endswith(f"-{entry.digest}.pth"), entry
            assert len(entry.classes) == figures.num_classes, entry
            # four bytes a parameter, and a little around them
            if isinstance(figures, Net) and model.startswith("resnet"):
                expected = 4 * sum(p.numel() for p in meta(figures))
                assert 1 <= entry.size / expected < 1.02, entry


def meta(spec: Net) -> list[torch.Tensor]:
    with torch.device("meta"):
        return list(plusx.nn.network.Network(spec).state_dict().values())


def test_the_entries_are_torchvisions() -> None:
    entry = published("resnet50", "IMAGENET1K_V2")
    assert (entry.digest, entry.classes[0]) == ("11ad3fa6", "tench")
    resized = {"resize": "center_crop", "crop_fraction": 224 / 232, "interpolation": "bilinear"}
    assert entry.preprocessing == {**IMAGENET, "kind": "image", **resized}
    assert published("resnet50", "DEFAULT") == entry
    assert published("resnet50", "ResNet50_Weights.IMAGENET1K_V2") == entry
    # torchvision's GoogLeNet was trained on images scaled to -1 .. 1
    assert published("googlenet", "IMAGENET1K_V1").preprocessing["mean"] == [0.5] * 3


@pytest.mark.parametrize(
    ("model", "name", "expected"),
    [
        ("resnet50", "IMAGENET1K_V3", r"no weights 'IMAGENET1K_V3', did you mean IMAGENET1K_V\d\?"),
        ("resnet50", "ResNet18_Weights.IMAGENET1K_V1", "are not weights for resnet50"),
        ("resnet20", "IMAGENET1K_V1", "torchvision has no weights for resnet20"),
        (
            "resnet18",
            "imagenet",
            "there is no file imagenet; published for resnet18: IMAGENET1K_V1",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    model: str, name: str, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        plusx.create_model(model, weights=name)


def test_a_spec_has_no_published_weights() -> None:
    with pytest.raises(ValueError, match="a spec has no published weights"):
        plusx.create_model(zoo.find("resnet18"), weights="IMAGENET1K_V1")


def test_importing_downloads_no_file_and_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default place is under the home folder; naming it makes no folder."""
    monkeypatch.delenv("PLUSX_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/nowhere")
    assert store.cache_folder() == Path("/nowhere/.cache/plusx")
    assert not os.path.exists("/nowhere")

"""The page of an explanation as a browser shows it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from browser import Browser, browsing, find_browser
from plusx.explain import faithfulness, overlay
from plusx.explain.faithfulness import FaithfulnessTest
from plusx.report.explanation import explanation_page
from plusx.run import drawing


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed"),
]

_IMAGES = """[...document.querySelectorAll('img')].map(image => {
  const box = image.getBoundingClientRect();
  return {made: image.complete && image.naturalWidth, alt: image.alt.length,
          left: box.left, right: box.right, width: box.width, height: box.height};
})"""
COUNT = 5


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    images = (torch.rand(COUNT, 3, 32, 48) * 255).to(torch.uint8)
    maps = torch.rand(COUNT, 4, 6)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    trial = FaithfulnessTest(lambda x: net(x).softmax(1), lambda net, x, classes: maps, 0)
    areas = trial.add(images.float() / 255, torch.zeros(COUNT).long(), maps)
    rows = [
        {
            "path": f"photos/{'long-name-' * 12}{index}.png",
            "label": "cat",
            "probability": 0.9,
            "class": "cat" if index else "dog",
            "class_probability": 0.1,
            "nothing": not index,
            **area,
        }
        for index, area in enumerate(areas)
    ]
    forgotten = [
        {
            "part": part,
            "title": part,
            "rank_correlation": faithfulness.spread([0.1, 0.2]),
            "without_sign": faithfulness.spread([0.1, 0.2]),
            "images": COUNT,
            "networks": 1,
        }
        for part in ("head", "layer1 and above", "everything")
    ]
    faith = faithfulness.summary(rows)
    result = {
        "run": "runs/photos",
        "network": "resnet20, 269,722 parameters",
        "method": "grad-cam",
        "title": "Grad-CAM",
        "source": "Selvaraju et al. 2017",
        "stage": None,
        "positions": [4, 6],
        "size": [32, 48],
        "class": None,
        "seed": 0,
        "finding": faithfulness.finding("Grad-CAM", faith, forgotten),
        "images": rows,
        "failed": [{"path": "photos/broken.png", "reason": "its header is corrupt"}],
        "faithfulness": faith,
        "shuffled_weights": forgotten,
        "about_shuffling": faithfulness.about_shuffling(forgotten, 24),
        "figures": trial.figures(),
        "machine": {"processor": "A processor", "platform": "Linux-" + "x" * 60},
        "command": "plusx explain runs/photos photos",
        "date": "2026-01-02T03:04:05+00:00",
    }
    pictures = [
        tuple(map(drawing.png, overlay.panels(image, grid)))
        for image, grid in zip(images, maps, strict=True)
    ]
    path = tmp_path_factory.mktemp("page") / "explain.html"
    path.write_text(explanation_page(result, pictures), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_an_explanation_in_a_browser(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                 deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.call("Emulation.setEmulatedMedia", features=[feature])
    browser.open(page)

    requested = [event["request"]["url"] for event in browser.named("Network.requestWillBeSent")]
    assert [url for url in requested if not url.startswith("data:image/png;base64,")] == [
        page.as_uri()
    ]
    assert browser.named("Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []
    assert [event["entry"]["text"] for event in browser.named("Log.entryAdded")] == []

    assert browser.value("document.documentElement.scrollWidth") <= width
    images = browser.value(_IMAGES)
    assert len(images) == 3 * COUNT
    for image in images:
        assert image["made"] >= 224
        assert image["alt"] > 10
        assert image["left"] >= 0
        assert image["right"] <= width
        assert image["width"] > 90
        assert image["width"] / image["height"] == pytest.approx(1.5, rel=0.02)
    assert browser.value("document.querySelectorAll('figure svg').length") == 2


def test_no_external_image_is_requested(browser: Browser, page: Path, tmp_path: Path) -> None:
    """The control: the page's policy stops what is no data: URI, and the browser says so."""
    (tmp_path / "other.png").write_bytes(b"")
    foreign = tmp_path / "foreign.html"
    text = page.read_text(encoding="utf-8").replace("<main>", '<main><img src="other.png">')
    foreign.write_text(text, encoding="utf-8")
    browser.open(foreign)
    assert any("img-src" in event["entry"]["text"] for event in browser.named("Log.entryAdded"))

"""Reports as a browser shows them: on a desk and on a telephone, in light and in dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import Browser, browsing, find_browser
from corpus import boxes
from plusx.report.result import result_page
from plusx.report.run import run_page
from plusx.run.inspecting import inspect
from study_pages import axis, line, lines, study
from study_results import DEGRADED, comparison, run, single


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed"),
]

# For each figure its drawing's box, whether ink is in it, and the smallest size of its text.
_FIGURES = """[...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')];
  const scale = box.width / svg.viewBox.baseVal.width;
  return {
    left: box.left, right: box.right, width: box.width, height: box.height,
    marks: svg.querySelectorAll('path, use').length,
    size: Math.min(...texts.map(text => parseFloat(getComputedStyle(text).fontSize) * scale)),
    colours: [...new Set(texts.map(text => getComputedStyle(text).fill))],
    cut: texts.filter(text => text.getBoundingClientRect().right > innerWidth).length,
    touching: texts.flatMap((one, index) => texts.slice(index + 1).filter(other => {
      // The middle third of a line of text is what may not be covered.
      const [a, b] = [one, other].map(text => text.getBoundingClientRect());
      return Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.34 * a.height;
    }).map(other => one.textContent + " | " + other.textContent)),
  };
})"""
_PALE = """(() => {
  const parts = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = colour => { const [r, g, b] = parts(colour).map(p => {
    p /= 255; return p <= 0.04045 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = light(getComputedStyle(document.documentElement).backgroundColor);
  const pale = [];
  for (const element of document.querySelectorAll('h1,h2,h3,p,th,td,dt,dd,figcaption,summary')) {
    if (!element.textContent.trim() || element.closest('.confusion')) continue;
    const [low, high] = [paper, light(getComputedStyle(element).color)].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) pale.push(element.outerHTML.slice(0, 80));
  }
  return pale;
})()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    digits = [str(digit) for digit in range(10)]
    contents = {
        "comparison": result_page(comparison(DEGRADED)),
        "run": run_page(
            single(digits),
            run("resnet20", 0, 0.9).points,
            classes=digits,
            recipe="seed = 0\n",
            environment={"processor": "A processor", "platform": "Linux-" + "x" * 60},
            test_uses=0,
        ),
        "study": result_page(study()),
        "hard study": result_page(
            study(
                figures=[
                    lines(
                        "Forty lines",
                        axis("depth"),
                        axis("norm", "log"),
                        [line(f"network number {n}", [1, 2], [n, n + 1]) for n in range(40)],
                    ),
                    lines("Nothing", axis("depth"), axis("norm"), []),
                ],
                finding="x" * 300,
            )
        ),
    }
    # a data set whose classes have long names, with boxes
    table = boxes(folder)
    long = "an unusually long name of a class, " * 3
    table.write_text(table.read_text() + f'\n0.png,1,1,9,9,"{long}"\n1.png,1,1,9,9,"{"x" * 80}"')
    inspect(str(table), folder / "data set.html")
    contents["data set"] = (folder / "data set.html").read_text(encoding="utf-8")
    for name, page in contents.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in contents}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["comparison", "run", "study", "hard study", "data set"])
def test_a_report_in_a_browser(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                 deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.call("Emulation.setEmulatedMedia", features=[feature])
    browser.open(pages[name])

    requested = [event["request"]["url"] for event in browser.named("Network.requestWillBeSent")]
    assert [url for url in requested if not url.startswith("data:")] == [pages[name].as_uri()]
    assert browser.named("Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []
    assert [event["entry"]["text"] for event in browser.named("Log.entryAdded")] == []

    # Nothing sticks out to the side: what is wider scrolls in its own box.
    assert browser.value("document.documentElement.scrollWidth") <= width
    figures = browser.value(_FIGURES)
    counts = {"comparison": 4, "run": 2, "study": 5, "hard study": 2, "data set": 1}
    assert len(figures) == counts[name]
    for figure in figures:
        assert figure["left"] >= 0
        assert figure["right"] <= width
        assert figure["width"] > 300
        assert figure["height"] > 100
        assert figure["marks"] >= 3
        assert figure["size"] >= 9.5
        assert figure["cut"] == 0
        assert "rgb(0, 0, 0)" not in figure["colours"]  # every colour is one of the page's
        assert figure["touching"] == []
    assert browser.value(_PALE) == []


def test_a_table_is_sorted_by_its_heads(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["comparison"])
    table = "document.querySelector('section table')"
    names = f"[...{table}.tBodies[0].rows].map(row => row.cells[0].innerText)"
    click = f"{table}.tHead.rows[0].cells[3].firstElementChild.click()"
    assert browser.value(names) == ["plain20", "resnet20", "plain56", "resnet56"]
    browser.value(click)
    assert browser.value(names) == ["plain56", "plain20", "resnet56", "resnet20"]
    browser.value(click)
    assert browser.value(names) == ["resnet20", "resnet56", "plain20", "plain56"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_surface_has_all_its_shades_in_light_and_in_dark(
    browser: Browser, pages: dict[str, Path], scheme: str
) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.call("Emulation.setEmulatedMedia", features=[feature])
    browser.open(pages["study"])
    fills = browser.value(
        "[...document.querySelectorAll('figure:last-of-type svg path:not(defs path)')]"
        ".map(path => getComputedStyle(path).fill)"
    )
    assert len(set(fills) - {"none", "rgb(0, 0, 0)"}) >= 6
    assert "rgb(0, 0, 0)" not in fills


def test_a_table_is_sorted_on_a_telephone_too(browser: Browser, pages: dict[str, Path]) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=900,
                 deviceScaleFactor=1, mobile=True)  # fmt: skip
    browser.open(pages["comparison"])
    table = "document.querySelector('section table')"
    names = f"[...{table}.tBodies[0].rows].map(row => row.cells[0].innerText)"
    choose = (
        "(() => { const select = document.querySelector('section select'); select.value = '3 %s';"
        "select.dispatchEvent(new Event('change')); return select.offsetHeight; })()"
    )
    assert browser.value(choose % "up") > 20
    assert browser.value(names) == ["plain56", "plain20", "resnet56", "resnet20"]
    browser.value(choose % "down")
    assert browser.value(names) == ["resnet20", "resnet56", "plain20", "plain56"]


def test_missing_values_are_last_in_either_order(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["study"])
    table = "document.querySelector('section table')"
    heads = f"[...{table}.tHead.rows[0].cells].map(cell => cell.innerText)"
    column = next(n for n, text in enumerate(browser.value(heads)) if "Gradient ratio" in text)
    last = f"{table}.tBodies[0].rows[11].cells[0].innerText"
    for _ in ("ascending", "descending"):
        browser.value(f"{table}.tHead.rows[0].cells[{column}].firstElementChild.click()")
        assert browser.value(last) == "resnet32"


def test_the_names_of_a_long_table_stay_when_it_is_scrolled(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=900,
                 deviceScaleFactor=1, mobile=True)  # fmt: skip
    browser.open(pages["study"])
    script = (
        "(() => { const table = document.querySelector('section table');"
        "table.parentElement.scrollLeft = %d;"
        "return table.tBodies[0].rows[0].cells[0].getBoundingClientRect().left; })()"
    )
    assert browser.value(script % 0) == browser.value(script % 200)


def test_the_browser_reports_requests_and_errors(browser: Browser, tmp_path: Path) -> None:
    """The control: what the tests above look for can be seen."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<!doctype html><img src="missing.png"><script>console.error(1); nothing.at.all</script>'
    )
    browser.open(page)
    assert len(browser.named("Network.requestWillBeSent")) == 2
    assert browser.named("Runtime.consoleAPICalled")
    assert browser.named("Runtime.exceptionThrown")
    assert browser.named("Log.entryAdded")

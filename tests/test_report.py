"""Reports: one file that asks for nothing, says everything twice, and lets no text become code."""

import colorsys
import importlib
import json
import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb

from page_reader import Page
from plusx.report import write_report
from plusx.report.charts import colours
from plusx.report.metrics import METRICS, metrics_line
from plusx.report.predictions import examples, read_examples
from plusx.report.result import result_page
from plusx.report.run import run_page
from study_results import DEGRADED, comparison, run, single


EVIL = '<script>alert("1")</script>&\'"$x^2$'


def single_page(examples: Sequence[dict[str, Any]] = (), **changed: object) -> str:
    return run_page(
        single([str(digit) for digit in range(10)], **changed),
        run("resnet20", 0, 0.9).points,
        classes=[str(digit) for digit in range(10)],
        recipe="seed = 0\n",
        environment={"processor": "A processor", "cores": 2, "torch": "2.11.0", "threads": 1},
        test_uses=1,
        examples=examples,
    )


PAGES = {
    "comparison": result_page(comparison(DEGRADED)),
    "one seed": result_page(comparison({"resnet20": (0.98,)})),
    "many": result_page(comparison({f"resnet{6 * n + 2}": (0.9, 0.8) for n in range(1, 14)})),
    "run": single_page(),
    "run without validation": single_page(validation=None),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_a_page_loads_no_external_resource(page: str) -> None:
    read = Page(page)
    for name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster", "background"):
        assert all(value.startswith("#") for value in read.attributes(name))
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page
    assert "@font-face" not in page
    policy = read.attributes("content")[0]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert [tag for tag, _ in read.elements].count("script") == 1


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_a_page_is_valid_html_with_unique_ids(page: str) -> None:
    read = Page(page)
    identities = read.attributes("id")
    assert len(identities) == len(set(identities))
    for target in [value for value in read.attributes("href") if value.startswith("#")]:
        assert target[1:] in identities
    for target in re.findall(r"url\(#([^)]+)\)", page):
        assert target in identities


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_every_figure_has_a_text_alternative(page: str) -> None:
    read = Page(page)
    images = [attrs for _, attrs in read.elements if attrs.get("role") == "img"]
    assert images
    for attrs in images:
        assert re.search(r"\d", attrs["aria-label"] or "")
    assert [tag for tag, _ in read.elements].count("svg") == len(images)


def test_the_same_result_gives_the_same_bytes() -> None:
    assert result_page(comparison(DEGRADED)) == PAGES["comparison"]


def test_a_comparison_has_finding_and_settings() -> None:
    shown = Page(PAGES["comparison"]).text
    for text in (
        "depth hurts without skips",
        "the test set was not used",
        "269,434",
        "2,516,608",
        "97.7 ± 0.4",
        "not reached",
        "standard deviation over the seeds (n - 1)",
        "macro averages",
        "plusx compare digits",
        "torch 2.11.0",
        "A processor",
        "epochs = 6",
    ):
        assert text in shown


def test_the_use_of_the_test_set_is_reported() -> None:
    assert "the test set was not used" not in result_page(comparison(DEGRADED, split="test"))
    assert "used once" in Page(PAGES["run"]).text


@pytest.mark.parametrize("field", ["finding", "data", "command", "recipe", "question"])
def test_foreign_text_is_escaped(field: str) -> None:
    read = Page(result_page(comparison(DEGRADED, **{field: EVIL})))
    assert [tag for tag, _ in read.elements].count("script") == 1
    assert EVIL in read.text


def test_class_names_are_escaped() -> None:
    classes = [EVIL, "b", "c"]
    page = run_page(
        single(classes),
        run("resnet20", 0, 0.9).points,
        classes=classes,
        recipe=EVIL,
        environment={"processor": EVIL},
        test_uses=0,
    )
    read = Page(page)
    assert [tag for tag, _ in read.elements].count("script") == 1
    assert read.text.count(EVIL) >= 3
    assert EVIL in read.attributes("title")


def test_names_in_a_figure_are_escaped() -> None:
    read = Page(result_page(comparison({EVIL: (0.9, 0.8), "$b$": (0.7, 0.6)})))
    assert [tag for tag, _ in read.elements].count("script") == 1
    assert EVIL in read.text
    assert "$b$" in read.text


def test_many_classes_are_listed_by_what_is_confused() -> None:
    classes = [f"class{number}" for number in range(100)]
    page = run_page(
        single(classes),
        run("resnet20", 0, 0.9).points,
        classes=classes,
        recipe="",
        environment={},
        test_uses=0,
    )
    shown = Page(page).text
    assert "class0 class1 1 10.0" in shown
    assert len(page) < 200_000


def test_where_images_have_several_labels_none_is_taken_for_another() -> None:
    result = single(["sky", "sea"])
    result["validation"] |= {"label_accuracy": 0.95, "confusion": [[[5, 1], [1, 13]]] * 2}
    page = run_page(
        result,
        run("resnet20", 0, 0.9).points,
        classes=["sky", "sea"],
        recipe="",
        environment={},
        test_uses=0,
    )
    shown = Page(page).text
    assert "with every label right" in shown
    assert "Confusion" not in shown
    assert "Precision, recall and F1 per class" in shown


def test_a_run_without_metrics_says_so() -> None:
    nothing = {"map50": None, "map": None}
    result = single(["sky", "sea"], metrics=["map50", "map"])
    rows = [{"label": name, **nothing, "boxes": 0} for name in ("sky", "sea")]
    result["validation"] = {"count": 6, "boxes": 0, **nothing, "per_class": rows}
    page = run_page(result, [], classes=["sky", "sea"], recipe="", environment={}, test_uses=0)
    shown = Page(page).text
    assert "cannot be evaluated: the 6 validation images have no annotation" in shown
    assert "Boxes per class" in shown
    assert metrics_line(result["validation"], result["metrics"]).startswith("no metric:")


def test_metrics_have_intervals_and_units() -> None:
    """Areas under curves with intervals of 95 %, and distances in mm, in no per cent."""
    result = single(["sky", "sea"], metrics=["auroc", "f1"], train_error=None, train={})
    rows = result["validation"]["per_class"]
    rows[0] |= {"auroc": 0.8, "auroc_interval": [0.7, 0.85]}
    rows[1] |= {"auroc": 1.0, "auroc_interval": None}
    result["validation"] |= {
        "label_accuracy": 0.95,
        "auroc": 0.9,
        "auroc_interval": [0.81, 0.96],
        "hd95": 3.456,
        "hd95_per_class": [{"label": "sea", "hd95": 3.456, "count": 2, "missed": 0}],
    }
    page = run_page(result, [], classes=["sky", "sea"], recipe="", environment={}, test_uses=0)
    shown = Page(page).text
    assert "AUROC 90.0 % (95 % interval 81.0 to 96.0 %), F1 90.0 %, HD95 3.46 mm on the" in shown
    assert "80.0 70.0 to 85.0" in shown
    assert "The 95 % interval follows each metric that has one." in shown
    assert "HD95 per class" in shown
    assert "345.6" not in shown


def _luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_light_and_dark_mode() -> None:
    """3:1, what WCAG 2.2 asks of graphics (1.4.11)."""
    names = [
        f"{family}{depth}" for family in ("plain", "resnet", "a", "b", "c") for depth in (1, 2, 3)
    ]
    for colour in colours(names).values():
        assert _contrast(colour, "#fdfdfb") >= 3
        assert _contrast(colour, "#14171a") >= 3


def test_networks_of_one_family_share_a_hue_and_twins_do_not() -> None:
    chosen = colours(["plain20", "plain56", "resnet20", "resnet56"])
    assert len(set(chosen.values())) == 4
    hue = {name: colorsys.rgb_to_hls(*to_rgb(colour))[0] for name, colour in chosen.items()}
    assert abs(hue["plain20"] - hue["plain56"]) < 0.05
    assert abs(hue["plain20"] - hue["resnet20"]) > 0.2
    alone = colours(["plain20", "plain56"])
    assert alone == {name: chosen[name] for name in alone}


def test_names_with_numbers_of_their_own_have_hues_of_their_own() -> None:
    chosen = colours([f"task {number}: {number}, {number + 1}" for number in range(8)])
    hues = {name: colorsys.rgb_to_hls(*to_rgb(colour))[0] for name, colour in chosen.items()}
    assert len({round(hue, 2) for hue in hues.values()}) == 8


def test_the_interval_of_a_split_that_chose_the_epoch_is_left_out() -> None:
    """Of the best of many epochs the accuracy is too good, and an interval around it is wrong."""
    page = Page(single_page(best_epoch=4)).text
    assert "optimistic: the epoch was chosen on the same images" in page
    assert "95 % interval" not in page.split("Confusion")[0]


def _folder(path: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name).write_text(text, encoding="utf-8")
    return path


def test_a_report_is_written_into_the_folder_of_a_comparison(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"result.json": comparison(DEGRADED)})
    written = write_report(folder)
    assert written == tmp_path / "report.html"
    assert written.read_text(encoding="utf-8") == PAGES["comparison"]


def test_a_report_is_written_into_the_folder_of_a_run(tmp_path: Path) -> None:
    classes = [str(digit) for digit in range(10)]
    lines = [
        {"step": 1, "epoch": 1, "loss": 2.0, "error": 0.9},
        {"step": 1, "epoch": 1, "train_loss": 2.0, "train_error": 0.9,
         "validation": {"accuracy": 0.4, "loss": 1.5}},
    ]  # fmt: skip
    folder = _folder(
        tmp_path,
        {
            "result.json": single(classes),
            "data.json": {"classes": classes},
            "environment.json": {"processor": "A processor"},
            "recipe.toml": "seed = 0\n",
            "log.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        },
    )
    shown = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "90.0 % of the 100 validation images" in shown
    assert "95 % interval 82.6 to 94.5 %" in shown


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "it is not a run, comparison or study"),
        ({"recipe.toml": "seed = 0\n"}, "it is not finished yet"),
        ({"result.json": {"kind": "compare"}}, "not the result of a run, a comparison or a study"),
        ({"result.json": [1]}, "not the result of a run, a comparison or a study"),
        ({"result.json": "{"}, "result.json"),
    ],
)
def test_a_folder_that_is_neither_is_refused(
    tmp_path: Path, files: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_report(_folder(tmp_path, files))
    with pytest.raises(ValueError, match="no such folder"):
        write_report(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("1.2.840.113619.2.55.png", True),
        ("left knee, scan 2.png", True),
        ("Überblick.png", True),
        ("..png", False),
        (".hidden.png", False),
        ("../secret.png", False),
        ("a/b.png", False),
        ("a\\..\\b.png", False),
    ],
)
def test_example_images_may_have_any_name_within_their_folder(
    tmp_path: Path, name: str, allowed: bool
) -> None:
    """A folder of DICOM files is named by UIDs, with dots; others have spaces."""
    folder = tmp_path / "seen"
    (folder / "side-by-side").mkdir(parents=True)
    row = {"path": "scan", "side_by_side": f"side-by-side/{name}", "class_fractions": {"bone": 0.5}}
    (folder / "predictions.json").write_text(json.dumps({"predictions": [row]}))
    if not allowed:
        with pytest.raises(ValueError, match="is not an image of a prediction"):
            read_examples(folder)
        return
    (folder / "side-by-side" / name).write_bytes(b"png")
    assert read_examples(folder)[0]["lines"] == ["bone 50.0 %"]


def test_every_metric_of_a_task_has_a_title_a_unit_and_a_direction() -> None:
    import plusx.tasks
    from plusx.tasks.generate import METRICS as OF_TEXTS
    from plusx.tasks.task import Task

    for module in pkgutil.iter_modules(plusx.tasks.__path__):
        importlib.import_module(f"plusx.tasks.{module.name}")
    reported = {name for names in OF_TEXTS.values() for name in names}
    for task in Task.__subclasses__():
        for names in (getattr(task, "metrics", ()), task.monitors):
            reported |= set(names) if isinstance(names, tuple) else set()
    # the metrics of a class, which the report has a table of
    reported |= {"iou", "dice", "fraction", "map50", "map75", "mask_map75", "hd95", "auroc"}
    assert {"accuracy", "wer", "bleu", "equal_error_rate"} <= reported
    assert reported - METRICS.keys() == set()


def test_a_run_names_its_kind_of_samples() -> None:
    page = single_page(noun="recording")
    assert "validation recordings" in page
    assert "image" not in re.sub(
        r"<(style|script)[^>]*>.*?</\1>|<img[^>]*>|data:image", "", page, flags=re.DOTALL
    )


def test_words_of_a_transcript_that_differ_from_the_reference_are_marked() -> None:
    row = {
        "path": "a.wav",
        "transcript": "one tree four four",
        "cer": 0.25,
        "ground_truth": {"transcript": "one three four"},
    }
    nothing = {"text": "Ja <b>.", "translation": "", "ground_truth": {"translation": "Yes ."}}
    shown, empty = examples([row, nothing], [None, None])
    assert shown["texts"] == [
        ("reference", [("one", False), ("three", True), ("four", False)]),
        ("transcript", [("one", False), ("tree", True), ("four", False), ("four", True)]),
    ]
    assert shown["lines"] == ["", "character error rate 25.0 %"]
    assert empty["texts"][0] == ("source", [("Ja <b>.", False)])
    assert empty["texts"][2] == ("translation", [("(nothing)", True)])
    page = single_page(examples=[shown, empty])
    assert "<mark>three</mark>" in page
    assert "Ja &lt;b&gt;." in page


def test_words_of_a_text_have_the_colour_of_what_they_add() -> None:
    truth = {"label": "bad", "probability": 0.1}
    row = {"text": "a fine film", "label": "good", "probability": 0.9, "ground_truth": truth}
    row |= {"class": "good", "tokens": ["a", " fine"], "attributions": [-0.1, 0.4]}
    (shown,) = examples([row], [None])
    assert shown["lines"] == ["predicted: good, 90.0 %", "annotated: bad, 10.0 %"]
    assert [(token["share"], token["for"]) for token in shown["shown"]] == [
        (0.25, False),
        (1.0, True),
    ]
    page = single_page(examples=[shown])
    assert 'class="for"' in page
    assert "fine</span>" in page
    (shown,) = examples([{**row, "unknown": [False, True]}], [None])
    page = single_page(examples=[shown])
    assert 'a</span> <span class="for unknown"' in page
    assert 'not in the vocabulary">fine</span>' in page

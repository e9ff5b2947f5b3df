"""Explanations: what is written, what is measured of a map, and what is said of it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from plusx import cli, store
from plusx.explain import attribution, explain, faithfulness, overlay
from plusx.explain.attribution import integrated_gradients, occlusion
from plusx.explain.faithfulness import deletion_and_insertion, rank_correlation
from plusx.explain.grad_cam import grad_cam
from plusx.grammar.spec import Block, Net, Stage
from plusx.nn.network import Network
from plusx.run import load_run
from plusx.weights.files import save_network


SIDE = 12
PREPROCESSING = {
    "size": [SIDE, SIDE],
    "channels": 3,
    "mean": [0.0] * 3,
    "std": [1.0] * 3,
    "resize": "stretch",
}
HOSTILE = "<img src=x onerror=alert(1)>.png"


def reds_and_greens(tail: str = "pool") -> Network:
    """A network that is understood: the more sharply red an image is, the surer of class "red"."""
    stage = Stage(block=Block(body="conv1b act"), depth=1, width=3)
    net = Network(
        Net(stem="conv1", stem_width=3, stages=(stage,), tail=tail, size=SIDE, num_classes=2)
    )
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 4:
                parameter.copy_(torch.eye(3)[:, :, None, None] * (5 if "layer" in name else 1))
            elif name.startswith("layer"):
                parameter.fill_(-4)
        net.fc.weight.copy_(torch.tensor([[40.0, 0.0, 0.0], [0.0, 40.0, 0.0]]))
        net.fc.bias.zero_()
    return net


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "colours.safetensors"
    save_network(
        reds_and_greens(),
        path,
        preprocessing=PREPROCESSING,
        classes=["red", "<b>green</b>"],
    )
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of red, one of green, none in the middle; and a file that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    places = [(0, 0), (0, 8), (8, 0), (8, 8), (1, 7), (7, 1)]
    for number, (top, left) in enumerate(places):
        image = Image.new("RGB", (SIDE, SIDE))
        image.paste((255, 0, 0) if number else (0, 255, 0), (left, top, left + 4, top + 4))
        image.save(folder / (HOSTILE if number == 3 else f"{number}.png"))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture(scope="module")
def explained(
    weights: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("out") / "why"
    return explain.explain(load_run(weights), [photos], out, device="cpu"), out


def test_maps_highlight_the_pixels_that_the_network_uses(
    explained: tuple[dict[str, Any], Path],
) -> None:
    result, out = explained
    rows = result["images"]
    maps = store.load_tensors(out / "maps.safetensors")[0]["maps"]
    assert [row["label"] for row in rows] == ["<b>green</b>", *["red"] * 5]
    for row, heat in zip(rows, maps, strict=True):
        assert int((heat > 0).sum()) == 16  # the square and nothing else
        for other in ("random", "centre"):
            assert row["deletion"]["map"] < row["deletion"][other]
            assert row["insertion"]["map"] > row["insertion"][other]
    faith = result["faithfulness"]
    assert faith["count"] == 6
    low, high = faith["deletion"]["random"]["interval"]
    assert 0 < low < faith["deletion"]["random"]["lead"] < high
    assert result["finding"] == (
        "On these 6 images Grad-CAM marks what the network uses: by deletion and by insertion it "
        "beats random maps and a Gaussian at the centre."
    )
    assert [entry["part"] for entry in result["shuffled_weights"]] == ["head", "layer1", "stem"]
    assert result["shuffled_weights"][-1]["title"] == "everything"
    assert {Path(entry["path"]).name for entry in result["failed"]} == {"broken.png"}


def test_explanation_files(explained: tuple[dict[str, Any], Path]) -> None:
    result, out = explained
    assert json.loads((out / "explanation.json").read_text()) == result
    for row in result["images"]:
        with Image.open(out / row["overlay"]) as image:
            assert image.size == (SIDE, SIDE)
        with Image.open(out / row["side_by_side"]) as image:
            assert image.height >= 224
            assert image.width > 3 * image.height
    page = (out / "explain.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 18
    assert "img-src data:" in page
    assert "<b>" not in page
    assert HOSTILE not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert not re.search(r"""(src|href)="(?!data:|#)""", page)
    assert "its header is corrupt" in page


def test_other_pages_contain_no_images() -> None:
    from plusx.report import page

    words = dict.fromkeys(("title", "kicker", "finding", "context"), "")
    assert "img-src" not in page.render("figures.html", {**words, "charts": []})


def test_a_map_that_ignores_the_network_is_uninformative(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_the_image(net: nn.Module, x: Tensor, classes: Tensor, stage: int | None) -> Tensor:
        return x.abs().sum(1)

    method = explain.Method("Edges", "nobody", of_the_image, networks=1, captum=False)
    monkeypatch.setitem(explain.METHODS, "grad-cam", method)
    result = explain.explain(load_run(weights), [photos], tmp_path, device="cpu")
    assert [row["rank_correlation"]["mean"] for row in result["shuffled_weights"]] == pytest.approx(
        [1.0] * 3
    )
    assert result["finding"].startswith("These maps are uninformative")
    assert "is uninformative as an explanation" in (tmp_path / "explain.html").read_text()


def predictions(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """A network whose probability of class 0 is a weighted sum of pixels."""

    def predict(x: Tensor) -> Tensor:
        p = (x * weight).sum((1, 2, 3))
        return torch.stack([p, 1 - p], 1)

    return predict


def test_deletion_and_insertion_of_a_sum() -> None:
    weight = torch.zeros(4, 4)
    weight[1, 2], weight[0, 0] = 0.75, 0.25
    x = torch.ones(2, 1, 4, 4)
    classes = torch.tensor([0, 1])
    faith = deletion_and_insertion(
        predictions(weight), x, classes, weight.expand(2, 4, 4), steps=16
    )
    remaining = torch.tensor([1.0, 0.25] + [0.0] * 15).double()
    torch.testing.assert_close(faith.deletion, torch.stack([remaining, 1 - remaining]))
    # a blur leaves an even image as it is
    torch.testing.assert_close(faith.insertion[0], torch.ones(17).double())
    torch.testing.assert_close(faith.areas[0][0], torch.tensor(0.75 / 16).double())


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_no_map_beats_the_exact_contributions(seed: int) -> None:
    """Where a network sums pixels up, what each adds is the best map that there is."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(5, 6, generator=generator)
    weight /= weight.sum()
    x, classes = torch.rand(1, 1, 5, 6, generator=generator), torch.tensor([0])
    predict = predictions(weight)
    other = torch.rand(1, 5, 6, generator=generator)
    best = deletion_and_insertion(predict, x, classes, x[:, 0] * weight, steps=10)
    any_map = deletion_and_insertion(predict, x, classes, other, steps=10)
    assert float(best.areas[0]) <= float(any_map.areas[0]) + 1e-6
    gains = (x - faithfulness.blurred(x))[:, 0] * weight
    best = deletion_and_insertion(predict, x, classes, gains, steps=10)
    assert float(best.areas[1]) >= float(any_map.areas[1]) - 1e-6
    assert float(best.deletion[0, 0]) == pytest.approx(float(predict(x)[0, 0]))
    assert float(best.deletion[0, -1]) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow  # scipy is slow to import
@settings(max_examples=50)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=12), st.integers(0, 99))
def test_rank_correlation_is_scipys(values: list[int], seed: int) -> None:
    from scipy.stats import spearmanr

    first = torch.tensor([values]).double()
    second = first[:, torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
    correlation = float(rank_correlation(first, second))
    if len(set(values)) == 1:
        assert correlation == 1
        return
    assert correlation == pytest.approx(spearmanr(first[0], second[0]).statistic, abs=1e-12)
    assert float(rank_correlation(first, -first)) == pytest.approx(-1)


def test_rank_correlation_of_values_that_are_equal() -> None:
    first, second = torch.tensor([[1.0, 2.0, 2.0, 3.0]]), torch.tensor([[1.0, 3.0, 2.0, 4.0]])
    assert float(rank_correlation(first, second)) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert float(rank_correlation(first, first**3)) == pytest.approx(1)
    assert float(rank_correlation(torch.zeros(1, 4), torch.ones(1, 4))) == 1
    assert float(rank_correlation(torch.zeros(1, 4), first)) == 0
    assert float(rank_correlation(first, first * float("nan"))) == 0


def test_weights_are_shuffled_from_the_head_down() -> None:
    net = reds_and_greens()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    changed = []
    for _, shuffled in faithfulness.shuffled_weights(net, 0):
        after = shuffled.state_dict()
        changed.append({name for name in before if not torch.equal(before[name], after[name])})
        for name, value in before.items():
            assert torch.equal(after[name].flatten().sort().values, value.flatten().sort().values)
    assert [{name.split(".")[0] for name in names} for names in changed] == [
        {"fc"}, {"fc", "layer1"}, {"fc", "layer1", "conv1"},
    ]  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.slow
def test_heat_maps_are_drawn_for_images_of_any_size() -> None:
    assert float(overlay.heat(torch.ones(1, 4097, 4097)).min()) == 1


def test_heat_maps_show_positive_contributions() -> None:
    maps = torch.tensor([[[-5.0, 1.0], [2.0, 4.0]], [[-1.0, -2.0], [-3.0, -4.0]]])
    heat = overlay.heat(maps)
    assert float(heat[0, 0, 0]) == 0
    assert float(heat[0].max()) == 1
    assert float(heat[0, 0, 1] * 2) == pytest.approx(float(heat[0, 1, 0]))
    assert not heat[1].any()


def lead(low: float, high: float) -> dict[str, Any]:
    return {"mean": 0.5, "std": 0.1, "lead": (low + high) / 2, "interval": [low, high]}


@pytest.mark.parametrize(
    ("random", "centre", "finding"),
    [
        ((0.1, 0.2), (0.1, 0.2), "marks what the network uses"),
        ((0.1, 0.2), (-0.1, 0.2), "it is not shown to be better than a Gaussian at the centre"),
        ((0.1, 0.2), (-0.3, -0.2), "but a Gaussian at the centre does better"),
        ((-0.1, 0.2), (-0.1, 0.2), "do not read the maps as what the network uses"),
    ],
)
def test_the_finding_of_faithfulness(
    random: tuple[float, float], centre: tuple[float, float], finding: str
) -> None:
    measure = {"map": {"mean": 0.4, "std": 0.1}, "random": lead(*random), "centre": lead(*centre)}
    faith = {"count": 9, "deletion": measure, "insertion": measure}
    assert finding in faithfulness.finding("Grad-CAM", faith, [])
    assert "uninformative" in faithfulness.finding("Grad-CAM", faith, survived(0.9, 0.8, 1.0))
    assert finding in faithfulness.finding("Grad-CAM", faith, survived(0.9, 0.0, 0.9))


def survived(*values: float) -> list[dict[str, Any]]:
    return [{"rank_correlation": faithfulness.spread(values)}]


def test_the_finding_of_shuffled_weights() -> None:
    assert "uninformative" in faithfulness.about_shuffling(survived(0.9, 0.8, 1.0), 64)
    assert "uninformative" in faithfulness.about_shuffling(survived(0.9), 64)
    assert "varies too much" in faithfulness.about_shuffling(survived(0.9, 0.0, 0.9), 64)
    assert "agree by chance" in faithfulness.about_shuffling(survived(0.1, 0.2, 0.3), 4)
    assert "depends on what" in faithfulness.about_shuffling(survived(0.1, 0.2, 0.3), 64)
    assert faithfulness.spread([-0.001])["interval"] is None


def test_contradicting_tests_are_reported() -> None:
    undecided = {"map": {"mean": 0.4}, "random": lead(-1, 1), "centre": lead(-1, 1)}
    won = {"map": {"mean": 0.4}, "random": lead(0.1, 1), "centre": lead(0.1, 1)}
    faith = {"count": 9, "deletion": undecided, "insertion": won}
    assert faithfulness.finding("Grad-CAM", faith, []) == (
        "On these 9 images Grad-CAM beats random maps and a Gaussian at the centre by insertion; "
        "more is not shown, so read the maps with care."
    )


def test_two_images_are_too_few_for_a_finding() -> None:
    row = {
        measure: {"map": 0.1, "random": 0.5, "centre": 0.5} for measure in ("deletion", "insertion")
    }
    assert "too few" in faithfulness.finding("Grad-CAM", faithfulness.summary([row, row]), [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class", "reds"], "no class 'reds'; did you mean red?"),
        (["--stage", "layer2"], "no stage 'layer2': this network has layer1 to layer1"),
        (["--method", "occlusion", "--stage", "layer1"], "a stage is for grad-cam"),
        (["--checked", "-1"], "checked = -1"),
    ],
)
def test_invalid_requests_write_nothing(
    weights: Path, photos: Path, tmp_path: Path, options: list[str], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(explain, "require_captum", lambda: None)
    out = tmp_path / "why"
    assert cli.run(["explain", str(weights), str(photos), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_network_without_a_spatial_stage_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stage(block=Block(body="conv1 act"), depth=1, width=3)
    spec = Net(stem=f"conv{SIDE}", stem_width=3, stages=(stage,), size=SIDE, num_classes=2)
    file = tmp_path / "flat.safetensors"
    save_network(Network(spec), file, preprocessing=PREPROCESSING, classes=["a", "b"])
    out = tmp_path / "why"
    assert cli.run(["explain", str(file), str(photos), "--out", str(out)]) == 2
    assert "every stage of this network has a single position" in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_extra_is_named(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(attribution, "find_spec", lambda name: None)
    command = ["explain", str(weights), str(photos), "--out", str(tmp_path / "why")]
    assert cli.run([*command, "--method", "integrated-gradients"]) == 1
    assert "pip install 'plusx[explain]'" in capsys.readouterr().err
    assert not (tmp_path / "why").exists()


def test_the_command_prints_one_object(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "why"
    options = ["--out", str(out), "--class", "<b>green</b>", "--checked", "0", "--device", "cpu"]
    assert cli.run(["explain", str(weights), str(photos), *options, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["out"] == str(out)
    assert {row["class"] for row in result["images"]} == {"<b>green</b>"}
    assert result["faithfulness"] is None
    assert result["images"][1]["nothing"]
    assert "broken.png" in captured.err
    assert cli.run(["explain", str(weights), str(photos / "broken.png"), "--out", str(out)]) == 1


def linear() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 6 * 6, 3)).double()
    return net.train(), torch.randn(2, 2, 6, 6, dtype=torch.float64)


@pytest.mark.slow
def test_captums_maps_of_a_linear_network_are_its_contributions() -> None:
    pytest.importorskip("captum")
    net, x = linear()
    rows = net[1].weight[[2, 0]].view(2, 2, 6, 6)  # type: ignore[union-attr]
    added = (rows * x).sum(1).detach()
    classes = torch.tensor([2, 0])
    with torch.no_grad():
        torch.testing.assert_close(integrated_gradients(net, x, classes), added)
        heat = occlusion(net, x, classes, windows=6)  # which captum computes in float32
        torch.testing.assert_close(heat, added, rtol=1e-5, atol=1e-6)
        score = integrated_gradients(net, x, lambda answers: answers[:, 2])
    torch.testing.assert_close(score[0], added[0])
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.slow
def test_integrated_gradients_add_up_to_the_difference_of_the_score() -> None:
    pytest.importorskip("captum")
    torch.manual_seed(0)
    net = reds_and_greens().double().eval()
    x = torch.rand(3, 3, SIDE, SIDE, dtype=torch.float64)
    total = integrated_gradients(net, x, 0, steps=256).sum((1, 2))
    gained = (net(x) - net(torch.zeros_like(x)))[:, 0].detach()
    torch.testing.assert_close(total, gained, rtol=0.02, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion"])
def test_captums_methods_from_the_command_line(
    weights: Path, photos: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("captum")
    out = tmp_path / "why"
    assert cli.run(["explain", str(weights), str(photos), "--out", str(out),
                    "--method", method, "--json"]) == 0  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == method
    assert result["positions"] == [SIDE, SIDE]
    faith = result["faithfulness"]
    assert faith["deletion"]["map"]["mean"] < faith["deletion"]["random"]["mean"]
    assert (out / "explain.html").is_file()


def test_grad_cam_of_the_colours_is_red() -> None:
    x = torch.zeros(1, 3, SIDE, SIDE)
    x[0, 0, 2:5, 3:6] = 1
    heat = grad_cam(reds_and_greens(), x, 0)
    assert torch.equal(heat > 0, x[:, 0] > 0)

"""Results of studies that were never made: every kind of figure, as real ones look."""

import math
import random
from typing import Any


FigureData = dict[str, Any]


def axis(title: str, scale: str = "linear") -> FigureData:
    return {"title": title, "scale": scale}


def line(
    name: str, x: list[Any], mean: list[Any], band: float = 0.0, dashed: bool = False
) -> FigureData:
    """A line with a band of this share of its values."""
    low = [None if value is None else value * (1 - band) for value in mean]
    high = [None if value is None else value * (1 + band) for value in mean]
    return {"name": name, "x": x, "mean": mean, "low": low, "high": high, "dashed": dashed}


def lines(
    title: str, x: FigureData, y: FigureData, curves: list[FigureData], level: float | None = None
) -> FigureData:
    figure = {"kind": "lines", "x": x, "y": y, "lines": curves, "level": level}
    return {**figure, **_words(title, "Line: mean over three seeds; band: lowest to highest.")}


def _words(title: str, caption: str) -> FigureData:
    return {"title": title, "caption": caption}


def training(names: dict[str, tuple[float, float]], epochs: int = 60) -> list[FigureData]:
    """Errors that fall to their first number at the pace of their second."""
    chance = random.Random(7)
    curves = []
    for name, (end, pace) in names.items():
        places = list(range(1, epochs + 1))
        mean = [
            end + (0.75 - end) * math.exp(-pace * n) + 0.01 * end * chance.gauss(0, 1)
            for n in places
        ]
        curves.append(line(name, places, mean, 0.08, dashed=name.startswith("plain")))
    return curves


def by_depth() -> FigureData:
    depths = [20, 32, 44, 56, 110]
    curves = [
        line("plain", depths, [0.094, 0.099, 0.112, 0.137, 0.31], 0.06, dashed=True),
        line("residual", depths, [0.083, 0.076, 0.072, 0.071, 0.066], 0.04),
        line("pre-activation", depths, [0.084, 0.075, 0.071, 0.068, 0.064], 0.04),
    ]
    return lines(
        "Training error over depth", axis("depth (layers)"), axis("training error", "share"), curves
    )


def gradients() -> FigureData:
    blocks = list(range(1, 28))
    curves = [
        line("plain56, batch norm", blocks, [3e3 * math.exp(-0.31 * n) for n in blocks], 0.4, True),
        line("plain56, none, He", blocks, [0.15 * math.exp(0.07 * n) for n in blocks], 0.3, True),
        line("plain56, none, PyTorch", blocks, [0.0] * 20 + [1e-4 * 3.0**n for n in range(7)]),
        line("resnet56, batch norm", blocks, [2.2 - 0.05 * n for n in blocks], 0.1),
    ]
    return lines(
        "Gradient norm by block at the start",
        axis("block, from the input"),
        axis("norm of dL/dW", "log"),
        curves,
    )


def seeds() -> FigureData:
    chance = random.Random(1)
    groups = []
    for name, mean in {
        "plain20": 0.095,
        "plain56": 0.14,
        "resnet20": 0.084,
        "resnet56": 0.07,
    }.items():
        values = [mean + chance.gauss(0, 0.004) for _ in range(3)]
        middle = sum(values) / 3
        groups.append({"name": name, "values": values, "mean": middle,
                       "interval": [middle - 0.01, middle + 0.01]})  # fmt: skip
    figure = {"kind": "dots", "x": axis("training error", "share"), "groups": groups}
    return {**figure, **_words("Training error at the end", "Dot: one seed. Bar: 95 % interval.")}


def surface(size: int = 25) -> FigureData:
    places = [round(-1 + 2 * n / (size - 1), 4) for n in range(size)]
    heights = [
        [
            0.03 + 4 * (x * x + 0.6 * y * y) ** 1.1 + 0.25 * math.sin(6 * x) ** 2 * abs(y)
            for x in places
        ]
        for y in places
    ]
    figure = {
        "kind": "map",
        "x": axis("first direction"),
        "y": axis("second direction"),
        "value": axis("training loss", "log"),
        "xs": places,
        "ys": places,
        "values": heights,
    }
    return {**figure, **_words("Loss around the trained network", "Filter-normalised directions.")}


def columns() -> list[FigureData]:
    return [
        {"key": "kind", "title": "Kind", "unit": "", "kind": "text"},
        {"key": "depth", "title": "Depth", "unit": "layers", "kind": "count"},
        {"key": "parameters", "title": "Parameters", "unit": "", "kind": "count"},
        {"key": "train_error", "title": "Train error", "unit": "", "kind": "share"},
        {"key": "error", "title": "Validation error", "unit": "", "kind": "share"},
        {"key": "ratio", "title": "Gradient ratio", "unit": "first to last", "kind": "number"},
        {"key": "seconds", "title": "Time", "unit": "s an epoch", "kind": "number"},
        {"key": "verdict", "title": "Gradients", "unit": "", "kind": "text"},
        {"key": "never", "title": "Never measured", "unit": "", "kind": "number"},
    ]


def spread(mean: float, std: float | None) -> FigureData:
    return {"mean": mean, "std": std, "seeds": [mean - (std or 0), mean, mean + (std or 0)]}


def rows() -> list[FigureData]:
    table_rows = []
    for kind, prefix in (("plain", "plain"), ("residual", "resnet"), ("pre-act", "preact_resnet")):
        for index, depth in enumerate((20, 32, 44, 56)):
            plain = kind == "plain"
            table_rows.append(
                {
                    "name": f"{prefix}{depth}",
                    "seeds": [0, 1, 2],
                    "kind": kind,
                    "depth": depth,
                    "parameters": 269434 + 200000 * index,
                    "train_error": spread(0.05 + (0.02 if plain else -0.01) * index, 0.003),
                    "error": spread(0.09 + (0.02 if plain else -0.005) * index, 0.004),
                    "ratio": spread(3000.0 * 10**index if plain else 2.2, 12.0),
                    "seconds": 10.5 * (index + 1),
                    "verdict": "explode" if plain else "settle",
                }
            )
    table_rows[5]["ratio"] = None
    return table_rows


def study(**changed: Any) -> FigureData:
    """A study's result.json."""
    result = {
        "kind": "study",
        "study": "degradation",
        "title": "Degradation",
        "question": "Do plain networks train worse as they get deeper, and residual ones not?",
        "finding": (
            "plain56 ends with 13.7 % training error where plain20 ends with 9.4 %; resnet56 is "
            "not worse than resnet20. The plain network's error stays higher after its gradients "
            "have settled: what holds it back is not a vanishing gradient."
        ),
        "data": "CIFAR-10",
        "split": "validation",
        "seeds": [0, 1, 2],
        "notes": ["Train error is that of the trained network on its training images."],
        "columns": columns(),
        "rows": rows(),
        "marked": [
            {
                "name": "plain110",
                "why": "another machine: NVIDIA H200",
                "kind": "plain",
                "depth": 110,
                "train_error": spread(0.31, 0.02),
            }
        ],
        "figures": [
            lines(
                "Training error",
                axis("epoch"),
                axis("training error", "share"),
                training(
                    {
                        "plain20": (0.09, 0.1),
                        "plain56": (0.14, 0.07),
                        "resnet20": (0.08, 0.11),
                        "resnet56": (0.07, 0.1),
                    }
                ),
            ),
            by_depth(),
            gradients(),
            seeds(),
            surface(),
        ],
        "recipe": 'epochs = 60\n\n[study]\nkind = "degradation"\n',
        "versions": {"plusx": "0.1.0", "python": "3.11.2", "torch": "2.11.0"},
        "machine": {"processor": "A processor", "cores": 2, "platform": "Linux", "device": "cpu"},
        "command": "plusx study degradation --out degradation",
        "date": "2026-01-31T12:00:00+00:00",
        "seconds": 7520.0,
        "jobs": "2 runs of 1 thread",
    }
    return {**result, **changed}

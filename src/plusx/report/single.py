"""The page of one run: how well it does, how it came there, where it errs, and what was run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.colours import Palette, colours
from plusx.report.confusion import confusion
from plusx.report.figures import alternative, figure
from plusx.report.history import Point
from plusx.report.page import Cell, Column
from plusx.report.scores import OF_CLASSES, capital, class_rows, score, with_measures
from plusx.report.setting import setting


Series = tuple[str, list[tuple[int, float | None]]]  # a name, and a value for each epoch


def run_page(
    result: Mapping[str, Any],
    points: Sequence[Point],
    *,
    classes: Sequence[str],
    recipe: str,
    environment: Mapping[str, Any],
    test_uses: int,
    examples: str = "",
) -> str:
    """The page of a run's folder, from what its files hold. `examples` are figures of images."""
    name, scores = str(result["name"]), result["validation"]
    palette = Palette(["validation", "training"])
    key = result.get("scores", OF_CLASSES)[0]
    drawn = [figure(told, palette, f"f{n}") for n, told in enumerate(_figures(points, key))]
    body = f'<div class="figures">\n{"".join(drawn)}</div>\n'
    if scores is not None:
        if "confusion" in scores and not _several(scores):
            of = "position" if "positions" in scores else "image"
            body += page.section("Confusion", confusion(scores["confusion"], classes, of))
        if scores.get("per_class"):
            body += page.section("Every class", _per_class(class_rows(scores)))
    if examples:
        body += page.section("Some of the validation images", examples)
    body += page.section("What was run", _what_was_run(result, environment, recipe, test_uses))
    epochs = result["epochs"]
    kept = f", the weights of epoch {result['best_epoch']} kept" if result["best_epoch"] else ""
    return page.document(
        title=f"plusx: {name} on {result['data']}",
        kicker=f"plusx train · {result['data']}",
        finding=finding(result),
        context=(
            f"{name}, {result['parameters']:,} parameters, trained for {epochs} "
            f"{'epoch' if epochs == 1 else 'epochs'}{kept}{_trained(result, key)}."
        ),
        body=body,
        colours=[*colours(["resnet56"]), ("#7c828a", "#9aa1a8")],  # validation, training
        pictures=bool(examples),
    )


def finding(result: Mapping[str, Any]) -> str:
    """One sentence about a run: its accuracy, with Wilson's interval of 95 %, or other figures."""
    name, scores = result["name"], result["validation"]
    if scores is None:
        return (
            f"{name} was trained on all training images of {result['data']}; none were kept back "
            "to judge it by."
        )
    key = result.get("scores", OF_CLASSES)[0]
    if not score(key).of_images:
        said = ", ".join(
            f"{score(each).title} {_figure_of(scores, each)}"
            for each in with_measures(scores, result["scores"])
            if scores.get(each) is not None
        )
        images = f"the {int(scores['count']):,} validation images"
        if not said:
            return f"{name} cannot be judged: in {images} there is nothing to be found."
        return f"{name} reaches {said} on {images}."
    accuracy, count = float(scores["accuracy"]), int(scores["count"])
    low, high = wilson(accuracy, count)
    right = "with every label right" if _several(scores) else "correctly"
    return (
        f"{name} names {100 * accuracy:.1f} % of the {count:,} validation images {right} "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)."
    )


def _figure_of(scores: Mapping[str, Any], key: str) -> str:
    """A figure, and its interval of 95 % where one is known."""
    unit = score(key).unit
    factor, places = (1, 2) if unit else (100, 1)
    value, *ends = (
        f"{factor * each:.{places}f}"
        for each in (scores[key], *(scores.get(f"{key}_interval") or ()))
    )
    sure = f" (95 % interval {' to '.join(ends)} {unit or '%'})" if ends else ""
    return f"{value} {unit or '%'}{sure}"


def _trained(result: Mapping[str, Any], key: str) -> str:
    """What is said of the training images."""
    if result["train_error"] is not None:
        wrong = 100 * result["train_error"]
        if key == "auroc":  # of several labels an image
            return f"; it is wrong about a label of {wrong:.1f} % of its training images"
        return f"; it is wrong about {wrong:.1f} % of its training images"
    found = result["train"].get(key)
    title = score(key).title
    return "" if found is None else f"; on its training images {title} is {100 * found:.1f} %"


def _several(scores: Mapping[str, Any]) -> bool:
    """Whether an image can have several labels: none is then taken for another."""
    return "label_accuracy" in scores


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) for a share of `count` independent trials."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / count) ** 2 / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _figures(points: Sequence[Point], key: str) -> list[dict[str, Any]]:
    """Error, or the foremost figure, and loss over the epochs, as report.figures has them."""
    losses: list[Series] = [
        ("training", [(point.epoch, point.train_loss) for point in points]),
        ("validation", [(point.epoch, point.loss) for point in points]),
    ]
    errors: list[Series] = [
        ("training", [(point.epoch, point.train_error) for point in points]),
        (
            "validation",
            [(p.epoch, None if p.score is None else 1 - p.score) for p in points],
        ),
    ]
    title = capital(score(key).title)
    scored: list[Series] = [("validation", [(point.epoch, point.score) for point in points])]
    drawn = [
        _figure("Error", errors, "share", "Share of wrong answers.")
        if score(key).of_images
        else _figure(title, scored, "share", "Of the validation images."),
        _figure("Loss", losses, "log", "Mean over the epoch, logarithmic scale."),
    ]
    return [told for told in drawn if told is not None]


def _figure(
    title: str,
    series: Sequence[Series],
    scale: str,
    caption: str,
) -> dict[str, Any] | None:
    lines = []
    for name, pairs in series:
        known = [(epoch, value) for epoch, value in pairs if value is not None]
        values = [value for _, value in known]
        if known:
            lines.append(
                {
                    "name": name,
                    "x": [epoch for epoch, _ in known],
                    **dict.fromkeys(("mean", "low", "high"), values),
                    "dashed": name == "training",
                }
            )
    if not lines:
        return None
    moving = " Training is measured while the network changes." if len(lines) > 1 else ""
    told = {
        "kind": "lines",
        "title": title,
        "caption": caption + moving,
        "x": {"title": "epoch", "scale": "linear"},
        "y": {"title": "", "scale": scale},
        "lines": lines,
        "level": None,
    }
    return {**told, "alternative": alternative(told)}


def _per_class(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of classes: shares, and counts, whatever the task has of them."""
    keys = [key for key in rows[0] if key != "label"]
    intervals = [key for key in keys if key.endswith("_interval")]
    shares = [key for key in keys if any(isinstance(row[key], float) for row in rows)]
    counts = [k for k in keys if k not in shares and all(isinstance(r[k], int) for r in rows)]
    columns = [Column("Class", number=False)]
    columns += [Column(capital(score(key).title), score(key).unit or "%") for key in shares]
    columns += [Column("Images" if key == "count" else capital(key)) for key in counts]
    cells = [
        [
            Cell(str(row["label"]), str(row["label"])),
            *(_cell(row, key) for key in shares),
            *(Cell(f"{row[key]:,}", row[key]) for key in counts),
        ]
        for row in rows
    ]
    titles = [score(key).title for key in shares] or counts
    caption = " and ".join([", ".join(titles[:-1]), *titles[-1:]] if titles[1:] else titles)
    drawn = page.table(columns, cells, caption=f"{capital(caption)} of every class")
    return drawn + (page.note("Behind a figure its interval of 95 %.") if intervals else "")


def _cell(row: Mapping[str, Any], key: str) -> Cell:
    """A figure of a class, and its interval of 95 % where one is known."""
    if row[key] is None:
        return Cell("none")
    if score(key).unit:
        return Cell(f"{row[key]:.2f}", row[key])
    ends = row.get(f"{key}_interval")
    aside = "" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
    return Cell(f"{100 * row[key]:.1f}", row[key], note=aside)


def _what_was_run(
    result: Mapping[str, Any], environment: Mapping[str, Any], recipe: str, test_uses: int
) -> str:
    pairs = [
        ("Data", str(result["data"])),
        ("Steps", f"{result['steps']:,}"),
        ("Seed", str(result["seed"])),
        ("Threads", str(environment.get("threads", ""))),
        ("Test set", _times(test_uses)),
        *setting(environment),
    ]
    return page.facts(pairs) + page.folded("The recipe", page.source(recipe))


def _times(uses: int) -> str:
    return "not used" if not uses else "used once" if uses == 1 else f"used {uses} times"

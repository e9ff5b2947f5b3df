"""Commands for trained networks: evaluate, predict, explain, export, probe and galleries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from plusx.cli.shell import (
    USE,
    BatchSize,
    DataOption,
    Device,
    Differentiable,
    GrammarOption,
    InputPaths,
    Json,
    OnUnreadable,
    Split,
    ThresholdOption,
    Trained,
    TtaOption,
    WeightsOption,
    Workers,
    about,
    app,
    command,
    metrics_text,
    open_trained,
    output_file,
    output_folder,
    print_json,
    print_line,
    print_result,
    print_warnings,
    run_name,
    throttled,
)
from plusx.errors import UserError, counted, shortened


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx evaluate runs/digits-resnet20\n"
    "  plusx evaluate runs/digits-resnet20 --split test\n"
    "  plusx evaluate resnet18 --weights IMAGENET1K_V1 --data imagenet/val\n"
    "  plusx evaluate runs/voice-commands --threshold 0.6",
)
def evaluate(
    trained: Trained,
    /,
    *,
    weights: WeightsOption = None,
    data: DataOption = None,
    split: Split = "validation",
    tta: TtaOption = None,
    grammar: GrammarOption = None,
    threshold: ThresholdOption = None,
    on_unreadable: OnUnreadable = "error",
    batch_size: BatchSize = 128,
    workers: Workers = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a run, or a network with weights: accuracy, precision, recall, F1 and more."""
    from plusx import run
    from plusx.run.spoken_commands import within_grammar

    result = run.evaluate(
        within_grammar(open_trained(trained, weights), grammar, threshold),
        data=data,
        split=split,
        tta=tta,
        on_unreadable=on_unreadable,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    if as_json:
        print_json(result)
        return
    line = metrics_text(result, result["metrics"], result["noun"])
    print(f"{result['data']} {result['split']}: {line}")
    if result.get("per_class"):
        from plusx.report.metrics import class_rows

        _print_classes(class_rows(result), result["noun"])
    if "hd95" in result:
        missed = result["hd95_missed"]
        print(f"\nClasses only in the prediction or only in the mask, without HD95: {missed}")
    print_warnings(result)
    if "test_uses" in result:
        times = "once" if result["test_uses"] == 1 else f"{result['test_uses']} times"
        print(f"\nThis run has used the test set {times} (test_uses.jsonl).")


def _print_classes(rows: Sequence[dict[str, Any]], noun: str) -> None:
    """Print a line for each class, with its metrics; fractions are not in per cent."""
    from plusx.report.metrics import METRICS, PERCENT

    # numbers and intervals
    keys = [
        key
        for key in rows[0]
        if key != "label"
        and all(
            isinstance(row[key], int | float | None) or key.endswith("_interval") for row in rows
        )
        and any(row[key] is not None for row in rows)
    ]
    titles = []
    for key in keys:
        if key in METRICS:
            title, unit = METRICS[key].title, METRICS[key].unit
            titles.append(title if unit == PERCENT else f"{title} {unit}")
        elif key.endswith("_interval"):
            titles.append(" 95 % interval")
        else:
            titles.append(f"{noun}s" if key == "count" else key)
    names = max(5, *(len(shortened(row["label"])) for row in rows))
    print(f"\n  {'class':{names}} " + " ".join(f"{title:>9}" for title in titles))
    for row in rows:
        cells = []
        for key, title in zip(keys, titles, strict=True):
            value = row[key]
            if isinstance(value, float):
                value = f"{value:.3f}"
            elif isinstance(value, int):
                value = f"{value:,}"
            elif isinstance(value, list):
                value = f"{value[0]:.3f} to {value[1]:.3f}"
            cells.append(f"{'none' if value is None else value:>{max(9, len(title))}}")
        print(f"  {shortened(row['label']):{names}} " + " ".join(cells))


_MAX_NAME = 100  # characters of a text in a line


def _print_predictions(rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    """Print a line for each input: its class, labels, embedding, masks or boxes."""
    key = next(iter(rows[0]))  # path or text
    width = min(_MAX_NAME, max(len(row[key]) for row in rows))
    names = [shortened(row[key], width) if key == "text" else row[key] for row in rows]
    rows = [{**row, "path": name} for row, name in zip(rows, names, strict=True)]
    if "labels" in rows[0]:
        for row in rows:
            pairs = sorted(zip(row["probabilities"], classes, strict=True), reverse=True)
            labels = ", ".join(f"{name} {value:.1%}" for value, name in pairs if value >= 0.5)
            likeliest = f"no label (the likeliest is {row['label']}, {row['probability']:.1%})"
            print(f"{row['path']:{width}}  {labels or likeliest}")
        return
    if "probability" in rows[0]:
        label = max(len(shortened(row["label"])) for row in rows)
        for row in rows:
            name = shortened(row["label"])
            print(f"{row['path']:{width}}  {name:{label}}  {row['probability']:7.2%}")
        return
    if "embedding" in rows[0]:
        for row in rows:
            print(f"{row['path']:{width}}  a vector of {len(row['embedding'])} (--json or --out)")
        return
    if "score" in rows[0]:
        for row in rows:
            text = next(value for name, value in row.items() if name not in (key, "path", "score"))
            print(f"{row['path']:{width}}  {text}" if key == "path" else text)
        return
    from plusx.report.predictions import prediction_text

    for row in rows:
        print(f"{row['path']:{width}}  {prediction_text(row)}")


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx predict runs/photos holiday.jpg\n"
    "  plusx predict runs/photos new-photos --out predictions --tta flip\n"
    "  plusx predict model.safetensors *.png --json\n"
    "  plusx predict model.onnx *.png\n"
    '  plusx predict runs/text "a fine film" more.txt reviews.csv\n'
    "  plusx predict runs/voice-commands recording.wav --grammar home.toml",
)
def predict(
    trained: Trained,
    /,
    *paths: InputPaths,
    out: Annotated[
        Path | None,
        output_folder(
            "Folder for predictions.json, predictions.csv and images of masks and boxes."
        ),
    ] = None,
    tta: TtaOption = None,
    beam: Annotated[
        int | None, about("Texts followed at the same time; 1 is greedy. Default: the recipe's.")
    ] = None,
    cache: Annotated[bool, about("Reuse the states of earlier tokens of a text.")] = True,
    grammar: GrammarOption = None,
    threshold: ThresholdOption = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict for images, texts or recordings: classes, masks, boxes, embeddings, translations,
    transcripts or spoken commands. Unreadable files are named."""
    if not paths:
        raise UserError("predict: give images, texts or recordings, or folders of them")
    from plusx import run
    from plusx.run.spoken_commands import within_grammar

    result = run.predict(
        within_grammar(open_trained(trained, None), grammar, threshold),
        paths,
        out=out,
        tta=tta,
        beam=beam,
        cached=cache,
        batch_size=batch_size,
        device=device,
    )
    print_warnings(result)
    written = run.write_predictions(out, result) if out is not None else []
    if as_json:
        print_json(result)
        return
    _print_predictions(result["predictions"], result["classes"])
    for path in written:
        print_line(f"wrote {path}")


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx explain runs/photos new-photos --out why\n"
    "  plusx explain runs/photos cat.jpg --class dog\n"
    '  plusx explain runs/text "a fine film" --out why\n'
    "  plusx explain runs/commands yes.wav --out why\n"
    "  plusx explain model.safetensors *.png --method occlusion --json",
)
def explain(
    trained: Differentiable,
    /,
    *paths: InputPaths,
    out: Annotated[
        Path | None, output_folder("The folder. Default: runs/explain- and the name.")
    ] = None,
    method: Annotated[
        str,
        about(
            "grad-cam; or, with the extra pip install 'plusx[explain]', integrated-gradients or "
            "occlusion."
        ),
    ] = "grad-cam",
    class_name: Annotated[
        str | None,
        Parameter(name="--class", help="The class to explain. Default: the predicted one."),
    ] = None,
    stage: Annotated[
        str | None,
        about("Layer to explain, for example layer2 (default: the last layer before pooling)."),
    ] = None,
    checked: Annotated[int, about("Inputs for the tests of faithfulness (0: none).")] = 32,
    seed: Annotated[int, about("Seed of random maps and shuffled weights.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw the regions that a prediction depends on, and test how faithful the maps are."""
    if not paths:
        raise UserError("explain: give images, texts or recordings, or folders of them")
    folder = out or Path("runs") / f"explain-{run_name(Path(trained).resolve().name, ())}"
    from plusx.explain.explain import explain as explain_images
    from plusx.explain.faithfulness import explanation_text

    result = explain_images(
        open_trained(trained, None),
        paths,
        folder,
        method=method,
        class_name=class_name,
        stage=stage,
        checked=checked,
        seed=seed,
        device=device,
        command=command(),
        progress=throttled(print_line),
    )
    print_result(result, folder, "explain.html", explanation_text, as_json=as_json)


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx export runs/photos --out photos.onnx\n"
    "  plusx export resnet50 --weights IMAGENET1K_V2 --out resnet50.onnx\n"
    "  plusx export runs/photos --int8 --out photos-int8.onnx\n"
    "  plusx export model.safetensors --int8 --data photos --out model-int8.onnx --json",
)
def export(
    trained: Trained,
    /,
    *,
    out: Annotated[Path, output_file("The .onnx file.")],
    weights: WeightsOption = None,
    int8: Annotated[
        bool, Parameter(negative="", help="Quantise to int8, calibrated on training data.")
    ] = False,
    data: Annotated[
        str | None, about("Data for --int8: a set's name, a folder or a CSV. Default: the run's.")
    ] = None,
    on_unreadable: OnUnreadable = "error",
    as_json: Json = False,
) -> None:
    """Write an ONNX file, checked against torch, that `plusx predict` and others run."""
    from plusx.run.exporting import export_onnx

    result = export_onnx(
        trained,
        out,
        weights=weights,
        int8=int8,
        data=data,
        on_unreadable=on_unreadable,
        progress=throttled(print_line),
    )
    print_warnings(result)
    if as_json:
        print_json(result)
        return
    sizes = " x ".join(map(str, result["input"]))
    print(f"{out}: {result['bytes']:,} bytes, inputs (n, {sizes})")
    print(
        f"  float32       logits differ from torch's by {result['error']:.2g} at most, "
        f"{result['allowed']:.2g} are allowed"
    )
    if int8:
        _print_int8(result["int8"])


def _print_int8(int8: dict[str, Any]) -> None:
    from plusx.report.metrics import METRICS

    float_layers = ", ".join(int8["float_layers"]) or "none"
    ranges = {
        "minmax": "from the smallest to the largest value",
        "percentile": "up to the percentile 99.999 of the values",
    }
    print(f"  int8          {int8['weights']}; activations {int8['activations']}")
    reach = ranges[int8["calibration"]]
    print(f"  ranges        {reach} on {counted(int8['images'], int8['noun'])} for training")
    print(f"  in float32    {float_layers}")
    threads = counted(int8["threads"], "thread")
    print(f"  {'':13} {'float32':>12} {'int8':>12}")
    print(f"  {'bytes':13} {int8['bytes_float32']:12,} {int8['bytes']:12,}")
    key, count = int8["metric"], counted(int8["count"], int8["noun"])
    form = METRICS[key]
    before, after = (form.text(int8[name], decimals=2) for name in (f"{key}_float32", key))
    print(
        f"  {form.title:13} {before:>12} {after:>12}  on {count}; "
        f"{int8['agreement']:.2%} of the outputs have the same class"
    )
    times = f"{int8['speed']:.2f} x"
    print(f"  {'speed':13} {'1.00 x':>12} {times:>12}  one {int8['noun']} at a time, {threads}")


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx probe runs/digits-resnet20\n"
    "  plusx probe runs/photos --data other-photos\n"
    "  plusx probe resnet18 --weights IMAGENET1K_V1 --data cifar10",
)
def probe(
    trained: Trained,
    /,
    *,
    weights: WeightsOption = None,
    data: DataOption = None,
    split: Annotated[str, about("validation or test; test is recorded.")] = "validation",
    neighbours: Annotated[int, about("Number of nearest neighbours (k).")] = 20,
    images: Annotated[int, about("Training samples at most.")] = 10_000,
    on_unreadable: OnUnreadable = "error",
    batch_size: BatchSize = 128,
    workers: Workers = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a network's embeddings by nearest neighbours, a linear probe and k-means, beside
    those of the same network before training."""
    from plusx.run.probing import probe as probe_run
    from plusx.statistics import Difference

    result = probe_run(
        open_trained(trained, weights),
        data=data,
        split=split,
        neighbours=neighbours,
        images=images,
        batch_size=batch_size,
        workers=workers,
        device=device,
        on_unreadable=on_unreadable,
    )
    print_warnings(result)
    if as_json:
        print_json(result)
        return
    print(
        f"{result['data']} {result['split']}, {counted(result['count'], result['noun'])}, by "
        f"embeddings of {result['width']:,} numbers, from {result['learned_from']:,} training "
        f"{result['noun']}s:"
    )
    nearest = f"{result['neighbours']['k']} nearest neighbours"
    for key, title in (("neighbours", nearest), ("linear", "logistic regression")):
        print(f"  {title:24} {_probe_text(result[key])}")
        untrained, gain = result["random"][key], result["difference"][key]
        print(
            f"  {'':24} before training {untrained['accuracy']:.2%}, difference "
            f"{Difference(*gain.values())}"
        )
    if clusters := result.get("clusters"):
        print(
            f"  {counted(clusters['clusters'], 'cluster'):24} accuracy {clusters['accuracy']:.2%}, "
            f"adjusted Rand index {clusters['rand_index']:.3f}"
        )


def _probe_text(metrics: dict[str, Any]) -> str:
    auroc = "" if metrics["auroc"] is None else f", AUROC {metrics['auroc']:.3f}"
    interval = f"{metrics['low']:.2%} to {metrics['high']:.2%}"
    return f"accuracy {metrics['accuracy']:.2%} ({interval}), F1 {metrics['f1']:.3f}{auroc}"


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx enroll runs/faces-verify staff --out gallery\n"
    "  plusx enroll runs/faces-verify staff --out gallery --far .001 --impostors visitors",
)
def enroll(
    trained: Annotated[str, Parameter(name="RUN", help="A run of embeddings: its folder.")],
    folder: Annotated[
        str, Parameter(name="FOLDER", help="One folder per person, with aligned crops.")
    ],
    /,
    *,
    out: Annotated[Path, output_folder("The gallery: a new folder.")],
    far: Annotated[
        float | None,
        about(
            "False-accept rate: the fraction of impostors that may be accepted. Default: that of "
            "the recipe."
        ),
    ] = None,
    impostors: Annotated[
        Path | None,
        about("A folder of other people. Default: those of the training and validation splits."),
    ] = None,
    on_unreadable: OnUnreadable = "error",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Enroll people in a gallery, with a threshold that refuses impostors."""
    from plusx.run.gallery import enroll as enroll_people

    result = enroll_people(
        open_trained(trained, None),
        folder,
        out,
        far=far,
        impostors=impostors,
        on_unreadable=on_unreadable,
        device=device,
    )
    print_warnings(result)
    if as_json:
        print_json(result)
        return
    print(f"{result['gallery']}: {result['people']:,} people by {result['pictures']:,} images")
    allowed = f"{100 * result['false_accept_rate']:g} % of impostors may be accepted"
    print(f"  threshold {result['threshold']:.4f}: {allowed}")
    print(f"  false accepts: {_accepts_text(result['false_accepts'])} of impostors")
    if result["true_accepts"] is not None:
        compared = "compared with the person's other images"
        print(f"  true accepts: {_accepts_text(result['true_accepts'])} enrolled, {compared}")


def _accepts_text(accepts: dict[str, Any]) -> str:
    rate, low, high = (f"{100 * accepts[key]:.1f}" for key in ("rate", "low", "high"))
    people = "1 person" if accepts["people"] == 1 else f"{accepts['people']:,} people"
    count = f"{accepts['accepted']:,} of {accepts['images']:,} images ({people})"
    return f"{rate} % ({low} to {high} %), {count}"


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx verify gallery door.png\n"
    "  plusx verify gallery door.png --person anna --json",
)
def verify(
    gallery: Annotated[str, Parameter(name="GALLERY", help="A gallery that `plusx enroll` wrote.")],
    /,
    *paths: Annotated[str, about("Images, and folders of images: aligned crops of faces.")],
    person: Annotated[
        str | None, about("Verify that it is this person, instead of identifying.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Identify the people on images, or verify that it is a certain person."""
    if not paths:
        raise UserError("verify: give images or folders of images")
    from plusx.run.gallery import open_gallery
    from plusx.run.gallery import verify as verify_images

    result = verify_images(open_gallery(gallery), paths, person=person, device=device)
    print_warnings(result)
    if as_json:
        print_json(result)
        return
    width = max(len(row["path"]) for row in result["answers"])
    for row in result["answers"]:
        if row["person"] is not None:
            name = row["person"]
        else:
            name = "not enrolled" if person is None else f"not {person}"
        print(f"{row['path']:{width}}  {row['score']:7.4f}  {name}")

"""Explanations of a trained network's predictions: attribution maps, overlays and faithfulness."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plusx import store
from plusx.data.batch import Batch
from plusx.data.image_file import printable
from plusx.errors import UserError, did_you_mean
from plusx.explain import faithfulness, overlay
from plusx.explain.attribution import integrated_gradients, occlusion, require_captum
from plusx.explain.dense_cam import dense_cam
from plusx.explain.faithfulness import FaithfulnessTest, enlarged
from plusx.explain.grad_cam import grad_cam
from plusx.nn.with_head import NetworkWithHead
from plusx.report.explanation import MAX_IMAGES, explanation_page
from plusx.run import Run, drawing
from plusx.run.environment import environment
from plusx.run.folder import now
from plusx.run.predictor import Predictor, refuse_none
from plusx.run.sources import Failed, image_files
from plusx.tasks.generate import Generate
from plusx.train.loop import evaluating


BATCH = 8  # images per batch
CHECKED = 32  # images for which faithfulness is tested


@dataclass(frozen=True)
class Method:
    """An attribution method: maps (n, a, b) for a network, inputs (n, c, h, w) and classes (n,)."""

    title: str
    source: str
    maps: Callable[[nn.Module, Tensor, Tensor, int | None], Tensor]
    networks: int  # with shuffled weights, for comparison: each costs as much as the maps
    captum: bool = True


METHODS = {
    "grad-cam": Method(
        title="Grad-CAM",
        source="Selvaraju et al. 2017",
        maps=lambda net, x, classes, stage: grad_cam(net, x, classes, stage=stage),
        networks=3,
        captum=False,
    ),
    "integrated-gradients": Method(
        title="Integrated gradients",
        source="Sundararajan et al. 2017, captum",
        maps=lambda net, x, classes, stage: integrated_gradients(net, x, classes),
        networks=1,
    ),
    "occlusion": Method(
        title="Occlusion",
        source="Zeiler and Fergus 2014, captum",
        maps=lambda net, x, classes, stage: occlusion(net, x, classes),
        networks=1,
    ),
}


Progress = Callable[[str], None]


def explain(
    run: Run,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    method: str = "grad-cam",
    class_name: str | None = None,
    stage: str | None = None,
    checked: int = CHECKED,
    seed: int = 0,
    device: str = "auto",
    command: str = "",
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Explain a network's predictions for image files, and for those in folders and subfolders.

    Writes overlays/ (the map over the network's input, and side by side with it), maps.safetensors,
    explanation.json and explain.html into the folder `out`, and returns the content of
    explanation.json.

    method: one of METHODS. class_name: the class to explain in every image (None: the predicted
    class of each). stage: the layer for Grad-CAM, for example "layer2" (None: the last layer before
    pooling). checked: number of images, the first ones, for which faithfulness is measured by
    deletion and insertion, and for some of them by shuffled weights; 0 skips both. progress: called
    with a line of text.

    Files that cannot be used are listed in `failed` and do not stop the others. Raises UserError
    for an unknown path, method, class or stage, a missing extra, or maps of one position, and
    RuntimeError if no file can be used.
    """
    if not run.has_gradients:
        raise UserError(
            f"{printable(run.path)} is an ONNX file, without gradients and weights to "
            "shuffle: give the run or the safetensors file that it was exported from"
        )
    if run.embeds:
        raise UserError(
            f"{run.path} predicts embeddings, not classes, so there is nothing to explain"
        )
    if isinstance(run.task, Generate):
        raise UserError(
            f"{printable(run.path)} generates text, which has no classes to explain; the report of "
            "a run that captions images shows the attention for each word"
        )
    if run.preprocessing.tokens:
        from plusx.explain.texts import explain_texts

        if stage is not None:
            raise UserError("--stage is for images and recordings, not for texts")
        return explain_texts(
            run,
            paths,
            Path(out),
            method=method,
            class_index=_class(run, class_name),
            seed=seed,
            device=device,
            command=command,
        )
    if run.preprocessing.kind == "audio":
        from plusx.explain.recordings import explain_recordings

        chosen, stage_number = _method(method), _stage(run.net, stage, method)
        return explain_recordings(
            run,
            paths,
            Path(out),
            maps=lambda net, x, classes: chosen.maps(net, x, classes, stage_number),
            about={"method": method, "title": chosen.title, "source": chosen.source},
            class_index=_class(run, class_name),
            seed=seed,
            device=device,
            command=command,
        )
    if run.preprocessing.kind != "image":
        raise UserError(
            f"{run.path} takes {run.preprocessing.inputs}: explanations are for 8-bit images, "
            "texts and recordings"
        )
    if run.task.dense and method != "grad-cam":
        raise UserError(f"method {method!r}: for masks and boxes only grad-cam is available")
    attribution = _method(method)
    class_index = _class(run, class_name)
    stage_index = _stage(run.net, stage, method)
    if checked < 0:
        raise UserError(f"checked = {checked}: it must be a number of images, or 0 for none")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; the explanation needs a folder")
    failed: Failed = []
    files = image_files(paths, failed)
    predictor = Predictor(run, tta="none", device=device)
    task = predictor.task
    modality = run.preprocessing.of_one_size()
    started = time.monotonic()

    def maps_of(net: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
        if isinstance(net, NetworkWithHead):
            return dense_cam(net, x, classes, stage=stage_index).float()
        return attribution.maps(net, x, classes, stage_index).float()

    def class_scores(x: Tensor) -> Tensor:
        return task.predict(Batch(x)).class_scores(len(run.classes))

    rows: list[dict[str, Any]] = []
    page_panels: list[tuple[bytes, ...]] = []
    all_maps: list[Tensor] = []
    test = FaithfulnessTest(class_scores, maps_of, seed)
    with evaluating(task):
        for names, _, images, batch in predictor.batches(
            files, failed, batch_size=BATCH, modality=modality
        ):
            x = batch.inputs
            with torch.inference_mode():
                scores = class_scores(x)
            labels = (
                scores.argmax(1)
                if class_index is None
                else torch.full_like(scores[:, 0], class_index)
            )
            labels = labels.long().clone()
            maps = maps_of(run.net, x, labels)
            if not bool(maps.isfinite().all()):
                raise FloatingPointError(
                    f"{printable(names[0])} or the images after it: the maps are not finite"
                )
            if maps[0].numel() == 1:
                earlier = max(1, _stages(run.net) - 1)
                raise UserError(
                    "for images of this size the map would have a single position: "
                    f"choose an earlier stage (--stage layer{earlier})"
                )
            first = len(rows)
            for name, image, grid, image_scores, label in zip(
                names, images, maps.cpu(), scores.cpu(), labels.tolist(), strict=True
            ):
                row = _row(run, name, image_scores, label, grid, len(rows) + 1)
                panels = _write_overlays(out, row, image, grid)
                if len(page_panels) < MAX_IMAGES:
                    page_panels.append(panels)
                rows.append(row)
            all_maps.append(maps.cpu())
            num_checked = min(len(x), checked - first)
            if num_checked > 0:
                progress(f"{len(rows)} of {len(files)} images explained; deletion and insertion")
                areas = test.add(x[:num_checked], labels[:num_checked], maps[:num_checked])
                for row, areas_of_image in zip(rows[first:], areas, strict=False):
                    row.update(areas_of_image)
            progress(f"{len(rows)} of {len(files)} images explained")
    refuse_none(rows, failed)
    summary = faithfulness.summary(rows[: test.count]) if test.count else None
    shuffled: list[dict[str, Any]] = []
    if test.count:
        progress("networks with shuffled weights are explained")
        shuffled = test.shuffle(run.net, attribution.networks)
    network = getattr(run.recipe and run.recipe.net, "base", "") or getattr(run.net, "plain", "")
    parameters = sum(parameter.numel() for parameter in run.net.parameters())
    result = {
        "kind": "explanation",
        "run": printable(run.path),
        "network": ", ".join(filter(None, [str(network), f"{parameters:,} parameters"])),
        "method": method,
        "title": attribution.title,
        "source": attribution.source,
        "stage": stage,
        "positions": list(maps.shape[1:]),
        "size": list(run.preprocessing.size),
        "class": class_name,
        "classes": list(run.classes),
        "seed": seed,
        "finding": faithfulness.finding(attribution.title, summary, shuffled),
        "images": rows,
        "failed": failed,
        "faithfulness": summary,
        "shuffled_weights": shuffled,
        "about_shuffling": faithfulness.about_shuffling(shuffled, maps[0].numel())
        if shuffled
        else "",
        "figures": test.figures() if test.count else [],
        "machine": environment(task.device),
        "command": command,
        "date": now(),
        "seconds": time.monotonic() - started,
    }
    store.save_tensors(out / "maps.safetensors", {"maps": torch.cat(all_maps).contiguous()}, {})
    store.write_json(out / "explanation.json", result)
    store.write_text(out / "explain.html", explanation_page(result, page_panels))
    return result


def _method(name: str) -> Method:
    if name not in METHODS:
        raise UserError(f"method {name!r}: allowed are {', '.join(METHODS)}")
    if METHODS[name].captum:
        require_captum()
    return METHODS[name]


def _class(run: Run, name: str | None) -> int | None:
    if name is None:
        return None
    if name not in run.classes:
        ellipsis = ", ..." if len(run.classes) > 8 else ""
        listed = f"; it has {', '.join(run.classes[:8])}{ellipsis}"
        hint = did_you_mean(name, run.classes, 3) or listed
        raise UserError(f"the network has no class {name!r}{hint}")
    return run.classes.index(name)


def _stage(net: nn.Module, name: str | None, method: str) -> int | None:
    if name is None:
        return None
    if method != "grad-cam":
        raise UserError(f"a stage is for grad-cam; {method} explains pixels")
    count = _stages(net)
    match = re.fullmatch(r"layer(\d{1,3})", name)
    if match is None or not 1 <= int(match[1]) <= count:
        raise UserError(f"there is no stage {name!r}: this network has layer1 to layer{count}")
    return int(match[1]) - 1


def _stages(net: nn.Module) -> int:
    backbone = net.backbone if isinstance(net, NetworkWithHead) else net
    return len(backbone.widths)  # type: ignore[arg-type]


def _row(
    run: Run, path: str, scores: Tensor, label: int, grid: Tensor, number: int
) -> dict[str, Any]:
    predicted = int(scores.argmax())
    stem = re.sub(r"[^\w-]+", "_", Path(printable(path)).stem)[:60]
    name = f"overlays/{number:04}-{stem}"
    return {
        "path": printable(path),
        "label": run.classes[predicted],
        "probability": float(scores[predicted]),
        "class": run.classes[label],
        "class_probability": float(scores[label]),
        "overlay": f"{name}.png",
        "side_by_side": f"{name}-side-by-side.png",
        "nothing": bool((grid <= 0).all()),
    }


def _write_overlays(
    out: Path, row: dict[str, Any], image: Tensor, grid: Tensor
) -> tuple[bytes, ...]:
    """Write the two overlay images of an image, and return the panels of the page."""
    store.make_folder(out / "overlays")
    panels = overlay.panels(image, grid)
    size = (int(image.shape[1]), int(image.shape[2]))
    heat_map = overlay.heat(enlarged(grid[None], size))[0].numpy()
    overlay_image = overlay.blended(overlay.as_rgb(image), heat_map)
    store.write_bytes(out / row["overlay"], drawing.png(overlay_image))
    store.write_bytes(out / row["side_by_side"], drawing.png(drawing.side_by_side(panels)))
    return tuple(map(drawing.png, panels))

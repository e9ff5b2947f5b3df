"""Explanations of a trained network's answers: maps over images, and whether to believe them."""

import difflib
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plusx import store
from plusx.data.batch import Batch
from plusx.data.image import printable
from plusx.errors import UserError
from plusx.explain import judgement, overlay
from plusx.explain.attribution import integrated_gradients, occlusion, require_captum
from plusx.explain.faithfulness import enlarged
from plusx.explain.grad_cam import grad_cam
from plusx.explain.places import places_cam
from plusx.explain.trial import Trial
from plusx.nn.dense import Dense
from plusx.report.explanation import MOST, explanation_page
from plusx.run import Run
from plusx.run.environment import environment
from plusx.run.folder import UNFINISHED
from plusx.run.prediction import image_files, prepared_images
from plusx.tasks.prepare import prepare
from plusx.train.loop import evaluating


BATCH = 8  # images at a time, between two lines of progress
CHECKED = 32  # images that deletion and insertion are asked of
EVERY = 5.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Method:
    """A way to make maps (n, a, b) from a network, its inputs (n, c, h, w) and classes (n,)."""

    title: str
    source: str
    maps: Callable[[nn.Module, Tensor, Tensor, int | None], Tensor]
    networks: int  # with shuffled weights, to compare with: each costs what the maps cost
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


@dataclass
class _Said:
    """A line now and then about how far it is, on standard error."""

    last: float = field(default_factory=time.monotonic)

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now - self.last >= EVERY:
            self.last = now
            print(f"plusx: {text}", file=sys.stderr, flush=True)


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
) -> dict[str, Any]:
    """Explain a network's answers for image files, and for those in folders and folders within.

    Writes overlays/ (the map over what the network saw, and side by side with it), the maps as
    maps.safetensors, explanation.json and explain.html into the folder `out`, and returns what
    explanation.json holds.

    method: one of METHODS. class_name: the class whose evidence is shown, for every image; without
    it what the network says of each. stage: "layer2", where Grad-CAM takes its maps; without it at
    the tensor that is pooled. checked: for so many images, the first ones, the maps are put to the
    test of deletion and insertion, and some of them to that of shuffled weights; 0 leaves both out.

    Files that cannot be used are named in `failed` and stop no other. UserError: a path, method,
    class or stage that is not there, an extra that is not installed, or a network that has no
    place to explain by. RuntimeError: no file can be used.
    """
    if not run.has_gradients:
        raise UserError(
            f"{printable(run.path)} is an ONNX file, which has no gradients and no weights to "
            "shuffle: name the run or the safetensors file that it was exported from"
        )
    if run.embeds:
        raise UserError(
            f"{run.path} compares pictures and names no class, so there is nothing to explain"
        )
    if not run.preprocessing.pictures:
        raise UserError(f"{run.path} sees bands or volumes: maps are drawn on pictures of 8 bits")
    if run.tells_places and method != "grad-cam":
        raise UserError(f"method {method!r}: of masks and boxes only grad-cam shows the evidence")
    chosen = _method(method)
    target = _class(run, class_name)
    number = _stage(run.net, stage, method)
    if checked < 0:
        raise UserError(f"checked = {checked}: a number of images, 0 for none")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; the explanation needs a folder")
    failed: list[dict[str, str]] = []
    files = image_files(paths, failed)
    if not run.finished:
        warnings.warn(f"{run.path}: {UNFINISHED}", stacklevel=2)
    said = _Said()
    task = prepare(run.task, device=device)
    begun = time.monotonic()

    def ask(net: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
        if isinstance(net, Dense):
            return places_cam(net, x, classes, stage=number).float()
        return chosen.maps(net, x, classes, number).float()

    def class_scores(x: Tensor) -> Tensor:
        return task.predict(Batch(x)).class_scores(len(run.classes))

    rows: list[dict[str, Any]] = []
    drawn: list[tuple[bytes, ...]] = []
    made: list[Tensor] = []
    trial = Trial(class_scores, ask, seed)
    with evaluating(task):
        for names, images in prepared_images(run, files, BATCH, failed):
            x = run.preprocessing.normalise(images.to(task.device))
            with torch.inference_mode():
                answers = class_scores(x)
            wanted = answers.argmax(1) if target is None else torch.full_like(answers[:, 0], target)
            wanted = wanted.long().clone()
            maps = ask(run.net, x, wanted)
            if not bool(maps.isfinite().all()):
                raise FloatingPointError(
                    f"{printable(names[0])} or the images after it: the maps are not finite"
                )
            if not rows:
                _refuse_one_position(maps, run.net)
            begin = len(rows)
            for name, image, grid, answer, label in zip(
                names, images, maps.cpu(), answers.cpu(), wanted.tolist(), strict=True
            ):
                row = _row(run, name, answer, label, grid, len(rows) + 1)
                pictures = _draw(out, row, image, grid)
                drawn += [pictures] if len(drawn) < MOST else []
                rows.append(row)
            made.append(maps.cpu())
            left = min(len(x), checked - begin)
            if left > 0:
                said(f"{len(rows)} of {len(files)} images explained; deletion and insertion")
                areas = trial.add(x[:left], wanted[:left], maps[:left])
                for row, each in zip(rows[begin:], areas, strict=False):
                    row.update(each)
            said(f"{len(rows)} of {len(files)} images explained")
    if not rows:
        reasons = "; ".join(f"{each['path']}: {each['reason']}" for each in failed[:3])
        raise RuntimeError(f"none of {len(failed)} files can be used: {reasons}")
    faith = judgement.summary(rows[: trial.count]) if trial.count else None
    forgotten: list[dict[str, Any]] = []
    if trial.count:
        said("networks with shuffled weights are asked")
        forgotten = trial.forget(run.net, chosen.networks)
    positions = list(maps.shape[1:])
    result = {
        "kind": "explanation",
        "run": printable(run.path),
        "network": _network_name(run),
        "method": method,
        "title": chosen.title,
        "source": chosen.source,
        "stage": stage,
        "positions": positions,
        "size": list(run.preprocessing.size),
        "class": class_name,
        "classes": list(run.classes),
        "seed": seed,
        "finding": judgement.finding(chosen.title, faith, forgotten),
        "images": rows,
        "failed": failed,
        "faithfulness": faith,
        "forgotten": forgotten,
        "about_forgetting": (
            judgement.about_forgetting(forgotten, maps[0].numel()) if forgotten else ""
        ),
        "figures": trial.figures() if trial.count else [],
        "machine": environment(task.device),
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.monotonic() - begun,
    }
    store.save_tensors(out / "maps.safetensors", {"maps": torch.cat(made).contiguous()}, {})
    store.write_json(out / "explanation.json", result)
    store.write_text(out / "explain.html", explanation_page(result, drawn))
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
        near = difflib.get_close_matches(name, run.classes, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else _listed(run.classes)
        raise UserError(f"the network knows no class {name!r}; {hint}")
    return run.classes.index(name)


def _listed(names: Sequence[str]) -> str:
    return f"it knows {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _stage(net: nn.Module, name: str | None, method: str) -> int | None:
    if name is None:
        return None
    if method != "grad-cam":
        raise UserError(f"a stage is for grad-cam; {method} asks of pixels")
    count = len(_backbone(net).widths)  # type: ignore[arg-type]
    found = re.fullmatch(r"layer(\d{1,3})", name)
    if found is None or not 1 <= int(found[1]) <= count:
        raise UserError(f"there is no stage {name!r}: this network has layer1 to layer{count}")
    return int(found[1]) - 1


def _backbone(net: nn.Module) -> nn.Module:
    return net.backbone if isinstance(net, Dense) else net


def _refuse_one_position(maps: Tensor, net: nn.Module) -> None:
    if maps[0].numel() == 1:
        raise UserError(
            "the map would have one position for images of this size and could show no place: "
            f"choose an earlier stage (--stage layer{max(1, len(_backbone(net).widths) - 1)})"  # type: ignore[arg-type]
        )


def _row(
    run: Run, path: str, answer: Tensor, label: int, grid: Tensor, number: int
) -> dict[str, Any]:
    best = int(answer.argmax())
    stem = re.sub(r"[^\w-]+", "_", Path(printable(path)).stem)[:60]
    name = f"overlays/{number:04}-{stem}"
    return {
        "path": printable(path),
        "label": run.classes[best],
        "probability": float(answer[best]),
        "class": run.classes[label],
        "class_probability": float(answer[label]),
        "overlay": f"{name}.png",
        "side_by_side": f"{name}-side-by-side.png",
        "nothing": bool((grid <= 0).all()),
    }


def _draw(out: Path, row: dict[str, Any], image: Tensor, grid: Tensor) -> tuple[bytes, ...]:
    """Write the two pictures of an image, and give those of the page."""
    store.make_folder(out / "overlays")
    panels = overlay.panels(image, grid)
    size = (int(image.shape[1]), int(image.shape[2]))
    high = overlay.heat(enlarged(grid[None], size))[0].numpy()
    small = overlay.blended(overlay.as_rgb(image), high)
    store.write_bytes(out / row["overlay"], overlay.png(small))
    store.write_bytes(out / row["side_by_side"], overlay.png(overlay.abreast(panels)))
    return tuple(map(overlay.png, panels))


def _network_name(run: Run) -> str:
    name = None if run.recipe is None else getattr(run.recipe.net, "base", None)
    name = name or getattr(run.net, "plain", None)
    count = sum(parameter.numel() for parameter in run.net.parameters())
    return (f"{name}, " if name else "") + f"{count:,} parameters"

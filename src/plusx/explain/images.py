"""Attribution of predictions for images to positions, with overlays and tests of faithfulness."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plusx import store
from plusx.data.batch import Batch
from plusx.data.image_file import printable
from plusx.errors import UserError
from plusx.explain import faithfulness, overlay
from plusx.explain.faithfulness import FaithfulnessTest, Maps, enlarged
from plusx.nn.with_head import NetworkWithHead
from plusx.report.explanation import MAX_IMAGES, explanation_page
from plusx.run import Run, drawing
from plusx.run.environment import environment
from plusx.run.folder import now
from plusx.run.predictor import Predictor, refuse_none
from plusx.run.sources import Failed, image_files
from plusx.train.loop import evaluating


BATCH = 8  # images per batch


def explain_images(
    run: Run,
    paths: Sequence[str | Path],
    out: Path,
    *,
    maps: Maps,
    num_shuffled: int,
    about: Mapping[str, Any],
    class_index: int | None = None,
    checked: int = 0,
    seed: int = 0,
    device: str = "auto",
    command: str = "",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Attribute a network's predictions for images to positions; arguments and files as for
    `plusx.explain.explain.explain`.

    maps: an attribution method; about: its method, title, source and stage
    num_shuffled: networks with shuffled weights, for comparison
    class_index: the class to explain in every image; None: the predicted class of each
    """
    if checked < 0:
        raise UserError(f"checked = {checked}: it must be a number of images, or 0 for none")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; the explanation needs a folder")
    failed: Failed = []
    files = image_files(paths, failed)
    predictor = Predictor(run, tta="none", device=device)
    task = predictor.task
    modality = run.preprocessing.of_one_size()
    started = time.monotonic()

    def class_scores(x: Tensor) -> Tensor:
        return task.predict(Batch(x)).class_scores(len(run.classes))

    rows: list[dict[str, Any]] = []
    page_panels: list[tuple[bytes, ...]] = []
    all_maps: list[Tensor] = []
    test = FaithfulnessTest(class_scores, maps, seed)
    batches = predictor.batches(files, failed, batch_size=BATCH, modality=modality)
    with evaluating(task):
        for names, _, images, batch in batches:
            x = batch.inputs
            with torch.inference_mode():
                scores = class_scores(x)
            chosen = (
                scores.argmax(1)
                if class_index is None
                else torch.full_like(scores[:, 0], class_index)
            )
            labels = chosen.long().clone()
            grids = maps(run.net, x, labels)
            _check_maps(grids, run, names[0])
            first = len(rows)
            for name, image, grid, image_scores, label in zip(
                names, images, grids.cpu(), scores.cpu(), labels.tolist(), strict=True
            ):
                row = _row(run, name, image_scores, label, grid, len(rows) + 1)
                panels = _write_overlays(out, row, image, grid)
                if len(page_panels) < MAX_IMAGES:
                    page_panels.append(panels)
                rows.append(row)
            all_maps.append(grids.cpu())
            num_checked = min(len(x), checked - first)
            if num_checked > 0:
                progress(f"{len(rows)} of {len(files)} images explained; deletion and insertion")
                areas = test.add(x[:num_checked], labels[:num_checked], grids[:num_checked])
                for row, areas_of_image in zip(rows[first:], areas, strict=False):
                    row.update(areas_of_image)
            progress(f"{len(rows)} of {len(files)} images explained")
    refuse_none(rows, failed)
    summary = faithfulness.summary(rows[: test.count]) if test.count else None
    shuffled: list[dict[str, Any]] = []
    about_shuffling = ""
    if test.count:
        progress("networks with shuffled weights are explained")
        shuffled = test.shuffle(run.net, num_shuffled)
        about_shuffling = faithfulness.about_shuffling(shuffled, all_maps[-1][0].numel())
    network = getattr(run.recipe and run.recipe.net, "base", "") or getattr(run.net, "plain", "")
    parameters = sum(parameter.numel() for parameter in run.net.parameters())
    result = {
        "kind": "explanation",
        "run": printable(run.path),
        "network": ", ".join(filter(None, [str(network), f"{parameters:,} parameters"])),
        **about,
        "positions": list(all_maps[-1].shape[1:]),
        "size": list(run.preprocessing.size),
        "class": None if class_index is None else run.classes[class_index],
        "classes": list(run.classes),
        "seed": seed,
        "finding": faithfulness.finding(about["title"], summary, shuffled),
        "images": rows,
        "failed": failed,
        "faithfulness": summary,
        "shuffled_weights": shuffled,
        "about_shuffling": about_shuffling,
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


def _check_maps(maps: Tensor, run: Run, name: str) -> None:
    """Raise FloatingPointError if a map is not finite, UserError if maps have one position."""
    if not bool(maps.isfinite().all()):
        raise FloatingPointError(
            f"{printable(name)} or the images after it: the maps are not finite"
        )
    if maps[0].numel() == 1:
        earlier = max(1, num_stages(run.net) - 1)
        raise UserError(
            "for images of this size the map would have a single position: "
            f"choose an earlier stage (--stage layer{earlier})"
        )


def num_stages(net: nn.Module) -> int:
    """Return the number of stages of a network, or of the backbone of a head."""
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

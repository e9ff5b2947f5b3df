"""Explanations of a trained network's predictions: attribution maps, overlays and faithfulness."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from plusx.data.image_file import printable
from plusx.errors import UserError, did_you_mean
from plusx.explain.attribution import integrated_gradients, occlusion, require_captum
from plusx.explain.dense_cam import dense_cam
from plusx.explain.grad_cam import grad_cam
from plusx.explain.images import explain_images, num_stages
from plusx.nn.with_head import NetworkWithHead
from plusx.run import Run
from plusx.tasks.generate import Generate


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
    if run.preprocessing.kind not in ("image", "audio"):
        raise UserError(
            f"{run.path} takes {run.preprocessing.inputs}: explanations are for 8-bit images, "
            "texts and recordings"
        )
    if run.task.dense and method != "grad-cam":
        raise UserError(f"method {method!r}: for masks and boxes only grad-cam is available")
    attribution = _method(method)
    class_index, stage_index = _class(run, class_name), _stage(run.net, stage, method)
    about = {"method": method, "title": attribution.title, "source": attribution.source}

    def maps(net: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
        if isinstance(net, NetworkWithHead):
            return dense_cam(net, x, classes, stage=stage_index).float()
        return attribution.maps(net, x, classes, stage_index).float()

    if run.preprocessing.kind == "audio":
        from plusx.explain.recordings import explain_recordings

        return explain_recordings(
            run,
            paths,
            Path(out),
            maps=maps,
            about=about,
            class_index=class_index,
            seed=seed,
            device=device,
            command=command,
        )
    return explain_images(
        run,
        paths,
        Path(out),
        maps=maps,
        num_shuffled=attribution.networks,
        about={**about, "stage": stage},
        class_index=class_index,
        checked=checked,
        seed=seed,
        device=device,
        command=command,
        progress=progress,
    )


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
    count = num_stages(net)
    match = re.fullmatch(r"layer(\d{1,3})", name)
    if match is None or not 1 <= int(match[1]) <= count:
        raise UserError(f"there is no stage {name!r}: this network has layer1 to layer{count}")
    return int(match[1]) - 1

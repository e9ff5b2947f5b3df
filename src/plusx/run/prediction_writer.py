"""Writing the overlays and the page of dense predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from plusx import store
from plusx.data.image_file import printable
from plusx.report.predictions import MAX_IMAGES, predictions_page
from plusx.run import drawing
from plusx.run.folder import Run, record_test_use


class PredictionWriter:
    """Collects rows of dense predictions, and writes their overlays into the folder `out`."""

    def __init__(self, run: Run, out: str | Path | None) -> None:
        self.run = run
        self.out = None if out is None else Path(out)
        self.rows: list[dict[str, Any]] = []
        self.panels: list[bytes] = []
        self.test_uses: int | None = None

    def record_test_use(self, folder: Path, count: int) -> None:
        """Record once that predictions are compared with `count` annotated test samples."""
        if self.test_uses is None:
            use = {"data": folder.name, "split": "test", "count": count, "by": "predict"}
            self.test_uses = record_test_use(folder, use)

    def draw(
        self,
        row: dict[str, Any],
        name: str,
        pixels: UInt8[np.ndarray, "h w 3"],
        overlays: Sequence[UInt8[np.ndarray, "h w 3"]],
        mask: tuple[str, bytes] | None = None,
    ) -> None:
        """Write the images of a row, and add their paths: overlay, side_by_side and mask.

        overlays: of the prediction, and of the ground truth if it is known
        mask: the suffix and the content of its file
        """
        assert self.out is not None
        panel = drawing.png(drawing.side_by_side([pixels, *overlays]))
        contents = {
            "overlay": (f"overlays/{name}.png", drawing.png(overlays[0])),
            "side_by_side": (f"side-by-side/{name}.png", panel),
        }
        if mask is not None:
            contents["mask"] = (f"masks/{name}{mask[0]}", mask[1])
        for key, (path, content) in contents.items():
            store.make_folder((self.out / path).parent)
            store.write_bytes(self.out / path, content)
            row[key] = path
        if len(self.panels) < MAX_IMAGES:
            self.panels.append(panel)

    def result(self) -> dict[str, Any]:
        """Return classes, predictions and test_uses; write predictions.html if there is `out`."""
        classes = self.run.classes
        result: dict[str, Any] = {"classes": list(classes), "predictions": self.rows}
        if self.test_uses is not None:
            result["test_uses"] = self.test_uses
        if self.out is not None and self.rows:
            colours = drawing.colours(len(classes))
            page = predictions_page(result, self.panels, colours, printable(self.run.path))
            store.write_text(self.out / "predictions.html", page)
        return result

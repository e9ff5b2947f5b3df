"""Maps put to the test, batch by batch: deletion, insertion, and networks that forget."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from plusx.explain import faithfulness
from plusx.explain.faithfulness import Faith, Predict, enlarged
from plusx.explain.judgement import spread


FORGOTTEN = 16  # images that are asked of networks with shuffled weights
RANDOM = 5  # random maps for each image
# The maps that are compared, and their names in figures.
NAMES = {"map": "the map", "random": "random", "centre": "centre blob"}
# What is measured: what is done, along which axis, and what that shows.
MEASURES = {
    "deletion": (
        "Pixels are set to 0, mostly the training images' mean, those ranked highest first.",
        "share of the pixels gone",
        "The lower the line, the better.",
    ),
    "insertion": (
        "Pixels come back into a blurred image, those that the map ranks highest first.",
        "share of the pixels back",
        "The higher the line, the better.",
    ),
}


class Trial:
    """What is found about maps. `predict` gives probabilities (n, k) of inputs, and `ask` the maps
    of a network for inputs and classes; `seed` is that of random maps and shuffled weights."""

    def __init__(
        self, predict: Predict, ask: Callable[[nn.Module, Tensor, Tensor], Tensor], seed: int
    ) -> None:
        self.predict, self.ask, self.seed = predict, ask, seed
        self.count = 0
        self._curves: dict[str, list[Faith]] = {name: [] for name in NAMES}
        self._first: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(
        self, x: Float[Tensor, "n c h w"], classes: Int[Tensor, "n"], maps: Float[Tensor, "n a b"]
    ) -> list[dict[str, dict[str, float]]]:
        """Ask deletion and insertion of a batch; the areas of each image, by measure and map."""
        asked = self._asked(x, classes, maps)
        for name, faith in asked.items():
            self._curves[name].append(faith)
        left = FORGOTTEN - self.count
        if left > 0:
            self._first.append((x[:left], classes[:left], maps[:left]))
        self.count += len(x)
        areas = {name: [part.tolist() for part in faith.areas] for name, faith in asked.items()}
        return [
            {
                measure: {name: areas[name][place][index] for name in NAMES}
                for place, measure in enumerate(MEASURES)
            }
            for index in range(len(x))
        ]

    def forget(self, net: nn.Module, networks: int) -> list[dict[str, Any]]:
        """How alike the maps still are to those of `net`, the more of it is forgotten.

        The cascade of Adebayo et al. 2018 from the head down to everything, over the first images
        and so many networks, each shuffled anew.
        """
        x, classes, maps = (torch.cat([part[place] for part in self._first]) for place in range(3))
        alike: dict[str, list[float]] = {}
        for index in range(networks):
            for part, forgetful in faithfulness.forgetting(net, self.seed + index):
                again = self.ask(forgetful, x, classes)
                same = faithfulness.rank_correlation(maps, again)
                alike.setdefault(part, []).extend(same.tolist())
        parts = list(alike)
        titles = [parts[0], *(f"{part} and above" for part in parts[1:-1]), "everything"]
        return [
            {
                "part": part,
                "title": title,
                "rank_correlation": spread(alike[part]),
                "without_sign": spread([abs(value) for value in alike[part]]),
                "images": len(x),
                "networks": networks,
            }
            for part, title in zip(parts, titles[-len(parts) :], strict=True)
        ]

    def figures(self) -> list[dict[str, Any]]:
        """Deletion and insertion as lines: the mean over the images and the middle half of them."""
        return [
            {
                "kind": "lines",
                "title": measure.capitalize(),
                "caption": f"{done} {shows} Bands hold the middle half of the images.",
                "alternative": "",
                "x": {"title": axis, "scale": "share"},
                "y": {"title": "probability of the class", "scale": "share"},
                "lines": [self._line(measure, name) for name in NAMES],
                "level": None,
            }
            for measure, (done, axis, shows) in MEASURES.items()
        ]

    def _asked(self, x: Tensor, classes: Tensor, maps: Tensor) -> dict[str, Faith]:
        size, grid = (int(x.shape[2]), int(x.shape[3])), (int(maps.shape[1]), int(maps.shape[2]))

        def asked(each: Tensor) -> Faith:
            each = each.to(x.device)
            return faithfulness.deletion_and_insertion(self.predict, x, classes, each)

        seeds = range((self.seed + self.count) * RANDOM, (self.seed + self.count + 1) * RANDOM)
        drawn = [asked(faithfulness.random_maps(len(x), grid, size, seed)) for seed in seeds]
        return {
            "map": asked(enlarged(maps, size)),
            "random": Faith(
                torch.stack([each.deletion for each in drawn]).mean(0),
                torch.stack([each.insertion for each in drawn]).mean(0),
            ),
            "centre": asked(faithfulness.centre_blob(len(x), size)),
        }

    def _line(self, measure: str, name: str) -> dict[str, Any]:
        values = torch.cat([getattr(each, measure) for each in self._curves[name]])
        low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype), dim=0)
        steps = values.shape[1] - 1
        return {
            "name": NAMES[name],
            "x": [step / steps for step in range(steps + 1)],
            "mean": values.mean(0).tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "dashed": name != "map",
        }

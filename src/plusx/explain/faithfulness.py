"""Faithfulness of maps: whether a map shows what the network uses, by three measurements.

- Deletion and insertion (Petsiuk et al. 2018, section 4.2): how fast the probability of the class
  falls as the pixels that a map ranks highest are removed, and how fast it rises as they return.
- The same for two baselines, random maps and a Gaussian at the centre: a map that is no better
  than these does not show where the evidence is.
- Randomised weights (Adebayo et al. 2018, section 3): a map that does not change when the weights
  are shuffled is uninformative about the network.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from plusx.nn.network import Network
from plusx.report.figures import line, lines_figure
from plusx.statistics import Number, mean_interval


STEPS = 16
TOGETHER = 128  # images that go through the network at a time
BLUR = 8  # the blur's standard deviation is the image's side over this
UNINFORMATIVE = 0.5  # the mean rank correlation with all weights shuffled, and above

SHUFFLED_IMAGES = 16  # images that networks with shuffled weights are compared on
RANDOM_MAPS = 5  # for each image
FEWEST = 9  # positions of a map, below which ranks agree by chance
# The maps that are compared, and their names in figures.
BASELINES = {"random": "random maps", "centre": "a Gaussian at the centre"}
MAPS = {"map": "the map", **BASELINES}
# The measures: what is done, along which axis, and what is better.
MEASURES = {
    "deletion": (
        "Pixels are set to 0, mostly the training images' mean, those ranked highest first.",
        "share of the pixels removed",
        "The lower the line, the better.",
    ),
    "insertion": (
        "Pixels return to a blurred image, those that the map ranks highest first.",
        "share of the pixels returned",
        "The higher the line, the better.",
    ),
}

Predict = Callable[[Tensor], Tensor]
Side = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Curves:
    """Probabilities of the class after 0, 1/steps ... of the pixels were removed or returned."""

    deletion: Float[Tensor, "n m"]
    insertion: Float[Tensor, "n m"]

    @property
    def areas(self) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """The areas under both curves, from 0 to 1: a good map has a low and a high one."""
        return area(self.deletion), area(self.insertion)


def area(curve: Float[Tensor, "n m"]) -> Float[Tensor, "n"]:
    """The area under curves over 0 to 1 (trapezoids)."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1))


def deletion_and_insertion(
    predict: Predict,
    x: Float[Tensor, "n c h w"],
    classes: Int[Tensor, "n"],
    maps: Float[Tensor, "n h w"],
    *,
    steps: int = STEPS,
) -> Curves:
    """Both curves of each image. `predict` gives probabilities (n, k).

    Removed pixels are 0, with the usual normalisation the mean of the training images; they return
    to a blurred image, so that no hard edge is left (as Petsiuk et al. do). Pixels of the same rank
    are taken in reading order.
    """
    n, pixels = len(x), maps[0].numel()
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(pixels, device=x.device).expand(n, -1))
    rank = rank.view(n, 1, *maps.shape[1:])
    background = blurred(x)
    probabilities: list[Tensor] = []
    at_once = max(1, TOGETHER // (2 * max(1, n)))
    with torch.inference_mode():
        counts = [round(pixels * step / steps) for step in range(steps + 1)]
        for start in range(0, steps + 1, at_once):
            part = []
            for count in counts[start : start + at_once]:
                chosen = rank < count
                part += [x.masked_fill(chosen, 0.0), torch.where(chosen, x, background)]
            every = predict(torch.cat(part)).reshape(len(part) // 2, 2, n, -1)
            index = classes.expand(*every.shape[:3])[..., None]
            probabilities.append(every.gather(3, index)[..., 0].cpu().double())
    deletion, insertion = torch.cat(probabilities).permute(1, 2, 0)
    return Curves(deletion.contiguous(), insertion.contiguous())


def blurred(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Images under a Gaussian blur as wide as they are."""
    sides = [int(side) for side in x.shape[:1:-1]]
    kernel = [2 * (side // 2) + 1 for side in sides]
    return gaussian_blur(x, kernel, [side / BLUR for side in sides])


def random_maps(
    count: int, grid: tuple[int, int], size: tuple[int, int], seed: int
) -> Float[Tensor, "n h w"]:
    """Uniform random numbers on a grid as coarse as the map's, enlarged as the map is.

    Noise in single pixels would be an unfair baseline: it destroys an image fast wherever it falls.
    """
    generator = torch.Generator().manual_seed(seed)
    return enlarged(torch.rand(count, *grid, generator=generator), size)


def centre_blob(count: int, size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """A map that is highest in the middle and falls off as a Gaussian, the same for any image."""
    sides = (torch.linspace(-1, 1, side) if side > 1 else torch.zeros(1) for side in size)
    down, along = (torch.exp(-2 * side.square()) for side in sides)
    return (down[:, None] * along).expand(count, -1, -1)


def enlarged(maps: Float[Tensor, "n a b"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """Maps at the size of the images, bilinear."""
    if tuple(maps.shape[1:]) == size:
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def shuffled_weights(net: nn.Module, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """A copy of a network whose weights are shuffled part by part, from the head down to the stem.

    Each tensor of a part keeps its values, statistics of norms among them, in a random order, so
    that the scale of the activations stays about what it was, which new values do not promise in a
    deep network. It is one network, which the next step changes.
    """
    shuffled = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    for part, names in tensor_groups(net):
        tensors = shuffled.state_dict()
        for name in names:
            tensor = tensors[name]
            if tensor.is_floating_point() and tensor.numel() > 1:
                order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
                tensor.copy_(tensor.flatten()[order].view(tensor.shape))
        yield part, shuffled


def tensor_groups(net: nn.Module) -> list[tuple[str, list[str]]]:
    """The parts of a network with weights, the head first, and the names of their tensors."""
    names_by_part: dict[str, list[str]] = {}
    sentence = isinstance(getattr(net, "backbone", net), Network)
    for name in net.state_dict():
        child = name.removeprefix("backbone.").partition(".")[0]
        if child in ("fc", "tail", "head"):
            child = "head"
        elif sentence:
            child = child.replace("enter", "layer") if child[-1].isdigit() else child
            child = child if child.startswith("layer") else "stem"
        names_by_part.setdefault(child, []).append(name)
    return [(part, names_by_part[part]) for part in reversed(list(names_by_part))]


def rank_correlation(
    first: Float[Tensor, "n *s"], second: Float[Tensor, "n *t"]
) -> Float[Tensor, "n"]:
    """Spearman's rank correlation of each pair of maps, 1 where they rank all positions alike.

    A constant map has no ranks: with another one the correlation is 1, for nothing changed, and
    with any other map 0, as it is for a map that is not finite.
    """
    pairs = zip(first.flatten(1).double().cpu(), second.flatten(1).double().cpu(), strict=True)
    return torch.tensor([_spearman(a, b) for a, b in pairs], dtype=torch.float64)


def _spearman(first: Tensor, second: Tensor) -> float:
    from scipy import stats

    if not bool((first.isfinite() & second.isfinite()).all()):
        return 0.0
    flat = [bool((values == values[0]).all()) for values in (first, second)]
    if any(flat):
        return float(all(flat))
    return float(stats.spearmanr(first.numpy(), second.numpy()).statistic)


def interval_of(values: Sequence[Number]) -> list[float] | None:
    """Student's interval of 95 % of a mean between -1 and 1; None for fewer than three values."""
    interval = mean_interval(values, bounds=(-1.0, 1.0)) if len(values) > 2 else None
    return None if interval is None else list(interval)


def spread(values: Sequence[Number]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and the interval of the mean."""
    return {
        "mean": mean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "interval": interval_of(values),
    }


class FaithfulnessTest:
    """Measures maps, batch by batch. `predict` gives probabilities (n, k) of inputs, and `explain`
    the maps of a network for inputs and classes; `seed` is that of random maps and shuffled
    weights."""

    def __init__(
        self, predict: Predict, explain: Callable[[nn.Module, Tensor, Tensor], Tensor], seed: int
    ) -> None:
        self.predict, self.explain, self.seed = predict, explain, seed
        self.count = 0
        self._curves: dict[str, list[Curves]] = {name: [] for name in MAPS}
        self._first: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(
        self, x: Float[Tensor, "n c h w"], classes: Int[Tensor, "n"], maps: Float[Tensor, "n a b"]
    ) -> list[dict[str, dict[str, float]]]:
        """Deletion and insertion of a batch; the areas of each image, by measure and map."""
        curves = self._measure(x, classes, maps)
        for name, measured in curves.items():
            self._curves[name].append(measured)
        left = SHUFFLED_IMAGES - self.count
        if left > 0:
            self._first.append((x[:left], classes[:left], maps[:left]))
        self.count += len(x)
        areas = {
            name: [part.tolist() for part in measured.areas] for name, measured in curves.items()
        }
        return [
            {
                measure: {name: areas[name][number][index] for name in MAPS}
                for number, measure in enumerate(MEASURES)
            }
            for index in range(len(x))
        ]

    def shuffle(self, net: nn.Module, networks: int) -> list[dict[str, Any]]:
        """How alike the maps still are to those of `net`, the more of its weights are shuffled.

        The cascade of Adebayo et al. 2018 from the head down to everything, over the first images
        and so many networks, each shuffled differently.
        """
        x, classes, maps = (torch.cat([part[index] for part in self._first]) for index in range(3))
        correlations: dict[str, list[float]] = {}
        for number in range(networks):
            for part, shuffled in shuffled_weights(net, self.seed + number):
                same = rank_correlation(maps, self.explain(shuffled, x, classes))
                correlations.setdefault(part, []).extend(same.tolist())
        names = list(correlations)
        titles = [names[0], *(f"{part} and above" for part in names[1:-1]), "everything"]
        return [
            {
                "part": part,
                "title": title,
                "rank_correlation": spread(correlations[part]),
                "without_sign": spread([abs(value) for value in correlations[part]]),
                "images": len(x),
                "networks": networks,
            }
            for part, title in zip(names, titles[-len(names) :], strict=True)
        ]

    def figures(self) -> list[dict[str, Any]]:
        """Deletion and insertion as lines: the mean over the images and the middle half of them."""
        return [
            lines_figure(
                measure.capitalize(),
                f"{done} {better} Bands hold the middle half of the images.",
                [self._line(measure, name) for name in MAPS],
                x={"title": axis, "scale": "share"},
                y={"title": "probability of the class", "scale": "share"},
            )
            for measure, (done, axis, better) in MEASURES.items()
        ]

    def _measure(self, x: Tensor, classes: Tensor, maps: Tensor) -> dict[str, Curves]:
        size, grid = (int(x.shape[2]), int(x.shape[3])), (int(maps.shape[1]), int(maps.shape[2]))

        def curves(compared: Tensor) -> Curves:
            return deletion_and_insertion(self.predict, x, classes, compared.to(x.device))

        first = (self.seed + self.count) * RANDOM_MAPS
        random = [
            curves(random_maps(len(x), grid, size, seed))
            for seed in range(first, first + RANDOM_MAPS)
        ]
        return {
            "map": curves(enlarged(maps, size)),
            "random": Curves(
                torch.stack([measured.deletion for measured in random]).mean(0),
                torch.stack([measured.insertion for measured in random]).mean(0),
            ),
            "centre": curves(centre_blob(len(x), size)),
        }

    def _line(self, measure: str, name: str) -> dict[str, Any]:
        values = torch.cat([getattr(measured, measure) for measured in self._curves[name]])
        low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype), dim=0)
        steps = values.shape[1] - 1
        return line(
            MAPS[name],
            [step / steps for step in range(steps + 1)],
            values.mean(0).tolist(),
            low=low.tolist(),
            high=high.tolist(),
            dashed=name != "map",
        )


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over images, and how far the map is ahead of its baselines, image by image.

    A lead is positive where the map is better: deletion lower, insertion higher. Its interval of
    95 % is Student's over the images; None for fewer than three.
    """
    result: dict[str, Any] = {"count": len(rows)}
    for measure, sign in (("deletion", -1), ("insertion", 1)):
        areas: dict[str, Any] = {}
        for name in ("map", *BASELINES):
            values = [row[measure][name] for row in rows]
            areas[name] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
        for name in BASELINES:
            leads = [sign * (row[measure]["map"] - row[measure][name]) for row in rows]
            areas[name]["lead"] = mean(leads)
            areas[name]["interval"] = interval_of(leads)
        result[measure] = areas
    return result


def side(area: Mapping[str, Any]) -> Side:
    """Whether the map is better than a baseline: where the interval of its lead leaves out 0."""
    if area["interval"] is None:
        return "undecided"
    low, high = area["interval"]
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def finding(
    title: str, faith: Mapping[str, Any] | None, shuffled: Sequence[Mapping[str, Any]]
) -> str:
    """One sentence: a map that does not change with the weights is uninformative, whatever else it
    does."""
    if uninformative(shuffled):
        last = shuffled[-1]["rank_correlation"]["mean"]
        return (
            "These maps are uninformative: with all weights of the network shuffled they hardly "
            f"change (rank correlation {last:z.2f}), so they do not show what it has learned."
        )
    if faith is None:
        return f"{title} of these images; whether the maps are faithful was not measured."
    count = faith["count"]
    images = "the one image" if count == 1 else f"these {count} images"
    if count < 3:
        return f"{title} of {images}: too few to say whether the maps beat chance."
    sides = {
        name: {measure: side(faith[measure][name]) for measure in ("deletion", "insertion")}
        for name in BASELINES
    }
    won = [name for name in BASELINES if set(sides[name].values()) == {"better"}]
    if len(won) == 2:
        return (
            f"On {images} {title} marks what the network uses: by deletion and by insertion it "
            "beats random maps and a Gaussian at the centre."
        )
    if won:
        (other,) = set(BASELINES) - set(won)
        lost = set(sides[other].values()) in ({"worse"}, {"worse", "undecided"})
        rest = (
            f"{BASELINES[other]} does better"
            if lost
            else f"it is not shown to be better than {BASELINES[other]}"
        )
        return (
            f"On {images} {title} beats {BASELINES[won[0]]} by deletion and insertion, but {rest}."
        )
    ahead = {
        measure: [BASELINES[name] for name in BASELINES if sides[name][measure] == "better"]
        for measure in ("deletion", "insertion")
    }
    beaten = [f"{' and '.join(names)} by {measure}" for measure, names in ahead.items() if names]
    if beaten:
        return (
            f"On {images} {title} beats {', and '.join(beaten)}; more is not shown, so read the "
            "maps with care."
        )
    return (
        f"On {images} {title} is not shown to be better than random maps or a Gaussian at the "
        "centre: do not read the maps as what the network uses."
    )


def uninformative(shuffled: Sequence[Mapping[str, Any]]) -> bool:
    """Whether maps hardly change when all weights are shuffled: the interval of their rank
    correlation lies above UNINFORMATIVE, or for fewer than three values their mean.
    """
    if not shuffled:
        return False
    last = shuffled[-1]["rank_correlation"]
    return bool((last["interval"] or [last["mean"]])[0] > UNINFORMATIVE)


def about_shuffling(shuffled: Sequence[Mapping[str, Any]], positions: int) -> str:
    """What the shuffled weights show, in plain words."""
    last = shuffled[-1]["rank_correlation"]["mean"]
    if uninformative(shuffled):
        return (
            f"With all weights shuffled the rank correlation is still {last:z.2f}, above "
            f"{UNINFORMATIVE}: the map does not depend on what the network has learned and is "
            "uninformative as an explanation."
        )
    if last > UNINFORMATIVE:
        return (
            f"With all weights shuffled the rank correlation is {last:z.2f}, but it varies too "
            "much to say that the map does not change with what the network has learned. More "
            "images are needed."
        )
    if positions < FEWEST:
        return (
            f"With all weights shuffled the rank correlation is {last:z.2f}; maps of {positions} "
            "positions agree by chance too easily to conclude anything."
        )
    return (
        f"With all weights shuffled the rank correlation is {last:z.2f}, not above "
        f"{UNINFORMATIVE}: the map depends on what the network has learned."
    )


def explanation_text(result: Mapping[str, Any]) -> str:
    """An explanation as tables for a terminal."""
    rows = result["images"]
    width = max(len(row["path"]) for row in rows)
    label = max(len(row["label"]) for row in rows)
    lines = [
        f"{row['path']:{width}}  {row['label']:{label}}  {row['probability']:7.2%}"
        + (f"  map for {row['class']}" if row["class"] != row["label"] else "")
        for row in rows
    ]
    faith = result["faithfulness"]
    if faith is not None:
        lines += [
            "",
            f"{'':22} deletion  insertion   ({faith['count']} images, lower / higher is better)",
        ]
        for key, name in (("map", result["title"]), *BASELINES.items()):
            areas = [faith[measure][key]["mean"] for measure in ("deletion", "insertion")]
            lines.append(f"{name:22} {areas[0]:8.3f}  {areas[1]:9.3f}")
    if result["shuffled_weights"]:
        lines += ["", "rank correlation with the map, the more weights are shuffled"]
        lines += [
            f"{row_of_part['title']:22} {row_of_part['rank_correlation']['mean']:z8.2f}"
            for row_of_part in result["shuffled_weights"]
        ]
        lines += ["", result["about_shuffling"]]
    return "\n".join([*lines, "", result["finding"]])

"""Faithfulness: whether a map shows what the network uses, by three measurements.

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

from plusx.errors import counted, shortened
from plusx.nn.network import Network
from plusx.report.figures import line, lines_figure
from plusx.statistics import Number, mean_interval


STEPS = 16
MAX_BATCH = 128  # images per forward pass
BLUR = 8  # the blur's standard deviation is the image's side divided by this
UNINFORMATIVE = 0.5  # from this mean rank correlation with all weights shuffled

SHUFFLED_IMAGES = 16  # images for the comparison with shuffled weights
RANDOM_MAPS = 5  # per image
MIN_POSITIONS = 9  # positions of a map below which ranks agree by chance
# the compared maps, and their names in figures
BASELINES = {"random": "random maps", "centre": "a Gaussian at the centre"}
MAPS = {"map": "the map", **BASELINES}
# the measures: caption, title of the x axis, which direction is better
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
# maps (n, *s) of a network, inputs and classes
Maps = Callable[[nn.Module, Tensor, Tensor], Tensor]
Side = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Curves:
    """Probabilities of the class after 0, 1/steps ... of the pixels are removed or returned."""

    deletion: Float[Tensor, "n m"]
    insertion: Float[Tensor, "n m"]

    @property
    def areas(self) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """The areas under both curves, from 0 to 1: low and high for a good map."""
        return area(self.deletion), area(self.insertion)


def area(curve: Float[Tensor, "n m"]) -> Float[Tensor, "n"]:
    """Return the area under curves over 0 to 1 (trapezoidal rule)."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1))


def deletion_and_insertion(
    predict: Predict,
    x: Float[Tensor, "n c h w"],
    classes: Int[Tensor, "n"],
    maps: Float[Tensor, "n h w"],
    *,
    steps: int = STEPS,
) -> Curves:
    """Return both curves of each image. `predict` returns probabilities (n, k).

    Removed pixels are 0, with the usual normalisation the mean of the training images; they return
    to a blurred image, so that no hard edge is left (as in Petsiuk et al.). Pixels of equal rank
    are taken in reading order.
    """
    n, pixels = len(x), maps[0].numel()
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(pixels, device=x.device).expand(n, -1))
    rank = rank.view(n, 1, *maps.shape[1:])
    background = blurred(x)
    probabilities: list[Tensor] = []
    steps_per_batch = max(1, MAX_BATCH // (2 * max(1, n)))
    with torch.inference_mode():
        counts = [round(pixels * step / steps) for step in range(steps + 1)]
        for start in range(0, steps + 1, steps_per_batch):
            inputs = []
            for count in counts[start : start + steps_per_batch]:
                selected = rank < count
                inputs += [x.masked_fill(selected, 0.0), torch.where(selected, x, background)]
            outputs = predict(torch.cat(inputs)).reshape(len(inputs) // 2, 2, n, -1)
            index = classes.expand(*outputs.shape[:3])[..., None]
            probabilities.append(outputs.gather(3, index)[..., 0].cpu().double())
    deletion, insertion = torch.cat(probabilities).permute(1, 2, 0)
    return Curves(deletion.contiguous(), insertion.contiguous())


def blurred(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Return images under a Gaussian blur proportional to their size."""
    sides = [int(side) for side in x.shape[:1:-1]]
    kernel = [2 * (side // 2) + 1 for side in sides]
    return gaussian_blur(x, kernel, [side / BLUR for side in sides])


def random_maps(
    count: int, grid: tuple[int, int], size: tuple[int, int], seed: int
) -> Float[Tensor, "n h w"]:
    """Return uniform random numbers on a grid as coarse as the map's, enlarged in the same way.
    Noise in single pixels would be an unfair baseline: it destroys an image quickly anywhere."""
    generator = torch.Generator().manual_seed(seed)
    return enlarged(torch.rand(count, *grid, generator=generator), size)


def centre_blob(count: int, size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """Return a map with a Gaussian in the centre, the same for any image."""
    sides = (torch.linspace(-1, 1, side) if side > 1 else torch.zeros(1) for side in size)
    rows, columns = (torch.exp(-2 * side.square()) for side in sides)
    return (rows[:, None] * columns).expand(count, -1, -1)


def enlarged(maps: Float[Tensor, "n a b"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """Return maps at the size of the images, bilinear."""
    if tuple(maps.shape[1:]) == size:
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def shuffled_weights(net: nn.Module, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield a copy of a network with weights shuffled group by group, from head to stem.

    Each tensor keeps its values, in random order, including statistics of norms, so that the scale
    of the activations is roughly preserved, which new random values would not achieve in a deep
    network. The same copy is yielded and changed at every step.
    """
    shuffled = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    for group, names in tensor_groups(net):
        tensors = shuffled.state_dict()
        for name in names:
            tensor = tensors[name]
            if tensor.is_floating_point() and tensor.numel() > 1:
                order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
                tensor.copy_(tensor.flatten()[order].view(tensor.shape))
        yield group, shuffled


def tensor_groups(net: nn.Module) -> list[tuple[str, list[str]]]:
    """Return the groups of a network's weights, the head first, with the names of their tensors."""
    names_by_group: dict[str, list[str]] = {}
    has_spec = isinstance(getattr(net, "backbone", net), Network)
    for name in net.state_dict():
        child = name.removeprefix("backbone.").partition(".")[0]
        if child in ("fc", "tail", "head"):
            child = "head"
        elif has_spec:
            child = child.replace("enter", "layer") if child[-1].isdigit() else child
            child = child if child.startswith("layer") else "stem"
        names_by_group.setdefault(child, []).append(name)
    return [(group, names_by_group[group]) for group in reversed(list(names_by_group))]


def rank_correlation(
    first: Float[Tensor, "n *s"], second: Float[Tensor, "n *t"]
) -> Float[Tensor, "n"]:
    """Return Spearman's rank correlation of each pair of maps.

    A constant map has no ranks: the correlation of two constant maps is 1, and of one constant map
    0, as for a map that is not finite.
    """
    pairs = zip(first.flatten(1).double().cpu(), second.flatten(1).double().cpu(), strict=True)
    return torch.tensor([_spearman(a, b) for a, b in pairs], dtype=torch.float64)


def _spearman(first: Tensor, second: Tensor) -> float:
    from scipy import stats

    if not bool((first.isfinite() & second.isfinite()).all()):
        return 0.0
    constant = [bool((values == values[0]).all()) for values in (first, second)]
    if any(constant):
        return float(all(constant))
    return float(stats.spearmanr(first.numpy(), second.numpy()).statistic)


def interval_of(values: Sequence[Number]) -> list[float] | None:
    """Return Student's 95 % interval of a mean between -1 and 1; None for fewer than three
    values."""
    interval = mean_interval(values, bounds=(-1.0, 1.0)) if len(values) > 2 else None
    return None if interval is None else list(interval)


def spread(values: Sequence[Number]) -> dict[str, Any]:
    """Return mean, standard deviation (n - 1) and the interval of the mean."""
    return {
        "mean": mean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "interval": interval_of(values),
    }


class FaithfulnessTest:
    """Measure maps batch by batch. `predict` returns probabilities (n, k) of inputs, `explain` the
    maps of a network for inputs and classes; `seed` is for random maps and shuffled weights."""

    def __init__(self, predict: Predict, explain: Maps, seed: int) -> None:
        self.predict, self.explain, self.seed = predict, explain, seed
        self.count = 0
        self._curves: dict[str, list[Curves]] = {name: [] for name in MAPS}
        self._shuffled_batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(
        self, x: Float[Tensor, "n c h w"], classes: Int[Tensor, "n"], maps: Float[Tensor, "n a b"]
    ) -> list[dict[str, dict[str, float]]]:
        """Measure deletion and insertion of a batch, and return the areas of each image, by measure
        and map."""
        curves = self._measure(x, classes, maps)
        for name, curve in curves.items():
            self._curves[name].append(curve)
        num_shuffled = SHUFFLED_IMAGES - self.count
        if num_shuffled > 0:
            self._shuffled_batches.append(
                (x[:num_shuffled], classes[:num_shuffled], maps[:num_shuffled])
            )
        self.count += len(x)
        areas = {name: [part.tolist() for part in curve.areas] for name, curve in curves.items()}
        return [
            {
                measure: {name: areas[name][number][index] for name in MAPS}
                for number, measure in enumerate(MEASURES)
            }
            for index in range(len(x))
        ]

    def shuffle(self, net: nn.Module, networks: int) -> list[dict[str, Any]]:
        """Return how similar maps stay to those of `net` as more of its weights are shuffled.

        The cascade of Adebayo et al. 2018, from the head down to all weights, over the first images
        and `networks` networks, each shuffled differently.
        """
        x, classes, maps = (
            torch.cat([group[index] for group in self._shuffled_batches]) for index in range(3)
        )
        correlations: dict[str, list[float]] = {}
        for number in range(networks):
            for group, shuffled in shuffled_weights(net, self.seed + number):
                similarity = rank_correlation(maps, self.explain(shuffled, x, classes))
                correlations.setdefault(group, []).extend(similarity.tolist())
        names = list(correlations)
        titles = [names[0], *(f"{group} and above" for group in names[1:-1]), "everything"]
        return [
            {
                "part": group,
                "title": title,
                "rank_correlation": spread(correlations[group]),
                "without_sign": spread([abs(value) for value in correlations[group]]),
                "images": len(x),
                "networks": networks,
            }
            for group, title in zip(names, titles[-len(names) :], strict=True)
        ]

    def figures(self) -> list[dict[str, Any]]:
        """Return deletion and insertion as figures: the mean over the images, and the interquartile
        range."""
        return [
            lines_figure(
                measure.capitalize(),
                f"{caption} {better} Bands hold the middle half of the images.",
                [self._line(measure, name) for name in MAPS],
                x={"title": axis, "scale": "share"},
                y={"title": "probability of the class", "scale": "share"},
            )
            for measure, (caption, axis, better) in MEASURES.items()
        ]

    def _measure(self, x: Tensor, classes: Tensor, maps: Tensor) -> dict[str, Curves]:
        size, grid = (int(x.shape[2]), int(x.shape[3])), (int(maps.shape[1]), int(maps.shape[2]))

        def curves(candidate: Tensor) -> Curves:
            return deletion_and_insertion(self.predict, x, classes, candidate.to(x.device))

        first_seed = (self.seed + self.count) * RANDOM_MAPS
        random = [
            curves(random_maps(len(x), grid, size, seed))
            for seed in range(first_seed, first_seed + RANDOM_MAPS)
        ]
        return {
            "map": curves(enlarged(maps, size)),
            "random": Curves(
                torch.stack([curve.deletion for curve in random]).mean(0),
                torch.stack([curve.insertion for curve in random]).mean(0),
            ),
            "centre": curves(centre_blob(len(x), size)),
        }

    def _line(self, measure: str, name: str) -> dict[str, Any]:
        values = torch.cat([getattr(curve, measure) for curve in self._curves[name]])
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
    """Return means over images, and the lead of the map over its baselines, image by image.

    A lead is positive if the map is better: deletion lower, insertion higher. Its interval is
    Student's 95 % interval over the images; None for fewer than three.
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
    """Return whether the map is better than a baseline: the interval of its lead excludes 0."""
    if area["interval"] is None:
        return "undecided"
    low, high = area["interval"]
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def finding(
    title: str, faithfulness: Mapping[str, Any] | None, shuffled: Sequence[Mapping[str, Any]]
) -> str:
    """Return one sentence on the maps. Maps that do not change with the weights are
    uninformative."""
    if uninformative(shuffled):
        last = shuffled[-1]["rank_correlation"]["mean"]
        return (
            "These maps are uninformative: with all weights of the network shuffled they hardly "
            f"change (rank correlation {last:z.2f}), so they do not show what it has learned."
        )
    if faithfulness is None:
        return f"{title} of these images; whether the maps are faithful was not measured."
    count = faithfulness["count"]
    images = "the one image" if count == 1 else f"these {count} images"
    if count < 3:
        return f"{title} of {images}: too few to say whether the maps beat chance."
    outcomes = {
        name: {measure: side(faithfulness[measure][name]) for measure in ("deletion", "insertion")}
        for name in BASELINES
    }
    beaten = [name for name in BASELINES if set(outcomes[name].values()) == {"better"}]
    if len(beaten) == 2:
        return (
            f"On {images} {title} marks what the network uses: by deletion and by insertion it "
            "beats random maps and a Gaussian at the centre."
        )
    if beaten:
        (other,) = set(BASELINES) - set(beaten)
        is_worse = set(outcomes[other].values()) in ({"worse"}, {"worse", "undecided"})
        rest = (
            f"{BASELINES[other]} does better"
            if is_worse
            else f"it is not shown to be better than {BASELINES[other]}"
        )
        winner = BASELINES[beaten[0]]
        return f"On {images} {title} beats {winner} by deletion and insertion, but {rest}."
    beaten_by_measure = {
        measure: [BASELINES[name] for name in BASELINES if outcomes[name][measure] == "better"]
        for measure in ("deletion", "insertion")
    }
    clauses = [
        f"{' and '.join(names)} by {measure}"
        for measure, names in beaten_by_measure.items()
        if names
    ]
    if clauses:
        return (
            f"On {images} {title} beats {', and '.join(clauses)}; more is not shown, so read "
            "the maps with care."
        )
    return (
        f"On {images} {title} is not shown to be better than random maps or a Gaussian at the "
        "centre: do not read the maps as what the network uses."
    )


def uninformative(shuffled: Sequence[Mapping[str, Any]]) -> bool:
    """Whether maps hardly change when all weights are shuffled: the interval of their rank
    correlation is above UNINFORMATIVE, or, for fewer than three values, their mean."""
    if not shuffled:
        return False
    last = shuffled[-1]["rank_correlation"]
    return bool((last["interval"] or [last["mean"]])[0] > UNINFORMATIVE)


def about_shuffling(shuffled: Sequence[Mapping[str, Any]], positions: int) -> str:
    """Describe the result with shuffled weights in words."""
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
    if positions < MIN_POSITIONS:
        return (
            f"With all weights shuffled the rank correlation is {last:z.2f}; maps of {positions} "
            "positions agree by chance too easily to conclude anything."
        )
    return (
        f"With all weights shuffled the rank correlation is {last:z.2f}, not above "
        f"{UNINFORMATIVE}: the map depends on what the network has learned."
    )


def explanation_text(result: Mapping[str, Any]) -> str:
    """Return an explanation as tables for a terminal."""
    if "texts" in result:
        lines = [
            f"{row['label']} {row['probability']:7.2%}  {shortened(row['text'], 100)}"
            for row in result["texts"]
        ]
        return "\n".join([*lines, "", result["finding"]])
    rows = result["images" if "images" in result else "recordings"]
    width = max(len(row["path"]) for row in rows)
    label = max(len(row["label"]) for row in rows)
    lines = [
        f"{row['path']:{width}}  {row['label']:{label}}  {row['probability']:7.2%}"
        + (f"  map for {row['class']}" if row["class"] != row["label"] else "")
        for row in rows
    ]
    faith = result.get("faithfulness")
    if faith is not None:
        lines += [
            "",
            f"{'':22} deletion  insertion   ({faith['count']} images, lower / higher is better)",
        ]
        for key, name in (("map", result["title"]), *BASELINES.items()):
            areas = [faith[measure][key]["mean"] for measure in ("deletion", "insertion")]
            lines.append(f"{name:22} {areas[0]:8.3f}  {areas[1]:9.3f}")
    if result.get("shuffled_weights"):
        lines += ["", "rank correlation with the map, the more weights are shuffled"]
        lines += [
            f"{shuffled['title']:22} {shuffled['rank_correlation']['mean']:z8.2f}"
            for shuffled in result["shuffled_weights"]
        ]
        lines += ["", result["about_shuffling"]]
    return "\n".join([*lines, "", result["finding"]])


def removal_finding(rows: Sequence[Mapping[str, Any]], parts: str, instead: str, noun: str) -> str:
    """Return a sentence about how far the probability falls without the parts of a sequence with
    the highest attributions.

    rows: with `drop`, the fall without these parts ("attributed") and without others ("random")
    parts: what is removed, such as "words". instead: what is removed for comparison
    """
    attributed, at_random = (
        100 * mean(row["drop"][name] for row in rows) for name in ("attributed", "random")
    )
    gaps = [row["drop"]["attributed"] - row["drop"]["random"] for row in rows]
    interval = mean_interval(gaps, bounds=(-2.0, 2.0))
    compared = ""
    if interval is not None:
        low, high = 100 * interval.low, 100 * interval.high
        compared = f"; the difference has a 95 % interval of {low:+.1f} to {high:+.1f} points"
        if low <= 0 <= high:
            compared += ", so the maps are not shown to be better than chance"
    return (
        f"Without the fifth of the {parts} with the highest attributions the probability falls by "
        f"{attributed:.1f} points, and without {instead} by {at_random:.1f} (means over "
        f"{counted(len(rows), noun)}){compared}."
    )

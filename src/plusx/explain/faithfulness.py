"""Whether a map shows what the network looks at: three questions with a number for an answer.

- Deletion and insertion (Petsiuk et al. 2018, section 4.2): how fast the probability of the class
  falls as the pixels that a map ranks highest go, and how fast it rises as they come back.
- The same of maps that know nothing, random ones and a blob in the middle: a map that does no
  better than they do tells nothing of where to look.
- Randomised weights (Adebayo et al. 2018, section 3): a map that stays what it was when the
  network has forgotten all that it learned says nothing about the network.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.nn.network import Network


STEPS = 16
TOGETHER = 128  # images that go through the network at a time
BLUR = 8  # the blur's standard deviation is the image's side over this
WORTHLESS = 0.5  # the mean rank correlation with all weights shuffled, and above

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Faith:
    """Probabilities of the class after 0, 1/steps ... of the pixels went or came."""

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
) -> Faith:
    """Both curves of each image. `predict` gives probabilities (n, k).

    What goes is set to 0, with the usual preparation the mean of the training images; what it comes
    back to is the image blurred, so that no hard edge is left (as Petsiuk et al. do). Pixels of the
    same rank go in the order in which they are read.
    """
    n, pixels = len(x), maps[0].numel()
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(pixels, device=x.device).expand(n, -1))
    rank = rank.view(n, 1, *maps.shape[1:])
    vague = blurred(x)
    said: list[Tensor] = []
    at_once = max(1, TOGETHER // (2 * max(1, n)))
    with torch.inference_mode():
        counts = [round(pixels * step / steps) for step in range(steps + 1)]
        for start in range(0, steps + 1, at_once):
            part = []
            for count in counts[start : start + at_once]:
                chosen = rank < count
                part += [x.masked_fill(chosen, 0.0), torch.where(chosen, x, vague)]
            answers = predict(torch.cat(part)).reshape(len(part) // 2, 2, n, -1)
            wanted = classes.expand(*answers.shape[:3])[..., None]
            said.append(answers.gather(3, wanted)[..., 0].cpu().double())
    deletion, insertion = torch.cat(said).permute(1, 2, 0)
    return Faith(deletion.contiguous(), insertion.contiguous())


def blurred(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Images under a Gaussian blur whose weights beyond the border are shared out inside."""
    rows, columns = (_gaussian(side, x) for side in x.shape[2:])
    return rows @ x @ columns.T


def random_maps(
    count: int, grid: tuple[int, int], size: tuple[int, int], seed: int
) -> Float[Tensor, "n h w"]:
    """Uniform random numbers on a grid as coarse as the map's, enlarged as the map is.

    Noise in single pixels would be no fair opponent: it ruins an image fast wherever it falls.
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


def forgetting(net: nn.Module, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a network that forget more and more of it, from the head down to the stem.

    What is forgotten is shuffled: each tensor of the part keeps its values, statistics of norms
    among them, in a random order. So the scale of what runs through stays about what it was, which
    fresh values do not promise in a deep network. It is one network, which the next step changes.
    """
    forgetful = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    for part, names in parts(net):
        tensors = forgetful.state_dict()
        for name in names:
            tensor = tensors[name]
            if tensor.is_floating_point() and tensor.numel() > 1:
                order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
                tensor.copy_(tensor.flatten()[order].view(tensor.shape))
        yield part, forgetful


def parts(net: nn.Module) -> list[tuple[str, list[str]]]:
    """The parts of a network with weights, the head first, and the names of their tensors."""
    found: dict[str, list[str]] = {}
    sentence = isinstance(getattr(net, "backbone", net), Network)
    for name in net.state_dict():
        child = name.removeprefix("backbone.").partition(".")[0]
        if child in ("fc", "tail", "head"):
            child = "head"
        elif sentence:
            child = child.replace("enter", "layer") if child[-1].isdigit() else child
            child = child if child.startswith("layer") else "stem"
        found.setdefault(child, []).append(name)
    return [(part, found[part]) for part in reversed(list(found))]


def rank_correlation(
    first: Float[Tensor, "n *s"], second: Float[Tensor, "n *t"]
) -> Float[Tensor, "n"]:
    """Spearman's rank correlation of each pair of maps, 1 where they rank all positions alike.

    A map without any differences has no ranks: with another such map it is 1, for nothing changed,
    and with any other 0, as it is for a map that is not finite.
    """
    pairs = zip(first.flatten(1).double().cpu(), second.flatten(1).double().cpu(), strict=True)
    return torch.tensor([_spearman(a, b) for a, b in pairs], dtype=torch.float64)


def _spearman(first: Tensor, second: Tensor) -> float:
    if not bool((first.isfinite() & second.isfinite()).all()):
        return 0.0
    a, b = _ranks(first), _ranks(second)
    flat = [float(ranks.square().sum()) == 0 for ranks in (a, b)]
    if any(flat):
        return float(all(flat))
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def _ranks(values: Tensor) -> Tensor:
    """Ranks around 0; values that are equal share the mean of theirs."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[place] - (len(values) + 1) / 2


def _gaussian(side: int, like: Tensor) -> Tensor:
    """(side, side): row i weighs the positions around i."""
    places = torch.arange(side, dtype=like.dtype, device=like.device)
    weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * (side / BLUR) ** 2))
    return weights / weights.sum(1, keepdim=True)

"""Checks of an evaluation under attack: signs that an attack is too weak, or that a network hides
its gradients instead of being robust (Athalye et al. 2018; Carlini et al. 2019)."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor
from torch.nn import functional as F

from plusx.attack.apgd import Apgd
from plusx.attack.ball import Ball
from plusx.attack.goal import Goal, Logits, ascent, cross_entropy
from plusx.attack.pgd import Fgsm, Pgd, ascend, step_length
from plusx.attack.square import Square


TOLERANCE = 0.01  # of an accuracy, by which a stronger attack may be weaker by chance
RANDOM = 20  # random perturbations per sample
QUERIES = 300  # of Square
TRANSFER_STEPS = 20
MIN_STEPS = 50  # of the unbounded attack and of APGD
RIDGE = 1e-2  # of the linear model, relative to the mean squared norm of its inputs


class Check(NamedTuple):
    """One check: whether it passed, and the measurement as text."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class _Samples:
    """The attacked samples, and the accuracy on perturbed ones."""

    logits_of: Logits
    clean: Float[Tensor, "n ..."]
    labels: Int64[Tensor, "n"]

    def correct(self, pixels: Tensor) -> Bool[Tensor, "n"]:
        with torch.no_grad():
            correct: Tensor = self.logits_of(pixels).argmax(1) == self.labels
        return correct

    def accuracy(self, pixels: Tensor) -> float:
        return float(self.correct(pixels).float().mean())


def run_checks(
    logits_of: Logits,
    clean: Float[Tensor, "n ..."],
    labels: Int64[Tensor, "n"],
    predicted: Int64[Tensor, "n"],
    ball: Ball,
    steps: int,
    seed: int = 0,
) -> list[Check]:
    """Return the checks of a classifier at one eps.

    predicted: the classes that are predicted without an attack and without conversion to pixels
    steps: of PGD
    """
    samples = _Samples(logits_of, clean, labels)

    def rng() -> Generator:
        return torch.Generator(clean.device).manual_seed(seed)

    def attacked(attack: Pgd | Fgsm) -> float:
        return samples.accuracy(attack(logits_of, clean, labels, rng()))

    pgd = Pgd(norm=ball.norm, eps=ball.eps, steps=steps)
    white_box = attacked(pgd)
    fgsm = attacked(Fgsm(norm=ball.norm, eps=ball.eps))
    unbounded = attacked(
        replace(pgd, eps=everything(ball.norm, clean), steps=max(steps, MIN_STEPS))
    )
    surrogate = linear_surrogate(logits_of, clean)
    from_surrogate = ascend(
        lambda pixels: F.cross_entropy(surrogate(pixels), labels, reduction="sum"),
        clean,
        clean,
        ball,
        TRANSFER_STEPS,
        step_length(ball, TRANSFER_STEPS, None),
    )
    transfer = samples.accuracy(from_surrogate)
    longer_pixels = replace(pgd, steps=2 * steps)(logits_of, clean, labels, rng())
    longer = samples.accuracy(longer_pixels)
    apgd = Apgd(norm=ball.norm, eps=ball.eps, steps=max(2 * steps, MIN_STEPS))
    white_correct = samples.correct(longer_pixels)
    white_correct &= samples.correct(apgd(logits_of, clean, labels, rng()))
    reasons = masking(samples, pgd, white_correct, rng())
    if unbounded > 0:
        reasons.append("an unbounded attack does not reach 0 %")
    return [
        zero_eps(logits_of, clean, predicted, pgd, rng()),
        _not_weaker("pgd_not_weaker_than_fgsm", ("PGD", white_box), ("FGSM", fgsm)),
        Check("unbounded_reaches_zero", unbounded == 0, f"{unbounded:.1%} without a bound"),
        _not_weaker(
            "white_box_not_weaker_than_transfer",
            ("PGD", white_box),
            ("from a linear model", transfer),
        ),
        _not_weaker(
            "more_steps_not_weaker",
            (f"{2 * steps} steps", longer),
            (f"{steps} steps", white_box),
        ),
        Check("no_gradient_masking", not reasons, "; ".join(reasons) or "no sign of it"),
    ]


def zero_eps(
    logits_of: Logits,
    clean: Float[Tensor, "n ..."],
    predicted: Int64[Tensor, "n"],
    attack: Pgd | Square,
    rng: Generator,
) -> Check:
    """Check that an attack at eps 0 does not change a prediction."""
    labels = predicted  # every sample is attacked
    pixels = replace(attack, eps=0.0, steps=min(attack.steps, 5))(logits_of, clean, labels, rng)
    with torch.no_grad():
        changed = int((logits_of(pixels).argmax(1) != predicted).sum())
    detail = f"{changed} of {len(clean)} predictions change"
    return Check("zero_eps_is_clean", changed == 0, detail)


def everything(norm: str, clean: Tensor) -> float:
    """Return an eps that allows every change of the pixels."""
    return 1.0 if norm == "linf" else float(clean[0].numel() ** 0.5)


def masking(
    samples: _Samples, pgd: Pgd, white_correct: Bool[Tensor, "n"], rng: Generator
) -> list[str]:
    """Return the signs that the network hides its gradients.

    white_correct: the samples that attacks with gradients do not fool
    """
    logits_of, clean, labels = samples.logits_of, samples.clean, samples.labels
    with torch.no_grad():
        first, second = logits_of(clean), logits_of(clean)
    reasons = []
    if not torch.equal(first, second):
        reasons.append("predictions are random: two of the same input differ")
    correct = first.argmax(1) == labels
    if not bool(correct.any()):
        return reasons
    _, _, gradient = ascent(logits_of, clean, Goal(labels, cross_entropy))
    zero = float((gradient[correct].flatten(1) == 0).all(1).float().mean())
    if zero > 0.05:
        reasons.append(f"the gradient is 0 for {zero:.0%} of the inputs")
    sums = first.sum(1)
    if bool(((first >= 0) & (first <= 1)).all() and (sums - 1).abs().max() < 1e-3):
        reasons.append("the outputs are probabilities, not logits")
    likeliest = first.softmax(1).amax(1)[correct].median()
    if float(likeliest) < 1 / first.shape[1] + 1e-3:
        reasons.append("all logits are nearly equal, so that gradients vanish")
    allowed = max(1.0, TOLERANCE * len(clean))
    random_correct = correct
    for _ in range(RANDOM):
        random_correct = random_correct & samples.correct(pgd.ball.random(clean, rng))
    if int(white_correct.sum() - random_correct.sum()) > allowed:
        reasons.append("random perturbations fool more samples than PGD and APGD")
    if pgd.norm in Square.norms:
        square = Square(norm=pgd.norm, eps=pgd.eps, steps=QUERIES)
        black_correct = samples.correct(square(logits_of, clean, labels, rng))
        if int(white_correct.sum() - black_correct.sum()) > allowed:
            reasons.append("Square, without gradients, fools more samples than PGD and APGD")
    return reasons


def linear_surrogate(logits_of: Logits, clean: Float[Tensor, "n ..."]) -> Logits:
    """Return a linear model of a network, fitted to its predictions by ridge regression.

    Perturbations found on it are a transfer attack (Papernot et al. 2017), for which the network's
    gradients are not needed.
    """
    with torch.no_grad():
        outputs = logits_of(clean)
    inputs = clean.flatten(1).double()
    centre = inputs.mean(0)
    inputs = inputs - centre
    one_hot = F.one_hot(outputs.argmax(1), outputs.shape[1]).double()
    products = inputs @ inputs.T
    ridge = RIDGE * products.diagonal().mean().clamp(min=1e-12)
    identity = torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
    weights = inputs.T @ torch.linalg.solve(products + ridge * identity, one_hot)
    weights, centre = weights.to(clean.dtype), centre.to(clean.dtype)
    return lambda pixels: (pixels.flatten(1) - centre) @ weights


def _not_weaker(name: str, strong: tuple[str, float], weak: tuple[str, float]) -> Check:
    """Check that the accuracy under the first attack is not above that under the second one."""
    passed = strong[1] <= weak[1] + TOLERANCE
    return Check(name, passed, f"{strong[0]} {strong[1]:.1%}, {weak[0]} {weak[1]:.1%}")

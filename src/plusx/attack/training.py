"""Adversarial training: tasks that perturb their batch before the loss."""

import warnings
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from plusx.attack.ascent import Ascent
from plusx.attack.attack import Attack
from plusx.attack.pgd import Fgsm, Pgd, ascend
from plusx.data.batch import Batch
from plusx.data.modality import Modality
from plusx.data.prediction import Prediction
from plusx.errors import UserError
from plusx.metrics.meter import Meter
from plusx.tasks.classify import Classify
from plusx.tasks.task import Task, Wrapped, forward_pass, run_net
from plusx.train.loop import evaluating


STEPS = 10  # of PGD in evaluation
OVERFITTING = 0.5  # accuracy under PGD over that under FGSM, below which FGSM is overfitted
START = 0.001  # deviation of the random start of TRADES (Zhang et al. 2019, algorithm 1)


class Adversarial(Wrapped):
    """A task that is trained on perturbed inputs.

    Perturbations are found in evaluation mode, so that statistics of batch norm and gradients of
    parameters do not change, with the random numbers of torch, which `fit` seeds by (seed, step).
    With one class per input, evaluation adds `robust_accuracy`: the accuracy under PGD of
    `evaluate_steps` steps, from a random start (0: no such evaluation).
    modality: how inputs of the network are prepared from pixels
    """

    def __init__(
        self, task: Task, modality: Modality, ascent: Ascent, evaluate_steps: int = STEPS
    ) -> None:
        super().__init__(task)
        self.modality, self.ascent, self.evaluate_steps = modality, ascent, evaluate_steps

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the batch, with perturbed inputs."""

    def perturbed(self, batch: Batch) -> Batch:
        """Return the batch with inputs for which the loss of the task is high."""
        scalars = self.scalars
        with evaluating(self.task):
            batch = self.ascent(self.task, batch, self.modality)
        self.scalars = scalars
        return batch

    @property
    def attacks(self) -> dict[str, Attack]:
        """The attacks of evaluation, by the name of the metric."""
        if not self.evaluate_steps or not classifies(self.task):
            return {}
        ball = self.ascent.ball
        pgd = Pgd(norm=ball.norm, eps=ball.eps, steps=self.evaluate_steps)
        return {"robust_accuracy": pgd}

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        first, *others = self.task.metrics
        return (first, *self.attacks, *others)

    def meters(self) -> list[Meter]:
        attacks = self.attacks
        return [*self.task.meters(), *([AttackMeter(self, attacks)] if attacks else [])]


def classifies(task: Task) -> bool:
    """Whether a task, or the one that it wraps, has one class per input."""
    while isinstance(task, Wrapped):
        task = task.task
    return isinstance(task, Classify) and not task.multilabel


class PgdTraining(Adversarial):
    """The loss of inputs that PGD perturbs (Madry et al. 2018, equation 2.1), of any task."""

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        loss: Tensor = self.task(self.perturbed(batch))
        return loss


class FastTraining(PgdTraining):
    """PGD training with a single step from a random start, of length 1.25 eps by default (Wong et
    al. 2020, algorithm 3).

    It can fail from one epoch to the next: the network then resists this step only (catastrophic
    overfitting, section 5.4). Evaluation therefore adds `fgsm_accuracy`, and warns if
    the accuracy under PGD is less than half of it.
    """

    @property
    def attacks(self) -> dict[str, Attack]:
        attacks, ball = super().attacks, self.ascent.ball
        if not attacks:
            return {}
        return {**attacks, "fgsm_accuracy": Fgsm(norm=ball.norm, eps=ball.eps)}


class TradesTraining(Adversarial):
    """The loss of the clean batch, plus `beta` times the divergence of the predictions for
    perturbed inputs from those for clean ones, which the perturbation makes large (TRADES, Zhang et
    al. 2019, equation 5).

    Raises UserError if the task has not one class per input. After each forward
    `scalars["divergence"]` is that term.
    """

    def __init__(
        self,
        task: Task,
        modality: Modality,
        ascent: Ascent,
        evaluate_steps: int = STEPS,
        *,
        beta: float = 6.0,
    ) -> None:
        super().__init__(task, modality, ascent, evaluate_steps)
        if not classifies(task):
            raise UserError("TRADES compares class probabilities: it is for one class per input")
        self.beta = beta

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        perturbed = self.perturbed(batch)
        loss, _, clean_logits = forward_pass(self.task, batch)
        logits = run_net(self.task.net, perturbed)
        divergence = _divergence(clean_logits, logits)
        self.scalars = {**self.scalars, "divergence": divergence.detach()}
        return loss + self.beta * divergence

    def perturbed(self, batch: Batch) -> Batch:
        """Return the batch with inputs whose predictions diverge from those of the clean ones."""
        net, inputs, ball = self.task.net, batch.inputs.detach(), self.ascent.ball
        clean = self.modality.to_pixels(inputs)
        start = ball.project(clean + START * torch.randn_like(clean), clean)
        with evaluating(self.task):
            with torch.no_grad():
                clean_logits = net(inputs)
            pixels = ascend(
                lambda pixels: _divergence(clean_logits, net(self.modality.from_pixels(pixels))),
                clean,
                start,
                ball,
                self.ascent.steps,
                self.ascent.step_size,
            )
        return Batch(self.modality.from_pixels(pixels), batch.targets, extras=batch.extras)


def _divergence(clean: Float[Tensor, "n k"], perturbed: Float[Tensor, "n k"]) -> Tensor:
    """Return the Kullback-Leibler divergence of the perturbed predictions from the clean ones, the
    mean over the batch."""
    logs, clean_logs = perturbed.float().log_softmax(1), clean.float().log_softmax(1)
    return F.kl_div(logs, clean_logs, reduction="batchmean", log_target=True)


class AttackMeter(Meter):
    """The accuracy of a classifier under attacks, by the name of the metric.

    Each batch is attacked as it is recorded, with random numbers that are the same for every batch,
    so that several processes get the metrics of one.
    """

    def __init__(self, task: Adversarial, attacks: dict[str, Attack]) -> None:
        super().__init__()
        self.task, self.attacks = task, attacks

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        return {
            "count": len(batch),
            **{
                name: correct_under(self.task, attack, batch)
                for name, attack in self.attacks.items()
            },
        }

    def compute(self) -> dict[str, Any]:
        self.require_records()
        count = sum(record["count"] for record in self.records)
        accuracies = {
            name: sum(record[name] for record in self.records) / count for name in self.attacks
        }
        _warn_of_overfitting(accuracies)
        return accuracies


def correct_under(task: Adversarial, attack: Attack, batch: Batch) -> int:
    """Return the number of samples that are predicted correctly under an attack, in the task's
    current mode. Evaluation is in inference mode, in which there are no gradients."""
    with torch.inference_mode(False):
        inputs, labels = batch.inputs.clone(), batch.known_targets.clone()
        rng = torch.Generator(inputs.device).manual_seed(0)

        def logits_of(pixels: Tensor) -> Tensor:
            logits: Tensor = task.net(task.modality.from_pixels(pixels))
            return logits.float()

        perturbed = attack(logits_of, task.modality.to_pixels(inputs), labels, rng)
        with torch.no_grad():
            return int((logits_of(perturbed).argmax(1) == labels).sum())


def _warn_of_overfitting(accuracies: dict[str, float]) -> None:
    """Warn of catastrophic overfitting, the check of Wong et al. 2020, section 5.4."""
    fgsm, pgd = accuracies.get("fgsm_accuracy"), accuracies["robust_accuracy"]
    if fgsm is not None and fgsm > 0.25 and pgd < OVERFITTING * fgsm:
        warnings.warn(
            f"catastrophic overfitting: the accuracy is {fgsm:.1%} under FGSM and {pgd:.1%} under "
            'PGD; [evaluate] keep = "best" with monitor = "robust_accuracy" keeps the weights '
            'before it; a smaller step_size, or [adversarial] kind = "pgd", avoids it',
            stacklevel=2,
        )

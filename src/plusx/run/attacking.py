"""Evaluation of a trained network under adversarial attacks: `plusx attack`."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plusx import store
from plusx.attack import ATTACKS
from plusx.attack.ascent import Ascent
from plusx.attack.attack import Attack
from plusx.attack.ball import Ball
from plusx.attack.checks import Check, run_checks, zero_eps
from plusx.attack.square import Square
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset, as_split
from plusx.data.modality import Modality
from plusx.data.splits import stratified_order
from plusx.errors import UserError, did_you_mean, printable
from plusx.report.attack import MAX_EXAMPLES, Example, attack_page, eps_text
from plusx.run import build
from plusx.run.drawing import as_rgb, enlarged, enlargement, png
from plusx.run.environment import environment
from plusx.run.evaluation import OnUnreadable, evaluated_dataset, home_of
from plusx.run.folder import Run, now, record_test_use
from plusx.statistics import wilson
from plusx.tasks.prepare import prepare
from plusx.tasks.task import Task, compute
from plusx.train.loop import evaluating


DEFAULT = ("fgsm", "pgd", "apgd-ce")
DENSE = ("fgsm", "pgd")  # attacks on any loss
EPS = {"linf": (0.0, 2 / 255, 4 / 255, 8 / 255), "l2": (0.0, 0.25, 0.5, 1.0)}
IMAGES = 1000
CHECKED = 100  # images of the checks
WORST = "worst"  # the row of all attacks together
JSON, PAGE = "attack.json", "attack.html"

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Threat:
    """A threat model: kinds of ATTACKS, their norm, and the values of eps.

    steps: None: the default of each attack
    """

    kinds: tuple[str, ...]
    norm: str
    eps: tuple[float, ...]
    steps: int | None = None
    restarts: int = 1
    seed: int = 0

    def attack(self, kind: str, eps: float) -> Attack:
        """Return an attack of this threat."""
        steps = ATTACKS[kind].default_steps if self.steps is None else self.steps
        steps = 1 if kind == "fgsm" else steps
        return ATTACKS[kind](norm=self.norm, eps=eps, steps=steps, restarts=self.restarts)

    def rng(self, number: int, device: torch.device) -> torch.Generator:
        """Return the random generator of a batch."""
        return torch.Generator(device).manual_seed((self.seed << 32) + number)


def attack_run(
    run: Run,
    *,
    data: str | Path | None = None,
    split: str = "validation",
    kinds: Sequence[str] = (),
    norm: str = "linf",
    eps: Sequence[float] = (),
    steps: int | None = None,
    restarts: int = 1,
    images: int = IMAGES,
    checked: int = CHECKED,
    seed: int = 0,
    batch_size: int = 100,
    workers: int = 0,
    device: str = "auto",
    on_unreadable: OnUnreadable = "error",
    out: str | Path | None = None,
    command: str = "",
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Return the accuracy of a run under attacks, on its own data or on `data`, with checks.

    kinds: of ATTACKS; (): FGSM, PGD and APGD-CE; for ONNX files, which have no gradients, Square
    eps: in pixels from 0 to 1; (): up to 8/255 for linf, up to 1 for l2
    images: number of samples at most, equally many of each class
    checked: number of samples for the checks; 0: no checks
    out: a folder for attack.json and attack.html
    A sample is correct if the network predicts its class with and without the perturbation. With
    several attacks, the row "worst" counts the samples that no attack fools. For masks, boxes and
    other tasks, the attack ascends the task's loss, and rows have the task's main metric.
    Raises UserError for an unknown attack or norm, numbers out of range, attacks that need
    gradients on an ONNX file, and inputs without pixels.
    """
    if images < 1 or checked < 0:
        raise UserError(f"images = {images}, checked = {checked}: at least 1 and 0")
    if not 0 <= seed < 2**31:
        raise UserError(f"seed = {seed}: from 0 to {2**31 - 1}")
    threat = Threat(
        kinds=_kinds(run, kinds),
        norm=norm,
        eps=tuple(dict.fromkeys(eps)) or EPS.get(norm, (0.0,)),
        steps=steps,
        restarts=restarts,
        seed=seed,
    )
    for kind in threat.kinds:
        for radius in threat.eps:
            threat.attack(kind, radius)  # raises an error before the work
    dataset = at_most(evaluated_dataset(run, data, as_split(split), on_unreadable), images)
    task = prepare(run.task, device=device, precision="float32")
    started = time.monotonic()
    loader = build.evaluation_loader(dataset, batch_size, task.device, workers)
    evaluation = _Classified if run.classifies and not run.multilabel else _Ascended
    with loader, evaluating(task):
        attacked = evaluation(task, dataset.modality, threat, checked)
        for number, batch in enumerate(loader.epoch(0)):
            for kind, radius in attacked.add(number, batch):
                progress(
                    f"{kind}, eps {eps_text(radius)}: {attacked.count:,} of {len(dataset):,} "
                    f"{dataset.modality.inputs}"
                )
        rows = attacked.rows()
        if checked:
            progress("checks")
        checks = attacked.checks() if checked else []
    result: dict[str, Any] = {
        "kind": "attack",
        "run": printable(run.path),
        "data": dataset.name,
        "split": dataset.split,
        "count": len(dataset),
        "noun": dataset.modality.noun,
        "metric": attacked.metric,
        "norm": norm,
        "seed": seed,
        "restarts": restarts,
        "clean": attacked.clean(),
        "rows": rows,
        "checks": [check._asdict() for check in checks],
        "checked": min(checked, len(dataset)),
    }
    result["finding"] = finding(result)
    messages = [*dataset.warnings, *attacked.warnings(run)]
    if messages:
        result["warnings"] = messages
    home = home_of(run)
    if home is not None and dataset.split == "test":
        use = {"data": dataset.name, "count": len(dataset), "by": "attack"}
        result["test_uses"] = record_test_use(home, use)
    result |= {
        "machine": environment(task.device),
        "command": command,
        "date": now(),
        "seconds": time.monotonic() - started,
    }
    if out is not None:
        page = attack_page(result, attacked.examples(run))
        store.make_folder(Path(out))
        store.write_json(Path(out) / JSON, result)
        store.write_text(Path(out) / PAGE, page)
    return result


def finding(result: dict[str, Any]) -> str:
    """Return the result as one sentence."""
    last = result["rows"][-1]
    name = "all attacks together" if last["attack"] == WORST else ATTACKS[last["attack"]].title
    failed = [check["name"] for check in result["checks"] if not check["passed"]]
    doubt = f"; not passed: {', '.join(failed)}" if failed else ""
    metric = result["metric"].replace("_", " ")
    return (
        f"The {metric} goes from {_percent(result['clean']['value'])} to "
        f"{_percent(last['value'])} under {name}, {last['norm']} {eps_text(last['eps'])}{doubt}."
    )


def attack_text(result: dict[str, Any]) -> str:
    """Return a result as text: a line for each row and for each check."""
    count = f"{result['count']:,} {result['noun']}s"
    lines = [
        f"{result['data']} {result['split']}, {count}, norm {result['norm']}, {result['metric']}:",
        f"  {'attack':8} {'eps':>8} {'steps':>6}  {_percent(result['clean']['value'])} clean",
    ]
    for row in result["rows"]:
        interval = f" ({row['low']:.1%} to {row['high']:.1%})" if "low" in row else ""
        steps = "" if row["steps"] is None else row["steps"]
        lines.append(
            f"  {row['attack']:8} {eps_text(row['eps']):>8} {steps:>6}  "
            f"{_percent(row['value'])}{interval.replace('%', ' %')}"
        )
    if result["checks"]:
        lines.append(f"checks on {result['checked']:,} {result['noun']}s, at the largest eps:")
    for check in result["checks"]:
        mark = "passed" if check["passed"] else "NOT passed"
        lines.append(f"  {check['name']:34} {mark:10}  {check['detail']}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "an undefined value" if value is None else f"{value:.1%}".replace("%", " %")


def _kinds(run: Run, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the attacks, or the default ones for this network."""
    for kind in kinds:
        if kind not in ATTACKS:
            raise UserError(
                f"attack {kind!r}: allowed are {', '.join(ATTACKS)}{did_you_mean(kind, ATTACKS)}"
            )
    classifies = run.classifies and not run.multilabel
    if not run.has_gradients:
        if not classifies:
            raise UserError(
                f"{printable(run.path)} is an ONNX file, without gradients, and Square, the attack "
                "that needs none, is for classifiers: give the run or its safetensors file"
            )
        needing = [kind for kind in kinds if ATTACKS[kind].needs_gradient]
        if needing:
            raise UserError(
                f"attack {needing[0]!r} needs gradients, which {printable(run.path)}, an ONNX "
                "file, does not have: use --attack square, or the run or its safetensors file"
            )
        return tuple(kinds) or ("square",)
    if not classifies and (others := [kind for kind in kinds if kind not in DENSE]):
        raise UserError(
            f"attack {others[0]!r} is for one class per input; for this task there are "
            f"{' and '.join(DENSE)}"
        )
    return tuple(dict.fromkeys(kinds)) or (DEFAULT if classifies else DENSE)


def at_most(dataset: Dataset, count: int) -> Dataset:
    """Return at most `count` samples: equally many of each class, or the first ones."""
    if len(dataset) <= count:
        return dataset
    if dataset.labels is None or dataset.annotations is not None:
        return dataset.subset(list(range(count)))
    chosen = np.sort(stratified_order(dataset.labels.cpu(), 0)[:count])
    return dataset.subset(chosen.tolist())


class _Classified:
    """The accuracy of a classifier with one class per input under the attacks of a threat."""

    metric = "accuracy"

    def __init__(self, task: Task, modality: Modality, threat: Threat, checked: int) -> None:
        self.task, self.modality, self.threat, self.checked = task, modality, threat, checked
        self.count = 0
        self.clean_correct: list[Bool[Tensor, "n"]] = []
        self.correct: dict[tuple[str, float], list[Bool[Tensor, "n"]]] = {
            (kind, eps): [] for eps in threat.eps for kind in threat.kinds
        }
        # for the checks: pixels, labels, predictions
        self.first: list[tuple[Tensor, Tensor, Tensor]] = []
        # for the page: pixels, perturbed pixels, label, predictions before and after
        self.fooled: list[tuple[Tensor, Tensor, int, int, int]] = []

    def logits_of(self, pixels: Tensor) -> Float[Tensor, "n k"]:
        """Return the logits of pixels from 0 to 1."""
        logits: Tensor = self.task.net(self.modality.from_pixels(pixels))
        return logits.float()

    def add(self, number: int, batch: Batch) -> Iterator[tuple[str, float]]:
        """Attack a batch; yield the kind and eps of each attack that is done."""
        batch = batch.to(self.task.device)
        labels = batch.known_targets
        with torch.no_grad():
            prediction: Any = self.task.predict(batch)
        predicted = prediction.probabilities.argmax(1)
        pixels = self.modality.to_pixels(batch.inputs)
        self.clean_correct.append((predicted == labels).cpu())
        if self.count < self.checked:
            missing = self.checked - self.count
            self.first.append((pixels[:missing], labels[:missing], predicted[:missing]))
        self.count += len(batch)
        for (kind, eps), correct in self.correct.items():
            attack = self.threat.attack(kind, eps)
            rng = self.threat.rng(number, pixels.device)
            perturbed = attack(self.logits_of, pixels, labels, rng)
            with torch.no_grad():
                after = self.logits_of(perturbed).argmax(1)
            is_correct = (after == labels) & (predicted == labels)
            correct.append(is_correct.cpu())
            if eps == max(self.threat.eps) and kind == self.threat.kinds[-1]:
                self._collect(pixels, perturbed, labels, predicted, after)
            yield kind, eps

    def _collect(
        self, pixels: Tensor, perturbed: Tensor, labels: Tensor, before: Tensor, after: Tensor
    ) -> None:
        """Collect examples of fooled samples for the page."""
        fooled = ((before == labels) & (after != labels)).nonzero()[:, 0]
        for row in fooled[: MAX_EXAMPLES - len(self.fooled)].tolist():
            classes = int(labels[row]), int(before[row]), int(after[row])
            self.fooled.append((pixels[row].cpu(), perturbed[row].cpu(), *classes))

    def clean(self) -> dict[str, Any]:
        """Return the accuracy without an attack."""
        return fraction(torch.cat(self.clean_correct))

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each attack and eps, and for all attacks together."""
        rows = []
        for kind in self.threat.kinds:
            for eps in self.threat.eps:
                correct = torch.cat(self.correct[kind, eps])
                rows.append(_row(self.threat.attack(kind, eps), kind, fraction(correct)))
        if len(self.threat.kinds) > 1:
            for eps in self.threat.eps:
                by_kind = [torch.cat(self.correct[kind, eps]) for kind in self.threat.kinds]
                worst = fraction(torch.stack(by_kind).all(0))
                attack = self.threat.attack(self.threat.kinds[-1], eps)
                rows.append({**_row(attack, WORST, worst), "steps": None})
        return rows

    def checks(self) -> list[Check]:
        """Return the checks at the largest eps."""
        pixels, labels, predicted = (torch.cat(parts) for parts in zip(*self.first))
        eps = max(self.threat.eps)
        if not any(True for _ in self.task.parameters()):  # ONNX
            square, rng = Square(eps=eps, steps=5), self.threat.rng(0, pixels.device)
            return [zero_eps(self.logits_of, pixels, predicted, square, rng)]
        if eps == 0:
            eps = EPS[self.threat.norm][-1]
        steps = self.threat.attack("pgd", eps).steps
        ball = Ball(self.threat.norm, eps)
        return run_checks(self.logits_of, pixels, labels, predicted, ball, steps, self.threat.seed)

    def warnings(self, run: Run) -> list[str]:
        """Return warnings about the limits of the result."""
        text = (
            "an ONNX file has no gradients: only Square is possible, which is weaker than attacks "
            "with gradients on the run or its safetensors file"
        )
        return [] if run.has_gradients else [text]

    def examples(self, run: Run) -> list[Example]:
        """Return samples that the last attack fools at the largest eps."""
        if self.modality.ndim != 2:
            return []
        examples = []
        for pixels, perturbed, label, before, after in self.fooled:
            change = perturbed - pixels
            scale = float(change.abs().max().clamp(min=1e-12))
            pngs = pixels_png(pixels), pixels_png(0.5 + change / (2 * scale)), pixels_png(perturbed)
            names = [run.classes[index] for index in (before, after, label)]
            examples.append(Example(names[0], names[1], names[2], pngs))
        return examples


class _Ascended:
    """The main metric of any task under attacks that ascend its loss: masks, boxes, several labels
    per input."""

    def __init__(self, task: Task, modality: Modality, threat: Threat, checked: int) -> None:
        self.task, self.modality, self.threat, self.checked = task, modality, threat, checked
        self.metric = task.metrics[0]
        self.count = 0
        self.meters: dict[tuple[str, float], Any] = {
            (kind, eps): task.meters() for kind in threat.kinds for eps in threat.eps
        }
        self.clean_meters = task.meters()
        self.losses: dict[str, float] = {}
        self.changed = 0

    def add(self, number: int, batch: Batch) -> Iterator[tuple[str, float]]:
        """Attack a batch; yield the kind and eps of each attack that is done."""
        batch = batch.to(self.task.device)
        self.count += len(batch)
        for meter in self.clean_meters:
            meter.update(self._predict(batch), batch)
        for (kind, eps), meters in self.meters.items():
            perturbed = self._perturbed(batch, self.threat.attack(kind, eps), number)
            prediction = self._predict(perturbed)
            for meter in meters:
                meter.update(prediction, batch)
            yield kind, eps
        if self.count - len(batch) < self.checked:
            self._check(batch, number)

    def _predict(self, batch: Batch) -> Any:
        with torch.no_grad():
            return self.task.predict(batch)

    def _perturbed(self, batch: Batch, attack: Attack, number: int) -> Batch:
        rng = self.threat.rng(number, batch.inputs.device)
        with self._seeded():
            return Ascent.of(attack)(self.task, batch, self.modality, rng)

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed torch inside the block, since two-stage detectors sample the regions of their
        loss."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.threat.seed)
            yield

    def _check(self, batch: Batch, number: int) -> None:
        """Add the losses of a batch for the checks."""
        eps = max(self.threat.eps) or EPS[self.threat.norm][-1]
        pgd = self.threat.attack("pgd", eps)
        attacks = {
            "fgsm": self.threat.attack("fgsm", eps),
            "pgd": pgd,
            "longer": replace(pgd, steps=2 * pgd.steps),
        }
        for name, attack in attacks.items():
            perturbed = self._perturbed(batch, attack, number)
            with torch.no_grad(), self._seeded():
                loss = float(self.task(perturbed)) * len(batch)
            self.losses[name] = self.losses.get(name, 0.0) + loss
        unchanged = self._perturbed(batch, replace(pgd, eps=0.0), number)
        self.changed += int((unchanged.inputs != batch.inputs).sum())

    def clean(self) -> dict[str, Any]:
        """Return the metric without an attack."""
        return {"value": compute(self.task, self.clean_meters)[self.metric]}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each attack and eps."""
        return [
            _row(
                self.threat.attack(kind, eps),
                kind,
                {"value": compute(self.task, meters)[self.metric]},
            )
            for (kind, eps), meters in self.meters.items()
        ]

    def checks(self) -> list[Check]:
        """Return the checks of the losses at the largest eps."""
        fgsm, pgd, longer = (self.losses[name] for name in ("fgsm", "pgd", "longer"))
        count = min(self.count, self.checked)
        texts = [f"{name} {value / count:.4g}" for name, value in self.losses.items()]
        tolerance = 0.99  # of a loss
        return [
            Check("zero_eps_is_clean", self.changed == 0, f"{self.changed} inputs change"),
            Check(
                "pgd_not_weaker_than_fgsm", pgd >= tolerance * fgsm, f"loss {texts[1]}, {texts[0]}"
            ),
            Check(
                "more_steps_not_weaker", longer >= tolerance * pgd, f"loss {texts[2]}, {texts[1]}"
            ),
        ]

    def warnings(self, run: Run) -> list[str]:
        """Return no warnings."""
        return []

    def examples(self, run: Run) -> list[Example]:
        """Return no examples."""
        return []


def fraction(correct: Bool[Tensor, "n"]) -> dict[str, Any]:
    """Return the fraction of correct samples with its interval."""
    value = float(correct.double().mean())
    interval = wilson(value, len(correct))
    return {"value": value, "accuracy": value, "low": interval.low, "high": interval.high}


def _row(attack: Attack, kind: str, measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "attack": kind,
        "norm": attack.norm,
        "eps": attack.eps,
        "steps": attack.steps,
        **measured,
    }


def pixels_png(pixels: Float[Tensor, "c h w"]) -> bytes:
    """Return pixels from 0 to 1 as a PNG, enlarged by an integer factor; of many bands the first
    ones."""
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    rgb = as_rgb(values)
    return png(enlarged(rgb, enlargement((rgb.shape[0], rgb.shape[1]))))

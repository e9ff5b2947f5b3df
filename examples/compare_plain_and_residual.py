"""Why skip connections matter: 56 layers with and without them, otherwise identical.

    python examples/compare_plain_and_residual.py            about 20 seconds on a laptop

`plusx compare digits` does this with seeds, spreads, tables and a report.
"""

from typing import Any

import plusx


EPOCHS = 5


def train(name: str) -> tuple[list[float], dict[str, Any]]:
    """The training error of each epoch, and the final metrics on the validation split."""
    task = plusx.prepare(plusx.Classify(plusx.create_model(name, in_channels=1, seed=0)))
    state = plusx.State(task, plusx.make_optimizer(task, nesterov=True))
    rate = plusx.schedule.warmup(plusx.schedule.cosine(0.1, EPOCHS * 19), 19)
    errors = []
    for epoch in range(EPOCHS):
        batches = plusx.batches("digits", batch_size=64, epoch=epoch)
        wrong = [report.scalars["error"] for report in plusx.fit(state, batches, rate)]
        errors.append(sum(wrong) / len(wrong))
    metrics = plusx.evaluate(task, plusx.batches("digits", split="validation"))
    return errors, metrics


# Option A shortcuts have no parameters, so both networks have the same number.
for name in ("plain56", "resnet56"):
    errors, metrics = train(name)
    curve = "  ".join(f"{error:6.1%}" for error in errors)
    parameters = sum(p.numel() for p in plusx.create_model(name, in_channels=1).parameters())
    print(f"{name:9} {parameters:,} parameters   training error by epoch {curve}")
    print(f"{'':9} validation accuracy {metrics['accuracy']:.1%}, F1 {metrics['f1']:.3f}")

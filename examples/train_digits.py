"""Train a residual network on scanned digits, with your own loop in plain Python around `fit`.

python examples/train_digits.py          about 10 seconds on a laptop, nothing is downloaded
"""

import plusx


EPOCHS, BATCH, STEPS_AN_EPOCH = 10, 64, 19

net = plusx.create_model("resnet20", in_channels=1, seed=0)
task = plusx.prepare(plusx.Classify(net, label_smoothing=0.1), device="cpu")
state = plusx.State(task, plusx.make_optimizer(task, "sgd", nesterov=True, weight_decay=1e-4))

total = EPOCHS * STEPS_AN_EPOCH
rate = plusx.schedule.warmup(
    plusx.schedule.cosine(0.1, total, begin=STEPS_AN_EPOCH), STEPS_AN_EPOCH
)
update = plusx.with_ema(plusx.GradientStep(clip=5.0), decay=0.95)
patience = plusx.Patience(3)

for epoch in range(EPOCHS):
    batches = plusx.batches("digits", augment="pad1 crop", batch_size=BATCH, epoch=epoch)
    reports = list(plusx.fit(state, batches, rate, update))
    error = sum(report.scalars["error"] for report in reports) / len(reports)
    # Validate with the averaged weights; the test set is used only once, at the end.
    metrics = plusx.evaluate(state.ema, plusx.batches("digits", split="validation"))
    print(
        f"epoch {epoch + 1:2}  rate {reports[-1].lr:.4f}  train error {error:6.1%}  "
        f"validation accuracy {metrics['accuracy']:6.1%}  F1 {metrics['f1']:.3f}"
    )
    if patience.observe(metrics["accuracy"]):
        break

metrics = plusx.evaluate(state.ema, plusx.batches("digits", split="test"))
print(f"test accuracy {metrics['accuracy']:.1%} of {metrics['count']} digits")

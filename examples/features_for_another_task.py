"""What a network learned on one task, used for another: features, a probe, a new head.

    python examples/features_for_another_task.py             a few seconds, nothing is downloaded

The network learns to read digits. A new question, whether a digit has a closed loop, then has
30 answered examples only: too few for the pixels, enough for what the network makes of them.
"""

from collections.abc import Callable

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import plusx


EPOCHS, STEPS_AN_EPOCH, LABELLED = 6, 19, 30
LOOPS = torch.tensor([1, 0, 0, 0, 0, 0, 1, 0, 1, 1])  # 0, 6, 8 and 9 have one


def every(split: str) -> plusx.Batch:
    """All digits of a split as one batch, asked the new question."""
    whole = next(plusx.batches("digits", split=split, batch_size=2000))
    return plusx.Batch(whole.inputs, LOOPS[whole.known_targets])


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def embedding(images: Tensor) -> Tensor:
    with torch.inference_mode():
        return net.eval().embed(images)


def probe(name: str, features: Callable[[Tensor], Tensor]) -> None:
    """scikit-learn's logistic regression on top of features that stay as they are."""
    model = LogisticRegression(max_iter=1000)
    model.fit(features(few.inputs).numpy(), few.targets.numpy())
    score = model.score(features(unseen.inputs).numpy(), unseen.targets.numpy())
    print(f"loop or none, from {len(few)} examples, by {name}: {score:.1%}")


net = plusx.create_model("resnet20", in_channels=1, seed=0)
task = plusx.Classify(net)
state = plusx.State(task, plusx.make_optimizer(task))
rate = plusx.schedule.cosine(0.1, EPOCHS * STEPS_AN_EPOCH)
for epoch in range(EPOCHS):
    batches = plusx.batches("digits", batch_size=64, epoch=epoch)
    losses = [report.loss for report in plusx.fit(state, batches, rate)]
print(f"reading digits: loss {sum(losses) / len(losses):.3f} after {state.step} steps")

few, unseen = every("train").split(1200 // LABELLED)[0], every("validation")
stages = net.eval().features(few.inputs[:1])
print("stage outputs:", [tuple(stage.shape[1:]) for stage in stages], "widths:", net.widths)

probe("the pixels", pixels)
probe("the network's embedding", embedding)

# Or go on training: a new head on the old body.
net.reset_head(2)
task = plusx.Classify(net)
state = plusx.State(task, plusx.make_optimizer(task, "adamw"))
losses = [report.loss for report in plusx.fit(state, [few] * 20, plusx.schedule.constant(0.001))]
print(f"the same by a new head, all trained on: {plusx.evaluate(task, [unseen])['accuracy']:.1%}")

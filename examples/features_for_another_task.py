"""Use a trained network for another task: features, a linear probe, a new head.

    python examples/features_for_another_task.py             a few seconds, nothing is downloaded

The network learns to classify digits. The new task, whether a digit has a closed loop, has only 30
labelled examples: too few for a classifier on pixels, enough for one on the network's features.
"""

from collections.abc import Callable

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import plusx


EPOCHS, STEPS_AN_EPOCH, LABELLED = 6, 19, 30
LOOPS = torch.tensor([1, 0, 0, 0, 0, 0, 1, 0, 1, 1])  # 0, 6, 8 and 9 have one


def all_digits(split: str) -> plusx.Batch:
    """All digits of a split as one batch, with the labels of the new task."""
    whole = next(plusx.batches("digits", split=split, batch_size=2000))
    return plusx.Batch(whole.inputs, LOOPS[whole.known_targets])


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def embedding(images: Tensor) -> Tensor:
    with torch.inference_mode():
        return net.eval().embed(images)


def probe(name: str, features: Callable[[Tensor], Tensor]) -> None:
    """Fit scikit-learn's logistic regression on fixed features, and print its accuracy."""
    model = LogisticRegression(max_iter=1000)
    model.fit(features(labelled.inputs).numpy(), labelled.targets.numpy())
    score = model.score(features(validation.inputs).numpy(), validation.targets.numpy())
    print(f"loop or none, from {len(labelled)} examples, by {name}: {score:.1%}")


net = plusx.create_model("resnet20", in_channels=1, seed=0)
task = plusx.Classify(net)
state = plusx.State(task, plusx.make_optimizer(task))
rate = plusx.schedule.cosine(0.1, EPOCHS * STEPS_AN_EPOCH)
for epoch in range(EPOCHS):
    batches = plusx.batches("digits", batch_size=64, epoch=epoch)
    losses = [report.loss for report in plusx.fit(state, batches, rate)]
print(f"reading digits: loss {sum(losses) / len(losses):.3f} after {state.step} steps")

labelled, validation = all_digits("train").split(1200 // LABELLED)[0], all_digits("validation")
stages = net.eval().features(labelled.inputs[:1])
print("stage outputs:", [tuple(stage.shape[1:]) for stage in stages], "widths:", net.widths)

probe("the pixels", pixels)
probe("the network's embedding", embedding)

# Alternatively fine-tune the network with a new head.
net.reset_head(2)
task = plusx.Classify(net)
state = plusx.State(task, plusx.make_optimizer(task, "adamw"))
losses = [
    report.loss for report in plusx.fit(state, [labelled] * 20, plusx.schedule.constant(0.001))
]
print(f"the same, fine-tuned with a new head: {plusx.evaluate(task, [validation])['accuracy']:.1%}")

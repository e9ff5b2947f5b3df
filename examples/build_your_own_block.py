"""Write a block as a sentence, count its parameters without building it, and train it briefly.

python examples/build_your_own_block.py                a few seconds, nothing is downloaded
"""

from dataclasses import replace

import plusx


# A depthwise 5 x 5 convolution, a fourfold expansion between two 1 x 1 convolutions, and a
# squeeze-and-excitation gate. `+` adds the shortcut, `s` applies the stage's stride. If the shape
# changes, the shortcut is an average pooling and a 1 x 1 convolution (as in ResNet-D).
MINE = plusx.Block(
    body="conv5sdw norm conv1*4 act se/8 conv1 norm + act",
    shortcut="avgpool2s conv1 norm",
)

net = plusx.Net(
    stem="conv3 norm act",
    stem_width=16,
    stages=(
        plusx.Stage(block=MINE, depth=2, width=16),
        plusx.Stage(block=MINE, depth=2, width=32, stride=2),
    ),
    in_channels=1,
    num_classes=10,
    size=8,
)

# Its plain twin: the same sentence without `+`.
twin = replace(MINE, body=MINE.body.replace(" +", ""))
plain = replace(net, stages=tuple(replace(stage, block=twin) for stage in net.stages))

for name, spec in (("mine", net), ("its plain twin", plain)):
    cost = plusx.measure(spec)
    print(f"{name}: {cost.parameters:,} parameters, {cost.multiply_adds:,} multiply-adds")

# An invalid sentence is refused before anything is built.
try:
    plusx.Block(body="conv3s norm akt conv3 norm + act")
except ValueError as error:
    print(f"refused: {error}")

task = plusx.Classify(plusx.create_model(net, seed=0))
state = plusx.State(task, plusx.make_optimizer(task, "adamw", weight_decay=0.01, decay_norms=False))
for epoch in range(4):
    batches = plusx.batches("digits", batch_size=64, epoch=epoch)
    losses = [report.loss for report in plusx.fit(state, batches, plusx.schedule.constant(0.005))]
    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")

metrics = plusx.evaluate(task, plusx.batches("digits", split="validation"))
print(f"validation accuracy {metrics['accuracy']:.1%}")

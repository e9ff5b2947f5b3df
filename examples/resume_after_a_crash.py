"""Resume a run after a crash, and end with bit-identical weights to an uninterrupted run.

python examples/resume_after_a_crash.py                  a few seconds, nothing is downloaded
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import plusx


EPOCHS, STEPS_AN_EPOCH = 3, 19
rate = plusx.schedule.steps(0.05, [30, 50])
update = plusx.with_ema(plusx.GradientStep(), decay=0.9)


def initial_state() -> plusx.State:
    task = plusx.Classify(plusx.create_model("resnet20", in_channels=1, seed=0))
    return plusx.State(task, plusx.make_optimizer(task), seed=0)


def batches(step: int) -> Iterator[plusx.Batch]:
    """The batches from this step on; order and augmentation depend on seed and epoch only."""
    for epoch in range(step // STEPS_AN_EPOCH, EPOCHS):
        start = step % STEPS_AN_EPOCH if epoch == step // STEPS_AN_EPOCH else 0
        yield from plusx.batches(
            "digits", augment="pad1 crop", batch_size=64, epoch=epoch, start=start
        )


def train(state: plusx.State, folder: Path, crash_at: int | None = None) -> None:
    for report in plusx.fit(state, batches(state.step), rate, update):
        if report.step % 10 == 0:
            # Atomic: written under a temporary name, flushed to the disk, renamed.
            plusx.save_checkpoint(folder, state.step, *state.state_dict())
        if report.step == crash_at:
            raise RuntimeError(f"the power went off at step {report.step}")


with tempfile.TemporaryDirectory() as name:
    uninterrupted = initial_state()
    train(uninterrupted, Path(name) / "uninterrupted")

    folder = Path(name) / "crashed"
    try:
        train(initial_state(), folder, crash_at=26)
    except RuntimeError as error:
        print(error)
    torch.manual_seed(12345)  # the state of torch's generators does not matter
    resumed = initial_state()
    checkpoint = plusx.load_checkpoint(folder)
    assert checkpoint is not None
    resumed.load_state_dict(checkpoint.tensors, checkpoint.values)
    print(f"resuming from step {resumed.step}")
    train(resumed, folder)

for one, other in ((uninterrupted.task, resumed.task), (uninterrupted.ema, resumed.ema)):
    assert one is not None
    assert other is not None
    pairs = zip(one.state_dict().values(), other.state_dict().values())
    same = [torch.equal(a, b) for a, b in pairs]
    print(f"{sum(same)} of {len(same)} tensors are bit-identical")

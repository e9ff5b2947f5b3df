"""How the papers train: a recipe that comes with plusx, and what is changed in it.

`images` are those trained on in all, each time that one is seen; `judged` are those looked at once
training is over. A schedule is fixed beforehand; nothing is selected but where a paper selects, on
images kept back.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a network is trained and judged."""

    recipe: str  # "" is none: published weights are judged
    overrides: tuple[str, ...] = ()
    images: int
    judged: int
    split: str = "test"  # what the error is over
    said: str


_CIFAR = 60_000  # images of training and test
_IMAGENET = 1_281_167 + 50_000
_FOLDER = ("data.kind=folder", "data.path=imagenet", "batch_size=256", "optim.lr=0.1")

PROTOCOLS: dict[str, Protocol] = {
    "he2015": Protocol(
        recipe="cifar10-resnet20",
        images=64_000 * 128,
        judged=_CIFAR,
        said="64,000 steps of 128 images, rate 0.1, a tenth from steps 32,000 and 48,000 on, "
        "weight decay 1e-4, flips and crops; all 50,000 images train",
    ),
    "he2015-warm": Protocol(
        recipe="cifar10-resnet20",
        overrides=("schedule.warmup_until=0.8", "schedule.warmup_lr=0.01"),
        images=64_000 * 128,
        judged=_CIFAR,
        said="as he2015, the rate at 0.01 until the training error is below 80 %",
    ),
    "he2016-small-batch": Protocol(
        recipe="cifar10-resnet20",
        overrides=("batch_size=64", "schedule.warmup_until=0.8", "schedule.warmup_lr=0.01"),
        images=64_000 * 64,
        judged=_CIFAR,
        said="as he2015-warm with batches of 64",
    ),
    "zagoruyko2016": Protocol(
        recipe="cifar10-resnet20",
        overrides=(
            "epochs=200",
            "schedule.milestones=[0.3, 0.6, 0.8]",
            "schedule.gamma=0.2",
            "optim.nesterov=true",
            "optim.weight_decay=5e-4",
        ),
        images=200 * 50_000,
        judged=_CIFAR,
        said="200 epochs of batches of 128, rate 0.1, a fifth from epochs 60, 120 and 160 on, "
        "weight decay 5e-4, Nesterov's momentum",
    ),
    "xie2016": Protocol(
        recipe="cifar10-resnet20",
        overrides=(
            "epochs=300",
            "schedule.milestones=[0.5, 0.75]",
            "optim.nesterov=true",
            "optim.weight_decay=5e-4",
        ),
        images=300 * 50_000,
        judged=_CIFAR,
        said="300 epochs of batches of 128, rate 0.1, a tenth from epochs 150 and 225 on, weight "
        "decay 5e-4, Nesterov's momentum",
    ),
    "huang2017": Protocol(
        recipe="cifar10-resnet20",
        overrides=(
            "epochs=300",
            "batch_size=64",
            "schedule.milestones=[0.5, 0.75]",
            "optim.nesterov=true",
        ),
        images=300 * 50_000,
        judged=_CIFAR,
        said="300 epochs of batches of 64, rate 0.1, a tenth from half and three quarters on, "
        "weight decay 1e-4, Nesterov's momentum",
    ),
    "huang2016": Protocol(
        recipe="cifar10-resnet20",
        overrides=(
            "epochs=500",
            "schedule.milestones=[0.5, 0.75]",
            "optim.nesterov=true",
            "data.validation=5000",
            "evaluate.keep=best",
        ),
        images=500 * 45_000,
        judged=_CIFAR + 500 * 5_000,
        said="500 epochs of batches of 128, rate 0.1, a tenth from half and three quarters on; the "
        "epoch is chosen on 5,000 images that are kept back",
    ),
    "mmpretrain": Protocol(
        recipe="cifar10-resnet20",
        overrides=("epochs=200", "schedule.milestones=[0.5, 0.75]"),
        images=200 * 50_000,
        judged=_CIFAR,
        said="200 epochs of batches of 128, rate 0.1, a tenth from epochs 100 and 150 on, weight "
        "decay 1e-4",
    ),
    "mmpretrain-cifar100": Protocol(
        recipe="cifar10-resnet20",
        overrides=(
            "epochs=200",
            "schedule.milestones=[0.3, 0.6, 0.8]",
            "schedule.gamma=0.2",
            "optim.weight_decay=5e-4",
        ),
        images=200 * 50_000,
        judged=_CIFAR,
        said="200 epochs of batches of 128, rate 0.1, a fifth from epochs 60, 120 and 160 on, "
        "weight decay 5e-4",
    ),
    "kuangliu": Protocol(
        recipe="cifar10-resnet20",
        overrides=("epochs=200", "schedule.kind=cosine", "optim.weight_decay=5e-4"),
        images=200 * 50_000,
        judged=_CIFAR,
        said="200 epochs of batches of 128, half a cosine from rate 0.1, weight decay 5e-4",
    ),
    "fb-resnet-torch": Protocol(
        recipe="images",
        overrides=(
            *_FOLDER,
            "epochs=90",
            "data.size=224",
            "data.augment=resizedcrop jitter.4 flip",
            "optim.weight_decay=1e-4",
            "optim.decay_norms=true",
            "schedule.kind=steps",
            "schedule.milestones=[0.333333, 0.666666]",
            "task.label_smoothing=0.0",
        ),
        images=90 * 1_281_167,
        judged=_IMAGENET,
        split="validation",
        said="90 epochs of batches of 256, rate 0.1, a tenth from epochs 30 and 60 on, weight "
        "decay 1e-4, windows of 8 to 100 % of the area, jittered colours; one crop of 224",
    ),
    "published-weights": Protocol(
        recipe="",
        images=0,
        judged=50_000,
        split="validation",
        said="torchvision's weights on ImageNet's 50,000 validation images, one crop of 224",
    ),
    "ten-crop": Protocol(
        recipe="",
        images=600_000 * 256,
        judged=10 * 50_000,
        split="validation",
        said="600,000 steps of 256 images, the rate lowered by hand whenever the error stood "
        "still; ten crops of each validation image",
    ),
    "digits": Protocol(
        recipe="digits",
        images=12 * 1_200,
        judged=1_500,
        split="validation",
        said="12 epochs of batches of 64 of scikit-learn's handwritten digits, the recipe `digits`",
    ),
}

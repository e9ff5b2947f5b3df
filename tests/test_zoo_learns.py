"""Every residual network learns one batch of 16 images by heart within 100 steps.

The sentences are the zoo's; widths shrink to at most 32 channels (gates, groups and growth as
their words allow) and the images too. Plain networks of more than 20 layers cannot do it: what
they reach is printed.
"""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from plusx.grammar.spec import Net
from plusx.grammar.words import parse
from plusx.nn.init import initialise
from plusx.nn.network import Network
from plusx.zoo import External, find, names
from plusx.zoo.blocks import BOTTLENECK_ORDERS, ORDERS, SHORTCUTS
from zoo_digest import inputs, small
from zoo_shrunken import shrunken


STEPS = 100


class LayerContext(NamedTuple):
    """How a network is shrunk and trained; `depth` is the most blocks a stage."""

    rate: float = 0.1  # of SGD with momentum; of AdamW where `adam`
    adam: bool = False
    width: int = 32
    depth: int | None = None
    identity_start: bool = False  # Goyal et al. 2017, section 5.1
    digits: bool = False  # scanned digits in place of noise


SETTINGS: dict[str, LayerContext] = {
    # He 2015 begins at a tenth of the rate from 110 layers on
    **dict.fromkeys(("resnet110", "resnet110_b", "resnet110_sd", "resnet164"), LayerContext(0.01)),
    **dict.fromkeys(("resnet1202", "resnet1202_b"), LayerContext(0.02, identity_start=True)),
    # their shallower siblings are trained at full depth
    **dict.fromkeys(("resnet1001", "resnet152_sd", "resnet1202_sd"), LayerContext(depth=2)),
    **dict.fromkeys(("axial_resnet56", "axial_resnet110"), LayerContext(depth=3)),
    **dict.fromkeys(("resnet110_one_layer", "preact_resnet110_one_layer"), LayerContext(depth=2)),
    # He 2016 finds these hard or impossible to train at 110 layers (tables 1 and 2)
    **{f"resnet110_{row}": LayerContext(depth=2) for row in (*SHORTCUTS, *ORDERS)},
    **{f"resnet164_{row}": LayerContext(depth=2) for row in BOTTLENECK_ORDERS},
    **dict.fromkeys(("resnet110_c", "resnet1202_c"), LayerContext(depth=2)),
    # dropout leaves too little of few channels
    **dict.fromkeys(("wrn16_4", "wrn16_8", "wrn28_10"), LayerContext(width=64)),
    **dict.fromkeys(("wrn40_4", "wrn40_10"), LayerContext(width=64, depth=4)),
    **dict.fromkeys(("vdcnn9", "vdcnn17", "vdcnn29"), LayerContext(0.03)),
    "quartznet15x5": LayerContext(0.03, depth=1),
    # without norms, and trained by Adam in practice
    **dict.fromkeys(("convs2s_encoder", "convs2s_small_encoder"), LayerContext(0.01, adam=True)),
    **dict.fromkeys(("resnet5_text", "plain5_text"), LayerContext(0.03, adam=True)),
    **dict.fromkeys(("convnext_tiny", "vit_base_patch16_gap"), LayerContext(1e-3, adam=True)),
    # no norm tells averages of noise apart
    **{
        f"{kind}_resnet{depth}": LayerContext(3e-3, adam=True, digits=True)
        for kind in ("rezero", "skipinit")
        for depth in (20, 56, 110)
    },
    # its head and branches begin at 0; results/norm-free.json has the training at full depth
    **{
        f"fixup_resnet{depth}": LayerContext(5e-3, adam=True, digits=True, depth=1)
        for depth in (20, 56, 110)
    },
    "highway19": LayerContext(1e-3, adam=True, width=128, depth=2, digits=True),
}
DEEPER = ("iresnet101", "iresnet152", "iresnet200")  # the blocks are those of iresnet50
QUICK = ("resnet18", "resnet20", "preact_resnet20", "vit_base_patch16_gap")


def residual(name: str) -> bool:
    """Whether some block has a skip of any kind."""
    spec = find(name)
    if isinstance(spec, External):
        return False
    blocks = {block for stage in spec.stages for block in stage.blocks}
    return any(parse(block.body).merge != "none" for block in blocks)


def images(spec: Net, setting: LayerContext) -> tuple[Tensor, Tensor]:
    """16 inputs of unit variance (or tokens) and their classes of 10."""
    x, y = inputs(spec, batch=16), torch.arange(16) % 10
    if setting.digits:
        digits = load_digits()
        x = torch.tensor(digits.images[:16]).unsqueeze(1).expand(-1, spec.in_channels, -1, -1)
        x = nn.functional.interpolate((x - x.mean()) / x.std(), spec.size)
        y = torch.tensor(digits.target[:16])
    elif x.is_floating_point():
        x = 3**0.5 * x
    return (x.float() if x.is_floating_point() else x), y


def learn(name: str) -> tuple[int, float]:
    """Steps taken, and the largest share of the 16 images that was right."""
    spec, setting = small(find(name)), SETTINGS.get(name, LayerContext())
    assert isinstance(spec, Net)
    spec = replace(shrunken(spec, width=setting.width, depth=setting.depth), num_classes=10)
    torch.manual_seed(0)
    net = Network(spec)
    initialise(net, zero_last_gamma=setting.identity_start)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), setting.rate, momentum=0.9)
    if setting.adam:
        optimizer = torch.optim.AdamW(net.parameters(), setting.rate)
    x, y = images(spec, setting)
    dropouts = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    best = 0.0
    for step in range(STEPS + 1):
        logits = net.train()(x)
        nn.functional.cross_entropy(logits, y).backward()
        if dropouts:  # what is known, without the noise
            for module in dropouts:
                module.eval()
            with torch.no_grad():
                logits = net(x)
        best = max(best, (logits.argmax(1) == y).float().mean().item())
        if best == 1:
            return step, best
        optimizer.step()
        optimizer.zero_grad()
    return STEPS, best


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in names()
        if residual(name) and name not in DEEPER
    ],
)
def test_sixteen_images_are_learned_within_100_steps(name: str) -> None:
    steps, share = learn(name)
    print(f"{name}: {share:.0%} after {steps} steps")
    assert share == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain18", "plain34", *names("plain[!1]*"), "plain110"])
def test_the_accuracy_of_plain_networks_is_printed(
    name: str, capsys: pytest.CaptureFixture
) -> None:
    steps, share = learn(name)
    with capsys.disabled():
        print(f"\n{name}: {share:.0%} of 16 images after {steps} steps")
    if find(name).stages[0].depth <= 3 and name != "plain34":  # 20 layers at most
        assert share == 1

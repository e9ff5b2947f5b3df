"""Every residual network learns one batch of 16 images by heart within 100 steps.

The sentences are the zoo's; widths shrink to at most 32 channels (gates, groups and growth as
their words allow) and the images too. Plain networks of more than 20 layers cannot do it: what
they reach is printed.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from plusx.grammar.sentence import parse
from plusx.grammar.spec import Net
from plusx.nn.init import initialise
from plusx.nn.network import Network
from plusx.zoo import Plain, find, names
from plusx.zoo.blocks import BOTTLENECK_ORDERS, ORDERS, SHORTCUTS
from zoo_digest import inputs, small
from zoo_shrunken import shrunken


STEPS = 100
# He 2016 finds these hard or impossible to train at 110 layers (tables 1 and 2): two blocks a stage
SHALLOW = {
    *(f"resnet110_{row}" for row in (*SHORTCUTS, *ORDERS)),
    *(f"resnet164_{row}" for row in BOTTLENECK_ORDERS),
    *("resnet110_c", "resnet1202_c"),
}
# He 2015 begins at a tenth of the rate from 110 layers on
SLOW_START = {"resnet110", "resnet110_b", "resnet110_sd", "resnet164", *names("resnet1202*")}
QUICK = ("resnet18", "resnet20", "preact_resnet20", "densenet40_12", "vit_base_patch16_gap")


def residual(name: str) -> bool:
    """Whether some block has a skip of any kind."""
    spec = find(name)
    if isinstance(spec, Plain):
        return False
    said = {block for stage in spec.stages for block in stage.blocks}
    return any(parse(block.body).merge != "none" for block in said)


def learn(name: str) -> tuple[int, float]:
    """Steps taken, and the largest share of the 16 images that was right."""
    spec = small(find(name))
    assert isinstance(spec, Net)
    spec = shrunken(spec, width=32, depth=2 if name in SHALLOW else None)
    torch.manual_seed(0)
    net = Network(replace(spec, num_classes=10))
    initialise(net)
    rate = 0.01 if name in SLOW_START else 0.1
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    if spec.norm == "layer":
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    x, y = inputs(spec, batch=16), torch.arange(16) % 10
    x = x if x.dtype == torch.long else 3**0.5 * x.float()
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
        if residual(name)
    ],
)
def test_sixteen_images_are_learned_within_100_steps(name: str) -> None:
    steps, share = learn(name)
    print(f"{name}: {share:.0%} after {steps} steps")
    assert share == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain18", "plain34", *names("plain[!1]*"), "plain110"])
def test_what_plain_networks_reach_is_printed(name: str, capsys: pytest.CaptureFixture) -> None:
    steps, share = learn(name)
    with capsys.disabled():
        print(f"\n{name}: {share:.0%} of 16 images after {steps} steps")
    if find(name).stages[0].depth <= 3 and name != "plain34":  # 20 layers at most
        assert share == 1

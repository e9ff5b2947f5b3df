"""Fixed weights give the recorded outputs, whatever changes around them."""

import json

import numpy as np
import pytest
import torch

from plusx.grammar.arithmetic import measure
from plusx.zoo import External, find, names
from plusx.zoo.blocks import BOTTLENECK, BOTTLENECK_V1
from plusx.zoo.cifar import net as cifar_net
from zoo_digest import GOLDEN, build, differs, digest, fill, inputs, small


RECORDED = json.loads(GOLDEN.read_text())
QUICK = 600_000  # parameters; larger networks are left to `make test-all`


def large(name: str) -> bool:
    spec = find(name)
    return (spec if isinstance(spec, External) else measure(spec)).parameters > QUICK


def test_every_network_is_recorded() -> None:
    assert list(RECORDED) == names()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if large(name) else ()) for name in names()],
)
def test_outputs_for_fixed_weights(name: str) -> None:
    assert differs(digest(name), RECORDED[name]) == ""


def test_no_two_networks_compute_the_same() -> None:
    same: dict[str, list[str]] = {}
    for name, recorded in RECORDED.items():
        same.setdefault(json.dumps(recorded), []).append(name)
    twins = [
        ["resnet110", "resnet110_dropout_shortcut"],  # only training tells them apart
        ["resnet110_c", "resnet110_conv_shortcut"],  # one network, named by two papers
        *([name, f"{name}_nodrop"] for name in ("wrn16_4", "wrn16_8", "wrn28_10", "wrn40_4")),
    ]
    assert [group for group in same.values() if len(group) > 1] == twins


def test_a_moved_stride_is_detected() -> None:
    # the count is the same wherever a bottleneck takes its stride
    logits = []
    for block in (BOTTLENECK, BOTTLENECK_V1):
        spec = small(cifar_net(block, 2))
        net = build("", spec).double().eval()
        fill(net, spec)
        with torch.no_grad():
            logits.append(net(inputs(spec)))
    assert not np.allclose(*logits, rtol=1e-3)

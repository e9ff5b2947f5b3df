"""Grad-CAM against the identity that it obeys, against a hook, and leaving nothing behind."""

import gc

import pytest
import torch
from torch import Tensor, nn

import plusx
from plusx.explain.grad_cam import cam_of, cut_at, grad_cam
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.words import parse
from plusx.nn.network import Network
from plusx.nn.reversible import ReversibleNetwork
from plusx.zoo import find, names
from zoo_digest import build, fill, inputs, small
from zoo_shrunken import shrunken


# one of each tail that ends in one linear layer, in one, two and three dimensions
QUICK = [
    *("preact_resnet20", "resnet110_act_only", "res15", "highway19", "vgg16_cifar"),
    *("densenet40_12", "vit_base_patch16_gap", "resnet18_1d", "resnet8_keras"),
]
# what comes between the pooling and the linear layer of these is no average: no CAM is defined
WITHOUT_CAM = {
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *("alexnet", "convnext_tiny", "vdcnn9", "vdcnn17", "vdcnn29"),
}


def network(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """The network of that name with fewer channels and fixed weights, and an input for it."""
    spec = small(find(name))
    if isinstance(spec, Net):
        spec = shrunken(spec, width=32, depth=2)
    net = build(name, spec)
    fill(net, spec)
    x = inputs(spec)
    return net.to(dtype), x if x.dtype == torch.long else x.to(dtype)


def with_tail(tail: str, stem: str = "conv3 norm act") -> Network:
    """A small network that ends like this, with fixed weights."""
    body = Block(body="conv3s norm act conv3 norm + act")
    stages = (
        Stage(block=body, depth=1, width=8),
        Stage(block=body, depth=1, width=16, stride=2),
    )
    spec = Net(stem=stem, stages=stages, tail=tail, stem_width=8, size=12, num_classes=4)
    net = Network(spec)
    fill(net, spec)
    return net


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow,))
        for name in names()
        if name not in WITHOUT_CAM
    ],
)
def test_grad_cam_is_cam_over_the_positions(name: str) -> None:
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        net, x = network(name, dtype)
        classes = [1, 0]
        heat = plusx.grad_cam(net, x, classes)
        maps = what_is_pooled(net.eval(), x)
        rows = net.fc.weight[classes].detach()
        cam = torch.einsum("nc,nc...->n...", rows, maps) / maps[0, 0].numel()
        assert heat.shape == cam.shape
        assert heat.dtype == dtype
        assert float(cam.abs().max()) > 1e-4
        assert float((heat - cam).abs().max()) <= bound * float(cam.abs().max().clamp(min=1))


def what_is_pooled(net: nn.Module, x: Tensor) -> Tensor:
    """What reaches the pooling over all positions, as a hook sees it."""
    built_from_spec = isinstance(net, Network | ReversibleNetwork)
    pooling = net.tail.pool1 if built_from_spec else getattr(net, "avgpool", None)
    if pooling is None:  # it is no module
        return net.features(x, out=[-1])[0].detach()
    pooled: list[Tensor] = []
    handle = pooling.register_forward_pre_hook(
        lambda module, inputs: pooled.append(inputs[0].detach())
    )
    net(x)
    handle.remove()
    return pooled[0]


def test_every_network_of_the_zoo_has_maps_or_a_reason() -> None:
    assert set(QUICK) | WITHOUT_CAM <= set(names())
    for name in WITHOUT_CAM - {"alexnet"}:
        tail = find(name).tail  # type: ignore[union-attr]
        kinds = [word.kind for word in parse(tail).branch]
        assert kinds[kinds.index("pool") + 1 :] if "pool" in kinds else kinds


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WITHOUT_CAM))
def test_networks_without_cam_have_maps_of_their_last_stage(name: str) -> None:
    net, x = network(name, torch.float64)
    cam = by_a_hook(net, getattr(net, f"layer{len(net.widths)}"), x, 0)
    torch.testing.assert_close(grad_cam(net, x, 0), cam, rtol=1e-10, atol=1e-12)


def by_a_hook(net: nn.Module, part: nn.Module, x: Tensor, number: int) -> Tensor:
    """Grad-CAM as others make it: the part's output is kept by a hook, and all goes backward."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        out.retain_grad()
        outputs.append(out)

    handle = part.register_forward_hook(keep)
    net.eval()(x)[:, number].sum().backward()
    handle.remove()
    (maps,) = outputs
    assert maps.grad is not None
    return torch.einsum("nc,nc...->n...", maps.grad.flatten(2).mean(2), maps.detach())


@pytest.mark.parametrize("stage", [0, 1, -1])
def test_maps_of_a_stage_equal_those_by_a_hook(stage: int) -> None:
    net = with_tail("norm act pool").double()
    x = inputs(net.spec)
    cam = by_a_hook(net, [net.layer1, net.layer2][stage], x, 2)
    torch.testing.assert_close(grad_cam(net, x, 2, stage=stage), cam, rtol=1e-12, atol=1e-14)
    relu = grad_cam(net, x, 2, stage=stage, relu=True)
    torch.testing.assert_close(relu, cam.relu(), rtol=1e-12, atol=1e-14)


def state_of(net: nn.Module) -> dict[str, object]:
    return {
        "modes": [m.training for m in net.modules()],
        "hooks": [
            (
                len(m._forward_hooks),
                len(m._forward_pre_hooks),
                len(m._backward_hooks),
            )
            for m in net.modules()
        ],
        "grad": [p.grad for p in net.parameters()],
        "wants": [p.requires_grad for p in net.parameters()],
        "values": {key: value.clone() for key, value in net.state_dict().items()},
    }


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_network_does_not_change(frozen: bool, around: type) -> None:
    net = with_tail("norm act pool")
    net.train()
    net.layer1.eval()  # as a part that is frozen would be
    for parameter in net.parameters():
        parameter.requires_grad_(not frozen)
    before = state_of(net)
    plain = grad_cam(net, inputs(net.spec).float(), [3, 1])
    with around():
        heat = grad_cam(net, inputs(net.spec).float(), [3, 1])
    after = state_of(net)
    values, others = before.pop("values"), after.pop("values")
    assert before == after
    assert isinstance(values, dict)
    assert isinstance(others, dict)
    assert all(torch.equal(values[key], others[key]) for key in values)
    assert torch.equal(heat, plain)
    assert not heat.requires_grad


def alive() -> int:
    """Bytes of all tensors that are reachable."""
    gc.collect()
    tensors = [tensor for tensor in gc.get_objects() if issubclass(type(tensor), Tensor)]
    # what other tests have exported leaves tensors without memory behind
    tensors = [tensor for tensor in tensors if type(tensor) in (Tensor, nn.Parameter)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.slow
def test_memory_is_released() -> None:
    net = with_tail("norm act pool")
    x = inputs(net.spec).float()
    before = alive()
    heat = grad_cam(net, x, 0)
    assert alive() - before == heat.untyped_storage().nbytes()
    del heat
    assert alive() == before
    with pytest.raises(ValueError, match="the network has no class 4: it has 0 to 3"):
        grad_cam(net, x, 4)
    assert alive() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_memory_is_released() -> None:
    net, x = with_tail("norm act pool").cuda(), torch.rand(2, 3, 12, 12, device="cuda")
    grad_cam(net, x, 0)  # what libraries take once
    before = torch.cuda.memory_allocated()
    grad_cam(net, x, 0)
    assert torch.cuda.memory_allocated() == before


def test_any_score_can_be_explained() -> None:
    net = with_tail("pool").double()
    x = inputs(net.spec)
    both = grad_cam(net, x, lambda answers: answers[:, 0] - answers[:, 1])
    apart = grad_cam(net, x, 0) - grad_cam(net, x, torch.tensor([1, 1]))
    torch.testing.assert_close(both, apart, rtol=1e-10, atol=1e-12)
    # one box of a detector: a score of the maps in a window has its maps' gradient in the window
    maps = net.features(x, out=[-1])[0]
    heat = cam_of(maps, lambda at: at[:, 3, 1:3, 1:3].sum((1, 2)))
    positions = maps[0, 0].numel()
    torch.testing.assert_close(heat, (maps[:, 3] * 4 / positions).detach(), rtol=1e-12, atol=1e-14)


def test_frozen_texts_have_maps_too() -> None:
    net, x = network("vdcnn9")
    assert x.dtype == torch.long
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    assert grad_cam(net, x, 1).shape == (2, x.shape[1] // 8)


def test_invalid_requests_are_named() -> None:
    net = with_tail("pool")
    x = inputs(net.spec).float()
    with pytest.raises(ValueError, match=r"one for each of the 2 samples"):
        grad_cam(net, x, [0, 1, 2])
    with pytest.raises(ValueError, match="no class -1"):
        grad_cam(net, x, -1)
    with pytest.raises(ValueError, match="there is no stage 2"):
        grad_cam(net, x, 0, stage=2)
    with pytest.raises(ValueError, match="one number per sample"):
        grad_cam(net, x, lambda answers: answers)
    with pytest.raises(ValueError, match="does not depend"):
        grad_cam(net, x, lambda answers: torch.zeros(2))
    with pytest.raises(ValueError, match="Linear is not a network of plusx"):
        grad_cam(nn.Linear(3, 3), x, 0)
    with pytest.raises(ValueError, match="AlexNet is not built of stages"):
        cut_at(build("alexnet"), 1)
    flat = with_tail("pool", stem="conv12")
    with pytest.raises(
        ValueError, match=r"for inputs of 12 x 12 every stage .* has a single position"
    ):
        grad_cam(flat, x, 0)

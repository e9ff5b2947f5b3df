"""Padding changes no output of a network for sequences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import plusx
from plusx.nn.masking import masked, padded


BODIES = (
    "conv3 norm act conv3 norm + act",
    "norm act | conv3s norm act conv3 +",
    "conv3s norm act maxpool3 conv3 norm se/4 + act",
    "norm attn4b conv1b +",
    "conv5dw conv1 norm act eca conv3d2 norm +",
    "conv3 norm act cbam/4 conv1 norm + act",
    "conv3 norm act conv3 &",
    "conv3b act ~",
)


def sentence_network(body: str, enter: str, stem: str, tail: str, norm: str) -> plusx.Net:
    block = plusx.Block(body=body, gate="conv3b" if "~" in body else "")
    stage = plusx.Stage(block=block, depth=2, width=16, enter=enter)
    first = plusx.Stage(block=plusx.Block(body="conv3 norm act"), depth=1, width=16)
    return plusx.Net(
        stem=stem,
        stem_width=16,
        stages=(first, stage),
        tail=tail,
        ndim=1,
        in_channels=12,
        num_classes=5,
        size=64,
        norm=norm,
    )


@settings(max_examples=25, deadline=None)
@given(
    body=st.sampled_from(BODIES),
    enter=st.sampled_from(["", "maxpool3s2", "avgpool2s2", "conv3s2 norm act"]),
    stem=st.sampled_from(["embed16 conv3", "embed16 pos drop.1", "embed16 conv7s2 norm act"]),
    tail=st.sampled_from(["pool", "norm act pool", "top4 fc8 act"]),
    norm=st.sampled_from(["batch", "layer"]),
    lengths=st.lists(st.integers(20, 60), min_size=2, max_size=5),
    seed=st.integers(0, 9),
)
@pytest.mark.timeout(300)
def test_padding_never_changes_an_output(body, enter, stem, tail, norm, lengths, seed):
    torch.manual_seed(seed)
    net = plusx.create_model(sentence_network(body, enter, stem, tail, norm), seed=seed)
    for module in net.modules():
        if hasattr(module, "pos"):  # equal positions have equal values, of which `top` takes any
            module.pos.data.normal_()
        if hasattr(module, "running_mean") and module.running_mean is not None:
            module.running_mean.normal_()
            module.bias.data.normal_()
    net.eval()
    sequences = [torch.randint(0, 12, (length,)) for length in lengths]
    inputs = torch.randint(0, 12, (len(lengths), max(lengths) + 3))
    for row, sequence in zip(inputs, sequences):
        row[: len(sequence)] = sequence
    with torch.inference_mode():
        together = masked(net, inputs, torch.tensor(lengths))
        alone = torch.cat([net(sequence[None]) for sequence in sequences])
        plain = net(inputs)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    # the lengths are used only during the call
    torch.testing.assert_close(net(inputs), plain, rtol=0, atol=0)


def test_lengths_of_features():
    net = plusx.create_model("vdcnn9", num_classes=2).eval()
    inputs, lengths = torch.randint(0, 69, (2, 200)), torch.tensor([200, 131])
    with torch.inference_mode(), padded(net, 200, lengths) as positions:
        features = net.features(inputs)
    with torch.inference_mode():
        alone = net.features(inputs[1:, :131])
    for together, single in zip(features, alone):
        count = single.shape[-1]
        assert positions.lengths(together.shape[-1]).tolist()[1] == count
        torch.testing.assert_close(together[1:, :, :count], single, rtol=1e-4, atol=1e-5)


def test_a_sequence_that_is_too_short_is_named():
    net = plusx.create_model("vdcnn9", num_classes=2).eval()
    with pytest.raises(plusx.UserError, match=r"top8.*min_length"):
        masked(net, torch.zeros(2, 100, dtype=torch.int64), torch.tensor([100, 20]))


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_norms_over_positions_are_refused(norm):
    spec = sentence_network(BODIES[0], "", "embed16 conv3", "pool", norm)
    net = plusx.create_model(spec).eval()
    with pytest.raises(plusx.UserError, match="mixes a sequence"):
        masked(net, torch.zeros(2, 64, dtype=torch.int64), torch.tensor([64, 40]))

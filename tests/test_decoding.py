"""Decoders of tokens: their equations, caches and search, from outside."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import plusx
from plusx.errors import UserError
from plusx.grammar.heads import ConvDecoder, Head, TransformerDecoder, head_from_dict
from plusx.grammar.model import WithHead
from plusx.nn.build import build
from plusx.nn.decoding import beam_search, decode, greedy
from plusx.nn.with_head import NetworkWithHead
from plusx.weights import open_network, save_network
from plusx.zoo import find


CONV = ConvDecoder(width=12, depth=2, embed=8, max_length=12)
TRANSFORMER = TransformerDecoder(width=8, depth=2, heads=2, hidden=16, max_length=12)
HEADS: dict[str, Head] = {
    "conv": CONV,
    "conv, shared and tied": replace(CONV, shared_attention=True, tied=True, kernel=2),
    "conv, one token": replace(CONV, kernel=1),
    "transformer": TRANSFORMER,
    "transformer, tied": replace(TRANSFORMER, tied=True),
}
TEXT = {
    "conv": replace(
        find("convs2s_small_encoder"),  # type: ignore[type-var]
        stem="embed8 pos drop.2 conv1b",
        stem_width=12,
        in_channels=30,
        size=20,
    ),
    "transformer": replace(
        find("transformer_small_encoder"),  # type: ignore[type-var]
        stem="embed8 pos drop.2",
        stem_width=8,
        in_channels=30,
        size=20,
    ),
}


def translator(
    head: Head, *, tokens: int = 9, seed: int = 0, sharpness: float = 3.0
) -> NetworkWithHead:
    """A small network for text with weights large enough that its choices vary."""
    encoder = TEXT[head.kind.partition("-")[0]]
    width = encoder.stem_width
    stages = tuple(replace(stage, width=width, depth=2) for stage in encoder.stages)
    torch.manual_seed(seed)
    net = build(
        WithHead(
            backbone=replace(encoder, stages=stages, num_classes=0), head=head, num_classes=tokens
        )
    )
    assert isinstance(net, NetworkWithHead)
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.mul_(sharpness).add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def captioner(head: Head, seed: int = 0) -> NetworkWithHead:
    torch.manual_seed(seed)
    net = build(
        WithHead(backbone=replace(find("resnet20"), num_classes=0), head=head, num_classes=9)
    )
    assert isinstance(net, NetworkWithHead)
    return net.eval()


def sentences(count: int, length: int = 7) -> Tensor:
    return torch.randint(1, 30, (count, length))


def chosen(net: NetworkWithHead, x: Tensor, lengths: Tensor | None = None, **options: object):  # type: ignore[no-untyped-def]
    with torch.inference_mode():
        return decode(net.decoder, net.memory(x, lengths), **options)  # type: ignore[arg-type]


def test_the_network_of_lesson_five_has_its_count() -> None:
    # "The model has 37,351,173 trainable parameters", bentrevett/pytorch-seq2seq, lesson 5
    with torch.device("meta"):
        net = plusx.create_model("convs2s")
    assert sum(p.numel() for p in net.parameters()) == 37_351_173
    embeddings = 7853 * 256 + 5893 * 256 + 2 * 100 * 256
    widths = 3 * (256 * 512 + 512) + 3 * (512 * 256 + 256)
    convolutions = 20 * (3 * 512 * 1024 + 1024)
    assert embeddings + widths + convolutions + 256 * 5893 + 5893 == 37_351_173


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), beam=st.sampled_from([1, 2, 4]))
def test_cached_decoding_chooses_the_same_tokens(name: str, seed: int, beam: int) -> None:
    net = translator(HEADS[name], seed=seed)
    x = sentences(3)
    cached, full = (chosen(net, x, beam=beam, cached=cached) for cached in (True, False))
    assert torch.equal(cached.tokens, full.tokens)
    torch.testing.assert_close(cached.scores, full.scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), penalty=st.sampled_from([0.0, 1.0, 2.0]))
def test_a_beam_of_one_is_greedy(name: str, seed: int, penalty: float) -> None:
    net = translator(HEADS[name], seed=seed)
    with torch.inference_mode():
        memory = net.memory(sentences(4))
        first = greedy(net.decoder, memory, 12)
        second = beam_search(net.decoder, memory, 1, penalty, 12)
    assert torch.equal(first.tokens, second.tokens)
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_improbable_ends_do_not_stop_the_search(penalty: float) -> None:
    net = translator(TRANSFORMER, tokens=7).eval()

    def run(tokens: Tensor, memory: Any, state: Any) -> tuple[Tensor, Any]:
        """After each token the one above it, with the end as the second choice."""
        logits = torch.zeros(*tokens.shape, 7)
        logits[..., 0] = 4.0
        return logits.scatter(2, ((tokens + 1) % 7)[..., None], 10.0), state

    net.decoder.output_of_layers = run  # type: ignore[method-assign]
    net.decoder.out = nn.Identity()
    with torch.inference_mode():
        memory = net.memory(sentences(2))
        for beam in (1, 2, 3, 5):
            best = decode(net.decoder, memory, beam=beam, length_penalty=penalty)
            assert best.tokens.tolist() == [[1, 2, 3, 4, 5, 6]] * 2


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), penalty=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_a_wide_beam_finds_the_best_of_all_sequences(seed: int, penalty: float) -> None:
    net = translator(TRANSFORMER, tokens=3, seed=seed).double()
    x = sentences(2)
    # tokens with the end, so 2 + 4 + 8 + 1 sequences of 0 to 3 other tokens
    candidates = [p for length in range(4) for p in itertools.product((1, 2), repeat=length)]
    best = chosen(net, x, beam=40, length_penalty=penalty, max_length=4)
    with torch.inference_mode():
        memory = net.memory(x)
        for row in range(2):
            one, scores = memory.select(torch.tensor([row])), []
            for candidate in candidates:
                inputs, targets = torch.tensor([[0, *candidate]]), torch.tensor([*candidate, 0])
                logs = net.decoder(inputs, one)[0].log_softmax(1)
                total = float(logs.gather(1, targets[:, None]).sum())
                scores.append((total / len(targets) ** penalty, total, candidate))
            _, total, candidate = max(scores)
            tokens = best.tokens[row]
            assert tuple(tokens[tokens >= 0].tolist()) == candidate
            assert float(best.scores[row]) == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_of_several_lengths_is_decoded_like_each_alone(name: str) -> None:
    net = translator(HEADS[name]).double()
    lengths = torch.tensor([7, 1, 4, 12])
    x = sentences(4, 12)
    other = torch.where(torch.arange(12) < lengths[:, None], x, sentences(4, 12))
    for beam in (1, 3):
        together, padded_otherwise = (
            chosen(net, inputs, lengths, beam=beam) for inputs in (x, other)
        )
        assert torch.equal(together.tokens, padded_otherwise.tokens)
        for row, length in enumerate(lengths.tolist()):
            alone = chosen(net, x[row : row + 1, :length], beam=beam)
            tokens = together.tokens[row]
            assert torch.equal(tokens[tokens >= 0], alone.tokens[0])
            torch.testing.assert_close(together.scores[row], alone.scores[0])


@pytest.mark.parametrize("name", HEADS)
def test_a_logit_depends_on_earlier_tokens_only(name: str) -> None:
    net = translator(HEADS[name]).double()
    tokens = torch.randint(1, 9, (2, 8))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 9
    with torch.inference_mode():
        memory = net.memory(sentences(2))
        before, after = net.decoder(tokens, memory), net.decoder(changed, memory)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5], after[:, 5])


@pytest.mark.parametrize("name", HEADS)
def test_a_decoder_reads_the_source(name: str) -> None:
    net = translator(HEADS[name]).double()
    with torch.inference_mode():
        logits = [net(x) for x in sentences(2).split(1)]
    assert logits[0].shape == (1, 9)
    assert not torch.allclose(*logits)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_reach_every_parameter(name: str) -> None:
    net = translator(HEADS[name]).train()
    logits = net.decoder(torch.randint(0, 9, (3, 12)), net.memory(sentences(3, 20)))
    F.cross_entropy(logits.flatten(0, 1), torch.randint(0, 9, (36,))).backward()
    unreached = [
        key
        for key, parameter in net.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    # a bias of a key moves all scores of a query alike; here it is a part of a longer vector
    assert unreached == []


def test_the_plain_twin_leaves_out_the_sums() -> None:
    for head in (CONV, TRANSFORMER):
        residual, plain = translator(head), translator(replace(head, residual=False))
        plain.load_state_dict(residual.state_dict())
        x = sentences(2)
        with torch.inference_mode():
            assert not torch.allclose(residual(x), plain(x))
            for net in (residual, plain):
                for layer in net.decoder.layers:
                    for parameter in layer.parameters():
                        parameter.zero_()
            # a residual layer of zeros passes the token on, a plain one nothing
            tokens = torch.tensor([[0, 1], [0, 2]])
            after = [net.decoder(tokens, net.memory(x))[:, -1] for net in (residual, plain)]
        if head is TRANSFORMER:
            assert not torch.allclose(after[0][0], after[0][1])
            assert torch.allclose(after[1][0], after[1][1])


def test_the_convolutional_decoder_is_gehrings() -> None:
    """The equations of section 3 of Gehring et al. 2017, with a convolution in place of a linear
    layer on neighbouring positions."""
    net = translator(CONV, sharpness=1.0).double()
    decoder, x, tokens = net.decoder, sentences(2), torch.tensor([[0, 3, 1, 7], [0, 8, 8, 2]])
    with torch.inference_mode():
        memory = net.memory(x)
        logits = decoder(tokens, memory)
        stem, (features,) = net.backbone.pyramid(x, (2,), [-1])
        z = decoder.keys(features.transpose(1, 2))
        torch.testing.assert_close(memory.keys[0], z)
        values = (z + stem[0].transpose(1, 2)) / 2**0.5
        g = decoder.embed(tokens) + decoder.pos.weight[:4]
        h = decoder.enter(g)
        for layer, attention in zip(decoder.layers, decoder.attention, strict=True):
            weight = layer.conv.weight.unflatten(1, (3, -1)).transpose(1, 2)
            a, b = (
                F.conv1d(F.pad(h.transpose(1, 2), (2, 0)), weight, layer.conv.bias)
                .transpose(1, 2)
                .chunk(2, 2)
            )
            y = a * b.sigmoid()
            d = (attention.query(y) + g) / 2**0.5
            c = torch.einsum("nue,npe->nup", d, z).softmax(2) @ values
            h = ((y + attention.context(c)) / 2**0.5 + h) / 2**0.5
        torch.testing.assert_close(logits, decoder.out(decoder.leave(h)))


def test_the_transformer_decoder_is_torchs() -> None:
    net = translator(TRANSFORMER, sharpness=1.0).double()
    decoder, tokens = net.decoder, torch.tensor([[0, 3, 1, 7], [0, 8, 8, 2]])
    x = sentences(2)
    with torch.inference_mode():
        logits = decoder(tokens, net.memory(x))
        source = net.maps(x)[1][-1].transpose(1, 2)
        y = decoder.embed(tokens) + decoder.pos.weight[:4]
        for layer in decoder.layers:
            peer = nn.TransformerDecoderLayer(
                8, 2, 16, 0.0, batch_first=True, norm_first=True, dtype=torch.float64
            )
            names = {
                "self_attn.in_proj_": (layer.qkv,),
                "self_attn.out_proj.": (layer.project1,),
                "multihead_attn.in_proj_": (layer.query, layer.memory),
                "multihead_attn.out_proj.": (layer.project2,),
                "linear1.": (layer.expand,),
                "linear2.": (layer.reduce,),
                "norm1.": (layer.norm1,),
                "norm2.": (layer.norm2,),
                "norm3.": (layer.norm3,),
            }
            peer.load_state_dict(
                {
                    f"{name}{kind}": torch.cat([getattr(module, kind) for module in modules])
                    for name, modules in names.items()
                    for kind in ("weight", "bias")
                }
            )
            mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
            y = peer.eval()(y, source, tgt_mask=mask, tgt_is_causal=True)
        torch.testing.assert_close(logits, decoder.out(decoder.norm(y)))


@pytest.mark.parametrize("name", HEADS)
def test_images_are_described_by_the_same_decoders(name: str) -> None:
    net = captioner(HEADS[name])
    x = torch.randn(3, 3, 32, 32)
    together = chosen(net, x, beam=2)
    assert together.tokens.shape[0] == 3
    for row in range(3):
        alone = chosen(net, x[row : row + 1], beam=2)
        tokens = together.tokens[row]
        assert torch.equal(tokens[tokens >= 0], alone.tokens[0])
    with torch.inference_mode():
        assert net.memory(x).keys[0].shape[-2] == 8 * 8


def test_a_weight_file_builds_the_network(tmp_path: Path) -> None:
    net, file = translator(HEADS["conv, shared and tied"]), tmp_path / "net.safetensors"
    save_network(net, file, model="convs2s_small_encoder")
    loaded = open_network(file)[0].eval()
    x = sentences(2)
    assert torch.equal(chosen(net, x).tokens, chosen(loaded, x).tokens)
    assert loaded.spec == net.spec


def test_the_longest_output_is_documented() -> None:
    net = translator(replace(CONV, max_length=5))
    tokens = chosen(net, sentences(6), max_length=3).tokens
    assert tokens.shape[1] <= 2
    with pytest.raises(UserError, match=r"max_length is 6.*1 to 5"):
        chosen(net, sentences(2), max_length=6)
    with pytest.raises(UserError, match=r"6 tokens; \[head\] max_length is 5"):
        net.decoder(torch.zeros(1, 6, dtype=torch.int64), net.memory(sentences(1)))
    with pytest.raises(UserError, match="beam is 0"):
        chosen(net, sentences(2), beam=0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "conv-decoder", "depth": 0}, "depth = 0"),
        ({"kind": "conv-decoder", "dropout": 1.0}, "dropout = 1.0"),
        ({"kind": "conv-decoder", "max_length": 0}, "max_length = 0"),
        ({"kind": "transformer-decoder", "heads": 3}, "heads = 3: must divide the width, 256"),
        ({"kind": "transformer-decoder", "kernel": 3}, "no field 'kernel'"),
        ({"kind": "conv-decoders"}, "did you mean conv-decoder"),
    ],
)
def test_invalid_decoders_are_named(table: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        head_from_dict(table)


def test_embeddings_of_another_width_are_named() -> None:
    with pytest.raises(UserError, match=r"embed = 16.*width of 8"):
        translator(replace(CONV, embed=16))

"""Heads that predict a sequence of tokens from the features of a network.

A decoder reads the features (n, c, *s) as a memory of positions and predicts one token after
another: of a sentence network a translation, of an image network a caption. Token 0 ends a
sequence and precedes its first token, as `</s>` in fairseq.

    memory = decoder.memory(features, valid)
    logits = decoder(tokens, memory)              # all positions at once (teacher forcing)
    logits, state = decoder.step(token, memory, state)     # one position, from cached states
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.errors import UserError
from plusx.grammar.backbone import embedding_map
from plusx.grammar.heads import ConvDecoder, TransformerDecoder
from plusx.nn.feature_info import FeatureInfo


END = 0  # the token that ends a sequence and precedes its first token
HALF = 0.5**0.5  # a sum of two has the variance of one of them (Gehring et al. 2017, section 3.4)


@dataclass(frozen=True)
class Memory:
    """What a decoder attends to: keys and values of every position, one pair for each attention
    layer, and which positions are valid (None: all)."""

    keys: tuple[Float[Tensor, "n ..."], ...]
    values: tuple[Float[Tensor, "n ..."], ...]
    valid: Bool[Tensor, "n p"] | None = None

    def select(self, rows: Int[Tensor, "m"]) -> "Memory":
        """Return the memory of some inputs, in this order."""
        return Memory(
            tuple(key[rows] for key in self.keys),
            tuple(value[rows] for value in self.values),
            None if self.valid is None else self.valid[rows],
        )


@dataclass(frozen=True)
class State:
    """What a decoder has computed for the tokens so far; `position` is their number."""

    position: int
    tensors: tuple[Float[Tensor, "n ..."], ...]

    def select(self, rows: Int[Tensor, "m"]) -> "State":
        """Return the state of some sequences, in this order."""
        return State(self.position, tuple(tensor[rows] for tensor in self.tensors))


class TiedLinear(nn.Module):
    """A linear layer with the weights of an embedding (Press and Wolf 2017) and its own bias."""

    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(embed.num_embeddings))
        self.shared = [embed]  # in a list, so that the weights belong to one module only

    def forward(self, x: Float[Tensor, "*n e"]) -> Float[Tensor, "*n k"]:
        return F.linear(x, self.shared[0].weight, self.bias)


class TokenDecoder(nn.Module, ABC):
    """A decoder of tokens: embeddings, layers of a subclass, and an output layer."""

    def __init__(self, spec: ConvDecoder | TransformerDecoder, num_tokens: int, embed: int) -> None:
        super().__init__()
        if num_tokens < 2:
            raise UserError(
                f"a decoder of {num_tokens} tokens; it needs the end and at least one other"
            )
        self.num_tokens, self.max_length = num_tokens, spec.max_length
        self.embed = nn.Embedding(num_tokens, embed)
        self.pos = nn.Embedding(spec.max_length, embed)
        self.drop = nn.Dropout(spec.dropout)
        self.out = TiedLinear(self.embed) if spec.tied else nn.Linear(embed, num_tokens)

    @abstractmethod
    def memory(
        self,
        features: Float[Tensor, "n c *s"],
        valid: Bool[Tensor, "n p"] | None = None,
        embedded: Float[Tensor, "n e *s"] | None = None,
    ) -> Memory:
        """Return the memory of features. `embedded` are the embeddings of the source's tokens, if
        the input consists of tokens and they have the decoder's width."""

    @abstractmethod
    def hidden(
        self, embedded: Float[Tensor, "n u e"], memory: Memory, state: State
    ) -> tuple[Float[Tensor, "n u e"], State]:
        """Return the input of the output layer, for tokens that follow those of `state`."""

    @abstractmethod
    def start(self, memory: Memory) -> State:
        """Return the state before the first token."""

    @abstractmethod
    def attention_weights(
        self, tokens: Int[Tensor, "n u"], memory: Memory
    ) -> Float[Tensor, "n u p"]:
        """Return the weight of every position of the memory in the last layer, for the token after
        each of `tokens`; the sum over the positions is 1."""

    def forward(
        self,
        tokens: Int[Tensor, "n u"],
        memory: Memory,
        where: Bool[Tensor, "n u"] | None = None,
    ) -> Float[Tensor, "..."]:
        """Return the logits (n, u, k) of the token after each of `tokens`, which begin with END.

        where: positions whose logits are needed; the result is then (m, k)
        """
        x, _ = self.output_of_layers(tokens, memory, self.start(memory))
        logits: Tensor = self.out(x if where is None else x[where])
        return logits

    def step(
        self, token: Int[Tensor, "n"], memory: Memory, state: State
    ) -> tuple[Float[Tensor, "n k"], State]:
        """Return the logits of the next token and the state after `token`."""
        x, state = self.output_of_layers(token[:, None], memory, state)
        return self.out(x[:, 0]), state

    def output_of_layers(
        self, tokens: Int[Tensor, "n u"], memory: Memory, state: State
    ) -> tuple[Float[Tensor, "n u e"], State]:
        """Return the input of the output layer for some tokens, and the state after the last."""
        first, count = state.position, tokens.shape[1]
        if first + count > self.max_length:
            raise UserError(
                f"a sequence of {first + count} tokens; [head] max_length is {self.max_length}"
            )
        positions = torch.arange(first, first + count, device=tokens.device)
        embedded = self.drop(self.embed(tokens) + self.pos(positions))
        return self.hidden(embedded, memory, state)


def first_tokens(memory: Memory) -> Int[Tensor, "n"]:
    """Return the token before the first one, for each input."""
    keys = memory.keys[0]
    return torch.full((len(keys),), END, dtype=torch.int64, device=keys.device)


def positions_of(features: Float[Tensor, "n c *s"]) -> Float[Tensor, "n p c"]:
    """Return a map as a sequence of positions."""
    return features.flatten(2).transpose(1, 2)


def masked_softmax(
    scores: Float[Tensor, "n *u p"], valid: Bool[Tensor, "n p"] | None
) -> Float[Tensor, "n *u p"]:
    """Return the softmax over the valid positions."""
    if valid is not None:
        mask = valid.reshape(len(valid), *[1] * (scores.ndim - 2), -1)
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)


class CrossAttention(nn.Module):
    """Attention of a convolutional decoder to the memory (Gehring et al. 2017, section 3.3).

    The query is the layer's state plus the embedding of the previous token; its products with the
    keys are not scaled.
    """

    def __init__(self, width: int, embed: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, embed)
        self.context = nn.Linear(embed, width)

    def forward(
        self,
        x: Float[Tensor, "n u w"],
        embedded: Float[Tensor, "n u e"],
        keys: Float[Tensor, "n p e"],
        values: Float[Tensor, "n p e"],
        valid: Bool[Tensor, "n p"] | None,
    ) -> Float[Tensor, "n u w"]:
        context: Tensor = self.context(self.weights(x, embedded, keys, valid) @ values)
        return context

    def weights(
        self,
        x: Float[Tensor, "n u w"],
        embedded: Float[Tensor, "n u e"],
        keys: Float[Tensor, "n p e"],
        valid: Bool[Tensor, "n p"] | None,
    ) -> Float[Tensor, "n u p"]:
        """Return the weight of each position."""
        query = (self.query(x) + embedded) * HALF
        return masked_softmax(query @ keys.transpose(1, 2), valid)


class CausalGlu(nn.Module):
    """A convolution over a token and those before it, and a gated linear unit.

    The convolution is a linear layer on `kernel` neighbouring positions, so that one position and
    a whole sequence are computed by the same products.
    """

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.conv = nn.Linear(kernel * width, 2 * width)
        self.kernel = kernel

    def forward(
        self, x: Float[Tensor, "n u w"], before: Float[Tensor, "n b w"]
    ) -> tuple[Float[Tensor, "n u w"], Float[Tensor, "n b w"]]:
        """Return the output, and the inputs that the position after it needs; `before` are those
        of the position before."""
        padded = torch.cat([before, self.drop(x)], 1)
        count = x.shape[1]
        windows = torch.cat([padded[:, i : i + count] for i in range(self.kernel)], 2)
        return F.glu(self.conv(windows), -1), padded[:, count:]


class ConvolutionalDecoder(TokenDecoder):
    """Residual blocks of causal convolutions, gated linear units and attention (Gehring et al.
    2017).

    Without `residual` it is the plain twin: the sums over the blocks are left out, attention stays.
    """

    def __init__(self, spec: ConvDecoder, levels: FeatureInfo, num_tokens: int) -> None:
        super().__init__(spec, num_tokens, spec.embed)
        width, embed, channels = spec.width, spec.embed, levels.stages[-1].channels
        source = embedding_map(levels.net)
        if source is not None and source.channels != embed:
            raise UserError(
                f"[head] embed = {embed}: the network's token embeddings have a width of "
                f"{source.channels}; attention adds them to its values, so both must be equal"
            )
        self.residual, self.kernel = spec.residual, spec.kernel
        self.enter = nn.Linear(embed, width)
        self.keys = nn.Linear(channels, embed)
        count = 1 if spec.shared_attention else spec.depth
        self.attention = nn.ModuleList(CrossAttention(width, embed) for _ in range(count))
        self.layers = nn.ModuleList(
            CausalGlu(width, spec.kernel, spec.dropout) for _ in range(spec.depth)
        )
        self.leave = nn.Linear(width, embed)
        self._initialise(spec.dropout)

    def _initialise(self, dropout: float) -> None:
        """Initialise as in section 3.5: variances stay over linear layers, and over convolutions
        with a gated linear unit."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.1)
            elif isinstance(module, nn.Linear):
                gain = 4 if module in [layer.conv for layer in self.layers] else 1
                std = (gain * (1 - dropout) / module.in_features) ** 0.5
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def memory(
        self,
        features: Float[Tensor, "n c *s"],
        valid: Bool[Tensor, "n p"] | None = None,
        embedded: Float[Tensor, "n e *s"] | None = None,
    ) -> Memory:
        keys = self.keys(positions_of(features))
        values = keys if embedded is None else (keys + positions_of(embedded)) * HALF
        return Memory((keys,), (values,), valid)

    def start(self, memory: Memory) -> State:
        keys = memory.keys[0]
        shape = (len(keys), self.kernel - 1, self.enter.out_features)
        return State(0, tuple(keys.new_zeros(shape) for _ in self.layers))

    def attention_weights(
        self, tokens: Int[Tensor, "n u"], memory: Memory
    ) -> Float[Tensor, "n u p"]:
        last: Any = self.attention[-1]
        weights: list[Tensor] = []

        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x, embedded, keys, _, valid = inputs
            weights.append(last.weights(x, embedded, keys, valid))

        with last.register_forward_pre_hook(record):
            self(tokens, memory)
        return weights[-1]  # shared attention is called in every layer

    def hidden(
        self, embedded: Float[Tensor, "n u e"], memory: Memory, state: State
    ) -> tuple[Float[Tensor, "n u e"], State]:
        x = self.enter(embedded)
        after = []
        for i, (layer, before) in enumerate(zip(self.layers, state.tensors, strict=True)):
            attention = self.attention[i % len(self.attention)]
            y, inputs = layer(x, before)
            after.append(inputs)
            context = attention(y, embedded, memory.keys[0], memory.values[0], memory.valid)
            y = (y + context) * HALF
            x = (y + x if self.residual else y) * HALF
        return self.drop(self.leave(x)), State(state.position + embedded.shape[1], tuple(after))


class TransformerLayer(nn.Module):
    """A pre-norm layer of a transformer decoder: causal self-attention, attention to the memory,
    two linear layers (Vaswani et al. 2017; Xiong et al. 2020, figure 1b).

    Without `residual` it is the plain twin: the same sums are left out.
    """

    def __init__(self, spec: TransformerDecoder, channels: int) -> None:
        super().__init__()
        width = spec.width
        self.heads, self.residual, self.rate = spec.heads, spec.residual, spec.dropout
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv = nn.Linear(width, 3 * width)
        self.project1, self.project2 = nn.Linear(width, width), nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.memory = nn.Linear(channels, 2 * width)
        self.expand = nn.Linear(width, spec.hidden)
        self.reduce = nn.Linear(spec.hidden, width)
        self.drop = nn.Dropout(spec.dropout)

    def key_value(self, x: Float[Tensor, "n p c"]) -> tuple[Tensor, Tensor]:
        """Return keys and values (n, heads, p, width / heads) of the memory."""
        keys, values = self.by_head(self.memory(x)).chunk(2, 1)
        return keys, values

    def by_head(self, x: Float[Tensor, "n p d"]) -> Float[Tensor, "n h p e"]:
        """Return the channels of every head."""
        return x.unflatten(2, (-1, self.norm1.normalized_shape[0] // self.heads)).transpose(1, 2)

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.drop(y) if self.residual else self.drop(y)

    def forward(
        self,
        x: Float[Tensor, "n u w"],
        keys: Tensor,
        values: Tensor,
        valid: Bool[Tensor, "n p"] | None,
        before: tuple[Tensor, Tensor],
    ) -> tuple[Float[Tensor, "n u w"], tuple[Tensor, Tensor]]:
        """Return the output, and the keys and values of all tokens so far; `before` are those of
        the tokens before."""
        query, key, value = self.by_head(self.qkv(self.norm1(x))).chunk(3, 1)
        key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        count, total = query.shape[2], key.shape[2]
        causal = torch.ones(count, total, dtype=torch.bool, device=x.device)
        causal = causal.tril(total - count)
        rate = self.rate if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, causal, dropout_p=rate)
        x = self._add(x, self.project1(y.transpose(1, 2).flatten(2)))
        query = self.by_head(self.query(self.norm2(x)))
        mask = None if valid is None else valid[:, None, None]
        y = F.scaled_dot_product_attention(query, keys, values, mask, dropout_p=rate)
        x = self._add(x, self.project2(y.transpose(1, 2).flatten(2)))
        y = self.reduce(self.drop(F.relu(self.expand(self.norm3(x)))))
        return self._add(x, y), (key, value)


class AttentionDecoder(TokenDecoder):
    """A transformer decoder with pre-norm layers (Vaswani et al. 2017)."""

    def __init__(self, spec: TransformerDecoder, levels: FeatureInfo, num_tokens: int) -> None:
        super().__init__(spec, num_tokens, spec.width)
        channels = levels.stages[-1].channels
        self.layers = nn.ModuleList(TransformerLayer(spec, channels) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=spec.width**-0.5)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def memory(
        self,
        features: Float[Tensor, "n c *s"],
        valid: Bool[Tensor, "n p"] | None = None,
        embedded: Float[Tensor, "n e *s"] | None = None,
    ) -> Memory:
        x = positions_of(features)
        layers: Any = self.layers
        pairs = [layer.key_value(x) for layer in layers]
        return Memory(tuple(k for k, _ in pairs), tuple(v for _, v in pairs), valid)

    def start(self, memory: Memory) -> State:
        empty = tuple(key[:, :, :0] for key in memory.keys for _ in range(2))
        return State(0, empty)

    def attention_weights(
        self, tokens: Int[Tensor, "n u"], memory: Memory
    ) -> Float[Tensor, "n u p"]:
        """The mean over the heads."""
        last: Any = self.layers[-1]
        queries: list[Tensor] = []
        with last.query.register_forward_hook(lambda module, x, query: queries.append(query)):
            self(tokens, memory)
        query, keys = last.by_head(queries[0]), memory.keys[-1]
        scores = query @ keys.transpose(2, 3) * keys.shape[-1] ** -0.5
        return masked_softmax(scores, memory.valid).mean(1)

    def hidden(
        self, embedded: Float[Tensor, "n u e"], memory: Memory, state: State
    ) -> tuple[Float[Tensor, "n u e"], State]:
        x, after = embedded, []
        for i, layer in enumerate(self.layers):
            before = (state.tensors[2 * i], state.tensors[2 * i + 1])
            x, (key, value) = layer(x, memory.keys[i], memory.values[i], memory.valid, before)
            after += [key, value]
        return self.norm(x), State(state.position + embedded.shape[1], tuple(after))

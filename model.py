"""A GPT in one file: token ids go in, logits or a loss come out.

The network is GPT-2's (Radford et al., 2019): embeddings of tokens and positions, pre-norm blocks of causal
self-attention (Vaswani et al., 2017) and an MLP, a final LayerNorm, a head tied to the token embedding.

Read first: GPTConfig, CausalSelfAttention, MLP, Block and GPT.forward. Skip at first: rotary positions, token
shift and `positions_and_mask`, which serves documents and the cache of keys and values.

Shapes: B sequences, T positions, C channels (n_embd), H heads, D = C / H channels of one head, V vocabulary.

    model = GPT(GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128))
    model.init_weights(seed=1337)
    logits = model(ids)                                  # (B, T, V)
    loss = model(ids, targets) / targets.numel()         # the mean cross-entropy in nats
    longer = model.generate(ids, max_new_tokens=100, temperature=0.8)

engine/kernels.py computes the same faster, engine/generation.py samples with a cache of keys and values.
"""

import dataclasses
import functools
import hashlib
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rotation = tuple[Tensor, Tensor] | None  # cosines and sines of the positions' angles


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT, and nothing about how it is trained.

    All fields but `vocab_size` and `separator`, which follow from the data, are settings of train.py, and the
    comments behind them are what `--help` prints.
    """

    vocab_size: int = 50257  # entries of the vocabulary
    block_size: int = 1024  # positions that the model sees at once
    n_layer: int = 12  # number of blocks
    n_head: int = 12  # attention heads of a block
    n_embd: int = 768  # channels of the residual stream
    dropout: float = 0.0  # fraction of activations dropped in training
    bias: bool = False  # biases in linear layers and layer norms, as in GPT-2
    activation: Literal["gelu", "gelu_tanh", "relu2"] = "gelu"  # of the MLP; gelu_tanh: OpenAI's form of GELU
    tied_head: bool = True  # the head shares the token embedding's matrix
    position: Literal["learned", "rotary"] = "learned"  # an embedding, or rotated queries and keys
    qk_norm: bool = False  # normalise queries and keys
    zero_init: bool = False  # start the blocks' output projections at zero
    token_shift: bool = False  # add a learned share of the embedding of the token before
    separator: int | None = None  # the token that begins a document, each read as if alone; None: one text

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), typing.get_args(field.type)
            if field.type is int and value < 1:
                raise ValueError(f"{field.name} is {value}; it must be at least 1")
            if typing.get_origin(field.type) is Literal and value not in choices:
                raise ValueError(f"{field.name} is {value!r}; it can be {' or '.join(choices)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.n_embd % self.n_head:
            fitting = self.n_head * max(1, round(self.n_embd / self.n_head))
            raise ValueError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; try {fitting}")
        if self.position == "rotary" and (width := self.n_embd // self.n_head) % 2:
            raise ValueError(f"rotary positions turn pairs of channels, and a head has {width}")


class CausalSelfAttention(nn.Module):
    """All heads at once: each position gathers values from itself and the positions before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qk_norm = config.qk_norm
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attend = scaled_dot_product_attention
        self.attention_dropout = config.dropout
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None, cache: Any) -> Tensor:
        """(B, T, C) to (B, T, C). `mask` is added to the scores; None: just causal.

        `cache` is one layer's of engine/generation.py: it takes new keys and values and gives all, S of them.
        """
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        if self.qk_norm:  # bounded scores allow a higher learning rate (Dehghani et al., 2023)
            query, key = F.layer_norm(query, query.shape[-1:]), F.layer_norm(key, key.shape[-1:])
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if cache is not None:
            key, value = cache.extend(key, value)  # (B, H, S, D)
        mixed = self.attend(query, key, value, mask, self.attention_dropout if self.training else 0.0)
        return self.dropout(self.out(mixed.transpose(1, 2).reshape(B, T, C)))


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """softmax(Q Kᵀ / √D + mask) V, (B, H, T, D), from queries (B, H, T, D), keys and values (B, H, S, D)."""
    causal = mask is None and query.shape[2] > 1
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),  # OpenAI's form
    "relu2": lambda x: x.relu().square(),  # So et al., 2021 ("Primer")
}


class MLP(nn.Module):
    """Each position by itself: up to four times the width, a nonlinearity, and down again."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.down = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.dropout(self.down(self.activation(self.up(x))))


class Block(nn.Module):
    """Attention moves information between positions, the MLP works on it; both add to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """(B, T, C) to (B, T, C). `context` is what CausalSelfAttention.forward takes beside x."""
        x = x + self.attention(self.attention_norm(x), *context)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """The whole network. Its weights are arbitrary until `init_weights` or a checkpoint sets them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        if config.token_shift:
            self.token_shift = nn.Parameter(torch.empty(config.n_embd))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.token_embedding.weight
        self.loss = sum_of_losses

    @torch.no_grad()
    def init_weights(self, seed: int, copy: Callable[[Tensor, Tensor], object] = Tensor.copy_) -> None:
        """Draw the initial weights, each parameter from a stream of its own: a function of (seed, name).

        `copy(parameter, value)` sets a parameter; a sharded model's copies only the slice that is there.
        """
        for name, parameter in self.named_parameters():
            mean, deviation = self.initial_distribution(name)
            stream = torch.Generator().manual_seed(derive_seed(seed, "weights", name))
            copy(parameter, mean + deviation * torch.randn(parameter.shape, generator=stream))

    def initial_distribution(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of a parameter's initial values, a normal distribution (GPT-2's rules).

        Linear layers, embeddings   0, 0.02
        attention.out, mlp.down     0, 0.02 / √(2 n_layer), as all 2 n_layer add to the residual stream;
                                    with `zero_init` 0, so that every block begins as the identity
        biases, token_shift         0
        norms                       1

        Raises ValueError for a parameter that no rule covers.
        """
        path, _, kind = name.rpartition(".")
        module = self.get_submodule(path)
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            return 0.0, 0.0 if self.config.zero_init else 0.02 / math.sqrt(2 * self.config.n_layer)
        if kind in ("bias", "token_shift"):
            return 0.0, 0.0
        if isinstance(module, (nn.Linear, nn.Embedding)):
            return 0.0, 0.02
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            return 1.0, 0.0
        raise ValueError(
            f"{name} has no rule for its initial values; add one to GPT.initial_distribution in model.py, "
            f"such as: if kind == {kind!r}: return 0.0, 0.02"
        )

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for ids (B, T); with targets (B, T), the sum of their cross-entropies in nats.

        Targets of -100 do not count; the sum of none is 0. Raises ValueError where T exceeds `block_size`.
        """
        features = self.features(ids)
        return self.head(features) if targets is None else self.loss(features, self.head, targets)

    def features(self, ids: Tensor, cache: Any = None) -> Tensor:
        """The normalised output (B, T, C) that the head reads. With a cache, `ids` continue its positions."""
        positions, mask = self.positions_and_mask(ids, cache)
        x, rotation = self.token_embedding(ids), None  # (B, T, C)
        if self.config.token_shift:
            x = self.shift(x, positions, cache)
        if self.config.position == "learned":
            x = x + self.position_embedding(positions)
        else:
            rotation = rotary_angles(positions, self.config.n_embd // self.config.n_head)
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, mask, None if cache is None else cache.layers[index])
        return self.final_norm(x)

    def shift(self, x: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Embeddings (B, T, C), each with a learned share of the one before (as RWKV; Peng et al., 2023)."""
        before = x.roll(1, dims=1)
        if cache is not None:
            before[:, 0], cache.last_embedding = cache.last_embedding, x[:, -1]
        return x + self.token_shift * before * (positions > 0)[..., None]  # the first has none before it

    def positions_and_mask(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor | None]:
        """Positions (T,), or (B, T) where they differ by row, and a mask (B, 1, T, S); None: just causal.

        A row starts at its last separator, or where the cache says that its padding ends: positions count
        from there, and nothing before it is seen. The cache learns where the last document starts.
        """
        T, seen = ids.shape[1], 0 if cache is None else cache.length
        if seen + T > self.config.block_size:
            raise ValueError(f"{seen + T} positions do not fit into block_size {self.config.block_size}")
        positions = torch.arange(seen, seen + T, device=ids.device)
        starts = None if cache is None or cache.starts is None else cache.starts[:, None]  # (B, 1)
        if self.config.separator is not None:
            documents = torch.where(ids == self.config.separator, positions, 0).cummax(dim=1).values
            starts = documents if starts is None else torch.maximum(documents, starts)  # (B, T)
            if cache is not None:
                cache.starts = starts[:, -1]
        if starts is None and (seen == 0 or T == 1):
            return positions, None
        starts = positions.new_zeros(1, 1) if starts is None else starts
        key, query = torch.arange(seen + T, device=ids.device), positions[:, None]  # (S,), (T, 1)
        # A padded position sees itself, so that no row is empty.
        visible = (key <= query) & ((key >= starts[..., None]) | (key == query))  # (B, T, S)
        dtype = self.token_embedding.weight.dtype if cache is None else cache.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=ids.device).masked_fill(~visible, -math.inf)
        return (positions - starts).clamp(min=0), mask[:, None]

    @torch.inference_mode()
    def generate(
        self, ids: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """The prompts (B, T) and `max_new_tokens` more, drawn one after another: (B, T + max_new_tokens).

        The specification of `engine.generation.generate`. Beyond `block_size` the two differ: here each token
        sees the newest `block_size`, read anew for each; there the older half is dropped when they are full.
        """
        for _ in range(max_new_tokens):
            logits = self(ids[:, -self.config.block_size :])[:, -1]
            probabilities = next_token_probabilities(logits, temperature, top_k)
            ids = torch.cat((ids, probabilities.multinomial(1)), dim=1)
        return ids


def sum_of_losses(features: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """The sum of the cross-entropies in nats of features (B, T, C) under a head, against targets (B, T)."""
    return F.cross_entropy(head(features).flatten(0, 1), targets.flatten(), reduction="sum")


def next_token_probabilities(logits: Tensor, temperature: float, top_k: int | None = None) -> Tensor:
    """The distribution (B, V) of the next token. Temperature 0 leaves the most probable token alone.

    `top_k` keeps the k most probable tokens, and ties with the last of them.
    """
    if temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return (logits / temperature).softmax(dim=-1)


def rotary_angles(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions (T,) or (B, T): (T, D) or (B, 1, T, D), to pass to `rotate`.

    Channel pair i of D / 2 turns by 10000^(-2i / D) a position (Su et al., 2021). The pairs are
    (i, i + D / 2), and the sines of the first half carry the minus sign of a rotation.
    """
    exponents = -torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = positions[..., None].float() * 10000.0**exponents  # (…, T, D / 2)
    if positions.dim() == 2:
        angles = angles[:, None]  # the same for all heads
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """(…, T, D) turned by position, so that scores depend on distances alone."""
    return torch.addcmul(x * cosines.to(x.dtype), x.roll(x.shape[-1] // 2, dims=-1), sines.to(x.dtype))


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for a purpose, e.g. derive_seed(1337, "weights", "head.weight"), unrelated to others."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1

"""A GPT in one file: token ids go in, logits and a loss come out.

The network is GPT-2's (Radford et al., 2019): learned position embeddings, pre-norm blocks of causal
self-attention (Vaswani et al., 2017) and a GELU MLP, a final LayerNorm, a head tied to the token embedding.

Shapes: B sequences, T positions, C channels (n_embd), H heads, D = C / H channels of one head, V vocabulary.

    model = GPT(GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128))
    model.init_weights(seed=1337)
    logits = model(ids)                         # (B, T, V)
    loss_sum = model(ids, targets)              # in nats, over the targets that are not -100
    new_ids = model.generate(ids, max_new_tokens=100, temperature=0.8)
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = ("gelu", "gelu_tanh", "relu2")


POSITIONS = ("learned", "rotary")


ATTENTION_KERNELS = ("sdpa", "matmul")


LARGEST_LOGITS = 2**28  # beyond 1 GiB in fp32 the logits of a micro-batch would take most of the memory


LARGEST_CHUNK = 2**26


UNIFORMS_AT_ONCE = 256  # random numbers of a sample that are drawn together


LONGEST_FOR_MATMUL = 256  # positions up to which attention written out is the faster form on most CPUs


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT, and nothing about how it is trained. The defaults are GPT-2 small's.

    With `separator`, the id of a token that begins a document, the model reads each document as if it
    stood alone: nothing before its separator is seen, and positions count from there.
    """

    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    activation: str = "gelu_tanh"
    tied_head: bool = True
    position: str = "learned"
    qk_norm: bool = False
    zero_init: bool = False
    token_shift: bool = False
    separator: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; it can be {' or '.join(ACTIVATIONS)}")
        if self.position not in POSITIONS:
            raise ValueError(f"position is {self.position!r}; it can be {' or '.join(POSITIONS)}")
        if self.separator is not None and not 0 <= self.separator < self.vocab_size:
            raise ValueError(
                f"separator is {self.separator}; it must be an id below {self.vocab_size}, or None"
            )
        if self.position == "rotary" and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"rotary positions turn pairs of channels, and a head has {self.n_embd // self.n_head}"
            )


def count_parameters(config: GPTConfig) -> dict[str, int]:
    """Parameters by role, from the configuration alone; their sum is the number the module holds."""
    width, layers, bias = config.n_embd, config.n_layer, int(config.bias)
    return {
        "token_embedding": config.vocab_size * width,
        "position_embedding": config.block_size * width if config.position == "learned" else 0,
        "token_shift": width if config.token_shift else 0,
        "attention": layers * (4 * width * width + bias * 4 * width),
        "mlp": layers * (8 * width * width + bias * 5 * width),
        "norms": (2 * layers + 1) * (1 + bias) * width,
        "head": 0 if config.tied_head else config.vocab_size * width,
    }


def flops_per_token(config: GPTConfig, length: int | None = None) -> int:
    """Floating-point operations of one training token, forward and backward: 6 N + 12 L C T.

    N leaves out the position embedding, which is added and not multiplied (and the token embedding where an
    untied head does its multiplications). The formula is that of PaLM (Chowdhery et al., 2022, appendix B).
    `length` is T, by default `block_size`.
    """
    counts = count_parameters(config)
    looked_up = counts["position_embedding"] + (0 if config.tied_head else counts["token_embedding"])
    context = config.block_size if length is None else length
    return 6 * (sum(counts.values()) - looked_up) + 12 * config.n_layer * config.n_embd * context


class KVCache:
    """Keys and values of the positions already seen, so that each new token costs one position.

    The caller makes it and passes it to `GPT.features`, which writes into it and advances `length`.
    `starts` (B,) holds the index at which each row's text, or its last document, begins; None: all at 0.
    """

    def __init__(self, model: "GPT", batch: int, starts: Tensor | None = None) -> None:
        config, weight = model.config, model.token_embedding.weight
        shape = (2, batch, config.n_head, config.block_size, config.n_embd // config.n_head)
        # Keys and values of each layer, (2, B, H, T, D); on a CPU in fp32 at least, where one query takes a
        # sixth of its time in bf16.
        halves = weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16)
        dtype = torch.float32 if halves else weight.dtype
        self.layers = [weight.new_zeros(shape, dtype=dtype) for _ in range(config.n_layer)]
        self.last = weight.new_zeros(batch, config.n_embd)  # the last position's token embedding
        self.starts = starts
        self.length = 0


class CausalSelfAttention(nn.Module):
    """All heads at once: each position gathers values from itself and the positions before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qk_norm = config.qk_norm
        self.dropout = config.dropout
        self.kernel = "sdpa"
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cached: Tensor | None = None,
        seen: int = 0,
    ) -> Tensor:
        """(B, T, C) to (B, T, C). `rotation` turns queries and keys.

        `mask` is added to the scores; None: just causal. `cached` (2, B, H, block_size, D) holds this layer's
        keys and values, `seen` positions of them so far.
        """
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        if self.kernel == "matmul":
            qkv = qkv.contiguous()  # one copy here saves three below
        pair, value = qkv.split((2, 1))  # split, not indexed: the backward pass joins them in one copy
        if self.qk_norm:  # scores that cannot grow bear a higher learning rate (Dehghani et al., 2023)
            pair = F.layer_norm(pair, pair.shape[-1:])
        if rotation is not None:
            pair = rotate(pair, *rotation)
        (query, key), value = pair, value.squeeze(0)  # each (B, H, T, D)
        if cached is not None:
            new = cached.narrow(3, seen, T)
            new[0].copy_(key), new[1].copy_(value)
            query, (key, value) = query.to(cached.dtype), cached.narrow(3, 0, seen + T)  # (B, H, S, D)
        attend = attend_by_matmul if self.kernel == "matmul" and T > 1 else attend_by_sdpa
        mixed = attend(query, key, value, mask, self.dropout if self.training else 0.0)  # (B, H, T, D)
        mixed = mixed.transpose(1, 2).reshape(B, T, C)
        if cached is not None:
            mixed = mixed.to(x.dtype)
        return drop(self.out(mixed), self.dropout, self.training)


def drop(x: Tensor, share: float, training: bool) -> Tensor:
    """Dropout in training (Srivastava et al., 2014); elsewhere the tensor itself, at no cost.

    On a CPU the random numbers are what it costs, so four of 16 bits come out of each draw of 64.
    """
    if not training or share == 0:
        return x
    cut = round(share * 2**16)
    if x.device.type != "cpu" or not 0 < cut < 2**16:
        return F.dropout(x, share)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= cut - 2**15
    return x * (kept.to(x.dtype) * (2**16 / (2**16 - cut)))


def rotary_angles(positions: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions (T,) or (B, T): (T, D) or (B, 1, T, D), to pass to `rotate`.

    Channel pair i of D / 2 turns by 10000^(-2i / D) a position (Su et al., 2021). The pairs are
    (i, i + D / 2), and the sines of the first half carry the minus sign of a rotation.
    """
    frequencies = 10000.0 ** (
        -torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    )
    angles = positions[..., None].float() * frequencies  # (…, T, D / 2)
    cosines, sines = angles.cos(), angles.sin()
    pair = torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1)
    cosines, sines = (tensor.to(dtype) for tensor in pair)
    return (cosines, sines) if positions.dim() == 1 else (cosines[:, None], sines[:, None])


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """(…, T, D) turned by position, so that scores depend on distances alone."""
    return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, dims=-1), sines).to(x.dtype)


def attend_by_sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(Q Kᵀ / √D) V by PyTorch's fused kernels: fastest on GPUs, for long texts and single queries."""
    causal = mask is None and query.shape[2] > 1
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal)


def attend_by_matmul(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """The same, written out: the fastest on a CPU for short texts."""
    B, H, T, D = query.shape
    S = key.shape[2]
    if mask is None:
        mask = causal_mask(T, query.dtype, query.device)
    elif mask.dim() == 4:  # one mask for each row of the batch
        mask = mask.expand(B, H, T, S).reshape(B * H, T, S)
    query, key, value = (tensor.reshape(B * H, -1, D) for tensor in (query, key, value))
    scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=D**-0.5)  # (B·H, T, S)
    weights = drop(scores.softmax(dim=-1), dropout, True)
    return torch.bmm(weights, value).view(B, H, T, D)


def causal_mask(T: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(T, T): 0 where a position may look, -inf where it would look ahead."""
    return torch.full((T, T), -math.inf, dtype=dtype, device=device).triu(1)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al., 2021, "Primer")."""
    return x.relu().square()


class MLP(nn.Module):
    """Each position by itself: up to four times the width, a nonlinearity, and down again."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        gelu = nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")
        self.activation = squared_relu if config.activation == "relu2" else gelu
        self.down = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return drop(self.down(self.activation(self.up(x))), self.dropout, self.training)


class Block(nn.Module):
    """Attention moves information between positions, the MLP works on it; both add to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, *context: object) -> Tensor:
        """(B, T, C) to (B, T, C). `context` is what `CausalSelfAttention.forward` takes beside x."""
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
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.token_embedding.weight

    @classmethod
    def empty(
        cls, config: GPTConfig, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> "GPT":
        """A GPT on a device, with memory for its weights and nothing meaningful in it."""
        with torch.device("meta"):
            model = cls(config).to(dtype)
        model.to_empty(device=device)
        if config.tied_head:
            model.head.weight = model.token_embedding.weight
        short = torch.device(device).type == "cpu" and config.block_size <= LONGEST_FOR_MATMUL
        model.use_attention_kernel("matmul" if short else "sdpa")
        return model

    @torch.no_grad()
    def init_weights(self, seed: int, put: Callable[[Tensor, Tensor], object] = Tensor.copy_) -> None:
        """Draw GPT-2's initial weights, each parameter from a stream of its own: a function of (seed, name).

        `put(parameter, value)` copies, where a process holds but a slice of each parameter, that slice.

        matrices and embeddings   normal, standard deviation 0.02
        attention.out, mlp.down   normal, 0.02 / √(2 n_layer), as all 2 n_layer add to the residual stream;
                                  with `zero_init` 0, so that every block begins as the identity
        biases, token_shift       0
        LayerNorm weights         1
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name == "token_shift":
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                std = 0.02
                if name.endswith(("attention.out.weight", "mlp.down.weight")):
                    std = 0.0 if self.config.zero_init else 0.02 / math.sqrt(2 * self.config.n_layer)
                stream = torch.Generator().manual_seed(derive_seed(seed, "weights", name))
                put(parameter, torch.randn(parameter.shape, generator=stream) * std)

    def use_attention_kernel(self, kernel: str) -> None:
        """Compute attention by "sdpa" or by "matmul": the same result to rounding, at different speeds."""
        if kernel not in ATTENTION_KERNELS:
            raise ValueError(f"attention kernel {kernel!r}; it can be {' or '.join(ATTENTION_KERNELS)}")
        for block in self.blocks:
            block.attention.kernel = kernel

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for ids (B, T); with targets (B, T), the sum of their losses in nats.

        Targets of -100 do not count. Raises ValueError where T exceeds `block_size`.
        """
        features = self.features(ids)
        if targets is not None and ids.numel() * self.config.vocab_size > LARGEST_LOGITS:
            rows = max(1, LARGEST_CHUNK // self.config.vocab_size)
            return ChunkedCrossEntropy.apply(
                features.flatten(0, 1), self.head.weight, targets.reshape(-1), rows
            )
        logits = self.head(features)
        if targets is None:
            return logits
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum")

    def features(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The last block's normalised output (B, T, C), to which the head is applied.

        With a cache, `ids` continue the positions that it holds, and the cache grows by them.
        """
        T, seen = ids.shape[1], 0 if cache is None else cache.length
        dtype = self.token_embedding.weight.dtype if cache is None else cache.layers[0].dtype
        if seen + T > self.config.block_size:
            raise ValueError(f"{seen + T} positions do not fit into block_size {self.config.block_size}")
        positions = torch.arange(seen, seen + T, device=ids.device)
        starts, mask = self.starts_of_text(ids, positions, cache), None
        if starts is not None:
            mask = bounded_mask(positions, starts, seen + T, dtype)
            positions = (positions - starts).clamp(min=0)  # (B, T)
        elif seen and T > 1:
            mask = bounded_mask(positions, positions.new_zeros(1, 1), seen + T, dtype)
        x, rotation = self.token_embedding(ids), None  # (B, T, C)
        if self.config.token_shift:
            x = self.shifted(x, positions, cache)
        if self.config.position == "learned":
            x = x + self.position_embedding(positions)
        else:
            rotation = rotary_angles(positions, self.config.n_embd // self.config.n_head, x.dtype)
        x = drop(x, self.config.dropout, self.training)
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, mask, None if cache is None else cache.layers[index], seen)
        if cache is not None:
            cache.length += T
        return self.final_norm(x)

    def shifted(self, x: Tensor, positions: Tensor, cache: KVCache | None) -> Tensor:
        """Token embeddings (B, T, C), each with a share, learned for each channel, of the one before it.

        The first position of a text or document has none before it. The idea is RWKV's (Peng et al., 2023).
        """
        before = x.roll(1, dims=1)
        if cache is not None:
            before[:, 0], cache.last = cache.last, x[:, -1]
        return x + self.token_shift * before * (positions > 0)[..., None]

    def starts_of_text(self, ids: Tensor, positions: Tensor, cache: KVCache | None) -> Tensor | None:
        """The first index that each of `positions` (T,) may look at, (B, T) or (B, 1); None: 0 for all.

        A cache tells where rows padded on the left begin; it learns where their last documents begin.
        """
        starts = None if cache is None or cache.starts is None else cache.starts[:, None]
        if self.config.separator is None:
            return starts
        documents = torch.where(ids == self.config.separator, positions, 0).cummax(dim=1).values
        starts = documents if starts is None else torch.maximum(documents, starts)
        if cache is not None:
            cache.starts = starts[:, -1]
        return starts

    @torch.inference_mode()
    def stream(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        first_index: int = 0,
        n_tokens: int | None = None,
        starts: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Continue prompts (B, T) one token at a time; yields each step's tokens, (B,).

        Row b draws from a stream of its own, a function of (`seed`, `first_index` + b), so a sample does not
        depend on the batch that it is drawn in. `temperature` 0 takes the most probable token. `n_tokens` is
        the tokenizer's vocabulary where the model's is padded: no id beyond it is drawn. `starts` (B,) marks
        where each row's text begins in prompts padded on the left. What the other options do to the
        distribution is said at `penalise` and `next_token_probabilities`.

        The model sees at most `block_size` positions. When they are full, the older half is dropped and the
        newer read again, so it always sees half of them or more.
        """
        batch, prompt_length = ids.shape
        if prompt_length == 0:
            raise ValueError("the prompt is empty; generation needs at least one token to continue")
        check_sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        text = torch.cat((ids, ids.new_empty(batch, max_new_tokens)), dim=1)
        streams = [
            torch.Generator().manual_seed(derive_seed(seed, "sample", first_index + row))
            for row in range(batch)
        ]
        # A prompt may be longer than what the model sees.
        unseen = max(0, prompt_length - self.config.block_size)
        cache = KVCache(self, batch, None if starts is None else (starts - unseen).clamp(min=0))
        logits = self._prefill(ids[:, unseen:], cache)
        for step in range(max_new_tokens):
            logits = logits[:, :n_tokens]
            if repetition_penalty != 1:
                logits = penalise(logits, text[:, : prompt_length + step], starts, repetition_penalty)
            if temperature == 0:
                token = logits.argmax(dim=-1)
            else:
                if step % UNIFORMS_AT_ONCE == 0:
                    uniforms = torch.stack(
                        [torch.rand(UNIFORMS_AT_ONCE, generator=stream) for stream in streams]
                    )
                    uniforms = uniforms.to(ids.device)
                probabilities = next_token_probabilities(logits, temperature, top_k, top_p, min_p)
                token = draw(probabilities, uniforms[:, step % UNIFORMS_AT_ONCE])
            end = prompt_length + step
            text[:, end] = token
            yield token
            if step + 1 == max_new_tokens:
                return
            if cache.length < self.config.block_size:
                logits = self.head(self.features(token[:, None], cache)[:, -1])
            else:
                first = end + 1 - max(1, self.config.block_size // 2)
                cache.starts = None if starts is None else (starts - first).clamp(min=0)
                logits = self._prefill(text[:, first : end + 1], cache)

    def generate(self, ids: Tensor, max_new_tokens: int, **sampling) -> Tensor:
        """The prompts (B, T) and `max_new_tokens` more: (B, T + max_new_tokens). Options as in `stream`."""
        new = list(self.stream(ids, max_new_tokens, **sampling))
        return torch.cat((ids, torch.stack(new, dim=1)), dim=1) if new else ids

    def _prefill(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Fill the cache with `ids` (B, T), T up to `block_size`, anew; the last position's logits (B, V)."""
        cache.length = 0
        return self.head(self.features(ids, cache)[:, -1])


class ChunkedCrossEntropy(torch.autograd.Function):
    """The summed cross-entropy of features (N, C) under a head (V, C), for some rows of logits at a time.

    The gradients are taken in the forward pass, while a chunk's logits are there, and scaled in the backward.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, head: Tensor, targets: Tensor, rows: int) -> Tensor:
        """The loss in nats. `targets` (N,) of -100 do not count; products run in autocast's precision."""
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
        weight, total = head.to(dtype), torch.zeros((), device=features.device, dtype=head.dtype)
        trains = any(ctx.needs_input_grad)
        of_features, of_head = (
            torch.zeros(x.shape if trains else 0, dtype=x.dtype, device=x.device) for x in (features, head)
        )
        with torch.autocast(device, enabled=False):
            for first in range(0, len(features), rows):
                x, target = features[first : first + rows].to(dtype), targets[first : first + rows, None]
                log_probabilities = (x @ weight.T).to(head.dtype).log_softmax(dim=-1)
                counted, target = target != -100, target.clamp(min=0)
                total -= (log_probabilities.gather(1, target) * counted).sum()
                if trains:
                    gradient = log_probabilities.exp_()  # of the sum by the logits: probabilities - one-hot
                    gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
                    gradient = (gradient * counted).to(dtype)
                    of_features[first : first + rows] = gradient @ weight
                    of_head += gradient.T @ x
        ctx.save_for_backward(of_features, of_head)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Those of the features and the head."""
        of_features, of_head = ctx.saved_tensors
        return of_features * gradient, of_head * gradient, None, None


def check_sampling(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, repetition_penalty: float
) -> None:
    """Raise ValueError for settings that no distribution can be drawn with."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be 0 (most probable token) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1, or None to keep every token")
    for name, share in (("top_p", top_p), ("min_p", min_p)):
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"{name} is {share}; it must be above 0 and at most 1")
    if not 0 < repetition_penalty < math.inf:
        raise ValueError(f"repetition_penalty is {repetition_penalty}; it must be above 0, and 1 for none")


def penalise(logits: Tensor, text: Tensor, starts: Tensor | None, penalty: float) -> Tensor:
    """Logits (B, V), those of tokens in the text (B, T) divided by the penalty, or multiplied if negative.

    Keskar et al., 2019 (CTRL). Left padding before `starts` (B,) does not count as text.
    """
    if starts is not None:
        positions = torch.arange(text.shape[1], device=text.device)
        text = torch.where(positions < starts[:, None], text[:, -1:], text)
    inside = text.clamp(max=logits.shape[-1] - 1)
    known = logits.gather(-1, inside)
    return logits.scatter(-1, inside, torch.where(known > 0, known / penalty, known * penalty))


def next_token_probabilities(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None = None
) -> Tensor:
    """The distribution (B, V) that the next token is drawn from, temperature above 0.

    Top-k keeps the k most probable tokens (and ties with the last of them); min-p those at least that share
    as probable as the most probable (Nguyen et al., 2024); top-p (Holtzman et al., 2020) the fewest whose
    probabilities, after the others, reach p.
    """
    logits = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if min_p is not None:
        least = logits.amax(dim=-1, keepdim=True) + math.log(min_p)
        logits = logits.masked_fill(logits < least, -math.inf)
    probabilities = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        kept = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, kept)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One token (B,) of each row of (B, V): the first whose running sum passes a uniform number (B,)."""
    cumulative = probabilities.cumsum(dim=-1)
    passed = uniforms[:, None].to(cumulative.dtype) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, passed, right=True).squeeze(-1)


def bounded_mask(positions: Tensor, starts: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, T, S): queries at `positions` (T,) look at S keys, at none before `starts`.

    `starts` is (B, T) or (B, 1). A padded position before its start sees itself, so that no row is empty.
    """
    key, query = torch.arange(keys, device=positions.device), positions[:, None]  # (S,), (T, 1)
    seen = (key <= query) & ((key >= starts[..., None]) | (key == query))  # (B, T, S)
    mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(~seen, -math.inf)[:, None]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for a purpose, e.g. derive_seed(1337, "weights", "head.weight"), unrelated to others."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1

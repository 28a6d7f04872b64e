"""Small models for the pipelines of spectrax."""
# `nox -s runtimes` alone installs spectrax.
# pyright: reportMissingImports=false

import jax
import jax.numpy as jnp
import spectrax as spx
from spectrax import nn
from spectrax.runtime.mpmd import sxstage_iter


WIDTH, VOCABULARY, BLOCKS = 32, 64, 8
HEADS = 4


class Block(spx.Module):
    """Three layers with a residual connection."""

    def __init__(self, width, *, rngs):
        super().__init__()
        self.mix = nn.Linear(width, width, rngs=rngs)
        self.up = nn.Linear(width, 2 * width, rngs=rngs)
        self.down = nn.Linear(2 * width, width, rngs=rngs)

    def forward(self, x):
        means = jnp.cumsum(x, axis=1) / jnp.arange(1, 1 + x.shape[1])[:, None]
        x = x + self.mix(means)
        return x + self.down(jax.nn.gelu(self.up(x)))


class LanguageModel(spx.Module):
    """A language model in several stages; `is_tied` leaves its head unused."""

    def __init__(self, stages, is_tied, width, *, rngs):
        super().__init__()
        self.embed = nn.Embed(VOCABULARY, width, rngs=rngs)
        self.blocks = nn.ModuleList([Block(width, rngs=rngs) for _ in range(BLOCKS)])
        self.head = nn.Linear(width, VOCABULARY, rngs=rngs)
        self.starts = {k * BLOCKS // stages for k in range(1, stages)}
        self.is_tied = is_tied

    def forward(self, tokens):
        x = self.embed(tokens)
        for number, block in enumerate(self.blocks):
            if number in self.starts:
                x = sxstage_iter(x)
            x = block(x)
        return x @ self.embed.weight.value.T if self.is_tied else self.head(x)


def make(stages, is_tied=False, width=WIDTH):
    """The parameters, and the loss as a function of parameters and tokens."""
    model = LanguageModel(stages, is_tied, width, rngs=spx.Rngs(0))
    graph, params = spx.export(model)

    def loss(params, tokens):
        logits = spx.bind(graph, params)(tokens)[:, :-1]
        return cross_entropy(logits, tokens[:, 1:])

    return params, loss


def cross_entropy(logits, tokens):
    targets = jax.nn.one_hot(tokens, logits.shape[-1])
    return -(jax.nn.log_softmax(logits) * targets).sum(-1).mean()


# Rows of a matrix over one axis of the mesh of a stage, columns over the other.
LOGICAL_AXES = [
    ("rows", "fsdp"),
    ("columns", "tp"),
    *(("vocab", "tp"), ("embed", "fsdp"), ("features", None)),
    *(("in", "fsdp"), ("out", "tp")),
]


class LlamaBlock(spx.Module):
    """Attention with rotary positions, and a gated layer, both after a norm."""

    def __init__(self, *, rngs):
        super().__init__()

        def linear(rows, columns, sharding=("rows", "columns")):
            return nn.Linear(
                rows, columns, use_bias=False, sharding=sharding, rngs=rngs
            )

        self.before_attention = nn.RMSNorm(WIDTH)
        self.queries = linear(WIDTH, WIDTH)
        self.keys = linear(WIDTH, WIDTH // 2)
        self.values = linear(WIDTH, WIDTH // 2)
        self.mix = linear(WIDTH, WIDTH, ("columns", "rows"))
        self.before_gate = nn.RMSNorm(WIDTH)
        self.gate = linear(WIDTH, 2 * WIDTH)
        self.up = linear(WIDTH, 2 * WIDTH)
        self.down = linear(2 * WIDTH, WIDTH, ("columns", "rows"))

    def forward(self, x):
        y = self.before_attention(x)
        queries, keys, values = (
            layer(y).reshape(*x.shape[:2], -1, WIDTH // HEADS)
            for layer in (self.queries, self.keys, self.values)
        )
        mixed = jax.nn.dot_product_attention(
            rotated(queries), rotated(keys), values, is_causal=True
        )
        x = x + self.mix(mixed.reshape(x.shape))
        y = self.before_gate(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))


def rotated(x):
    """Turns each pair of entries by an angle that grows with the position."""
    half = x.shape[-1] // 2
    angles = jnp.outer(jnp.arange(x.shape[1]), 1e4 ** -(jnp.arange(half) / half))
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [first * cos - second * sin, first * sin + second * cos], axis=-1
    )


class LlamaHead(spx.Module):
    def __init__(self, *, rngs):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.logits = nn.Linear(
            *(WIDTH, VOCABULARY),
            use_bias=False,
            sharding=("rows", "columns"),
            rngs=rngs,
        )

    def forward(self, x):
        return self.logits(self.norm(x))


class Llama(spx.Module):
    """The architecture of Llama 3, which spectrax splits at its blocks."""

    def __init__(self, *, rngs):
        super().__init__()
        self.embed = nn.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.blocks = nn.ModuleList([LlamaBlock(rngs=rngs) for _ in range(4)])
        self.head = LlamaHead(rngs=rngs)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

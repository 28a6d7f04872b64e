"""A small model for the pipelines of spectrax: an embedding, blocks and a head."""
# `nox -s runtimes` alone installs spectrax.
# pyright: reportMissingImports=false

import jax
import jax.numpy as jnp
import spectrax as spx
from spectrax import nn
from spectrax.runtime.mpmd import sxstage_iter


WIDTH, VOCABULARY, BLOCKS = 32, 64, 8


class Block(spx.Module):
    """Three layers with a residual connection."""

    def __init__(self, *, rngs):
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH, rngs=rngs)
        self.up = nn.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nn.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def forward(self, x):
        means = jnp.cumsum(x, axis=1) / jnp.arange(1, 1 + x.shape[1])[:, None]
        x = x + self.mix(means)
        return x + self.down(jax.nn.gelu(self.up(x)))


class LanguageModel(spx.Module):
    """A language model in several stages; `is_tied` leaves its head unused."""

    def __init__(self, stages, is_tied, *, rngs):
        super().__init__()
        self.embed = nn.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.blocks = nn.ModuleList([Block(rngs=rngs) for _ in range(BLOCKS)])
        self.head = nn.Linear(WIDTH, VOCABULARY, rngs=rngs)
        self.starts = {k * BLOCKS // stages for k in range(1, stages)}
        self.is_tied = is_tied

    def forward(self, tokens):
        x = self.embed(tokens)
        for number, block in enumerate(self.blocks):
            if number in self.starts:
                x = sxstage_iter(x)
            x = block(x)
        return x @ self.embed.weight.value.T if self.is_tied else self.head(x)


def make(stages, is_tied=False):
    """The parameters, and the loss as a function of parameters and tokens."""
    graph, params = spx.export(LanguageModel(stages, is_tied, rngs=spx.Rngs(0)))

    def loss(params, tokens):
        logits = spx.bind(graph, params)(tokens)[:, :-1]
        targets = jax.nn.one_hot(tokens[:, 1:], VOCABULARY)
        return -(jax.nn.log_softmax(logits) * targets).sum(-1).mean()

    return params, loss

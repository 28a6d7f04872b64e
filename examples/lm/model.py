"""A byte-level transformer decoder, split into stages."""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


BYTES = 256

Tokens = Int[Array, " length"]
Hidden = Float[Array, "length width"]


@dataclass(frozen=True)
class Sizes:
    """The sizes of the model."""

    width: int = 128
    blocks: int = 4
    heads: int = 4
    length: int = 128


class Attention(eqx.Module):
    """Causal self-attention."""

    qkv: eqx.nn.Linear
    out: eqx.nn.Linear
    heads: int

    def __init__(self, width: int, heads: int, *, key: PRNGKeyArray):
        qkv_key, out_key = jax.random.split(key)
        self.qkv = eqx.nn.Linear(width, 3 * width, use_bias=False, key=qkv_key)
        self.out = eqx.nn.Linear(width, width, use_bias=False, key=out_key)
        self.heads = heads

    def __call__(self, x: Hidden) -> Hidden:
        length, width = x.shape
        size = width // self.heads
        qkv = jax.vmap(self.qkv)(x).reshape(length, 3, self.heads, size)
        queries, keys, values = jnp.moveaxis(qkv, 1, 0)
        scores = jnp.einsum("qhd,khd->hqk", queries, keys) / math.sqrt(size)
        past = jnp.tri(length, dtype=bool)
        attention = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
        mixed = jnp.einsum("hqk,khd->qhd", attention, values)
        return jax.vmap(self.out)(mixed.reshape(length, width))


class MLP(eqx.Module):
    """Two layers with an activation between them, applied at each position."""

    up: eqx.nn.Linear
    down: eqx.nn.Linear
    activation: Callable[[Array], Array]

    def __init__(self, width: int, *, key: PRNGKeyArray):
        up_key, down_key = jax.random.split(key)
        self.up = eqx.nn.Linear(width, 4 * width, key=up_key)
        self.down = eqx.nn.Linear(4 * width, width, key=down_key)
        self.activation = jax.nn.gelu

    def __call__(self, x: Hidden) -> Hidden:
        return jax.vmap(self.down)(self.activation(jax.vmap(self.up)(x)))


class Block(eqx.Module):
    """Attention and MLP, each with pre-normalization and a residual connection."""

    attention_norm: eqx.nn.LayerNorm
    attention: Attention
    mlp_norm: eqx.nn.LayerNorm
    mlp: MLP

    def __init__(self, sizes: Sizes, *, key: PRNGKeyArray):
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = eqx.nn.LayerNorm(sizes.width)
        self.attention = Attention(sizes.width, sizes.heads, key=attention_key)
        self.mlp_norm = eqx.nn.LayerNorm(sizes.width)
        self.mlp = MLP(sizes.width, key=mlp_key)

    def __call__(self, x: Hidden) -> Hidden:
        x = x + self.attention(jax.vmap(self.attention_norm)(x))
        return x + self.mlp(jax.vmap(self.mlp_norm)(x))


class Embedding(eqx.Module):
    """Embeddings of bytes and positions."""

    byte: Float[Array, "bytes width"]
    position: Float[Array, "length width"]

    def __init__(self, sizes: Sizes, *, key: PRNGKeyArray):
        self.byte = 0.5 * jax.random.normal(key, (BYTES, sizes.width))
        self.position = _waves(sizes.length, sizes.width)

    def __call__(self, tokens: Tokens) -> Hidden:
        return self.byte[tokens] + self.position[: len(tokens)]


def _waves(length: int, width: int) -> Float[Array, "length width"]:
    """Sinusoidal initial values, from which attention to neighbours is close."""
    frequencies = jnp.logspace(0, -3, width // 2)
    angles = jnp.outer(jnp.arange(length), frequencies)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


class Head(eqx.Module):
    """The logits of the next byte."""

    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear

    def __init__(self, sizes: Sizes, *, key: PRNGKeyArray):
        self.norm = eqx.nn.LayerNorm(sizes.width)
        self.linear = eqx.nn.Linear(sizes.width, BYTES, use_bias=False, key=key)

    def __call__(self, x: Hidden) -> Float[Array, "length bytes"]:
        return jax.vmap(self.linear)(jax.vmap(self.norm)(x))


class Stage(eqx.Module):
    """The part of the model on one device: blocks, and the embedding or the head."""

    embedding: Embedding | None
    blocks: tuple[Block, ...]
    head: Head | None

    def __call__(self, x: Tokens | Hidden) -> Float[Array, "length features"]:
        if self.embedding is not None:
            x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return x if self.head is None else self.head(x)


class Model(eqx.Module):
    """The whole language model: from bytes to the logits of the next byte.

    Its leaves and their paths do not depend on the number of stages.
    """

    embedding: Embedding
    blocks: tuple[Block, ...]
    head: Head
    cuts: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, sizes: Sizes, stages: int, *, key: PRNGKeyArray):
        if not 1 <= stages <= sizes.blocks:
            raise ValueError(
                f"A model of {sizes.blocks} blocks has 1 to {sizes.blocks} stages, "
                f"not {stages}."
            )
        embedding_key, head_key, *keys = jax.random.split(key, 2 + sizes.blocks)
        self.embedding = Embedding(sizes, key=embedding_key)
        self.blocks = tuple(Block(sizes, key=block_key) for block_key in keys)
        self.head = Head(sizes, key=head_key)
        cuts = [round(sizes.blocks * stage / stages) for stage in range(stages + 1)]
        self.cuts = tuple(cuts)

    def stage(self, number: int) -> Stage:
        """The computation of one device."""
        first, last = 0, len(self.cuts) - 2
        return Stage(
            self.embedding if number == first else None,
            self.blocks[self.cuts[number] : self.cuts[number + 1]],
            self.head if number == last else None,
        )

    def stage_of(self, path: tuple, leaf: object) -> int:
        """The stage of a leaf, from its key path: `.blocks[2]...`."""
        del leaf
        if path[0].name == "embedding":
            return 0
        if path[0].name == "head":
            return len(self.cuts) - 2
        return bisect.bisect_right(self.cuts, path[1].idx) - 1

    def __call__(self, tokens: Tokens) -> Float[Array, "length bytes"]:
        x = tokens
        for number in range(len(self.cuts) - 1):
            x = self.stage(number)(x)
        return x


def number_of_parameters(model: Model) -> int:
    """The number of parameters."""
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return sum(array.size for array in arrays)


def cross_entropy(
    scores: Float[Array, "*batch bytes"], targets: Int[Array, "*batch"]
) -> Float[Array, ""]:
    """The mean loss, in nats per byte."""
    log_probabilities = jax.nn.log_softmax(scores)
    picked = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)
    return -picked.mean()

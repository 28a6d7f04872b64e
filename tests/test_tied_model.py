"""A small language model whose embedding is also its head, trained in stages."""

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from jaxtyping import Array


VOCABULARY, WIDTH, LENGTH = 24, 16, 10


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP

    def __init__(self, key):
        keys = jax.random.split(key)
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.attention = eqx.nn.MultiheadAttention(2, WIDTH, key=keys[0])
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, 2 * WIDTH, 1, key=keys[1])

    def __call__(self, hidden):
        normed = jax.vmap(self.norm)(hidden)
        hidden = hidden + self.attention(normed, normed, normed)
        return hidden + jax.vmap(self.mlp)(hidden)


class Model(eqx.Module):
    """`embed` is on the first stage and on the last, a block on each."""

    embed: Array
    blocks: tuple[Block, Block]

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = 0.1 * jax.random.normal(keys[0], (VOCABULARY, WIDTH))
        self.blocks = (Block(keys[1]), Block(keys[2]))


def first(piece, tokens):
    return piece.blocks[0](piece.embed[tokens])


def last(piece, hidden, targets):
    logits = piece.blocks[1](hidden) @ piece.embed.T
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


@eqx.filter_jit
def backward(one, two, tokens):
    """The loss, and the gradients of each stage's own parameters."""
    hidden, pull = eqx.filter_vjp(lambda piece: first(piece, tokens[:-1]), one)

    def loss(arguments):
        piece, hidden = arguments
        return last(piece, hidden, tokens[1:])

    value, (grads, cotangent) = eqx.filter_value_and_grad(loss)((two, hidden))
    return value, (pull(cotangent)[0], grads)


def stage_of(path, leaf):
    blocks = [key.idx for key in path if isinstance(key, jax.tree_util.SequenceKey)]
    return blocks[0] if path[0].name == "blocks" else {0, 1}


def untied_step(tx):
    """The same by hand: the two embeddings' gradients are added, and one is updated."""

    @eqx.filter_jit
    def step(grads, state, params):
        first, last = grads
        embed = first.embed + last.embed
        summed = eqx.tree_at(lambda g: g.embed, eqx.combine(first, last), embed)
        updates, state = tx.update(summed, state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("spread", [False, True], ids=["one device", "two devices"])
def test_training_with_a_tied_embedding(spread):
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
    model = Model(jax.random.key(0))
    tokens = jnp.arange(LENGTH) ** 2 % VOCABULARY
    partition = fo.partition(model, stage_of)
    staged = fo.stage_local(tx, model, partition)
    assert staged.rounds == 2
    devices = tuple(jax.devices()[: 2 if spread else 1] * (1 if spread else 2))

    def put(pieces):
        arrays, others = eqx.partition(pieces, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, devices), others)

    pieces = put(partition.split(model))
    states = staged.init(pieces)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    state, step = jax.jit(tx.init)(params), untied_step(tx)
    losses = []
    for _ in range(30):
        by_hand = partition.split(eqx.combine(params, static))
        loss, grads = backward(*by_hand, tokens)
        losses.append(float(loss))
        pieces, states = staged.step(put(grads), states, pieces)
        params, state = step(grads, state, params)
        new = eqx.filter(pieces, eqx.is_array)
        fo.testing.assert_equal(new, partition.split(params))
        fo.testing.assert_equal(staged.merge_state(states), state)
    assert losses[-1] < losses[0] / 4

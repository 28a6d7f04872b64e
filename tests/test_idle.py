"""Rounds that counters tell to be idle are left out: nobody could tell."""

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import compilations
from rooms import Exchange


PARAMS = {
    f"layer {i}": {
        "weight": jnp.full((4, 3), 0.1 * i + 0.1, jnp.float32),
        "bias": jnp.ones(3),
    }
    for i in range(3)
}
PARTITION = fo.partition(PARAMS, {f"layer {i}": i for i in range(3)})
DEVICES = jax.devices()[:3]
CLIP = optax.clip_by_global_norm(0.5)
ADAMW = optax.chain(CLIP, optax.adamw(0.1))


def recipe(**fields):
    return fo.Recipe(
        optimizer=fo.AdamW(), schedule=0.1, clip_norm=0.5, **fields
    ).build()


def every_third(step, **_):
    return step % 3 == 2


def counted_in_floats():
    """Floats may be rounded otherwise on another device, so they tell nothing."""

    def update(updates, state, params=None):
        updates, _ = jax.lax.cond(
            state % 3 == 2,
            lambda: CLIP.update(updates, optax.EmptyState()),
            lambda: (updates, optax.EmptyState()),
        )
        return updates, state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros(()), update)


# For each the rounds that are exchanged in 6 steps.
CASES = {
    "recipe": (recipe(accumulate=3), 2),
    "recipe, averages": (recipe(accumulate=3, ema_decay=0.9), 2),
    "one of two rounds": (
        optax.chain(optax.conditionally_transform(ADAMW, every_third), CLIP),
        2 + 6,
    ),
    "conditionally transform": (optax.conditionally_transform(CLIP, every_third), 2),
    "conditionally mask": (optax.conditionally_mask(ADAMW, every_third), 2),
    "nested": (optax.conditionally_mask(recipe(accumulate=2), every_third), 2),
    "every step": (ADAMW, 6),
    "the gradients tell": (recipe(accumulate=3, skip_nonfinite=True), 6),
    "floats": (counted_in_floats(), 6),
}


def placed(tree):
    return jax.device_put(tree, tuple(DEVICES), may_alias=False)


def gradients(number):
    key = jax.random.key(number)
    leaves, structure = jax.tree.flatten(PARAMS)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


@pytest.fixture
def exchanges(monkeypatch):
    """The exchanges so far. What is left out would be seen in the results."""
    made, call = [], Exchange.__call__

    def counted(self, sent):
        made.append(self)
        return call(self, sent)

    def garbage(self):
        ones = np.full((len(self.senders), self.num_words), 0xFFFFFFFF, np.uint32)
        return [s and jax.device_put(ones, s) for s in self.shardings]

    monkeypatch.setattr(Exchange, "__call__", counted)
    monkeypatch.setattr(Exchange, "nothing", property(garbage))
    return made


def staged_of(tx, **options):
    return fo.stage_local(tx, PARAMS, PARTITION, **options)


def whole_steps(tx, steps):
    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for number in range(steps):
        params, state = step(gradients(number), state, params)
    return params, state


def run(staged, first, steps, pieces, states):
    for number in range(first, first + steps):
        grads = placed(PARTITION.split(gradients(number)))
        pieces, states = staged.step(grads, states, pieces)
    return pieces, states


def start(staged):
    pieces = placed(PARTITION.split(PARAMS))
    return pieces, staged.init(pieces)


def merged(staged, pieces, states):
    return PARTITION.merge(pieces), staged.merge_state(states)


@pytest.mark.parametrize("name", CASES)
def test_rounds_that_no_stage_needs_are_left_out(name, exchanges):
    tx, expected = CASES[name]
    staged = staged_of(tx)
    found = run(staged, 0, 6, *start(staged))
    assert len(exchanges) == expected
    fo.testing.assert_equal(merged(staged, *found), whole_steps(tx, 6))


def test_states_are_told_apart(exchanges):
    """Those of two runs, one of which is two steps ahead."""
    tx, _ = CASES["recipe"]
    staged = staged_of(tx)
    ahead = run(staged, 0, 2, *start(staged))
    behind = start(staged)
    for number in range(3):
        ahead = run(staged, 2 + number, 1, *ahead)
        behind = run(staged, number, 1, *behind)
    assert len(exchanges) == 2
    fo.testing.assert_equal(merged(staged, *ahead), whole_steps(tx, 5))
    fo.testing.assert_equal(merged(staged, *behind), whole_steps(tx, 3))


def test_a_state_from_elsewhere_is_read_once(exchanges, monkeypatch):
    tx, _ = CASES["recipe"]
    params, state = whole_steps(tx, 2)
    staged = staged_of(tx)
    pieces = placed(PARTITION.split(params))
    states = staged.split_state(state, pieces)
    reads = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: reads.append(x) or get(x))
    found = run(staged, 2, 1, pieces, states)
    assert len(reads) >= 3 and len(exchanges) == 1
    del reads[:]
    found = run(staged, 3, 3, *found)
    assert not reads and len(exchanges) == 2
    fo.testing.assert_equal(merged(staged, *found), whole_steps(tx, 6))


def test_stages_that_disagree_exchange(exchanges):
    staged = staged_of(CASES["recipe"][0])
    pieces, states = start(staged)
    ahead = states[0]._replace(mini_step=states[0].mini_step + 1)
    run(staged, 0, 1, pieces, (ahead, *states[1:]))
    assert len(exchanges) == 1


@pytest.mark.parametrize("method", ["update", "step"])
def test_whole_trees_leave_them_out_too(method, exchanges):
    tx, expected = CASES["recipe"]
    whole = staged_of(tx, meshes=DEVICES, donate=method == "step").whole
    pieces = placed(PARTITION.split(PARAMS))
    params = PARTITION.merge(pieces)
    state = whole.init(params)
    for number in range(6):
        grads = PARTITION.merge(placed(PARTITION.split(gradients(number))))
        if method == "step":
            params, state = whole.step(grads, state, params)
        else:
            updates, state = whole.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    assert len(exchanges) == expected
    fo.testing.assert_equal(params, whole_steps(tx, 6)[0])


def test_the_first_step_compiles_what_a_later_one_runs(exchanges):
    """Its messages and their exchange too, although it requires neither."""
    staged = staged_of(CASES["recipe"][0])
    begun = start(staged)
    with compilations() as names:
        found = run(staged, 0, 1, *begun)
    assert {"stage_messages", "gather", "stage_results"} <= set(names)
    assert not exchanges
    with compilations() as names:
        run(staged, 1, 5, *found)
    assert exchanges and names == []


def test_nothing_is_kept_of_states_that_are_gone():
    """Nor of many steps: memory does not grow."""
    staged = staged_of(CASES["recipe"][0])
    pieces, states = run(staged, 0, 4, *start(staged))
    known = staged._counters._known
    assert len(known) == 3 and pieces
    del states
    assert not known

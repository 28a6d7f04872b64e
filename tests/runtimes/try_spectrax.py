"""Our optimizers in the pipelines of spectrax: with every schedule, bit for bit.

`nox -s runtimes` installs spectrax and runs this. The reference is the transformation
of Optax itself, jitted on the whole tree on one device, with the same gradients.
"""
# pyright: reportMissingImports=false

import logging
import os
import re
from pathlib import Path
from typing import Any


os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
import spectrax as spx
from compilations import compilations
from easydel import stage_local_optimizer
from jax.sharding import NamedSharding, PartitionSpec
from spectrax.runtime import schedules
from spectrax_model import make, VOCABULARY


logging.disable(logging.INFO)
PAGE = Path(__file__).parents[2] / "docs" / "runtimes.md"
STAGES, STEPS = 4, 4
TOKENS = jax.random.randint(jax.random.key(1), (16, 8), 0, VOCABULARY)
RECIPE = fo.Recipe(
    optimizer=fo.AdamW(b2=0.95),
    schedule=fo.Cosine(peak_value=3e-3, warmup_steps=1, decay_steps=10),
    clip_norm=1.0,
    weight_decay=0.1,
    decay_where=fo.Where(min_ndim=2),
)

# Each schedule, how many parts of the model each device has, and what creates it.
SCHEDULES = {
    "GPipe": (1, {}),
    "Std1F1B": (1, {}),
    "Eager1F1B": (1, {}),
    "ZeroBubbleH1": (1, {}),
    "InterleavedGPipe": (2, {"virtual_stages": 2}),
    "InterleavedH1": (2, {"virtual_stages": 2}),
    "Interleaved1F1BPlusOne": (2, {"virtual_stages": 2}),
    "KimiK2": (2, {"virtual_stages": 2}),
    "DualPipeV": (2, {}),
}


class Pipeline:
    """The model in a pipeline of spectrax, with its parameters where that puts them."""

    def __init__(self, schedule, *, stages=STAGES, is_tied=False):
        parts, options = SCHEDULES[schedule]
        self.mesh = spx.create_mesh(axis_dims=(stages, 1, -1, 1, 1, 1), mpmd_axis="pp")
        params, loss = make(stages * parts, is_tied)
        if is_tied or stages == len(jax.devices()):
            # With one device per stage, what is on the first device counts as assigned
            # to its stage; and a tied parameter must be on all stages.
            everywhere = NamedSharding(self.mesh.jax_mesh, PartitionSpec())
            params = jax.device_put(params, everywhere)
        self.loss = spx.jit(
            loss,
            mesh=self.mesh,
            schedule=getattr(schedules, schedule)(microbatches=8, **options),
            batch_argnums=(1,),
        )
        self.value_and_grad = spx.sxvalue_and_grad(self.loss, argnums=0)
        _, (grads,) = self.value_and_grad(params, TOKENS)
        self.params = jax.tree.map(
            lambda p, g: p if g is None else jax.device_put(p, g.sharding),
            params,
            grads,
        )

    def grads(self, params):
        _, (grads,) = self.value_and_grad(params, TOKENS)
        return grads


def whole_tree(tx, params):
    """The same transformation on one device: a step, and its first state."""

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step, jax.jit(tx.init)(params)


def on_one_device(tree):
    return jax.device_put(jax.device_get(tree), jax.devices()[0])


def filled(grads, params):
    """With zeros in place of the gradients of unused parameters."""
    return jax.tree.map(
        lambda p, g: jnp.zeros_like(p) if g is None else g, params, grads
    )


def shardings(tree):
    return [leaf.sharding for leaf in jax.tree.leaves(tree)]


def check(pipeline, tx, init, step, grade: Any = "exact"):
    """Trains with the pipeline and with Optax, and compares after every step."""
    params, state = pipeline.params, init(pipeline.params)
    whole = on_one_device(params)
    reference, whole_state = whole_tree(tx, whole)
    for number in range(STEPS):
        grads = pipeline.grads(params)
        before = shardings((params, state))
        with (
            compilations() as names,
            jax.transfer_guard_device_to_device("disallow_explicit"),
        ):
            params, state = step(grads, state, params)
        assert not number or names == []
        assert shardings((params, state)) == before
        given = filled(on_one_device(grads), whole)
        whole, whole_state = reference(given, whole_state, whole)
        fo.testing.assert_equal((params, state), (whole, whole_state), grade=grade)
        if grade != "exact":  # Compare each step alone: differences would grow.
            whole, whole_state = on_one_device((params, state))


# The lines that connect a runtime with the optimizer: docs/runtimes.md shows them.
def connect(recipe, params):
    partition = fo.partition_by_devices(params)
    tx = recipe.build_mpmd(params, partition).whole
    return tx, tx.init(params)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule(schedule):
    pipeline = Pipeline(schedule)
    tx, _ = connect(RECIPE, pipeline.params)
    assert fo.partition_by_devices(pipeline.params).num_stages == STAGES
    check(pipeline, RECIPE.build(), tx.init, tx.step)


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline("Std1F1B")


# What works on whole matrices on a device rounds differently in another program.
OPTIMIZERS: dict[str, tuple[fo.Recipe, Any]] = {
    "AdamW": (RECIPE, "exact"),
    "Lion": (fo.Recipe(optimizer=fo.Lion(), schedule=1e-3, clip_norm=0.5), "exact"),
    "Adafactor": (fo.Recipe(optimizer=fo.Adafactor(), schedule=1e-3), "exact"),
    "ScheduleFreeAdamW": (
        fo.Recipe(optimizer=fo.ScheduleFreeAdamW(), schedule=1e-3),
        "exact",
    ),
    "Muon": (fo.Recipe(optimizer=fo.Muon(), schedule=1e-3, clip_norm=0.5), "bounded"),
    "SOAP": (fo.Recipe(optimizer=fo.SOAP(), schedule=1e-3), "bounded"),
    "accumulate": (
        fo.Recipe(optimizer=fo.AdamW(), schedule=1e-3, clip_norm=0.5, accumulate=2),
        "exact",
    ),
    "skip, averages": (
        fo.Recipe(
            optimizer=fo.AdamW(), schedule=1e-3, skip_nonfinite=True, ema_decay=0.9
        ),
        "exact",
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(pipeline, name):
    recipe, grade = OPTIMIZERS[name]
    tx, _ = connect(recipe, pipeline.params)
    check(pipeline, recipe.build(), tx.init, tx.step, grade)


def test_one_device_per_stage():
    pipeline = Pipeline("Std1F1B", stages=8)
    tx, _ = connect(RECIPE, pipeline.params)
    check(pipeline, RECIPE.build(), tx.init, tx.step)


def test_tied_embedding_and_unused_head():
    pipeline = Pipeline("Std1F1B", stages=2, is_tied=True)
    gradients = jax.tree.leaves(
        pipeline.grads(pipeline.params), is_leaf=lambda leaf: leaf is None
    )
    assert None in gradients
    tx, _ = connect(RECIPE, pipeline.params)
    check(pipeline, RECIPE.build(), tx.init, tx.step)


def test_inside_the_fused_step(pipeline):
    """The update in `assemble_outputs`, as `apply_fn` has no norm of all stages."""
    tx, state = connect(RECIPE, pipeline.params)
    fused = spx.sxvalue_and_grad_and_apply(pipeline.loss, argnums=0)

    def assemble_outputs(context):
        (grads,) = context["grads_for_log"]
        return tx.step(grads, context["opt_state"], context["params"])

    outputs = {
        "apply_fn": lambda rank, *, grad_accums, state: None,
        "assemble_outputs": assemble_outputs,
    }
    params = expected = pipeline.params
    after = state
    for _ in range(3):
        grads = pipeline.grads(expected)
        expected, after = tx.step(grads, after, expected)
        _, params, state = fused(params, TOKENS, opt_state=state, **outputs)
        fo.testing.assert_equal((params, state), (expected, after), grade="exact")


def test_through_the_adapter_for_easydel(pipeline):
    tx = stage_local_optimizer(RECIPE.build())

    def step(grads, state, params):
        return tx.apply_gradients_stage_local(
            params=params, grads=grads, opt_state=state, learning_rate_fn=None
        )

    check(pipeline, RECIPE.build(), tx.init, step)


def test_the_page_shows_the_lines_that_connect():
    source = Path(__file__).read_text()
    (lines,) = re.findall(r"def connect\(.*\n((?:    .*\n)+)", source)
    page = PAGE.read_text()
    for line in lines.splitlines()[:-1]:
        assert line.strip() in page
    assert all(name in page for name in (*SCHEDULES, *OPTIMIZERS))

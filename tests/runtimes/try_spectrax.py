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
import pages
import pytest
import spectrax as spx
from compilations import compilations
from easydel import StageLocalOptimizer
from jax.sharding import NamedSharding
from pipelines import (
    connect,
    filled,
    on_one_device,
    Pipeline,
    RECIPE,
    SCHEDULES,
    TOKENS,
    whole_tree,
)
from spectrax.runtime.primitives.split import auto_split
from spectrax.runtime.schedules import Std1F1B
from spectrax.sharding import logical_axis_rules
from spectrax_model import cross_entropy, Llama, LOGICAL_AXES


logging.disable(logging.INFO)
STAGES, STEPS = 4, 4

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
    "accumulate=2": (
        fo.Recipe(optimizer=fo.AdamW(), schedule=1e-3, clip_norm=0.5, accumulate=2),
        "exact",
    ),
    "skip_nonfinite, ema_decay": (
        fo.Recipe(
            optimizer=fo.AdamW(), schedule=1e-3, skip_nonfinite=True, ema_decay=0.9
        ),
        "exact",
    ),
}

ONE_DEVICE = "`Std1F1B`, one device per stage"
TIED = "`Std1F1B`, a tied embedding and an unused head"
LLAMA = "`spx.run` with `Std1F1B`, Llama with sharded leaves"
FUSED = "the fused `sxvalue_and_grad_and_apply`"
EASYDEL = "`Std1F1B`, through the adapter for EasyDeL"


@pytest.fixture(scope="module")
def tables():
    schedules = [f"`{name}`" for name in SCHEDULES]
    pipelines = [*schedules, ONE_DEVICE, TIED, LLAMA, FUSED, EASYDEL]
    recipes = [f"`{name}`" for name in OPTIMIZERS]
    return pages.Tables({"pipelines": pipelines, "recipes": recipes})


def shardings(tree):
    return [leaf.sharding for leaf in jax.tree.leaves(tree)]


def size_of(params):
    """The stages and devices that hold parameters."""
    stages = fo.partition_by_devices(params).num_stages
    devices = {d for s in shardings(params) for d in s.device_set}
    return f"{stages} x {len(devices) // stages}"


def check(pipeline, tx, init, step, grade: Any = "exact", put=on_one_device):
    """Trains with the pipeline and with Optax, and compares after every step."""
    params, state = pipeline.params, init(pipeline.params)
    whole = put(params)
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
        given = filled(put(grads), whole)
        whole, whole_state = reference(given, whole_state, whole)
        fo.testing.assert_equal((params, state), (whole, whole_state), grade=grade)
        if grade != "exact":  # Compare each step alone: differences would grow.
            whole, whole_state = on_one_device((params, state))
    return {
        "stages x devices": size_of(params),
        "leaves of parameters and state": len(jax.tree.leaves((params, state))),
        "equal": grade,
    }


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule(schedule, tables):
    pipeline = Pipeline(schedule, stages=STAGES)
    tx, _ = connect(RECIPE, pipeline.params)
    assert fo.partition_by_devices(pipeline.params).num_stages == STAGES
    found = check(pipeline, RECIPE.build(), tx.init, tx.step)
    virtual = {} if SCHEDULES[schedule][0] == 1 else {"parts per stage": 2}
    tables.add(
        "pipelines", f"`{schedule}`", pipeline=f"`{schedule}`", **found, **virtual
    )


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline("Std1F1B", stages=STAGES)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(pipeline, name, tables):
    recipe, grade = OPTIMIZERS[name]
    tx, _ = connect(recipe, pipeline.params)
    found = check(pipeline, recipe.build(), tx.init, tx.step, grade)
    tables.add("recipes", f"`{name}`", recipe=f"`{name}`", **found)


def test_one_device_per_stage(tables):
    pipeline = Pipeline("Std1F1B", stages=8)
    tx, _ = connect(RECIPE, pipeline.params)
    found = check(pipeline, RECIPE.build(), tx.init, tx.step)
    tables.add("pipelines", ONE_DEVICE, pipeline=ONE_DEVICE, **found)


def test_tied_embedding_and_unused_head(tables):
    pipeline = Pipeline("Std1F1B", stages=2, is_tied=True)
    gradients = jax.tree.leaves(
        pipeline.grads(pipeline.params), is_leaf=lambda leaf: leaf is None
    )
    assert None in gradients
    tx, _ = connect(RECIPE, pipeline.params)
    found = check(pipeline, RECIPE.build(), tx.init, tx.step)
    tables.add("pipelines", TIED, pipeline=TIED, **found)


class LlamaPipeline:
    """Llama under `spx.run`, which splits the model: one tree per stage."""

    def __init__(self):
        self.mesh = spx.create_mesh(axis_dims=(2, 1, 2, 1, 2, 1), mpmd_axis="pp")
        with logical_axis_rules(LOGICAL_AXES), self.mesh:
            self.model = Llama(rngs=spx.Rngs(0))
            self.stages = auto_split(self.model, 2)
        params = tuple(
            spx.export(stage)[1].filter("parameters", copy=True)
            for stage in self.stages
        )
        self.params = jax.tree.map(
            lambda p, g: jax.device_put(p, g.sharding), params, self._run()
        )

    def _run(self):
        with logical_axis_rules(LOGICAL_AXES), self.mesh:
            _, grads = spx.run(
                self.model,
                inputs=TOKENS,
                targets=TOKENS,
                mesh=self.mesh,
                mode="train",
                loss_fn=cross_entropy,
                schedule=Std1F1B(microbatches=4),
            )
        return tuple(grads)

    def grads(self, params):
        for stage, own in zip(self.stages, params, strict=True):
            spx.update(stage, own)
        return self._run()


def test_llama_with_sharded_leaves(tables):
    """Compared with Optax on one stage's devices, with the same shards of each leaf.

    A sum of squares adds up its shards in another order than on one device.
    """
    pipeline = LlamaPipeline()
    first = pipeline.mesh.mpmd_mesh.unstack()[0]

    def put(tree):
        return jax.tree.map(
            lambda x: jax.device_put(
                jax.device_get(x), NamedSharding(first, x.sharding.spec)
            ),
            tree,
        )

    sharded = [s for s in shardings(pipeline.params) if not s.is_fully_replicated]
    assert len(sharded) > len(jax.tree.leaves(pipeline.params)) // 2
    tx, _ = connect(RECIPE, pipeline.params)
    found = check(pipeline, RECIPE.build(), tx.init, tx.step, put=put)
    tables.add("pipelines", LLAMA, pipeline=LLAMA, **found)


def test_inside_the_fused_step(pipeline, tables):
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
    leaves = len(jax.tree.leaves((params, state)))
    found = {
        "stages x devices": size_of(params),
        "leaves of parameters and state": leaves,
        "equal": "exact, compared with the two calls",
    }
    tables.add("pipelines", FUSED, pipeline=FUSED, **found)


def test_through_the_adapter_for_easydel(pipeline, tables):
    tx = StageLocalOptimizer(RECIPE.build())

    def step(grads, state, params):
        return tx.apply_gradients_stage_local(
            params=params, grads=grads, opt_state=state, learning_rate_fn=None
        )

    found = check(pipeline, RECIPE.build(), tx.init, step)
    tables.add("pipelines", EASYDEL, pipeline=EASYDEL, **found)


def test_the_page(tables):
    """Writes the tables; the lines that connect are those that ran here."""
    source = Path(__file__).with_name("pipelines.py").read_text()
    (lines,) = re.findall(r"def connect\(.*\n((?:    .*\n)+)", source)
    page = pages.PAGE.read_text()
    for line in lines.splitlines()[:-1]:
        assert line.strip().replace(", **options", "") in page
    tables.write()

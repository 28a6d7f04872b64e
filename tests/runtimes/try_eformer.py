"""Our optimizers beside those of eformer, on the gradients of a pipeline of spectrax.

`nox -s runtimes` installs both and runs this. AdamW with a clip by the global norm has
the same settings in both, and in Optax on the whole tree on one device.
"""
# pyright: reportMissingImports=false

import ast
import functools
import gc
import inspect
import itertools
import logging
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple


os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pages
import pipelines
import pytest
from by_hand import ByHand
from eformer.optimizers import AdamWConfig, OptimizerFactory, SchedulerConfig
from pipelines import on_one_device, Pipeline, whole_step, whole_tree


logging.disable(logging.INFO)
RATE, B2, DECAY, CLIP_NORM = 3e-3, 0.95, 0.1, 1.0
STEPS, ROUNDS = 8, 60
RECIPE = fo.Recipe(
    optimizer=fo.AdamW(b2=B2, weight_decay=DECAY), schedule=RATE, clip_norm=CLIP_NORM
)

# Millions of parameters, by the width of the model; the numbers of stages.
WIDTHS = {"0.7": 128, "2.9": 268}
STAGES = {"2 x 2": 2, "4 x 1": 4}
CASES = [*itertools.product(WIDTHS, STAGES)]
DONATED = {"yes": "all", "no": False}


def connect_eformer(params):
    tx, _ = OptimizerFactory.create(
        "adamw",
        SchedulerConfig(learning_rate=RATE),
        AdamWConfig(b1=0.9, b2=B2, eps=1e-8),
        weight_decay=DECAY,
        clip_grad=CLIP_NORM,
    )
    return tx, tx.init(params)


def label(*names: str) -> str:
    return ", ".join(names)


FIRST = {
    "spectrax, gradients": "the first gradients of the pipeline",
    "functional_opt": "split, `init` and the first step",
    "eformer": "`init` and the first step",
    "Optax": "`init` and the first step, on one device",
    "Optax per stage": "the same of each stage's leaves alone, on its device",
}


@pytest.fixture(scope="module")
def tables():
    steps = [label(*case, donated) for case in CASES for donated in DONATED]
    return pages.Tables(
        {
            "compared with eformer": steps,
            "differences": [label(*case) for case in CASES],
        }
    )


KINDS = {
    "tracing": "jaxpr_trace_duration",
    "lowering": "jaxpr_to_mlir_module_duration",
    "XLA": "backend_compile_duration",
}


class Timer:
    """The seconds that pass, and those of the stages of compilation among them."""

    def __enter__(self):
        self.of_kind, self.programs, self._is_open = (
            dict.fromkeys(KINDS, 0.0),
            0,
            True,
        )
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        start, start_of_cores = self._start
        self.seconds = time.perf_counter() - start
        self.of_cores = time.process_time() - start_of_cores
        self._is_open = False  # JAX keeps listeners for good.

    def _listen(self, event, duration_secs, **kwargs):
        for kind, end in KINDS.items():
            if self._is_open and event.endswith(end):
                self.of_kind[kind] += duration_secs
                self.programs += kind == "XLA"


@pytest.fixture(scope="module")
def pipeline_of():
    return functools.cache(
        lambda millions, layout: Pipeline(
            "Std1F1B", stages=STAGES[layout], width=WIDTHS[millions]
        )
    )


def test_first_step(pipeline_of):
    """What a training run waits for before its second step."""
    tables, timers = pages.Tables({"first step": FIRST}), {}

    def first(name):
        timers[name] = Timer()
        return timers[name]

    with first("spectrax, gradients"):
        pipeline = pipeline_of("0.7", "4 x 1")
    params, grads = pipeline.params, pipeline.grads(pipeline.params)
    jax.block_until_ready(grads)
    with first("functional_opt"):
        tx, state = pipelines.connect(RECIPE, params)
        jax.block_until_ready(tx.step(grads, state, params))
    with first("eformer"):
        tx, state = connect_eformer(params)
        jax.block_until_ready(eformer_step(tx, grads, state, params, delete=False))
    whole, given = on_one_device((params, grads))
    with first("Optax"):
        step, state = whole_tree(RECIPE.build(), whole)
        jax.block_until_ready(step(given, state, whole))
    split = fo.partition_by_devices(params).split
    with first("Optax per stage"):
        tx = RECIPE.build()
        init, step = jax.jit(tx.init), jax.jit(whole_step(tx))
        pieces = zip(split(grads), split(params), strict=True)
        jax.block_until_ready([step(g, init(p), p) for g, p in pieces])
    for name, timer in timers.items():
        kinds = {f"{kind}, s": round(s, 2) for kind, s in timer.of_kind.items()}
        tables.add(
            "first step",
            name,
            **{"": name, "what": FIRST[name], "seconds": round(timer.seconds, 2)},
            **{"seconds of all cores": round(timer.of_cores, 2)},
            **kinds,
            programs=timer.programs,
        )
    tables.write()
    ratio = timers["functional_opt"].of_cores / timers["Optax per stage"].of_cores
    pages.write_text(
        "how the first step was measured",
        f"{pages.machine()} With `functional_opt`, all cores together take {ratio:.3g} "
        "times as long as with Optax per stage.",
    )


def eformer_step(tx, grads, state, params, delete):
    return tx.apply_gradients_stage_local(
        params=params, grads=grads, opt_state=state, delete_grads=delete
    )


class Trained(NamedTuple):
    """A way to train: its step, and the first parameters, state and gradients."""

    step: Callable[..., Any]
    params: Any
    state: Any
    grads: Any


def copies(tree):
    return jax.tree.map(jnp.copy, tree)


def ways(pipeline, donate) -> dict[str, Trained]:
    """All four, each with its own copy of the parameters and the gradients."""
    params, own = copies(pipeline.params), copies(pipeline.params)
    adamw = optax.adamw(RATE, b2=B2, weight_decay=DECAY)
    by_hand = ByHand(adamw, CLIP_NORM, own, donate=bool(donate))
    grads = pipeline.grads(params)
    tx, state = pipelines.connect(RECIPE, params, donate=donate)
    other = copies(params)
    theirs, their_state = connect_eformer(other)
    whole = on_one_device(params)
    arguments = {"donate_argnums": (1, 2)} if donate else {}
    step, whole_state = whole_tree(RECIPE.build(), whole, **arguments)
    return {
        "functional_opt": Trained(tx.step, params, state, grads),
        "eformer": Trained(
            functools.partial(eformer_step, theirs, delete=bool(donate)),
            other,
            their_state,
            grads,
        ),
        "Optax": Trained(step, whole, whole_state, on_one_device(grads)),
        "by hand": Trained(by_hand.step, own, by_hand.init(own), grads),
    }


def seconds_of(trained: dict[str, Trained]) -> dict[str, list[float]]:
    """The seconds of each step, one way after another in each round, in random order.

    Gradients are copied before, and everything is awaited before and after.
    """
    held = {name: (way.params, way.state) for name, way in trained.items()}
    order, seconds = random.Random(0), {name: [] for name in trained}
    gc.collect()
    gc.disable()
    for number in range(ROUNDS + 3):
        for name in order.sample([*trained], len(trained)):
            params, state = held.pop(name)
            grads = copies(trained[name].grads)
            jax.block_until_ready((params, state, grads))
            start = time.perf_counter()
            held[name] = trained[name].step(grads, state, params)
            jax.block_until_ready(held[name])
            passed = time.perf_counter() - start
            if number >= 3:
                seconds[name].append(passed)
    gc.enable()
    return seconds


@pytest.mark.parametrize("donated", DONATED)
@pytest.mark.parametrize("millions, layout", CASES)
def test_milliseconds(pipeline_of, tables, millions, layout, donated):
    pipeline = pipeline_of(millions, layout)
    count = sum(x.size for x in jax.tree.leaves(pipeline.params))
    assert f"{count / 1e6:.1f}" == millions
    seconds = seconds_of(ways(pipeline, DONATED[donated]))
    ours, theirs, whole, by_hand = (
        seconds[name] for name in ("functional_opt", "eformer", "Optax", "by hand")
    )
    tables.add(
        "compared with eformer",
        label(millions, layout, donated),
        **{
            "parameters": f"{millions} M",
            "stages x devices": layout,
            "donated": donated,
            "functional_opt, ms": 1e3 * statistics.median(ours),
            "eformer, ms": 1e3 * statistics.median(theirs),
            "Optax, one device, ms": 1e3 * statistics.median(whole),
            "by hand, ms": 1e3 * statistics.median(by_hand),
            "eformer / functional_opt": ratio(theirs, ours),
            "eformer / by hand": ratio(theirs, by_hand),
            "functional_opt / Optax": ratio(ours, whole),
            "by hand / Optax": ratio(by_hand, whole),
        },
    )


def ratio(ones: list[float], others: list[float]) -> float:
    """The median of the ratios of the same rounds."""
    return statistics.median(a / b for a, b in zip(ones, others, strict=True))


@pytest.mark.parametrize("millions, layout", CASES)
def test_differences(pipeline_of, tables, millions, layout):
    """The parameters after each step, with the gradients that Optax has there."""
    pipeline = pipeline_of(millions, layout)
    trained = ways(pipeline, donate=False)
    held = {name: (way.params, way.state) for name, way in trained.items()}
    worst, reference = dict.fromkeys(trained, 0.0), None
    for _ in range(STEPS):
        grads = pipeline.grads(held["functional_opt"][0])
        for name, way in trained.items():
            params, state = held[name]
            given = on_one_device(grads) if name == "Optax" else grads
            held[name] = way.step(given, state, params)
        reference = held["Optax"][0]
        fo.testing.assert_equal(held["functional_opt"][0], reference, grade="exact")
        for name in trained:
            found = difference(held[name][0], reference)
            worst[name] = max(worst[name], found)
    assert worst["functional_opt"] == 0 and worst["by hand"] < 1e-6
    equal = {name: equal_leaves(held[name][0], reference) for name in trained}
    tables.add(
        "differences",
        label(millions, layout),
        **{
            "parameters": f"{millions} M",
            "stages x devices": layout,
            "functional_opt": f"0 ({equal['functional_opt']})",
            "eformer": f"{worst['eformer']:.1e} ({equal['eformer']})",
        },
    )


def difference(one, other) -> float:
    """The largest, as a part of the largest entry of its leaf."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    arrays = ((np.asarray(x), np.asarray(y)) for x, y in pairs)
    return max(float(abs(x - y).max() / abs(y).max()) for x, y in arrays)


def equal_leaves(one, other) -> str:
    pairs = [*zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]
    return f"{sum(np.array_equal(x, y) for x, y in pairs)} of {len(pairs)} leaves equal"


def statements(function) -> int:
    (definition,) = ast.parse(inspect.getsource(function)).body
    assert isinstance(definition, ast.FunctionDef)
    return len(definition.body)


def test_the_page(tables):
    tables.write()
    ours, theirs = map(statements, (pipelines.connect, connect_eformer))
    pages.write_text(
        "how eformer was measured",
        f"{pages.machine()} What connects the pipeline with the optimizer is {ours} "
        f"statements for `functional_opt` and {theirs} for eformer.",
    )

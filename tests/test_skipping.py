"""What a step costs that is skipped: nothing but the decision."""

from collections.abc import Iterator
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest


SHAPES = {
    "first": {"weight": (16, 16), "bias": (16,)},
    "last": {"weight": (16, 16), "bias": (16,)},
}
PARAMS = jax.tree.map(jnp.ones, SHAPES, is_leaf=lambda node: isinstance(node, tuple))
PARTITION = fo.partition(PARAMS, {"first": 0, "last": 1})


def second_step(step: Any, **extra_args: Any) -> Any:
    return step == 1


ADAM = optax.adam(0.1)
SKIPPING = {
    "apply_if_finite": optax.apply_if_finite(ADAM, 3),
    "conditionally_transform": optax.conditionally_transform(ADAM, second_step),
    "conditionally_mask": optax.conditionally_mask(ADAM, second_step),
}
MULTI_STEPS = optax.MultiSteps(
    ADAM, 2, should_skip_update_fn=optax.skip_not_finite
).gradient_transformation()


def bodies(eqn: Any) -> list[Any]:
    """The jaxprs inside an equation."""
    found = jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda node: hasattr(node, "jaxpr")
    )
    return [node.jaxpr for node in found if hasattr(node, "jaxpr")]


def equations(jaxpr: Any, into_conds: bool) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        if into_conds or eqn.primitive.name != "cond":
            for body in bodies(eqn):
                yield from equations(body, into_conds)


def stage_jaxpr(staged: fo.StageLocal, stage: int) -> Any:
    """What a stage computes after all rounds."""
    pieces = PARTITION.split(PARAMS)
    states = staged.init(pieces)
    trees = list(zip(pieces, states, pieces, strict=True))
    gathered: list[Any] = []
    for round in range(staged.rounds):
        gathered.append(
            [
                program.message(round, *tree, gathered)
                for program, tree in zip(staged.programs, trees, strict=True)
            ]
        )
    closed = jax.make_jaxpr(staged.programs[stage].step)(*trees[stage], gathered)
    return closed.jaxpr


def large(eqn: Any) -> bool:
    """Whether it makes something of the size of a parameter."""
    return any(var.aval.size * var.aval.dtype.itemsize >= 64 for var in eqn.outvars)


@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("stage", [0, 1])
def test_one_cond_an_owner_holds_all_the_work(name, stage):
    """Its skipped branch computes nothing, and without are only updates applied."""
    staged = fo.stage_local(SKIPPING[name], PARAMS, PARTITION)
    jaxpr = stage_jaxpr(staged, stage)
    outside = list(equations(jaxpr, into_conds=False))
    conds = [eqn for eqn in outside if eqn.primitive.name == "cond" and large(eqn)]
    assert len(conds) == 1
    skipped, done = sorted(
        (
            sorted(
                eqn.primitive.name
                for eqn in equations(branch.jaxpr, into_conds=True)
                if large(eqn)
            )
            for branch in conds[0].params["branches"]
        ),
        key=len,
    )
    assert done.count("sqrt") == 2
    assert set(skipped) <= {"broadcast_in_dim"}
    applied = [eqn.primitive.name for eqn in outside if large(eqn) and eqn not in conds]
    assert applied.count("add") == 2 and "sqrt" not in applied


@pytest.mark.parametrize("stage", [0, 1])
def test_accumulation_works_in_conds_alone(stage):
    jaxpr = stage_jaxpr(fo.stage_local(MULTI_STEPS, PARAMS, PARTITION), stage)
    outside, everywhere = (
        [
            eqn
            for eqn in equations(jaxpr, into_conds)
            if eqn.primitive.name == "sqrt" and large(eqn)
        ]
        for into_conds in (False, True)
    )
    assert outside == [] and len(everywhere) == 2

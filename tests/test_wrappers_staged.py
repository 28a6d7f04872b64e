"""Wrappers of optimizers on many stages, in one model: each compiles for a while."""

from typing import Any

import functional_opt as fo
import jax.numpy as jnp
import optax
from deep_models import deep, gradients, mixed, on_stages
from recipe_runs import recipe, SCHEDULE


class Doubled(fo.AbstractOptimizer):
    optimizer: fo.AbstractOptimizer

    def build(self, schedule):
        return optax.chain(self.optimizer.build(schedule), optax.scale(2.0))


def layers(path: str, optimizer: fo.AbstractOptimizer, **fields: Any) -> fo.Group:
    return fo.Group(fo.Where(f"layer {path}"), optimizer, **fields)


WRAPPED = fo.Groups(
    (
        layers(
            "0",
            fo.StochasticRounding(fo.CautiousDecay(Doubled(fo.Cautious(fo.AdamW())))),
        ),
        layers("1", fo.Cautious(fo.CautiousDecay(fo.Lion())), schedule_scale=0.1),
        layers("2", fo.Hyperball(fo.Cautious(fo.Lion()))),
        layers("3", fo.KahanSummation(fo.Cautious(fo.SGD(momentum=0.9)))),
    ),
    rest=fo.Frozen(),
)


MATRICES = fo.Groups(
    (
        layers("0", fo.NorMuon(ns_steps=1)),
        layers("1", fo.Cautious(fo.NorMuon(ns_steps=1, consistent_rms=0.2))),
    ),
    rest=fo.Hyperball(fo.Muon(ns_steps=1)),
)


def assert_equal_on_eight_stages(
    optimizer: fo.AbstractOptimizer, **options: Any
) -> None:
    params = mixed(deep())
    ours = recipe(
        optimizer=optimizer,
        schedule=SCHEDULE,
        clip_norm=0.5,
        weight_decay=0.1,
        decay_where=fo.Where(min_ndim=2),
        skip_nonfinite=True,
    )
    staged = fo.testing.assert_stage_local_equal(
        ours.build(),
        params,
        on_stages(params, tied=("layer 00", "layer 11")),
        grads=gradients(params, bad=(1,)),
        **options,
    )
    assert staged.rounds == 2  # The tied gradients, and then norm and finiteness.


def test_elementwise():
    assert_equal_on_eight_stages(WRAPPED)


def test_matrices():
    """XLA compiles a small matmul together with what is around it."""
    clipped = fo.QKClip(
        MATRICES, query=fo.Where("layer [01]0"), key=fo.Where("layer 32")
    )
    logits: dict[str, Any] = {
        "layer 00": fo.OnStage(jnp.array([50.0, 400.0]), 0),
        "layer 10": jnp.float32(200.0),
        "layer 32": fo.OnStage(jnp.array([500.0, 90.0]), 7),
    }
    assert_equal_on_eight_stages(
        clipped,
        grade="bounded",
        extra_args={"max_logits": logits},
    )

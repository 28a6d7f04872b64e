# pyright: reportUnnecessaryTypeIgnoreComment=true
"""Right and wrong calls for pyright and mypy, which must flag every wrong one.

Nothing here runs. An ignore without an error is an error itself, for both. To mypy
everything of Optax is `Any`, so that what concerns it is left to pyright.
"""

from typing import Any, assert_type

import functional_opt as fo
import jax.numpy as jnp
import optax


class Halving(fo.AbstractSchedule):
    """A user's class: its fields may be given by position."""

    init_value: float
    period: int = 10

    def __call__(self, count: Any) -> Any:
        return self.init_value * 0.5 ** (count // self.period)


def right() -> None:
    fo.AdamW()
    fo.AdamW(b1=0.8, b2=jnp.float32(0.95), mu_dtype="bfloat16", mask=fo.Where("w"))
    fo.Cosine(peak_value=3e-4, warmup_steps=fo.Fraction(0.1), decay_steps=100)
    fo.Constant(0.1)
    fo.Cooldown(fo.Constant(0.1), decay_steps=fo.Steps(3))
    fo.Group(fo.Where("w"), optimizer=fo.Lion(), schedule_scale=0.1)
    fo.Groups((fo.Group(fo.Where("w"), fo.Lion()),), rest=fo.AdamW())
    fo.Group(
        fo.Where("w"), optimizer=fo.Lion(), schedule=0.1, weight_decay=Halving(0.1)
    )
    fo.AdamW(weight_decay=optax.cosine_decay_schedule(0.1, 10))
    fo.Recipe(optimizer=fo.AdamW(), schedule=Halving(0.1), weight_decay=Halving(0.1))
    fo.Recipe(optimizer=fo.AdamW(), schedule=Halving(0.1))
    fo.Recipe(optimizer=fo.AdamW(), schedule=3e-4, decay_where=fo.Where(min_ndim=2))
    fo.Recipe(optimizer=fo.AdamW(), schedule=optax.cosine_decay_schedule(0.1, 10))
    hash(fo.Recipe(optimizer=fo.AdamW(), schedule=Halving(0.1, 5)))


def right_results(registry: fo.Registry, partition: fo.StagePartition) -> None:
    assert_type(registry.load("recipe.toml", fo.Recipe), fo.Recipe)
    assert_type(registry.decode({"b2": 0.95}, fo.AdamW), fo.AdamW)
    assert_type(fo.stage_local(optax.adam(1e-3), {}, partition), fo.StageLocal)
    assert_type(fo.partition({}, {}), fo.StagePartition)
    assert_type(fo.Where("a") & fo.Where("b"), fo.AllOf)


def missing() -> None:
    fo.Recipe()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fo.Recipe(optimizer=fo.AdamW())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fo.Cosine(peak_value=0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fo.Group(fo.Where("w"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fo.Fraction()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Halving()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def positional() -> None:
    fo.AdamW(0.9)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fo.Cosine(1.0, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fo.Recipe(fo.AdamW(), 0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fo.Constant(0.1, 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def unknown() -> None:
    fo.AdamW(learning_rate=0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fo.Recipe(optimizer=fo.AdamW(), schedule=0.1, clipnorm=1.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def wrong_types(registry: fo.Registry, partition: fo.StagePartition) -> None:
    fo.AdamW(b1="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fo.AdamW(nesterov="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fo.Cosine(peak_value=0.1, decay_steps=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fo.Recipe(optimizer=optax.adam(0.1), schedule=0.1)  # pyright: ignore[reportArgumentType]
    fo.Recipe(optimizer=fo.AdamW(), schedule=fo.AdamW())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fo.Recipe(optimizer=fo.AdamW(), schedule=0.1, weight_decay=0.1, decay_where="b")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fo.Adam().build("0.1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fo.AdamW().build_mpmd(0.1, {}, {"a": 0})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fo.stage_local(fo.AdamW(), {}, partition)  # pyright: ignore[reportArgumentType]
    registry.load(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    Halving("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def frozen() -> None:
    fo.AdamW().b1 = 0.5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

"""A pytest plugin: Optax's own tests, with every transformation split into stages.

`nox -s optax_suite -- DIR` runs the tests in a checkout of Optax. Every transformation
that a test makes is replaced by one that deals the parameters out to two or three
stages, runs the stages' programs, and merges what they return. Transformations within
another one are left as they are.

A test of what no stages can compute, such as a line search, is expected to fail.
`--whole` leaves all transformations as they are: what fails then is not of our making.
"""

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest


IMPOSSIBLE = re.compile(r"CrossStageError|extra argument `\w+` is a function")

_new = optax.GradientTransformation.__new__
_depth = 0
_failures: Counter[str] = Counter()


@contextlib.contextmanager
def within() -> Iterator[None]:
    """While a transformation runs, those that it calls are left as they are."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


class Split:
    """A transformation whose parameters are dealt out to stages at every call."""

    def __init__(self, init: Any, update: Any, takes_extra_args: bool) -> None:
        kind = optax.GradientTransformation
        if takes_extra_args:
            kind = optax.GradientTransformationExtraArgs
        self.whole = _new(kind, init, update)
        self.known: dict[Any, fo.StageLocal] = {}

    def stages(self, params: Any, grads: Any, extra: Any, given: bool) -> fo.StageLocal:
        trees = params, grads, extra
        avals = map(str, map(jax.typeof, jax.tree.leaves(trees)))
        key = (
            *avals,
            jax.tree.structure(trees),
            given,
            jax.config.read("jax_enable_x64"),
        )
        if key not in self.known:
            number = itertools.count()
            num_stages = min(max(len(jax.tree.leaves(params)), 2), 3)
            partition = fo.partition(
                params,
                lambda path, leaf: next(number) % num_stages,
                num_stages=num_stages,
            )
            tx = self.whole if given else without_params(self.whole)
            self.known[key] = fo.stage_local(
                tx, params, partition, grads=grads, extra_args=extra
            )
        return self.known[key]

    def init(self, params: Any) -> Any:
        if _depth or not has_parameters(params):
            return self.whole.init(params)
        with within():
            try:
                staged = self.stages(arrays(params), None, {}, True)
            except Exception:
                # `update` may need extra arguments that are not known yet, and raises
                # what is wrong otherwise.
                return self.whole.init(params)
            pieces = staged.partition.split(arrays(params))
            return staged.merge_state(staged.init(pieces))

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if _depth or not has_parameters(updates):
            return self.whole.update(updates, state, params, **extra)
        updates, params, extra = arrays(updates), arrays(params), arrays(extra)
        like = updates if params is None else params
        with within():
            staged = self.stages(like, updates, extra, params is not None)
            partition = staged.partition
            states = staged.split_state(state)
            found, states = staged.update(
                partition.split(updates), states, partition.split(like), **extra
            )
            return partition.merge(found), staged.merge_state(states)


def without_params(tx: Any) -> Any:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return optax.with_extra_args_support(tx).update(updates, state, **extra)

    return _new(optax.GradientTransformationExtraArgs, tx.init, update)


def has_parameters(tree: Any) -> bool:
    return any(
        jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        for leaf in jax.tree.leaves(tree)
    )


def arrays(tree: Any) -> Any:
    """Python numbers and NumPy arrays as JAX takes them."""
    kinds = float, complex, np.ndarray, np.generic
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, kinds) else x, tree)


def new(cls: type, init: Any, update: Any) -> Any:
    """Makes a transformation that is split wherever it is not within another one."""
    split = Split(init, update, issubclass(cls, optax.GradientTransformationExtraArgs))
    return _new(cls, split.init, split.update)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="split nothing")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--whole"):
        optax.GradientTransformation.__new__ = new  # pyright: ignore


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: Any = yield
    if call.excinfo is not None and report.failed:
        text = f"{call.excinfo.typename}: {call.excinfo.value}"
        if IMPOSSIBLE.search(text):
            report.outcome, report.wasxfail = "skipped", "no stage can compute it"
        else:
            _failures[re.sub(r"\d+", "#", text.strip().splitlines()[0])[:200]] += 1
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("failures by kind")
    for text, count in _failures.most_common():
        terminalreporter.line(f"{count:5}  {text}")

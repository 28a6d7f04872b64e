"""A pytest plugin: Optax's own tests, with every transformation split into stages.

`nox -s optax_suite -- DIR` runs the tests in a checkout of Optax. Every transformation
that a test makes is replaced by one that deals the parameters out to two or three
stages, runs the stages' programs, and merges what they return. Transformations within
another one are left as they are.

A test of what no stages can compute, such as a line search, is expected to fail, for
one of the `REASONS`, which are counted. `--whole` leaves all transformations as they
are: what fails then is not of our making.
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


# Why a transformation cannot be split, and how the error tells. The reference is a
# jitted update of the whole tree, whose state keeps its structure, shapes and dtypes.
REASONS = {
    "it calls a function with the whole parameters": r"extra argument `\w+` is a func",
    "it mixes whole tensors of different stages": r"CrossStageError",
    "it is passed text, which `jax.jit` does not take": r"extra argument .*, got '",
    "it is passed gradients of another tree than the parameters": (
        r"`grads` does not match the tree that was partitioned"
    ),
    "it returns a state of another structure than it takes": (
        r"`tx.update` returns the state with a different structure"
    ),
    "it returns a state of other dtypes than it takes": (
        r"The state leaf .* before an update and .* after it"
    ),
    "it is passed a state of other dtypes than `init` makes": (
        r"of `state\[\d+\]` must be (\w+)\d\d\[(.*)\], as .*, got \w+\d\d\[\2\]"
    ),
}
# What fails with `--whole`, too, with the versions of JAX that are supported.
FAIL_IN_OPTAX = {
    "LinearAlgebraTest::test_nnls4": "it expects more precision than it gets",
    "LinearAlgebraTest::test_nnls5": "it expects more precision than it gets",
    "ClippingTest::test_clip_by_block_rms": "it expects one bit more than Optax gives",
    "FreezeTest::test_bad_structure_raises": "it expects other words of an error",
    "SelectiveTransformTest::test_selective_bad_structure": (
        "it expects other words of an error"
    ),
}

_new = optax.GradientTransformation.__new__
_depth = 0
_failures: Counter[str] = Counter()
_expected: Counter[str] = Counter()
_reasons: dict[str, str] = {}  # of tests that have failed for one


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
        self.params: Any = None  # the shapes that `init` has seen

    def stages(self, params: Any, grads: Any, extra: Any, given: bool) -> fo.StageLocal:
        trees = params, grads, extra
        avals = map(_aval, jax.tree.leaves(trees))
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
        params = arrays(params)
        self.params = jax.eval_shape(lambda x: x, params)
        with within():
            try:
                staged = self.stages(params, None, {}, True)
            except Exception:
                # `update` may need extra arguments that are not known yet, and raises
                # what is wrong otherwise.
                return self.whole.init(params)
            pieces = staged.partition.split(params)
            return staged.merge_state(staged.init(pieces))

    def update(self, updates: Any, state: Any, *params: Any, **extra: Any) -> Any:
        if _depth or not has_parameters(updates):
            return self.whole.update(updates, state, *params, **extra)
        updates, extra = arrays(updates), arrays(extra)
        given = arrays(extra.pop("params", params[0] if params else None))
        like = self.like(updates) if given is None else given
        with within():
            staged = self.stages(like, updates, extra, given is not None)
            partition, is_stateless = staged.partition, not jax.tree.leaves(state)
            pieces = partition.split(like)
            # Tests give transformations without a state whatever comes to mind.
            states = staged.init(pieces) if is_stateless else staged.split_state(state)
            found, states = staged.update(
                partition.split(updates), states, pieces, **extra
            )
            new_state = state if is_stateless else staged.merge_state(states)
            return partition.merge(found), new_state

    def like(self, updates: Any) -> Any:
        """Parameters that nothing reads, of the shapes that `init` has seen."""
        if jax.tree.structure(self.params) != jax.tree.structure(updates):
            return updates
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.params)


def _aval(leaf: Any) -> str:
    return (
        repr(leaf) if callable(leaf) or isinstance(leaf, str) else str(jax.typeof(leaf))
    )


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
    """Python numbers, NumPy arrays and shapes as arrays of JAX."""
    kinds = float, complex, np.ndarray, np.generic

    def array(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(leaf) if isinstance(leaf, kinds) else leaf

    return jax.tree.map(array, tree)


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
        # A subtest may go on with what an earlier one has not computed.
        reason = reason_of(item.nodeid, text) or _reasons.get(item.nodeid)
        if reason is not None:
            _reasons[item.nodeid] = reason
            report.outcome, report.wasxfail = "skipped", reason
            _expected[reason] += 1
        else:
            _failures[re.sub(r"\d+", "#", text.strip().splitlines()[0])[:200]] += 1
    return report


def reason_of(test: str, error: str) -> str | None:
    """Why a test may fail with an error, if there is a reason."""
    for name, reason in FAIL_IN_OPTAX.items():
        if test.endswith(name):
            return f"Optax itself fails it: {reason}"
    reasons = (why for why, words in REASONS.items() if re.search(words, error))
    return next(reasons, None)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for title, counts in (("not split", _expected), ("failures", _failures)):
        terminalreporter.section(f"{title}, by kind")
        for text, count in counts.most_common():
            terminalreporter.line(f"{count:5}  {text}")

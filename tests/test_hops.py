"""How much of the library a warm step passes, for those who follow it."""

import re
import sys
from pathlib import Path

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest


PACKAGE = str(Path(fo.__file__).parent)
CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2))


def passed(function, *args):
    """The functions of the library that a call passes, by file."""
    seen = set()

    def profile(frame, event, arg):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            seen.add((code.co_filename, code.co_qualname, code.co_firstlineno))

    sys.setprofile(profile)
    try:
        function(*args)
    finally:
        sys.setprofile(None)
    return sorted((Path(file).name, name, line) for file, name, line in seen)


def warm(stages, apart):
    params = {name: jnp.ones((8, 8)) for name in stages}
    partition = fo.partition(params, stages)
    staged = fo.stage_local(CLIPPED, params, partition)
    devices = jax.devices()[:3] if apart else [jax.devices()[0]] * 3
    pieces = jax.device_put(partition.split(params), tuple(devices))
    given = partition.split_gradients(params), staged.init(pieces), pieces
    given = (jax.device_put(given[0], tuple(devices)), *given[1:])
    staged.step(*given)
    return staged, given


@pytest.mark.parametrize("apart", [False, True])
def test_a_warm_step_passes_few_functions(apart):
    staged, given = warm({"a": 0, "b": 1, "c": 2}, apart)
    found = passed(staged.step, *given)
    assert len(found) <= 40, found
    assert len({file for file, *_ in found}) <= 6, found


def test_tied_sums_add_few():
    staged, given = warm({"a": {0, 2}, "b": 1, "c": 2}, apart=True)
    found = passed(staged.step, *given)
    assert len(found) <= 50, found
    assert len({file for file, *_ in found}) <= 8, found


def test_the_picture_of_a_step_names_what_it_passes():
    page = Path(PACKAGE).parent / "docs" / "ideas" / "slicing.md"
    picture = page.read_text().partition("```mermaid")[2].partition("```")[0]
    named = set(re.findall(r'\["([A-Z]\w+\.\w+)"\]', picture))
    assert len(named) >= 8
    staged, given = warm({"a": {0, 2}, "b": 1, "c": 2}, apart=True)
    assert named <= {name for _, name, _ in passed(staged.step, *given)}


def test_the_counter_counts():
    assert len(passed(fo.partition, {"a": jnp.ones(2)}, {"a": 0})) > 3

"""Twenty steps as eformer takes them. `docs/peer.md` shows what is proved here."""

import dataclasses
import re

import functional_opt as fo
import jax.numpy as jnp
import optax
import peer_table
import pytest
from peer_cases import Case, CASES, distance, RATE, values
from rooms import geometry, scale_by_whitening


eformer = pytest.importorskip(
    "eformer.optimizers", reason="eformer is installed by `nox -s peer` alone"
)

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")

ALL = [case for cases in CASES.values() for case in cases]


def parameters(*equal):
    return [pytest.param(case, id=case.label) for case in ALL if case.equal in equal]


@pytest.mark.parametrize("case", parameters("exact", "bounded"))
def test_the_same(case: Case):
    grade = "bounded" if case.equal == "bounded" else "exact"
    fo.testing.assert_equal(values(case.theirs(eformer)), values(case.ours), grade)


@pytest.mark.parametrize("case", parameters("different"))
def test_ours_is_what_the_witness_says(case: Case):
    witness = values(case.witness)
    ours = distance(values(case.ours), witness)
    theirs = distance(values(case.theirs(eformer)), witness)
    assert theirs > 1e-3
    if isinstance(case.witness, str):  # Recorded in float64, of other random numbers.
        assert ours < theirs / 1000
    else:
        assert ours == 0


@pytest.mark.parametrize("case", parameters("fails"))
def test_theirs_fails(case: Case):
    with pytest.raises(AttributeError, match="tree_map"):
        values(case.theirs(eformer))
    assert distance(values(case.ours), values(case.witness)) < 1e-6


@pytest.mark.parametrize(
    "name, move", [("quad", geometry.Quad()), ("skew", geometry.Skew())]
)
def test_whitening_is_close_but_for_four_things(name, move, monkeypatch):
    """Those that `WHITENING` names: this gives both sides the same of each."""

    def bound(key, matrix, k=4, iters=5, skh=False):
        if skh:
            return geometry._subspace_bound(key, matrix, jnp.max(jnp.abs(matrix)))
        return move.bound(key, matrix)

    monkeypatch.setattr("eformer.optimizers._tx.white_kron._norm_lower_bound", bound)
    config = eformer.WhiteKronConfig(b1=0.0, weight_decay=0.0, dtype="float32")
    theirs, _ = eformer.OptimizerFactory.create(
        name,
        scheduler_config=eformer.SchedulerConfig(learning_rate=RATE),
        optimizer_config=config,
    )
    white = scale_by_whitening(
        move,
        momentum=0.0,
        max_size_dense=config.max_size_dense,
        max_skew_dense=None,
        preconditioner_lr=config.preconditioner_lr,
        preconditioner_init_scale=config.preconditioner_init_scale,
        noise_scale=config.noise_scale,
        dtype=None,
        seed=0,
    )
    length = optax.chain(optax.clip_by_block_rms(1.1), optax.scale(0.2 * -RATE))
    ours = optax.chain(white, length)
    fo.testing.assert_equal(values(ours), values(theirs), grade="bounded")


def test_every_name_of_theirs_has_a_case():
    from eformer.optimizers._base import (  # pyright: ignore[reportMissingImports]
        _OPTIMIZER_BUILDER_REGISTRY,
        _SCHEDULER_BUILDER_REGISTRY,
    )

    optimizers, schedules = ({case.name for case in cases} for cases in CASES.values())
    assert optimizers == set(_OPTIMIZER_BUILDER_REGISTRY)
    assert schedules == set(_SCHEDULER_BUILDER_REGISTRY)


def test_what_is_not_exact_says_why():
    assert all(case.reason for case in ALL if case.equal != "exact")
    assert all(case.witness for case in ALL if case.equal in ("different", "fails"))


def test_the_page_is_of_today():
    assert peer_table.PAGE.read_text() == peer_table.text(), "run `nox -s peer`"


def test_the_page_for_migrating_names_every_field():
    page = (peer_table.PAGE.parent / "migrating" / "eformer.md").read_text()
    configs = {name for name in dir(eformer) if name.endswith("Config")}
    for config in sorted(configs - {"SchedulerConfig"}):
        rows = re.findall(rf"^\| `{config}`.*?: (.*?) \|", page, re.MULTILINE)
        named = re.findall(r"`(\w+)`", " ".join(rows))
        fields = [field.name for field in dataclasses.fields(getattr(eformer, config))]
        assert sorted(named) == sorted(fields), config
    section = page.partition("## SchedulerConfig")[2].partition("##")[0]
    named = re.findall(r"^\| `([a-z]\w+)` \|", section, re.MULTILINE)
    fields = dataclasses.fields(eformer.SchedulerConfig)
    assert sorted(named) == sorted(field.name for field in fields)

"""Optax transformations that others publish, and what cutting them into stages gives.

Their packages are used as they are on PyPI. Both implementations of PSGD-Kron mix
stages, have conds around whole matrices, and draw random numbers.
"""

import aura_optax
import rollfast
import stam_optimizer
from optax_cases import Case
from psgdax import psgd


PACKAGES = ("aura-optax", "psgdax", "rollfast", "stam-optimizer")

DIAGONAL = "a diagonal preconditioner, as a vector, multiplies or divides a matrix"


GROUPS: dict[str, tuple[Case, ...]] = {
    "psgdax": (
        Case(
            "psgdax.kron",
            lambda: psgd.kron(0.1),
            broadcasts=DIAGONAL,
            exchanges=True,
            steps=4,
        ),
        Case(
            "psgdax.kron",
            lambda: psgd.kron(
                0.1,
                preconditioner_mode="EQ",
                memory_save_mode="one_diag",
                weight_decay=0.01,
                preconditioner_init_scale=1.0,
            ),
            "triangular, scale given",
            broadcasts=DIAGONAL,
            exchanges=True,
            steps=4,
        ),
    ),
    "rollfast": (
        Case(
            "rollfast.adamw", lambda: rollfast.adamw(0.1, use_magma=True), "with Magma"
        ),
        Case(
            "rollfast.kron",
            lambda: rollfast.kron(0.1),
            broadcasts=DIAGONAL,
            exchanges=True,
            steps=4,
        ),
        Case(
            "rollfast.kron",
            lambda: rollfast.kron(
                0.1, raw_global_grad_clip=1.0, grad_clip_mode="global_rms"
            ),
            "clipped by norms",
            broadcasts=DIAGONAL,
            exchanges=True,
            steps=4,
        ),
        Case("rollfast.prism", lambda: rollfast.prism(0.1)),
        Case(
            "rollfast.schedule_free_adam",
            lambda: rollfast.schedule_free_adam(0.1, total_steps=10),
        ),
    ),
    "aura_optax": (
        Case("aura_optax.adam_aura", lambda: aura_optax.adam_aura(0.1)),
        Case("aura_optax.muon_aura", lambda: aura_optax.muon_aura(0.1, ns_steps=2)),
    ),
    "stam_optimizer": (
        Case("stam_optimizer.stam", lambda: stam_optimizer.stam(0.1)),
        Case("stam_optimizer.stam_lite", lambda: stam_optimizer.stam_lite(0.1)),
    ),
}


CASES = tuple(case for cases in GROUPS.values() for case in cases)

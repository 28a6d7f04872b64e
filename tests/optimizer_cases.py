"""Optimizers whose stages are compared with the whole tree, and how equal they are."""

from dataclasses import dataclass

import functional_opt as fo


SCALARS = "XLA compiles the step of a scalar together with what is around it"
MATMULS = "XLA compiles a small matmul together with what is around it"


@dataclass(frozen=True)
class Case:
    """An optimizer, and why its stages are not exact."""

    optimizer: fo.AbstractOptimizer
    close: str = ""


CASES = {
    "adam-mini": Case(
        fo.AdamMini(blocks=(fo.Blocks(fo.Where(min_ndim=2)),), weight_decay=0.1)
    ),
    "adafactor": Case(fo.Adafactor(min_dim_size_to_factor=4, momentum=0.9)),
    "rmsprop": Case(fo.RMSProp(centered=True, momentum=0.9)),
    "muon": Case(fo.Muon(ns_steps=2), close=SCALARS),
    "normuon": Case(fo.NorMuon(ns_steps=2), close=SCALARS),
    "mars": Case(fo.Mars(weight_decay=0.1)),
    "mars, bfloat16 momentum": Case(fo.Mars(optimize_1d=True, mu_dtype="bfloat16")),
    "scion": Case(fo.Scion(momentum=0.1)),
    "scion, sign": Case(
        fo.Scion(norm="BiasRMS", unconstrained=True, mu_dtype="bfloat16")
    ),
    "kron": Case(fo.Kron()),
    "kron, every other": Case(
        fo.Kron(
            preconditioner_update_probability=0.5,
            memory_save_mode="one_diag",
            mu_dtype="bfloat16",
            precond_dtype="bfloat16",
        )
    ),
    "quad": Case(fo.Quad()),
    "skew": Case(
        fo.Skew(max_skew_dense=None, preconditioner_init_scale=0.5), close=MATMULS
    ),
    "soap": Case(fo.SOAP(precondition_frequency=2)),
}

"""A compiler that spends little time: for what does not depend on the last bits.

Comparisons of stages with the whole tree do: these are about the programs that users
run, with JAX's own options.
"""

import functools

import jax


# A fifth of the time for a training step, most of it by fusions that are written
# without MLIR.
OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

jit = functools.partial(jax.jit, compiler_options=OPTIONS)

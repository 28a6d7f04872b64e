"""Makes XLA compile a slice to the same arithmetic as the whole function.

XLA optimizes by the number of readers of a value, and a slice has fewer readers than
the whole function. Two of its optimizations change bits:

- `x / s`, for an array `x` and a scalar `s` with no other reader, becomes
  `x * (1 / s)`, which rounds twice: pass `algsimp`, `HandleDivide` in
  https://github.com/openxla/xla/blob/main/xla/hlo/transforms/simplifiers/algebraic_simplifier.cc.
- An expensive operation is fused into its only reader, unless the reader is larger:
  pass `fusion`, `IsExpensive` and `ShouldFuse` in
  https://github.com/openxla/xla/blob/main/xla/service/instruction_fusion.cc. Within one
  kernel LLVM may contract a multiplication with an addition, which then round once.

Bias correction of Adam shows both. With `x` on stage 0 and `y` on stage 1:

    p = pow(b, t)
    c = 1 - p
    u = x / c
    v = y / c

In the whole function `c` has two readers, so both divisions stay divisions. In the
slice of stage 0 `c` has one reader, `u`, and would be inverted: its divisor goes behind
an optimization barrier. If `x` has one entry, `p` would also be fused into the kernel
of `u`, which the whole function computes apart because `y` is larger: `p` is computed
in a conditional that is always taken.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var
from jax.extend.core.primitives import convert_element_type_p, copy_p, div_p
from jaxtyping import Array

from .jaxprs import Atom, replace_by, shape_of, size, variables
from .stage_sets import NOWHERE, StageSet


def count_readers(
    equations: Sequence[JaxprEqn], results: Iterable[Atom]
) -> Counter[Var]:
    """The number of readers of each value, including readers of its renamed copies.

    An equation without results of nonzero size does not count, since XLA removes it.
    """
    original = _original_names(equations)
    read = [
        var
        for eqn in equations
        if not _only_renames(eqn) and _makes_something(eqn)
        for var in eqn.invars
    ]
    return Counter(original.get(v, v) for v in variables([*read, *results]))


class Readers(NamedTuple):
    """The readers of the values of the whole function.

    **Attributes:**

    - `direct`: the number of readers of each value.
    - `together`: for each scalar the stages that run all kernels that read it.
    """

    direct: Counter[Var]
    together: Mapping[Var, StageSet] = MappingProxyType({})

    @classmethod
    def on_stages(
        cls,
        equations: Sequence[JaxprEqn],
        results: Sequence[Atom],
        home: Callable[[Var], StageSet],
    ) -> "Readers":
        """The readers in a function that is split over stages.

        **Arguments:**

        - `home`: the stages that run the equation of a variable.
        """
        scalars = _readers_of_scalars(equations, results, home)
        together = {var: read.stages for var, read in scalars.items()}
        return cls(count_readers(equations, results), together)


def keep_bits(
    equations: Sequence[JaxprEqn],
    results: Sequence[Atom],
    in_whole: Readers,
    stage: int | None = None,
) -> list[JaxprEqn]:
    """Adds barriers and branches where a slice has lost readers that matter to XLA.

    **Arguments:**

    - `equations`, `results`: the slice.
    - `in_whole`: the readers of the same values in the whole function.
    - `stage`: the stage that runs the slice; None for a part of a branch.
    """
    original = _original_names(equations)
    direct = count_readers(equations, results)
    scalars = _readers_of_scalars(equations, results, lambda _: NOWHERE)

    def is_alone(var: Var) -> bool:
        return direct[var] == 1 < in_whole.direct[var]

    def is_fused(var: Var) -> bool:
        lost = var in in_whole.together and stage not in in_whole.together[var]
        read = scalars.get(var)
        return lost and read is not None and read.kernels == 1 == read.largest

    kept = []
    for eqn in equations:
        if any(is_alone(original.get(v, v)) for v in _broadcast_divisors(eqn)):
            kept += replace_by(eqn, _divide_opaquely)
        elif eqn.primitive.name in _EXPENSIVE and is_fused(eqn.outvars[0]):
            kept += replace_by(eqn, functools.partial(_compute_apart, eqn))
        else:
            kept.append(eqn)
    return kept


# The operations that XLA for CPU, of JAX 0.8 to 0.10, computes once for several readers
# instead of once in the kernel of each: `InstructionFusion::IsExpensive` in
# https://github.com/openxla/xla/blob/main/xla/service/instruction_fusion.cc.
_EXPENSIVE = frozenset(
    {"atan2", "cbrt", "div", "erf", "exp", "exp2", "expm1", "log", "log1p", "logistic"}
    | {"pow", "rem", "rsqrt", "sqrt", "tanh"}
)


class _Read(NamedTuple):
    """The kernels that read a scalar.

    **Attributes:**

    - `kernels`: the number of these kernels.
    - `largest`: the size of their largest result.
    - `stages`: the stages that run all of them.
    """

    kernels: int
    largest: int
    stages: StageSet

    @classmethod
    def by_all(cls, reads: Sequence["_Read"]) -> "_Read":
        return cls(
            sum(read.kernels for read in reads),
            max(read.largest for read in reads),
            frozenset.intersection(*(read.stages for read in reads)),
        )


def _readers_of_scalars(
    equations: Sequence[JaxprEqn],
    results: Iterable[Atom],
    home: Callable[[Var], StageSet],
) -> dict[Var, _Read]:
    """The kernels that read each scalar, directly or through cheap operations.

    A cheap operation on scalars is fused into every kernel that reads its result.
    """
    reads: defaultdict[Var, list[_Read]] = defaultdict(list)
    for var in variables(results):
        reads[var].append(_Read(1, 1, home(var)))
    for eqn in reversed(equations):
        largest = max(map(size, eqn.outvars), default=0)
        if not largest:
            continue
        if largest == 1 and eqn.primitive.name not in _EXPENSIVE:
            reading = [_Read.by_all(reads[v]) for v in eqn.outvars if reads[v]]
        else:
            reading = [_Read(1, largest, home(eqn.outvars[0]))]
        for var in set(variables(eqn.invars)):
            if size(var) == 1:
                reads[var] += reading
    return {var: _Read.by_all(each) for var, each in reads.items() if each}


def _compute_apart(eqn: JaxprEqn, *operands: Array) -> Array:
    """Computes an equation in a conditional, which no other kernel can absorb.

    A barrier alone would not do: XLA for CPU removes barriers before it fuses (pass
    `OptimizationBarrierExpander` in
    https://github.com/openxla/xla/blob/main/xla/service/cpu/cpu_compiler.cc). It is
    still there when XLA removes conditionals with a constant predicate, so it hides the
    predicate.
    """

    def compute(*operands: Array) -> Array:
        return eqn.primitive.bind(*operands, **eqn.params)

    def never(*_: Array) -> Array:
        return jnp.zeros_like(jax.eval_shape(compute, *operands))

    always = jax.lax.optimization_barrier(True)
    return jax.lax.cond(always, compute, never, *operands)


def _makes_something(eqn: JaxprEqn) -> bool:
    return not eqn.outvars or any(map(size, eqn.outvars))


def _broadcast_divisors(eqn: JaxprEqn) -> list[Var]:
    """The divisor, if an equation divides an array by a scalar variable."""
    if eqn.primitive is not div_p:
        return []
    dividend, divisor = map(shape_of, eqn.invars)
    return variables(eqn.invars[1:]) if divisor.shape == () != dividend.shape else []


def _original_names(equations: Sequence[JaxprEqn]) -> dict[Var, Var]:
    original: dict[Var, Var] = {}
    for eqn in filter(_only_renames, equations):
        for source in variables(eqn.invars):
            original[eqn.outvars[0]] = original.get(source, source)
    return original


def _only_renames(eqn: JaxprEqn) -> bool:
    """Whether an equation is a copy, or converts only the weak type."""
    if eqn.primitive is convert_element_type_p:
        return shape_of(eqn.invars[0]) == shape_of(eqn.outvars[0])
    return eqn.primitive is copy_p


def _divide_opaquely(dividend: Array, divisor: Array) -> Array:
    divisor = jnp.broadcast_to(divisor, dividend.shape)
    return jax.lax.div(dividend, jax.lax.optimization_barrier(divisor))

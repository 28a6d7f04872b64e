"""The error for a transformation that cannot be split, and its messages."""

import os
import sys

import jax
from jax.extend.core import Jaxpr, JaxprEqn

from .jaxprs import Atom
from .placed import Placed
from .stage_sets import stages_text, StageSet


class CrossStageError(ValueError):
    """A transformation mixes whole tensors of different stages, or has side effects.

    Stages exchange only values that have no dimension of a parameter, such as norms,
    counters, scale factors and short histories. The message names the operation, its
    source line in the transformation, and the stages involved.

    !!! Example

        >>> import functional_opt as fo, jax, jax.numpy as jnp, optax
        >>> params = {"first": jnp.ones((48, 48)), "second": jnp.ones((48, 48))}
        >>> def swap(updates, params=None):
        ...     return {"first": updates["second"], "second": updates["first"]}
        >>> partition = fo.partition(params, {"first": 0, "second": 1})
        >>> try:
        ...     fo.stage_local(optax.stateless(swap), params, partition)
        ... except fo.CrossStageError:
        ...     print("whole tensors do not travel")
        whole tensors do not travel
    """


_REMEDY = (
    "Values with a dimension of a parameter do not travel between stages. Assign the "
    "parameters to one stage, exclude them with `optax.masked`, raise `travel_limit`, "
    "or apply the transformation to the whole tree instead."
)


def mixture_text(placed: Placed, eqn: JaxprEqn, hidden: tuple[str, ...]) -> str:
    operands = ", ".join(_operand_text(placed, atom) for atom in eqn.invars)
    return (
        f"`{eqn.primitive}` at {where(eqn, hidden)} mixes whole tensors of different "
        f"stages: {operands}. {_REMEDY}"
    )


def result_text(placed: Placed, atom: Atom, here: StageSet) -> str:
    return (
        f"A value required on {stages_text(here)} is computed elsewhere: "
        f"{_operand_text(placed, atom)}. {_REMEDY}"
    )


def effect_text(jaxpr: Jaxpr, hidden: tuple[str, ...]) -> str:
    culprits = [
        f"`{e.primitive}` at {where(e, hidden)}" for e in jaxpr.eqns if e.effects
    ]
    return (
        f"The transformation has side effects, which every stage would repeat: "
        f"{', '.join(culprits)}. Remove them from `update`; for example, return the "
        "values that they report as part of the state."
    )


def _operand_text(placed: Placed, atom: Atom) -> str:
    return f"{atom.aval.str_short()} of {stages_text(placed.value(atom).home)}"


_JAX = os.path.dirname(jax.__file__)


def where(eqn: JaxprEqn, hidden: tuple[str, ...] = ()) -> str:
    """The innermost source line outside JAX and outside the `hidden` paths."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if not frame.file_name.startswith((_JAX, *hidden)):
            file = _as_imported(frame.file_name)
            return f"{file}:{frame.line_num} ({frame.function_name})"
    return "an unknown line"


def _as_imported(file_name: str) -> str:
    """The path of an installed file, relative to the folder it is imported from."""
    folders = [folder for folder in sys.path if folder.endswith("-packages")]
    folders.append(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    within = [folder for folder in folders if file_name.startswith(folder + os.sep)]
    return os.path.relpath(file_name, max(within, key=len)) if within else file_name

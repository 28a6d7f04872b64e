"""What to say when a transformation cannot be cut, and where in it to look."""

import os
import sys
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn

from .stage_sets import stages_text, StageSet


class CrossStageError(ValueError):
    """A transformation mixes whole tensors of different stages, or has side effects.

    Stages exchange only values without a dimension of a parameter: norms, counters,
    factors, small histories. The message names the operation, its line in the
    transformation, and the stages.

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
    "or apply the transformation to the whole tree."
)


def mixture_text(placed: Any, eqn: JaxprEqn, hidden: tuple[str, ...]) -> str:
    operands = ", ".join(_operand_text(placed, atom) for atom in eqn.invars)
    return (
        f"`{eqn.primitive}` at {where(eqn, hidden)} mixes whole tensors of different "
        f"stages: {operands}. {_REMEDY}"
    )


def result_text(placed: Any, atom: Any, here: StageSet) -> str:
    return (
        f"A value needed on {stages_text(here)} is computed elsewhere: "
        f"{_operand_text(placed, atom)}. {_REMEDY}"
    )


def effect_text(jaxpr: Jaxpr, hidden: tuple[str, ...]) -> str:
    culprits = [
        f"`{e.primitive}` at {where(e, hidden)}" for e in jaxpr.eqns if e.effects
    ]
    return (
        f"The transformation has side effects, which would happen once on every stage: "
        f"{', '.join(culprits)}. Take them out of `update`, for example by returning "
        "what they report in the state."
    )


def _operand_text(placed: Any, atom: Any) -> str:
    return f"{atom.aval.str_short()} of {stages_text(placed.value(atom).home)}"


_JAX = os.path.dirname(jax.__file__)


def where(eqn: JaxprEqn, hidden: tuple[str, ...] = ()) -> str:
    """The innermost line outside JAX, and outside of files whose path is `hidden`."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if not frame.file_name.startswith((_JAX, *hidden)):
            file = _as_imported(frame.file_name)
            return f"{file}:{frame.line_num} ({frame.function_name})"
    return "an unknown line"


def _as_imported(file_name: str) -> str:
    """The file relative to the folder that it is imported from, if it is installed."""
    folders = [folder for folder in sys.path if folder.endswith("-packages")]
    folders.append(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    within = [folder for folder in folders if file_name.startswith(folder + os.sep)]
    return os.path.relpath(file_name, max(within, key=len)) if within else file_name

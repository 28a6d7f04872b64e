"""What to say when a transformation cannot be cut, and where in it to look."""

import os
from typing import Any

import jax
import optax
from jax.extend.core import Jaxpr, JaxprEqn


class CrossStageError(ValueError):
    """A transformation mixes whole tensors of different stages, or has side effects.

    Small values (norms, counters, factors) are exchanged between the stages; whole
    parameters are not. The message names the operation, its line in the
    transformation, and the stages.
    """


_REMEDY = (
    "Only small values travel between stages. Put the parameters that "
    "it mixes on one stage, leave them out of it with `optax.masked`, or apply it to "
    "the whole tree."
)


def mixture_text(placed: Any, eqn: JaxprEqn) -> str:
    operands = ", ".join(_operand_text(placed, atom) for atom in eqn.invars)
    return (
        f"`{eqn.primitive}` at {where(eqn)} mixes whole tensors of different stages: "
        f"{operands}. {_REMEDY}"
    )


def result_text(placed: Any, atom: Any, here: frozenset[int]) -> str:
    return (
        f"A value needed on {stages_text(here)} is computed elsewhere: "
        f"{_operand_text(placed, atom)}. {_REMEDY}"
    )


def effect_text(jaxpr: Jaxpr) -> str:
    culprits = [f"`{e.primitive}` at {where(e)}" for e in jaxpr.eqns if e.effects]
    return (
        f"The transformation has side effects, which would happen once on every stage: "
        f"{', '.join(culprits)}. Take them out of `update`, for example by returning "
        "what they report in the state."
    )


def _operand_text(placed: Any, atom: Any) -> str:
    return f"{atom.aval.str_short()} of {stages_text(placed.value(atom).place)}"


def stages_text(place: frozenset[int]) -> str:
    if not place:
        return "no stage"
    names = ", ".join(map(str, sorted(place)))
    return f"stage {names}" if len(place) == 1 else f"stages {names}"


_HIDDEN = (
    os.path.dirname(jax.__file__),
    os.path.join(os.path.dirname(optax.__file__), "tree_utils"),
)


def where(eqn: JaxprEqn) -> str:
    """The line of the transformation: the innermost outside JAX and tree utilities."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if not frame.file_name.startswith(_HIDDEN):
            file = _short(frame.file_name)
            return f"{file}:{frame.line_num} ({frame.function_name})"
    return "an unknown line"


def _short(file_name: str) -> str:
    """The file as one imports it, where it is ours or a neighbour of Optax."""
    ours = os.path.dirname(os.path.dirname(__file__))
    package = ours if file_name.startswith(ours) else os.path.dirname(optax.__file__)
    file = os.path.relpath(file_name, os.path.dirname(package))
    return file_name if file.startswith("..") else file

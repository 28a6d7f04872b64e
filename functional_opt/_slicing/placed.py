"""The stages that can have each value of a jaxpr, as placing finds them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn, Literal, Var

from .conds import Choice
from .dimensions import Marks
from .jaxprs import Atom
from .stage_sets import StageSet
from .times import Times


class Value(NamedTuple):
    """The stages that can have a value, and after how many rounds of exchange.

    **Attributes:**

    - `made`: after how many rounds each stage can compute the value.
    - `times`: after how many rounds each stage can have it, computed or received.
    - `home`: the stages that can compute it without inputs of other stages. All stages
        if it combines inputs of several; none if no stage can compute it.
    - `owners`: the stages that own inputs it is computed from. An input given to every
        stage has no owner.
    - `marks`: which of its dimensions are dimensions of a parameter.
    - `may_travel`: whether it may be sent to other stages.
    - `culprit`: if no stage can compute it, the equation that makes this impossible.
    """

    made: Times
    times: Times
    home: StageSet
    owners: StageSet
    marks: Marks
    may_travel: bool
    culprit: JaxprEqn | None = None


@dataclass(frozen=True)
class Placed:
    """A jaxpr without crossing calls and conds, and the stages of each of its values.

    **Attributes:**

    - `values`: the stages and times of each variable.
    - `equations`: the equations that some stage can compute, in order.
    - `choices`: the conditionals that were split, inner ones first.
    - `consts`: the constants that the equations read.
    - `results`: the results of the jaxpr.
    - `everywhere`: the stages and times of a literal.
    """

    values: dict[Var, Value]
    equations: list[JaxprEqn]
    choices: list[Choice]
    consts: dict[Var, Any]
    results: list[Atom]
    everywhere: Value

    def value(self, atom: Atom) -> Value:
        return self.everywhere if isinstance(atom, Literal) else self.values[atom]

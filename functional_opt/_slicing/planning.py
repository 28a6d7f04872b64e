"""Decides which values travel, and in which round.

The plan uses the fewest rounds possible, and with these as few bytes as possible.
Placing determines the number of rounds. Walking back from the results finds the
*demand*: the values that stages require after the last round and cannot compute from
what they own. The values to send are a minimum cut between the inputs of the stages and
the demand, where the cost of a value is its size in bytes: everything beyond the cut is
computed from it on every stage. A value that is sent must be computed by its sender one
round earlier; the values that the sender requires for this from other stages are the
demand of that earlier round, and so on.

Example, with `x` on stage 0, `y` on stage 1 and `z` on stage 2:

    s = sum(x) + sum(y)
    r = sqrt(s)
    a = x / r               required on stage 0
    b = z / r               required on stage 2

Without `b`, stage 0 computes everything but `sum(y)`, which is the demand and the only
message. With `b`, stage 2 can compute neither sum: its demand is `r`. The value `r`
itself cannot be sent in round 0, since no stage knows both sums before that round, so
the cut is `sum(x)` and `sum(y)`, and `s` and `r` are computed on each stage.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jax.extend.core import JaxprEqn, Literal, Var

from .cuts import Cut, minimum_cut
from .errors import CrossStageError, mixture_text, result_text
from .jaxprs import Atom, nbytes, variables
from .placed import Placed
from .stage_sets import NOWHERE, StageSet
from .times import NEVER


# A plan is made again with the messages of the one before known, as long as this saves
# bytes, but at most this many times.
_MOST_PLANS = 4


@dataclass(frozen=True, eq=False)
class Message:
    """A value that a stage sends to the others.

    **Attributes:**

    - `var`: the value.
    - `round`: the round, the latest one possible.
    - `sender`: the stage that sends it.
    - `needed_by`: the first equation that reads it on another stage; None for a result.
    - `by_limit`: whether it travels only because `travel_limit` allows it.
    """

    var: Var
    round: int
    sender: int
    needed_by: JaxprEqn | None
    by_limit: bool


def plan_messages(
    placed: Placed,
    wanted: Sequence[tuple[Atom, StageSet]],
    hidden: tuple[str, ...] = (),
) -> list[Message]:
    """The messages that let each stage compute the values that are wanted there.

    **Arguments:**

    - `placed`: the equations, and the stages of their values.
    - `wanted`: the results, each with the stages that require it.
    - `hidden`: paths of libraries; errors name the innermost line outside them.

    **Raises:** `CrossStageError` if a stage cannot compute one of its values.
    """
    for atom, stages in wanted:
        _check(placed, atom, stages, hidden)
    num_rounds = max(
        (placed.value(a).times.after[s] for a, stages in wanted for s in stages),
        default=0,
    )
    producers = {v: i for i, eqn in enumerate(placed.equations) for v in eqn.outvars}
    best: _Plan | None = None
    for _ in range(_MOST_PLANS):
        known = {} if best is None else best.known
        plan = _Plan(placed, producers, int(num_rounds), known)
        for atom, stages in wanted:
            plan.need(atom, stages, int(num_rounds), None)
        plan.run()
        if best is not None and plan.nbytes >= best.nbytes:
            break
        best = plan
    assert best is not None
    return best.messages


def _check(
    placed: Placed, atom: Atom, stages: StageSet, hidden: tuple[str, ...]
) -> None:
    value = placed.value(atom)
    if all(value.times.after[stage] < NEVER for stage in stages):
        return
    if value.culprit is not None:
        raise CrossStageError(mixture_text(placed, value.culprit, hidden))
    raise CrossStageError(result_text(placed, atom, stages))


@dataclass(eq=False)
class _Plan:
    """A walk back from the results and the last round to the first round.

    The times count rounds: at time 2, the messages of rounds 0 and 1 have arrived.

    **Attributes:**

    - `placed`: the equations, and the stages of their values.
    - `producers`: for each value the position of its equation.
    - `num_rounds`: the number of rounds.
    - `reused`: the time at which the bystander has a value by the previous plan.
    - `known`: the same by this plan.
    - `local`: for each time, the stages that compute a value from what they own.
    - `remote`: for each time, the values that the bystander requires, and the equation
        that reads each.
    - `sent`: the messages.
    """

    placed: Placed
    producers: Mapping[Var, int]
    num_rounds: int
    reused: Mapping[Var, int]
    known: dict[Var, int] = field(default_factory=dict)
    sent: dict[Var, Message] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rounds = range(self.num_rounds + 1)
        self.local: list[dict[Var, StageSet]] = [{} for _ in rounds]
        self.remote: list[dict[Var, JaxprEqn | None]] = [{} for _ in rounds]

    @property
    def nbytes(self) -> int | float:
        return sum(map(nbytes, self.sent))

    @property
    def messages(self) -> list[Message]:
        """In the order in which the values are computed."""
        inputs = {var: i for i, var in enumerate(self.placed.values)}
        return sorted(self.sent.values(), key=lambda sent: inputs[sent.var])

    def need(
        self, atom: Atom, stages: StageSet, time: int, reader: JaxprEqn | None
    ) -> None:
        """Records that stages require a value at a time.

        Stages that own a part of its inputs compute it themselves, if they can by then.
        The others get it as the bystander does.
        """
        if isinstance(atom, Literal):
            return
        value = self.placed.values[atom]
        if not value.owners:
            return
        mine = stages & value.owners if self._is_unknown(atom, time) else NOWHERE
        mine = frozenset(stage for stage in mine if value.made.after[stage] <= time)
        if mine:
            self.local[time][atom] = self.local[time].get(atom, NOWHERE) | mine
        if stages - mine:
            self.remote[time].setdefault(atom, reader)

    def _is_unknown(self, var: Var, time: int) -> bool:
        return self.reused.get(var, NEVER) > time

    def run(self) -> None:
        for time in reversed(range(self.num_rounds + 1)):
            self._compute_locally(time)
            if self.remote[time]:
                self._cut(time)

    def _compute_locally(self, time: int) -> None:
        """Requires the operands of all values that stages compute, last ones first."""
        local = self.local[time]
        for eqn in reversed(self.placed.equations):
            stages = NOWHERE.union(*(local.get(var, NOWHERE) for var in eqn.outvars))
            if stages:
                for atom in eqn.invars:
                    self.need(atom, stages, time, eqn)

    def _cut(self, time: int) -> None:
        """Chooses the values to send before this time, and requires them of senders."""
        cut = self._minimum_cut(time)
        readers = self._readers(cut, time)
        self.known.update(dict.fromkeys((*cut.beyond, *cut.chosen), time))
        for var in cut.chosen:
            if not self._is_unknown(var, time - 1):
                self.remote[self.reused[var]].setdefault(var, readers[var])
                continue
            sender = self._sender(var)
            by_limit = any(self.placed.values[var].marks)
            self.sent[var] = Message(var, time - 1, sender, readers[var], by_limit)
            self.need(var, frozenset({sender}), time - 1, readers[var])

    def _sender(self, var: Var) -> int:
        value = self.placed.values[var]
        return min(sorted(value.owners), key=lambda stage: value.made.after[stage])

    def _minimum_cut(self, time: int) -> Cut:
        """The cut between the values the bystander requires and the stages' inputs."""
        costs: dict[Var, int | float] = {}
        operands: dict[Var, list[Var]] = {}
        stack = list(self.remote[time])
        while stack:
            var = stack.pop()
            if var in costs:
                continue
            costs[var] = self._cost(var, time)
            operands[var] = self._operands(var, time) if costs[var] else []
            stack += operands[var]
        return minimum_cut(costs, operands, self.remote[time])

    def _cost(self, var: Var, time: int) -> int | float:
        """The size of a value if it can be sent before this time; infinite if not.

        A value that the bystander has by then anyway is free.
        """
        if not self._is_unknown(var, time - 1):
            return 0
        value = self.placed.values[var]
        made = value.made.after[self._sender(var)]
        return nbytes(var) if value.may_travel and made < time else math.inf

    def _operands(self, var: Var, time: int) -> list[Var]:
        """The values from which the bystander computes a value, if it can at all."""
        if var not in self.producers or self.placed.values[var].made.everywhere > time:
            return []
        operands = variables(self.placed.equations[self.producers[var]].invars)
        return [operand for operand in operands if self.placed.values[operand].owners]

    def _readers(self, cut: Cut, time: int) -> dict[Var, JaxprEqn | None]:
        """For each value of a cut, the first equation that reads it beyond the cut."""
        chosen = set(cut.chosen)
        readers = {v: eqn for v, eqn in self.remote[time].items() if v in chosen}
        for number in sorted(self.producers[var] for var in cut.beyond):
            eqn = self.placed.equations[number]
            for var in chosen.intersection(variables(eqn.invars)):
                readers.setdefault(var, eqn)
        return readers

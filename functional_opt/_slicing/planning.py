"""What travels, and when: the fewest rounds, and with these the fewest bytes.

Placing tells how many rounds it takes. What must be everywhere after the last of them
is the demand, and walking back from the results finds it. Which values to send, so that
all others can be computed from them, is a minimum cut: between what stages own and what
is demanded, where cutting a value costs its bytes. A value that is sent is computed by
its sender one round earlier; what that requires from other stages is the demand of the
earlier round.

For `x / sqrt(sum(x) + sum(y))`, wanted on the stage of `x`, the demand is `sum(y)`, as
that stage computes all else. If a third stage wants `z / sqrt(sum(x) + sum(y))`, the
demand is the root, and the cut `sum(x)` and `sum(y)`: the root is known a round later.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jax.extend.core import JaxprEqn, Literal, Var

from .cuts import Cut, minimum_cut
from .errors import CrossStageError, mixture_text, result_text
from .jaxprs import Atom, nbytes, variables
from .placing import Placed
from .stage_sets import NOWHERE, StageSet
from .times import NEVER


# Plans that reuse what the plan before them sends; each is kept if it sends less.
_MOST_PLANS = 4


@dataclass(frozen=True, eq=False)
class Message:
    """A value that travels in `round` from `sender`, as late as it may.

    `needed_by` is the first equation that reads it elsewhere; None for a result.
    `by_limit` says that it travels only because `travel_limit` allows it.
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
    """What has to travel so that each stage can compute what is wanted there.

    **Raises:** `CrossStageError` if some of it cannot be computed.
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
    """A walk from the results, and from the last round, to the first.

    **Attributes:**

    - `placed`: the equations.
    - `producers`: for each value the number of its equation.
    - `num_rounds`: how many rounds there are.
    - `reused`: after how many rounds the bystander has a value anyway, by another plan.
    - `known`: the same, by this plan.
    - `local`: for each round which stages compute a value from what they own.
    - `remote`: for each round what the bystander needs, and the equation that reads it.
    - `sent`: the round, the sender and the reader of what travels.
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
        """Some stages need a value after so many rounds.

        Those that own a part of what it is computed from compute it themselves.
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
        """Needs the operands of what stages compute themselves, last things first."""
        local = self.local[time]
        for eqn in reversed(self.placed.equations):
            stages = NOWHERE.union(*(local.get(var, NOWHERE) for var in eqn.outvars))
            if stages:
                for atom in eqn.invars:
                    self.need(atom, stages, time, eqn)

    def _cut(self, time: int) -> None:
        """Finds what is sent before this time, and needs it on its sender."""
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
        """Between what the bystander needs at this time and what stages own."""
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
        """The bytes of a value if it can be sent before this time."""
        if not self._is_unknown(var, time - 1):
            return 0
        value = self.placed.values[var]
        made = value.made.after[self._sender(var)]
        return nbytes(var) if value.may_travel and made < time else math.inf

    def _operands(self, var: Var, time: int) -> list[Var]:
        """What the bystander computes a value from; nothing if it cannot."""
        if var not in self.producers or self.placed.values[var].made.everywhere > time:
            return []
        operands = variables(self.placed.equations[self.producers[var]].invars)
        return [operand for operand in operands if self.placed.values[operand].owners]

    def _readers(self, cut: Cut, time: int) -> dict[Var, JaxprEqn | None]:
        """For each value of a cut the first equation that reads it elsewhere."""
        chosen = set(cut.chosen)
        readers = {v: eqn for v, eqn in self.remote[time].items() if v in chosen}
        for number in sorted(self.producers[var] for var in cut.beyond):
            eqn = self.placed.equations[number]
            for var in chosen.intersection(variables(eqn.invars)):
                readers.setdefault(var, eqn)
        return readers

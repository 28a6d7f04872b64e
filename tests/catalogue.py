"""One optimizer of each class, for the properties that all of them have."""

import inspect
from typing import Any

import functional_opt as fo
from recipe_runs import frozen_groups


KINDS: dict[str, Any] = {
    name: kind
    for name, kind in vars(fo).items()
    if inspect.isclass(kind)
    and issubclass(kind, fo.AbstractOptimizer)
    and not inspect.isabstract(kind)
}
# Where a class has fields without defaults, or where its defaults show little.
GIVEN: dict[str, fo.AbstractOptimizer] = {
    "ScheduleFree": fo.ScheduleFree(optimizer=fo.SGD(momentum=0.9)),
    "Groups": frozen_groups(),
}
OPTIMIZERS = {name: GIVEN.get(name) or kind() for name, kind in KINDS.items()}

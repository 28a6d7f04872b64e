"""Writes the page with a table of all optimizers, from the classes themselves.

`test_optimizers_table` checks that the page is current. As a script, it writes it.
"""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax_cases
from catalogue import EXAMPLES, extra_args as given_to, FUNCTIONS, KINDS
from optimizer_cases import CASES


PATH = Path(__file__).parent.parent / "docs" / "optimizers.md"

START = """\
---
hide: [toc]
---

# All optimizers

Every optimizer class, with its function in Optax, its paper, and where it can be used.
[Pictures](gallery/optimizers.md) show the path of each of them, and the
[reference](api/optimizers.md) all fields.

- **Class**: below it is the function of Optax with the same fields, defaults and
  values. Classes without one are implemented from their papers, and compared with the
  code of their authors.
- **Stages**: how the staged update compares with that of the whole tree, in
  [grades](ideas/equal.md#grades).
- **Exchange**: what all stages together exchange per step, with 40 parameters in 8
  stages. It does not depend on the sizes of the parameters.
- **Learning rate**: what the schedule multiplies. Most optimizers multiply a direction
  by it (*factor of the step*).
- **Extra arguments**: what `update` and `step` require besides gradients, state and
  parameters.
- **Not in**: where the class raises an error.

`nox -s table` writes this page.
"""

NUM_STAGES = 8
# The leaves of one stage. Stages that are alike share their programs.
SHAPES = {"embed": (6, 4), "body": (4, 6), "out": (4, 6), "bias": (5,), "norm": (3,)}
PARAMS = [
    {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    for _ in range(NUM_STAGES)
]
PARTITION = fo.partition(PARAMS, [dict.fromkeys(SHAPES, s) for s in range(NUM_STAGES)])
STAGED = frozenset(
    name for name, x in EXAMPLES.items() if "build_mpmd" not in x.REFUSED_BY
)
# Where gradients are not like parameters: those of two examples each.
EXAMPLE_GRADS = {
    "DPSGD": jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), PARAMS
    )
}

FACTOR = "factor of the step"
ESTIMATED = "factor of a step size that is estimated; usually 1"
LARGEST = "largest step size"
SIGNS = "size of the step of every entry"
INSIDE = "that of the optimizer inside"
MATRICES = "factor of the step of matrices; `adam_learning_rate` for the others"
TRUST = "factor of the step, relative to the norm of the parameter"

# What the learning rate means where it is more than a factor of the step.
RATES: dict[str, str] = {
    "Adafactor": "factor of the step, relative to the size of the parameter if "
    "`multiply_by_parameter_scale`",
    "AdaDelta": ESTIMATED,
    "COCOB": "factor of the gradient; usually 1",
    "DAdaptAdamW": ESTIMATED,
    "DoG": ESTIMATED,
    "DoWG": ESTIMATED,
    "Fromage": TRUST,
    "Frozen": "none",
    "Groups": "that of each group, times its `schedule_scale`",
    "Hyperball": "angle of the step; " + INSIDE + " where norms are not kept",
    "Lamb": TRUST,
    "Lars": TRUST,
    "LBFGS": "factor of the step; usually 1 with a line search, which follows",
    "Lion": SIGNS,
    "Lookahead": "that of `fast_optimizer`",
    "Mechanize": INSIDE + ", relative to a factor that is estimated",
    "Momo": LARGEST,
    "MomoAdam": LARGEST,
    "Muon": MATRICES,
    "NorMuon": MATRICES,
    "PolyakSGD": LARGEST,
    "Prodigy": ESTIMATED,
    "Rprop": "first step size of every entry",
    "Scion": "size of the step in the norm of each parameter",
    "SignSGD": SIGNS,
    "Signum": SIGNS,
}

# Stages of classes that have no case of their own.
UNGRADED = {
    "Frozen": "exact",
    "Groups": "that of its optimizers",
}

ORDER = ("exact", "close", "bounded", "impossible")
CITED = re.compile(
    r"\[([^\]]+)\]\((https?://[^)\s]+)\)(?:[^()\[\]]*\(([^()]*?\d{4})\))?"
)
ALIASES = {kind.__name__: name for name, kind in FUNCTIONS.items()}


def staged(name: str) -> Any:
    """The stage-local update of an optimizer, on 40 leaves in 8 stages."""
    optimizer, given = EXAMPLES[name], given_to(name)
    grads = EXAMPLE_GRADS.get(name)
    return optimizer.build_mpmd(0.1, PARAMS, PARTITION, grads=grads, extra_args=given)


def exchange(update: Any) -> str:
    """The rounds and bytes of a stage-local update."""
    if not update.rounds:
        return "none"
    plural = "s" if update.rounds > 1 else ""
    return f"{update.rounds} round{plural}, {sum(update.bytes_sent):,} bytes"


def exchange_on_page() -> dict[str, str]:
    """What the page says that each optimizer exchanges."""
    rows = (line.split(" | ") for line in PATH.read_text().splitlines())
    named = ((re.match(r"\| \[`(\w+)`\]", row[0]), row) for row in rows)
    return {name[1]: row[3] for name, row in named if name is not None}


def paper(kind: type) -> str:
    """The first paper that the docstring cites, by authors and year."""
    text = " ".join((inspect.getdoc(kind) or "").split())
    for name, url, authors in CITED.findall(text):
        if authors or re.search(r"\d{4}$", name):
            return f"[{authors or name}]({url})"
    return ""


def extra_args(kind: Any) -> str:
    always = [name for name, x in kind.EXTRA_ARGS.items() if x.when is None]
    other = [name for name, x in kind.EXTRA_ARGS.items() if x.when is not None]
    words = [", ".join(f"`{name}`" for name in always)] if always else []
    fields = " or ".join(f"`{field}`" for field in _deciding(kind))
    if other:
        words.append(", ".join(f"`{name}`" for name in other) + f": see {fields}")
    return "; ".join(words)


def _deciding(kind: Any) -> list[str]:
    """The fields that the reasons and remedies of extra arguments name."""
    remedies = " ".join(x.instead or "" for x in kind.EXTRA_ARGS.values())
    return sorted(set(re.findall(rf"`{kind.__name__}\.(\w+)`", remedies)))


def refused(kind: Any) -> str:
    places = [f"`{place}`" for place in kind.REFUSED_BY]
    if any(x.instead is not None for x in kind.EXTRA_ARGS.values()):
        places.append(f"`build_mpmd`, `Groups`: see `{_deciding(kind)[0]}`")
    return ", ".join(places)


def grades(kind: type) -> list[tuple[str, str]]:
    """The grades of the cases of a class, the best first, each with its reason."""
    alias = ALIASES.get(kind.__name__)
    found = {
        (case.equal, case.reason) for case in optax_cases.CASES if case.name == alias
    }
    ours = [case for case in CASES.values() if type(case.optimizer) is kind]
    found |= {("bounded" if case.close else "exact", case.close) for case in ours}
    return sorted(found, key=lambda pair: (ORDER.index(pair[0]), pair[1]))


def reasons() -> list[str]:
    """The footnotes, in the order of their numbers."""
    given = (reason for kind in _sorted() for _, reason in grades(kind))
    return list(dict.fromkeys(_sentence(reason) for reason in given if reason))


def _sorted() -> list[type]:
    return sorted(KINDS.values(), key=lambda kind: kind.__name__.lower())


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def stages(kind: type) -> str:
    """All grades, each with the number of its reason."""
    notes = reasons()
    cells = [
        grade + (f" [{notes.index(_sentence(reason)) + 1}]" if reason else "")
        for grade, reason in grades(kind)
    ]
    inside = INSIDE if wraps(kind) else ""
    return " or ".join(cells) or UNGRADED.get(kind.__name__, inside)


def wraps(kind: type) -> bool:
    """Whether a class holds one other optimizer, in one of its fields."""
    held = vars(EXAMPLES[kind.__name__]).values()
    return any(isinstance(value, fo.AbstractOptimizer) for value in held)


def row(kind: type, exchanged: Mapping[str, str]) -> str:
    name = kind.__name__
    alias = f"<br>`{ALIASES[name]}`" if name in ALIASES else ""
    cells = [
        f"[`{name}`][functional_opt.{name}]{alias}",
        paper(kind),
        stages(kind),
        exchanged.get(name, "none"),
        RATES.get(name, INSIDE if wraps(kind) else FACTOR),
        extra_args(kind),
        refused(kind),
    ]
    return f"| {' | '.join(cells)} |"


def text(exchanged: Mapping[str, str]) -> str:
    """The page.

    **Arguments:**

    - `exchanged`: what the stages of each optimizer exchange.
    """
    columns = ("Class", "Paper", "Stages", "Exchange", "Learning rate")
    titles = [*columns, "Extra arguments", "Not in"]
    head = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons(), 1)]
    rows = [row(kind, exchanged) for kind in _sorted()]
    return "\n".join([START, *head, *rows, "", "## Reasons", "", *notes, ""])


if __name__ == "__main__":
    PATH.write_text(text({name: exchange(staged(name)) for name in sorted(STAGED)}))

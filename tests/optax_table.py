"""Makes the page that says what cutting each part of Optax into stages gives.

Its table is of `optax_cases`, which `test_optax` proves. Run as a script, it writes the
page.
"""

from pathlib import Path

import functional_opt as fo
import jax
import optax
from optax_cases import bytes_sent, Case, CASES, GROUPS


PAGE = Path(__file__).parent.parent / "docs" / "optax.md"

VERSIONS = f"Made with JAX {jax.__version__} and Optax {optax.__version__}."

START = """\
# Optax, stage by stage

What `stage_local` gives for every public transformation of `optax` and `optax.contrib`,
compared with `jax.jit` of `tx.update` on the whole tree:

- **exact**: the same bytes, of updates, parameters and state.
- **close**: within 1e-6 of a leaf's largest entry, for the reason given.
- **impossible**: `stage_local` refuses it, for the reason given.
- **not yet**: it will work, but does not.

*Rounds* is how often the stages exchange messages in a step, *bytes* is what all of
them send in it. Parameters and stages are

{parameters}

so that a norm over all of them, summed in this order, takes a float32 of each, 16 B.
What neighbours on one stage add up to is sent as one.

`nox -s table` makes this page. {versions}
"""

COLUMNS = "| | equal | rounds | bytes |\n|---|---|--:|--:|\n"


def reasons() -> list[str]:
    """The footnotes, in the order of their numbers."""
    given = (case.pending or case.reason for case in CASES)
    return list(dict.fromkeys(reason for reason in given if reason))


def equality(case: Case) -> tuple[str, str]:
    """The first two cells of a row: what it is, and how equal."""
    name = f"`{case.name}`" + (f", {case.variant}" if case.variant else "")
    grade = "not yet" if case.pending else case.equal
    reason = case.pending or case.reason
    note = f" [{reasons().index(reason) + 1}]" if reason else ""
    return name, f"{grade}{note}"


def row(case: Case, staged: fo.StageLocal | None) -> str:
    """A line of the table; `staged` is None where there are no stages to speak of."""
    figures = ("", "") if staged is None else (staged.rounds, bytes_sent(staged))
    return f"| {' | '.join(map(str, [*equality(case), *figures]))} |"


def page() -> str:
    start = START.format(parameters=_parameters(), versions=VERSIONS)
    sections = [_section(title, cases) for title, cases in GROUPS.items()]
    notes = [f"{number}. {text}" for number, text in enumerate(reasons(), 1)]
    return "\n".join([start, *sections, "## Reasons\n", *notes, ""])


def _parameters() -> str:
    """A line for each parameter, with its shape and its stage."""
    case = CASES[0]
    leaves = jax.tree.leaves_with_path(case.params)
    places = case.partition.params.places
    lines = [
        f"    {jax.tree_util.keystr(path, simple=True, separator='.'):<14}  "
        f"{leaf.dtype}{list(leaf.shape)!s:<8}  stage {min(place)}"
        for (path, leaf), place in zip(leaves, places, strict=True)
    ]
    return "\n".join(lines)


def _section(title: str, cases: tuple[Case, ...]) -> str:
    rows = [row(case, case.cut() if _works(case) else None) for case in cases]
    return "\n".join([f"## {title}\n", COLUMNS + "\n".join(rows), ""])


def _works(case: Case) -> bool:
    return not case.pending and case.equal != "impossible"


if __name__ == "__main__":
    PAGE.write_text(page())

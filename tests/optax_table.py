"""Writes the pages that compare stage-local Optax transformations with whole trees.

Their tables show `optax_cases` and `third_party_cases`, which `test_optax` and
`test_third_party` check. As a script, it writes the pages.
"""

import importlib.metadata
import itertools
from dataclasses import dataclass
from pathlib import Path

import functional_opt as fo
import jax
import optax_cases
import third_party_cases
from exchange_table import enlarged
from optax_cases import bytes_sent, Case


DOCS = Path(__file__).parent.parent / "docs"

OPTAX = """\
# Stage-local Optax

How `stage_local` compares with a jitted `tx.update` on the whole tree, for every public
transformation of `optax` and `optax.contrib`:

- **exact**: updates, parameters and state are equal bit for bit.
- **close**: every entry is within 4 units in its own last place, for the reason given.
- **bounded**: every entry is within 1e-6 of the largest entry of its leaf, since the
  arithmetic cancels, for the reason given. Close and bounded rows are compared step by
  step, each step starting from the state of the whole tree.
- **impossible**: `stage_local` raises an error, for the reason given.
- **not yet**: not supported so far.

*Rounds* is the number of rounds of exchange per step, and *bytes* the total bytes
exchanged per step, with 4 and with {large} parameters. The 4 parameters and their
stages are

{parameters}

so a norm over all of them, summed in this order, requires one float32 per parameter: 16
B. The {large} parameters have the same shapes in equal numbers (except that `scale` has
512 entries), and each of {stages} stages owns consecutive parameters. A norm then
requires one float32 per parameter, except for the first stage, which sends only the sum
of its own.

`nox -s table` writes this page. {versions}
"""

THIRD_PARTY = """\
# Stage-local transformations of other packages

Packages from PyPI, without changes. The columns, the parameters and the stages are
those of [all of Optax](optax.md). The text below explains the bytes for 4 parameters.

## Exchanges of PSGD-Kron

Each parameter has its own preconditioner, which stays on its stage. The exchanges are:

- If no scale is given, the scale of the first preconditioners depends on the largest
  mean |g|⁴ of all gradients. This requires one round with one float32 per parameter,
  16 B here. The state records whether it is the first step, so every step exchanges
  these values. `psgdax` and `rollfast` exchange exactly this, even if a scale is given,
  since the state has this entry in any case.
- A clip by the norm of the gradients precedes this scale, and a clip by the norm of the
  preconditioned gradients follows it. Each is one more round of 16 B. `rollfast` with
  both therefore requires 3 rounds and 48 B, which is the minimum.

Random numbers, counters and decisions that are equal on all stages are computed on each
of them, and no matrix leaves its stage.

`nox -s table` writes this page. {versions}
"""

LARGE = 100  # parameters
LARGE_STAGES = 4
COLUMNS = (
    f"| | equal | rounds | bytes | rounds, {LARGE} | bytes, {LARGE} |\n"
    "|---|---|--:|--:|--:|--:|\n"
)


@dataclass(frozen=True)
class Page:
    """A page with a row for each case, in sections.

    **Attributes:**

    - `path`: where it is.
    - `start`: the text above the tables.
    - `groups`: the cases of each section.
    - `packages`: whose versions it tells.
    """

    path: Path
    start: str
    groups: dict[str, tuple[Case, ...]]
    packages: tuple[str, ...]

    @property
    def cases(self) -> list[Case]:
        return [case for cases in self.groups.values() for case in cases]

    @property
    def versions(self) -> str:
        *rest, last = (
            f"{name} {importlib.metadata.version(name)}" for name in self.packages
        )
        return f"Made with {', '.join(rest)} and {last}."

    def lines(self) -> list[str]:
        """What is written there."""
        return self.path.read_text().splitlines()

    def reasons(self) -> list[str]:
        """The footnotes, in the order of their numbers."""
        given = (case.pending or case.reason for case in self.cases)
        return list(dict.fromkeys(reason for reason in given if reason))

    def equality(self, case: Case) -> tuple[str, str]:
        """The first two cells of a row: what it is, and how equal."""
        name = f"`{case.name}`" + (f", {case.variant}" if case.variant else "")
        grade = "not yet" if case.pending else case.equal
        reason = case.pending or case.reason
        note = f" [{self.reasons().index(reason) + 1}]" if reason else ""
        return name, f"{grade}{note}"

    def row(self, case: Case, *splits: fo.StageLocal) -> str:
        """A line of the table, of as many columns as there are splits to show."""
        figures = [(staged.rounds, bytes_sent(staged)) for staged in splits]
        cells = [*self.equality(case), *itertools.chain(*figures)]
        return f"| {' | '.join(map(str, cells))} |"

    def figures(self, case: Case) -> list[int]:
        """The numbers in the row of a case."""
        start = self.row(case)
        (line,) = (line for line in self.lines() if line.startswith(start))
        return [int(cell) for cell in line[len(start) :].split("|") if cell.strip()]

    def text(self) -> str:
        start = self.start.format(
            parameters=_parameters(),
            versions=self.versions,
            large=LARGE,
            stages=LARGE_STAGES,
        )
        sections = [self._section(title, cases) for title, cases in self.groups.items()]
        notes = [f"{number}. {text}" for number, text in enumerate(self.reasons(), 1)]
        return "\n".join([start, *sections, "## Reasons\n", *notes, ""])

    def _section(self, title: str, cases: tuple[Case, ...]) -> str:
        rows = [self.row(case, *_splits(case)) for case in cases]
        return "\n".join([f"## {title}\n", COLUMNS + "\n".join(rows), ""])


def _parameters() -> str:
    """A line for each parameter, with its shape and its stage."""
    case = optax_cases.CASES[0]
    leaves = jax.tree.leaves_with_path(case.params)
    places = case.partition.params.stage_sets
    lines = [
        f"    {jax.tree_util.keystr(path, simple=True, separator='.'):<14}  "
        f"{leaf.dtype}{list(leaf.shape)!s:<8}  stage {min(place)}"
        for (path, leaf), place in zip(leaves, places, strict=True)
    ]
    return "\n".join(lines)


def works(case: Case) -> bool:
    return not case.pending and case.equal != "impossible"


def large(case: Case) -> Case:
    return enlarged(case, LARGE, LARGE_STAGES, "contiguous")


def _splits(case: Case) -> list[fo.StageLocal]:
    return [one.cut() for one in (case, large(case))] if works(case) else []


def prove(case: Case, page: Page) -> None:
    """Asserts that a case does what its row says, and that its row says so."""
    assert case.equal != "impossible"
    with case.ranks():
        staged = fo.testing.assert_stage_local_equal(
            case.build(),
            case.params,
            case.partition,
            steps=case.steps,
            grads=case.grads(),
            grade=case.equal,
            extra_args=case.extra_args,
        )
    sent, num_leaves = bytes_sent(staged), len(jax.tree.leaves(case.params))
    if case.exchanges:
        assert staged.rounds > 0 and 0 < sent <= case.most_sent * num_leaves
    else:
        assert staged.rounds == 0 and sent == 0
    lines = page.lines()
    if any(line.endswith(page.versions) for line in lines):
        start = page.row(case, staged)
        made = any(line.startswith(start) for line in lines)
        assert made, "make the page by `nox -s table`"


def check_page(page: Page) -> None:
    """Asserts that a page has a row for every case, and a footnote for every reason."""
    lines = page.lines()
    table = [line for line in lines if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table]
    assert rows == [list(page.equality(case)) for case in page.cases]
    for number, reason in enumerate(page.reasons(), 1):
        assert f"{number}. {reason}" in lines
    assert all(case.reason for case in page.cases if case.equal != "exact")
    assert len({case.label for case in page.cases}) == len(page.cases)
    for case in filter(works, page.cases):
        rounds, _, large_rounds, large_bytes = page.figures(case)
        assert large_rounds == rounds and large_bytes <= case.most_sent * LARGE


OPTAX_PAGE = Page(DOCS / "optax.md", OPTAX, optax_cases.GROUPS, ("jax", "optax"))
THIRD_PARTY_PAGE = Page(
    DOCS / "third_party.md",
    THIRD_PARTY,
    third_party_cases.GROUPS,
    ("jax", "optax", *third_party_cases.PACKAGES),
)


if __name__ == "__main__":
    for page in (OPTAX_PAGE, THIRD_PARTY_PAGE):
        page.path.write_text(page.text())

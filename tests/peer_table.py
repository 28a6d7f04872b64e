"""Writes the page that compares this library with eformer.

Its table shows `peer_cases`, which `test_peer` checks. As a script, it writes the
page.
"""

from pathlib import Path

from peer_cases import Case, CASES


PAGE = Path(__file__).parent.parent / "docs" / "peer.md"

START = """\
# Comparison with eformer

The optimizers and schedules of [eformer](https://github.com/erfanzar/eformer) 0.0.101
are compared with those of this library, with the same settings and gradients: the
parameters after each of 20 steps in float32, or the values of a schedule at 20 updates.
Parameters are of rank 0 to 3.

- **exact**: equal bit for bit.
- **bounded**: within 1e-6 of the largest entry of the leaf.
- **different**: not equal, for the reason given. The result of this library matches the
  reference: Optax, or the code of the authors for the same 20 steps.
- **fails**: eformer fails to run. The result of this library matches the reference.

eformer has configurations, but no optimizers, for `SOAP`, `Kron` and `Scion`. Their
reference is also the code of the authors; see `tests/record_trajectories.py`.

`nox -s peer` checks and writes this page.
"""

COLUMNS = "| | settings | equal | reason | reference |\n|---|---|---|---|---|\n"


def text() -> str:
    sections = [
        f"## {title}\n\n{COLUMNS}" + "".join(f"{row(case)}\n" for case in cases)
        for title, cases in CASES.items()
    ]
    return "\n".join([START, *sections])


def row(case: Case) -> str:
    cells = (f"`{case.name}`", case.settings, case.equal, case.reason, witness(case))
    return f"| {' | '.join(cells)} |"


def witness(case: Case) -> str:
    if case.witness is None:
        return ""
    return "the authors' code" if isinstance(case.witness, str) else "Optax"


if __name__ == "__main__":
    PAGE.write_text(text())

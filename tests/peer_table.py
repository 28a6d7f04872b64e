"""Makes the page that compares us with eformer.

Its table is of `peer_cases`, which `test_peer` proves. Run as a script, it writes the
page.
"""

from pathlib import Path

from peer_cases import Case, CASES


PAGE = Path(__file__).parent.parent / "docs" / "peer.md"

START = """\
# Beside eformer

What [eformer](https://github.com/erfanzar/eformer) 0.0.101 has, with the same settings
on both sides: the parameters after each of 20 steps in float32, or the values of 20
updates. Parameters are of rank 0 to 3; gradients are the same on both sides.

- **exact**: the same bytes.
- **bounded**: within 1e-6 of a leaf's largest entry.
- **different**: not the same, for the reason given. Ours is what the witness says:
  Optax itself, or what the authors' own code does in the same 20 steps.
- **fails**: theirs makes no step. Ours is what the witness says.

`SOAP`, `Kron` and `Scion`, for which eformer has configurations and no optimizers, have
the authors' own code as their witness too: `tests/record_trajectories.py` says which.

`nox -s peer` proves and makes this page.
"""

COLUMNS = "| | settings | equal | reason | witness |\n|---|---|---|---|---|\n"


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

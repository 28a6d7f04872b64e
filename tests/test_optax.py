"""All of Optax, stage by stage. `docs/optax.md` shows what is proved here."""

import functional_opt as fo
import jax
import optax_table
import pytest
from optax_cases import bytes_sent, Case, CASES, category, public_names


def parameters(cases):
    def marks(case):
        failing = pytest.mark.xfail(strict=True, reason=case.pending)
        return [failing] if case.pending else []

    return [pytest.param(case, id=case.label, marks=marks(case)) for case in cases]


POSSIBLE = [case for case in CASES if case.equal != "impossible"]
IMPOSSIBLE = [case for case in CASES if case.equal == "impossible"]


@pytest.fixture(scope="module")
def page():
    return optax_table.PAGE.read_text().splitlines()


@pytest.mark.parametrize("case", parameters(POSSIBLE))
def test_the_same_as_on_the_whole_tree(case: Case, page):
    staged = fo.testing.assert_stage_local_equal(
        case.build(),
        case.params,
        case.partition,
        steps=case.steps,
        grads=case.grads(),
        grade="close" if case.equal == "close" else "exact",
        extra_args=case.extra_args,
    )
    sent, num_leaves = bytes_sent(staged), len(jax.tree.leaves(case.params))
    if case.exchanges:
        assert staged.rounds > 0 and 0 < sent <= case.most_sent * num_leaves
    else:
        assert staged.rounds == 0 and sent == 0
    if any(line.endswith(optax_table.VERSIONS) for line in page):
        assert optax_table.row(case, staged) in page, "make the page by `nox -s table`"


@pytest.mark.parametrize("case", parameters(IMPOSSIBLE))
def test_what_cannot_be_cut_is_an_error_that_explains(case: Case):
    with pytest.raises(Exception, match=case.error):
        case.cut()


@pytest.mark.parametrize("name", [*public_names()])
def test_every_public_name_has_its_place(name):
    places = [case.label for case in CASES if case.name == name]
    if (kind := category(name, public_names()[name])) is not None:
        places.append(kind)
    assert places, (
        f"`{name}` has no place: give it a case in optax_cases.py, or a category if it "
        "is no transformation"
    )
    assert kind is None or places == [kind], f"`{name}` has two places: {places}"


def test_the_names_of_cases_are_of_optax():
    assert {case.name for case in CASES} <= public_names().keys()


def test_cases_have_names_of_their_own():
    assert len({case.label for case in CASES}) == len(CASES)


def test_what_is_not_exact_says_why():
    assert all(case.reason for case in CASES if case.equal != "exact")


def test_the_page_has_a_row_for_every_case(page):
    rows = [line[2:].split(" | ")[:2] for line in page if line.startswith("| `")]
    assert rows == [list(optax_table.equality(case)) for case in CASES]
    for number, reason in enumerate(optax_table.reasons(), 1):
        assert f"{number}. {reason}" in page

"""All of Optax, stage by stage. `docs/optax.md` shows what is proved here."""

import pytest
from optax_cases import bytes_sent, Case, CASES, category, public_names, unread
from optax_table import check_page, large, OPTAX_PAGE, prove


def parameters(cases):
    def marks(case):
        failing = pytest.mark.xfail(strict=True, reason=case.pending)
        return [failing] if case.pending else []

    return [pytest.param(case, id=case.label, marks=marks(case)) for case in cases]


POSSIBLE = [case for case in CASES if case.equal != "impossible"]
IMPOSSIBLE = [case for case in CASES if case.equal == "impossible"]


@pytest.mark.parametrize("case", parameters(POSSIBLE))
def test_the_same_as_on_the_whole_tree(case: Case):
    prove(case, OPTAX_PAGE)


@pytest.mark.parametrize(
    "case", parameters([case for case in POSSIBLE if case.exchanges])
)
def test_nothing_travels_that_no_other_stage_reads(case: Case):
    assert unread(case.cut()) == []


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


def test_the_page_has_a_row_for_every_case():
    check_page(OPTAX_PAGE)


SHOWN = {
    "adam": 0,
    "clip_by_global_norm": 1,
    "conditionally_transform, of chain, masked, lion": 1,
}


@pytest.mark.parametrize("label, rounds", SHOWN.items())
def test_the_page_tells_what_a_hundred_parameters_exchange(label, rounds):
    (case,) = (case for case in CASES if case.label == label)
    staged = large(case).cut()
    assert staged.rounds == rounds
    assert OPTAX_PAGE.figures(case)[2:] == [rounds, bytes_sent(staged)]

"""Transformations of others. `docs/third_party.md` shows what is proved here."""

import pytest
from optax_cases import Case
from optax_table import check_page, prove, THIRD_PARTY_PAGE


@pytest.mark.parametrize("case", THIRD_PARTY_PAGE.cases, ids=lambda case: case.label)
def test_the_same_as_on_the_whole_tree(case: Case):
    prove(case, THIRD_PARTY_PAGE)


def test_the_page_has_a_row_for_every_case():
    check_page(THIRD_PARTY_PAGE)

"""The page with a table of all optimizers is that of the classes."""

import inspect

import optimizers_table
import pytest
from catalogue import KINDS


def test_the_page_is_current():
    exchanged = optimizers_table.exchange_on_page()
    assert optimizers_table.PATH.read_text() == optimizers_table.text(exchanged), (
        "write the page by `nox -s table`"
    )


def test_meanings_of_learning_rates_are_those_of_classes():
    assert optimizers_table.RATES.keys() <= KINDS.keys()


@pytest.mark.parametrize(
    "name", sorted(KINDS.keys() - optimizers_table.UNGRADED.keys())
)
def test_every_row_has_a_paper_and_a_grade(name):
    cited = optimizers_table.paper(KINDS[name])
    url = cited.partition("](")[2].removesuffix(")")
    assert url and url in (inspect.getdoc(KINDS[name]) or "")
    assert optimizers_table.stages(KINDS[name]), "add a row to optimizer_cases.py"

"""The picture of a slice shows the values, operands and messages of the real one."""

import re
from pathlib import Path

import pytest
import slicing_figure


PAGE = Path(__file__).parents[1] / "docs" / "ideas" / "slicing.md"


def test_every_value_and_operand_is_drawn():
    placed = slicing_figure.clipped().placed
    picture = slicing_figure.picture()
    values = re.findall(r'<rect class="(?:value|sent)"', picture)
    lines = re.findall(r'<path class="(?:edge|message)"', picture)
    assert len(values) == len(placed.values) == 17
    operands = [set(slicing_figure._operands(eqn)) for eqn in placed.equations]
    assert len(lines) == sum(map(len, operands))


def test_boxes_do_not_overlap_and_operands_are_above():
    boxes = slicing_figure.boxes()
    places = [(slicing_figure._middle(box), box.row) for box in boxes.values()]
    for i, (x, row) in enumerate(places):
        for other, other_row in places[:i]:
            assert row != other_row or abs(x - other) >= slicing_figure.WIDTH
    for eqn in slicing_figure.clipped().placed.equations:
        for operand in slicing_figure._operands(eqn):
            assert boxes[operand].row < boxes[eqn.outvars[0]].row


def test_the_text_of_the_page_names_the_same_values():
    """The page explains letters, which follow from the equations."""
    placed = slicing_figure.clipped().placed
    by_stages: dict[tuple[int, ...], str] = {}
    for var, letter in slicing_figure.names().items():
        home = tuple(sorted(placed.values[var].home))
        by_stages[home] = by_stages.get(home, "") + letter
    assert by_stages == {(0,): "abdefgjop", (1,): "chiq", (0, 1): "klmn"}
    (messages,) = slicing_figure.clipped().rounds
    assert {slicing_figure.name(message.var) for message in messages} == {"i", "j"}
    assert "`j` and `i`, 4 bytes each" in PAGE.read_text()


@pytest.mark.parametrize("made", ["clip-picture", "clip-programs"])
def test_the_page_has_the_parts_that_are_made(made):
    assert f"```made\n{made}\n```" in PAGE.read_text()
    assert '\n--8<-- "docs/_site/slicing_figure.py:clip"\n' in PAGE.read_text()


def test_programs_compute_from_their_arguments_alone():
    for block in slicing_figure.programs().split("```text")[1:]:
        known: set[str] = set()
        for line in block.partition("```")[0].strip().splitlines():
            if arguments := re.search(r"round 0: \((.*)\)$", line):
                known = set(arguments[1].split(", "))
                continue
            result, _, right = line.strip().partition(" = ")
            read = (right or result.removeprefix("return ")).replace(",", "").split()
            assert {word for word in read if re.fullmatch("[a-z]", word)} <= known
            known.add(result)

"""The code in the README and in the docs runs, and prints what stands below it."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
EXAMPLES = [
    pytest.param(code, output, id=f"{page.parent.name}-{page.stem}-{number}")
    for page in PAGES
    for number, (code, output) in enumerate(EXAMPLE.findall(page.read_text()))
]


@pytest.mark.parametrize("code, output", EXAMPLES)
def test_prints_what_the_page_says(code, output):
    printed = io.StringIO()
    # A page adds a bias to rows as its readers do, who broadcast it.
    ranks = jax.numpy_rank_promotion("allow")
    with contextlib.redirect_stdout(printed), ranks:
        exec(compile(code, "<page>", "exec"), {"__name__": "page"})
    assert _without_lines(printed.getvalue()) == _without_lines(output)


def _without_lines(text):
    """Another version of Optax has its code on other lines."""
    return re.sub(r"\.py:\d+", ".py", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_code_is_left_untested(page):
    text = page.read_text()
    assert text.count("```python") == len(EXAMPLE.findall(text))

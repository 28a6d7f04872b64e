"""Every error of `mistakes.md`, word by word.

After a change of the texts, `python tests/test_mistakes.py` writes them anew: read the
difference from top to bottom.
"""

import os
import re
import tempfile
from pathlib import Path

import functional_opt as fo
import pytest
from rooms import library


PAGE = Path(__file__).with_name("mistakes.md")
TITLE = re.compile("^### (.*)", re.MULTILINE)
CASE = re.compile(r"```(toml|yaml|json)\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
TITLES = TITLE.findall(PAGE.read_text())
CASES = CASE.findall(PAGE.read_text())
LIBRARY = library()


def error_of(format: str, text: str, folder: Path) -> str:
    """The error of a document, with the name of the file alone."""
    path = folder / f"recipe.{format}"
    path.write_text(text)
    with pytest.raises(fo.ConfigError) as caught:
        LIBRARY.load(path)
    return str(caught.value).replace(str(folder) + os.sep, "") + "\n"


@pytest.mark.parametrize("format, text, error", CASES, ids=TITLES)
def test_mistake(format, text, error, tmp_path):
    assert error_of(format, text, tmp_path) == error


def test_all_are_read():
    assert len(CASES) == len(TITLES) == PAGE.read_text().count("```") // 4 > 50


def write_page() -> None:
    with tempfile.TemporaryDirectory() as folder:

        def written(match: re.Match[str]) -> str:
            error = error_of(match[1], match[2], Path(folder))
            return f"```{match[1]}\n{match[2]}```\n\n```text\n{error}```"

        PAGE.write_text(CASE.sub(written, PAGE.read_text()))


if __name__ == "__main__":
    write_page()

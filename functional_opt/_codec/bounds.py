"""Bounds on the size of a document.

Every format is read in time and memory proportional to the size of the text, and
nothing is expanded beyond these bounds. Typical documents have a few kilobytes.
"""

from typing import NoReturn

from .problems import Problem, Refused


LARGEST = 1_000_000
MOST_VALUES = 100_000
LONGEST = 10_000  # Characters of a string: most are patterns, to be compiled.
MOST_TABLES = 10_000  # Each becomes a module, in about a tenth of a millisecond.
DEEPEST = 32


def too_many() -> str:
    return f"there are more than {MOST_VALUES:,} values"


def too_many_tables() -> str:
    return f"there are more than {MOST_TABLES:,} tables"


def too_long() -> str:
    return f"a string has at most {LONGEST:,} characters"


def too_deep() -> str:
    return f"there are more than {DEEPEST} levels"


def check_size(size: int) -> None:
    """Raises an error for a text that is too large, before it is parsed."""
    if size > LARGEST:
        text = f"the document is too large: at most {LARGEST:,} bytes are read"
        refuse(text)


def refuse(text: str) -> NoReturn:
    raise Refused([Problem((), text)])

"""What is wrong with a document: every mistake, and where it is."""

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any


BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
SHOWN = 80


class ConfigError(ValueError):
    """A document that says no module of the registry, with all of its mistakes.

    ```python
    >>> import functional_opt as fo
    >>> registry = fo.Registry.of(fo.AdamW, fo.Cosine)
    >>> try:
    ...     registry.decode({"optimizer": {"name": "adamwx"}, "clip_norm": -1})
    ... except fo.ConfigError as error:
    ...     print(error)
    optimizer.name: 'adamwx' is no Optimizer; did you mean 'adamw'? known: adamw
    schedule: required key of Recipe is missing
    clip_norm: must be greater than 0, got -1.0

    ```

    **Attributes:**

    - `problems`: pairs of a place, such as `optimizer.b1`, and a text. The place of the
        whole document is empty.
    - `source`: the file that was read, if it was one.
    """

    def __init__(
        self, problems: Iterable[tuple[str, str]], source: str | None = None
    ) -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__(self.problems, source)

    def __str__(self) -> str:
        source = () if self.source is None else (self.source,)
        return "\n".join(
            ": ".join([*source, *filter(None, problem)]) for problem in self.problems
        )


def place_text(path: Iterable[str | int]) -> str:
    """A path in a document as one would write it: `parts[1].groups."a/.*".b2`."""
    return "".join(map(_step_text, path)).removeprefix(".")


def _step_text(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step if BARE_KEY.fullmatch(step) else json.dumps(step)}"


def shown(value: Any) -> str:
    """A value of a document, short enough for one line."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits.
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def suggestion(word: Any, words: Iterable[str]) -> str:
    """The nearest of the words that would have been right, and all of them."""
    words = list(words)
    text = word[:SHOWN].lower() if isinstance(word, str) else ""
    near = difflib.get_close_matches(text, words, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}known: {', '.join(words) or 'none'}"

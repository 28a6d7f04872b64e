"""Values on one line, as each format writes them."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import BARE_KEY


class Notation(NamedTuple):
    """The format of a document, and its first table header if it is TOML."""

    format: str = "json"
    first_header: str | None = None

    def value(self, value: Any) -> str:
        """Plain data on one line. A value of `...` stands for one to fill in."""
        match value:
            case dict():
                return self.table(value)
            case list():
                return f"[{', '.join(map(self.value, value))}]"
            case float() if not math.isfinite(value):
                return f".{value}" if self.format == "yaml" else str(value)
        return "..." if value is ... else json.dumps(value, ensure_ascii=False)

    def table(self, data: Mapping[str, Any]) -> str:
        pairs = (self.pair(key, value) for key, value in data.items())
        return f"{{{', '.join(pairs)}}}"

    def pair(self, key: str, value: Any) -> str:
        return f"{self.key(key)}{self.separator}{self.value(value)}"

    def key(self, key: str) -> str:
        is_bare = self.format != "json" and BARE_KEY.fullmatch(key)
        return key if is_bare else json.dumps(key, ensure_ascii=False)

    @property
    def separator(self) -> str:
        return " = " if self.format == "toml" else ": "

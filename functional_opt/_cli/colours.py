"""Colours of errors, on terminals only."""

import os
import re


BOLD, RED, RESET = "\033[1m", "\033[31m", "\033[0m"
MARK = re.compile(r"^( *\| *)(\^+)$", re.MULTILINE)
POSITION = re.compile(r"^([^\s|][^\n]*?:)(?= )", re.MULTILINE)


def coloured(text: str, is_terminal: bool) -> str:
    """Errors with positions in bold and marks in red, if a terminal shows them."""
    is_plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    if is_plain or not is_terminal:
        return text
    text = MARK.sub(rf"\1{RED}\2{RESET}", text)
    return POSITION.sub(rf"{BOLD}\1{RESET}", text)

"""What the commands read and write, and by which registry."""

import argparse
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import functional_opt as fo

from .._codec.errors import ConfigError
from .._codec.files import decode_text, format_of, parse
from .overrides import overridden


def library() -> fo.Registry:
    """Every optimizer and schedule of the library."""
    bases = (fo.AbstractOptimizer, fo.AbstractSchedule)
    return fo.Registry.of(
        *(
            kind
            for kind in vars(fo).values()
            if inspect.isclass(kind)
            and issubclass(kind, bases)
            and not inspect.isabstract(kind)
        )
    )


def registry_at(place: str) -> fo.Registry:
    """The registry that a module of the user's has: `package.module:NAME`."""
    module, _, name = place.partition(":")
    if "" not in sys.path:  # As for `python -m`: what lies here can be imported.
        sys.path.insert(0, "")
    try:
        registry = getattr(importlib.import_module(module), name or "registry")
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(registry, fo.Registry):
        raise argparse.ArgumentTypeError(f"{place} is no Registry but {registry!r}")
    return registry


def read(options: argparse.Namespace) -> Any:
    """The module that the document of the command line says."""
    source = "<stdin>" if options.file == "-" else options.file
    format = _format(options)
    data = parse(_text(options.file, source), format, source)
    try:
        return options.registry.decode(overridden(data, options.assignments))
    except ConfigError as error:
        raise ConfigError(error.problems, source) from None


def _text(file: str, source: str) -> str:
    content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    return decode_text(content, source)


def _format(options: argparse.Namespace) -> str:
    if options.format is not None:
        return options.format
    if options.file == "-":
        return "toml"
    try:
        return format_of(options.file)
    except ValueError as error:
        raise ConfigError([("", f"{error} Or say its --format.")]) from None


def write(text: str, target: str) -> None:
    """Writes to a file, or to standard output if the target is `-`."""
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")

"""The files that the commands read and write, and the registry for them."""

import argparse
import errno
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import functional_opt as fo

from .._codec.bounds import LARGEST
from .._codec.errors import ConfigError
from .._codec.files import decode_text, Document, format_of, parse
from .overrides import changed


def library() -> fo.Registry:
    """All optimizers and schedules of the library."""
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


def registry_at(reference: str) -> fo.Registry:
    """The registry of a module of the user: `package.module:NAME`."""
    module, _, name = reference.partition(":")
    if "" not in sys.path:  # As with `python -m`: modules of this folder are found.
        sys.path.insert(0, "")
    try:
        registry = getattr(importlib.import_module(module), name or "registry")
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(registry, fo.Registry):
        text = f"{reference} is not a Registry, got {registry!r}"
        raise argparse.ArgumentTypeError(text)
    return registry


def read(options: argparse.Namespace, file: str) -> Any:
    """Builds the module that a document of the command line describes."""
    document = _document(file, options.format)
    return changed(document, options.assignments).decode(options.registry.kinds, None)


def _document(file: str, format: str | None) -> Document:
    source = "<stdin>" if file == "-" else file
    if format is None:
        format = _format(file)
    return parse(read_text(file, source), format, source)


def read_text(file: str, source: str) -> str:
    """The text of a file, or of standard input if it is `-`."""
    if file != "-":
        with Path(file).open("rb") as stream:
            return decode_text(stream.read(LARGEST + 1), source)
    if sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed", source)
    return decode_text(sys.stdin.buffer.read(LARGEST + 1), source)


def _format(file: str) -> str:
    if file == "-":
        return "toml"
    try:
        return format_of(file)
    except ValueError as error:
        raise ConfigError([("", f"{error} Or pass --format.")]) from None


def write(text: str, target: str, *, force: bool = False) -> None:
    """Writes to a file, or to standard output if the target is `-`."""
    if target == "-":
        # By lines: of one long write that a closed pipe takes in part, CPython 3.11
        # reports no error.
        sys.stdout.writelines(text.splitlines(keepends=True))
        return
    check_new(target, force=force)
    Path(target).write_text(text, encoding="utf-8")


def check_new(target: str, *, force: bool) -> None:
    """Refuses to overwrite a file without `--force`."""
    if not force and Path(target).is_file():
        raise FileExistsError(
            errno.EEXIST, "the file exists; pass --force to overwrite it", target
        )

"""The command `functional-opt`: recipes as files, looked at, checked and begun."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import functional_opt as fo

from .._codec.errors import ConfigError
from .documents import library, read, registry_at, write
from .overrides import Assignment, assignment
from .show import plot, schedule_of, show
from .template import FORMATS, template


PROGRAM = "functional-opt"
PROBLEMS, INTERRUPTED, BROKEN_PIPE = 1, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. 0 if all is well, 1 if a file has problems, 2 for wrong usage."""
    options = parser().parse_args(arguments)
    try:
        options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer goes nowhere, without a word about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except ConfigError as error:
        return _complain(str(ConfigError(error.problems, error.source or PROGRAM)))
    except ImportError as error:  # Matplotlib is an extra.
        return _complain(f"{PROGRAM}: {error}")
    except OSError as error:
        return _complain(f"{PROGRAM}: {error.filename}: {error.strerror}")
    return 0


def _complain(text: str) -> int:
    print(text, file=sys.stderr)
    return PROBLEMS


def parser() -> argparse.ArgumentParser:
    """The command line and its help."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Recipes of optimizers as files in TOML, YAML or JSON.",
        epilog="It ends with 0 if all is well, 1 if a file has problems, which are "
        "then on standard error, and 2 if the command line is wrong.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_show(commands)
    _add_plot(commands)
    _add_check(commands)
    _add_schema(commands)
    _add_template(commands)
    return top


def _add(commands: Any, name: str, run: Callable[..., None], text: str) -> Any:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(command=run)
    command.add_argument(
        "--registry",
        type=_registry,
        metavar="MODULE:NAME",
        default=library(),
        help="the registry that knows the names; left out, all of the library",
    )
    return command


def _add_document(commands: Any, name: str, run: Callable[..., None], text: str) -> Any:
    command = _add(commands, name, run, text)
    command.add_argument("file", metavar="FILE", help="the recipe; - reads it here")
    command.add_argument(
        "--format",
        choices=FORMATS,
        help="the format, where the suffix does not say it; toml for -",
    )
    command.add_argument(
        "--set",
        dest="assignments",
        metavar="KEY=VALUE",
        type=_assignment,
        action="append",
        default=[],
        help="another value at a place, such as optimizer.b2=0.95; can be repeated",
    )
    command.add_argument(
        "--total-steps",
        type=_positive,
        metavar="STEPS",
        help="how many updates the run makes, for durations that are parts of it",
    )
    return command


def _add_show(commands: Any) -> None:
    text = "Prints the chain, every field with its default, and the learning rate."
    command = _add_document(commands, "show", _show, text)
    command.add_argument(
        "--model-shapes",
        metavar="FILE",
        help="JSON of the parameters by path, each with its shape, dtype and stage: "
        "prints what the state takes on each stage",
    )


def _add_plot(commands: Any) -> None:
    text = "Draws the learning rate."
    command = _add_document(commands, "plot", _plot, text)
    command.add_argument("-o", "--output", required=True, metavar="PICTURE")


def _add_check(commands: Any) -> None:
    text = "Says nothing if the file is in order, and all that is wrong if not."
    _add_document(commands, "check", _check, text)


def _add_schema(commands: Any) -> None:
    text = "Writes the JSON Schema by which editors complete and check recipes."
    command = _add(commands, "schema", _schema, text)
    command.add_argument("-o", "--output", default="-", metavar="FILE")


def _add_template(commands: Any) -> None:
    text = "Writes a file with every field, its default and what it means."
    command = _add(commands, "template", _template, text)
    command.add_argument("name", help="a name of the registry, or recipe")
    command.add_argument("--format", choices=FORMATS, default="toml")
    command.add_argument("-o", "--output", default="-", metavar="FILE")


def _registry(text: str) -> fo.Registry:
    return registry_at(text)


def _assignment(text: str) -> Assignment:
    try:
        return assignment(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _show(options: argparse.Namespace) -> None:
    write(show(read(options), options), "-")


def _plot(options: argparse.Namespace) -> None:
    plot(read(options), options.output, options.total_steps)


def _check(options: argparse.Namespace) -> None:
    schedule_of(read(options), options.total_steps)


def _schema(options: argparse.Namespace) -> None:
    schema = options.registry.json_schema(fo.Recipe)
    write(json.dumps(schema, indent=2) + "\n", options.output)


def _template(options: argparse.Namespace) -> None:
    write(template(options.registry, options.name, options.format), options.output)

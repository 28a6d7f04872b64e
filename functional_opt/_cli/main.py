"""The command `functional-opt`: checks, shows, compares and starts recipes as files."""

import argparse
import importlib.metadata
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import shtab

import functional_opt as fo

from .._codec.errors import ConfigError
from .colours import coloured
from .documents import check_new, library, read, registry_at, write
from .overrides import Assignment, assignment
from .rendering import FORMATS
from .show import difference, plot, schedule_of, show
from .template import template


PROGRAM = "functional-opt"
SHELLS = ("bash", "zsh", "fish")
PROBLEMS, INTERRUPTED, BROKEN_PIPE = 1, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0 on success and 1 if a file has problems."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Files are UTF-8 on every system.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        options = parser().parse_args(arguments)
        code = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer goes nowhere, without a message at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except ConfigError as error:
        source = error.source or PROGRAM
        return _complain(str(ConfigError(error.problems, source, error.positions)))
    except ImportError as error:  # Matplotlib is an extra.
        return _complain(f"{PROGRAM}: {error}")
    except OSError as error:
        where = (str(x) for x in (PROGRAM, error.filename, error.strerror) if x)
        return _complain(": ".join(where))
    return code or 0


def _complain(text: str) -> int:
    print(coloured(text, sys.stderr.isatty()), file=sys.stderr)
    return PROBLEMS


def parser() -> argparse.ArgumentParser:
    """The command line and its help."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Optimizer recipes as files in TOML, YAML or JSON.",
        epilog="The exit status is 0 on success, 1 if a file has problems, which are "
        "printed on standard error, and 2 if the command line is wrong.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="prints the version")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_show(commands)
    _add_diff(commands)
    _add_plot(commands)
    _add_check(commands)
    _add_schema(commands)
    _add_template(commands)
    _add_completion(commands)
    return top


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        version = importlib.metadata.version("functional_opt")
        sys.stdout.write(f"{PROGRAM} {version}\n")
        parser.exit()


def _add(commands: Any, name: str, run: Callable[..., Any], text: str) -> Any:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(command=run)
    command.add_argument(
        "--registry",
        type=_registry,
        metavar="MODULE:NAME",
        default=library(),
        help="the registry that names refer to (default: the whole library)",
    )
    return command


def _add_document(
    commands: Any, name: str, run: Callable[..., Any], text: str, *files: str
) -> Any:
    command = _add(commands, name, run, text)
    for file in files or ("file",):
        help = "the recipe; - reads standard input"
        _add_path(command, file, metavar=file.upper(), help=help)
    command.add_argument(
        "--format",
        choices=FORMATS,
        help="the format (default: by the suffix of the file; toml for -)",
    )
    command.add_argument(
        "--set",
        dest="assignments",
        metavar="KEY=VALUE",
        type=_assignment,
        action="append",
        default=[],
        help="replaces a value, as in optimizer.b2=0.95; can be repeated",
    )
    command.add_argument(
        "--total-steps",
        type=_positive,
        metavar="STEPS",
        help="the number of updates of the run, for durations that are fractions of it",
    )
    return command


def _add_show(commands: Any) -> None:
    text = "Prints the chain, every field with its default, and the learning rate."
    command = _add_document(commands, "show", _show, text)
    _add_path(
        command,
        "--model-shapes",
        metavar="FILE",
        help="JSON of the parameters by path, each with its shape, dtype and stage: "
        "also prints the optimizer, learning rate scale and decay of each parameter, "
        "the state of each stage and what the stages exchange",
    )


def _add_diff(commands: Any) -> None:
    text = (
        "Compares two recipes field by field, defaults included. The exit status is 0 "
        "if they are equal and 1 if not."
    )
    _add_document(commands, "diff", _diff, text, "first", "second")


def _add_plot(commands: Any) -> None:
    text = "Draws the learning rate."
    command = _add_document(commands, "plot", _plot, text)
    _add_output(command, metavar="PICTURE", required=True)


def _add_check(commands: Any) -> None:
    text = "Prints nothing if the file is valid, and all of its problems if not."
    _add_document(commands, "check", _check, text)


def _add_schema(commands: Any) -> None:
    text = "Writes the JSON Schema by which editors complete and check recipes."
    command = _add(commands, "schema", _schema, text)
    _add_output(command, metavar="FILE", default="-")


def _add_template(commands: Any) -> None:
    text = "Writes a file with every field, its default and its meaning."
    command = _add(commands, "template", _template, text)
    command.add_argument("name", help="recipe, a name of the registry, or a part")
    command.add_argument("--format", choices=FORMATS, default="toml")
    _add_output(command, metavar="FILE", default="-")


def _add_completion(commands: Any) -> None:
    text = "Prints the completion script of a shell."
    command = commands.add_parser("completion", help=text, description=text)
    command.set_defaults(command=_completion)
    command.add_argument("shell", choices=SHELLS)


def _add_output(command: Any, **kwargs: Any) -> None:
    _add_path(command, "-o", "--output", **kwargs)
    command.add_argument(
        "--force", action="store_true", help="overwrite the file if it exists"
    )


def _add_path(command: Any, *names: str, **kwargs: Any) -> None:
    """An argument that shells complete to the name of a file."""
    command.add_argument(*names, **kwargs).complete = shtab.FILE


def _registry(text: str) -> fo.Registry:
    return registry_at(text)


def _assignment(text: str) -> Assignment:
    try:
        return assignment(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and text.strip("0") and len(text) < 20):
        text = f"expected a positive integer, got {text!r}"
        raise argparse.ArgumentTypeError(text)
    return int(text)


def _show(options: argparse.Namespace) -> None:
    write(show(read(options, options.file), options), "-")


def _diff(options: argparse.Namespace) -> int:
    text = difference(*(read(options, x) for x in (options.first, options.second)))
    write(text, "-")
    return PROBLEMS if text else 0


def _plot(options: argparse.Namespace) -> None:
    module = read(options, options.file)
    check_new(options.output, force=options.force)
    plot(module, options.output, options.total_steps)


def _check(options: argparse.Namespace) -> None:
    schedule_of(read(options, options.file), options.total_steps)


def _schema(options: argparse.Namespace) -> None:
    schema = options.registry.json_schema(fo.Recipe)
    text = json.dumps(schema, indent=2) + "\n"
    write(text, options.output, force=options.force)


def _template(options: argparse.Namespace) -> None:
    text = template(options.registry, options.name, options.format)
    write(text, options.output, force=options.force)


def _completion(options: argparse.Namespace) -> None:
    write(shtab.complete(parser(), options.shell) + "\n", "-")

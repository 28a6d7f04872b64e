"""Makes docstrings and signatures ready for the site."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import griffe
from functional_opt._config import AbstractConfig
from public_names import public
from reference import fields_table, has_fields


# An example without a fence: from a prompt to the next empty line.
EXAMPLE = re.compile(r"^( *)>>>.*(?:\n.*\S.*)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Fences examples, and adds what only the running library knows.

    Equinox makes the constructors of its modules, and signatures have types as users
    write them: neither can be read from the source.
    """

    def on_package(self, *, pkg: Any, loader: Any, **kwargs: Any) -> None:
        for docstring in _docstrings(pkg):
            docstring.value = fenced(docstring.value)
        for path, value in public().items():
            found = pkg[path.removeprefix("functional_opt.")]
            _complete(found.final_target if found.is_alias else found, value)


def _docstrings(found: Any) -> Iterator[Any]:
    if found.is_alias:
        return
    if found.docstring is not None:
        yield found.docstring
    for member in found.members.values():
        yield from _docstrings(member)


def _complete(found: Any, value: Any) -> None:
    if found.is_class and _is_made_by_users(value):
        found.set_member("__init__", _constructor(found, value))
    elif found.is_function:
        found.parameters = _parameters(value)
        found.overloads = None
    if has_fields(value) and issubclass(value, AbstractConfig):
        if not inspect.isabstract(value) and found.docstring is not None:
            found.docstring.value += f"\n\n{fields_table(value)}"
    if found.is_class:
        _methods(found, value)


def _methods(found: Any, value: Any) -> None:
    for name, member in found.members.items():
        method = getattr(value, name, None)
        if member.is_function and name != "__init__" and callable(method):
            named = [x for x in _parameters(method) if x.name != "self"]
            member.parameters = griffe.Parameters(griffe.Parameter("self"), *named)
            found.overloads.pop(name, None)


def _is_made_by_users(cls: Any) -> bool:
    is_protocol = getattr(cls, "_is_protocol", False)
    return not (inspect.isabstract(cls) or is_protocol or issubclass(cls, Exception))


def _constructor(cls: Any, value: Any) -> griffe.Function:
    parameters = griffe.Parameters(griffe.Parameter("self"), *_parameters(value))
    return griffe.Function("__init__", parameters=parameters, parent=cls)


def _parameters(value: Any) -> griffe.Parameters:
    signature = inspect.signature(value)
    return griffe.Parameters(*map(_parameter, signature.parameters.values()))


def _parameter(parameter: inspect.Parameter) -> griffe.Parameter:
    empty = inspect.Parameter.empty
    text, default = parameter.annotation, parameter.default
    return griffe.Parameter(
        parameter.name,
        annotation=None if text is empty else inspect.formatannotation(text).strip("'"),
        kind=griffe.ParameterKind(parameter.kind.description),
        default=None if default is empty else repr(default),
    )


def fenced(text: str) -> str:
    """Puts examples into fences, highlighted as sessions of Python."""
    fences = text.replace("```python\n>>>", "```pycon\n>>>")
    if fences != text:
        return fences
    return EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", text)

"""Mistakes found while pydantic validates, in the words of the library."""

import enum
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from .errors import Location, shown, suggestion
from .fields import fields_of
from .notation import Notation


OURS = "functional_opt"

# Steps of a pydantic location that begin with this are not keys of the document: they
# name the type of a union that was read.
MARK = "\0"

# A document with more mistakes than this is probably the wrong file. Each mistake takes
# about a kilobyte while pydantic collects them.
MOST_PROBLEMS = 100


class About(enum.Enum):
    """The part of a document that a problem is about, which an editor underlines."""

    VALUE = "value"
    KEY = "key"
    KEY_GIVEN_TWICE = "key given twice"


class Problem(NamedTuple):
    """One mistake of a document."""

    location: Location
    text: str
    about: About = About.VALUE


class Refused(Exception):
    """A document with mistakes, before their locations become text."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)


class Habit(NamedTuple):
    """A key of other libraries: what it stands for, and the keys for it here."""

    meaning: str
    keys: tuple[str, ...]

    def text(self) -> str:
        keys = " and ".join(f"`{key}`" for key in self.keys)
        return f"{self.meaning} {'is' if len(self.keys) == 1 else 'are'} {keys}"


LEARNING_RATE = Habit("the learning rate", ("schedule",))
DECAY_RATES = Habit("the decay rates", ("b1", "b2"))
CLIP = Habit("the largest norm of the gradient", ("clip_norm",))
ACCUMULATION = Habit("the number of gradients per update", ("accumulate",))
WARMUP = Habit("the duration of the warmup", ("warmup_steps",))
CLASS = Habit("the class of a table", ("name",))
AVERAGE = Habit("the decay rate of the average", ("ema_decay",))
HABITS: Mapping[str, Habit] = MappingProxyType(
    {
        "lr": LEARNING_RATE,
        "learning_rate": LEARNING_RATE,
        "lr_schedule": LEARNING_RATE,
        "scheduler": LEARNING_RATE,
        "lr_scheduler": LEARNING_RATE,
        "betas": DECAY_RATES,
        "beta": DECAY_RATES,
        "beta1": Habit("the first decay rate", ("b1",)),
        "beta2": Habit("the second decay rate", ("b2",)),
        "epsilon": Habit("epsilon", ("eps",)),
        "wd": Habit("the weight decay", ("weight_decay",)),
        "max_grad_norm": CLIP,
        "grad_clip": CLIP,
        "grad_clip_norm": CLIP,
        "gradient_clip": CLIP,
        "gradient_clipping": CLIP,
        "max_norm": CLIP,
        "grad_accum": ACCUMULATION,
        "accumulate_grad_batches": ACCUMULATION,
        "gradient_accumulation_steps": ACCUMULATION,
        "every_k_schedule": ACCUMULATION,
        "warmup": WARMUP,
        "num_warmup_steps": WARMUP,
        "ema": AVERAGE,
        "type": CLASS,
        "kind": CLASS,
        "class": CLASS,
        "_target_": CLASS,
    }
)


class Reading:
    """One decoding of a document: its notation, and how many mistakes it has so far.

    Validators share it through pydantic's context.
    """

    def __init__(self, notation: Notation, most_problems: int | float) -> None:
        self.notation = notation
        self._left = most_problems

    @property
    def is_full(self) -> bool:
        """Whether the limit of mistakes is reached, so that validation can stop."""
        return self._left <= 0

    def refusal(self, *problems: Problem) -> ValidationError:
        """A new mistake, to raise in a validator."""
        self._left -= len(problems)
        return refusal(*map(_details, problems))


@runtime_checkable
class Info(Protocol):
    """What pydantic passes to validators. Its own type has no check at run time."""

    @property
    def context(self) -> Reading: ...


def refusal(*details: InitErrorDetails) -> ValidationError:
    """An error to raise in a validator. Pydantic collects those of all locations."""
    return ValidationError.from_exception_data("", list(details))


def _details(problem: Problem, **context: Any) -> InitErrorDetails:
    context |= {"text": problem.text, "about": problem.about}
    kind = PydanticCustomError(OURS, "{text}", context)
    return InitErrorDetails(type=kind, loc=problem.location, input=None)


def reworded(
    error: ValidationError, title: str, keys: list[str], reading: Reading
) -> ValidationError:
    """The same mistakes, of a table with these keys, in the words of the library."""
    return refusal(*(_reworded(x, title, keys, reading) for x in _errors(error)))


def _reworded(
    error: Any, title: str, keys: list[str], reading: Reading
) -> InitErrorDetails:
    path = error["loc"]
    if error["type"] == OURS:
        context = error["ctx"]
        meant = context.get("unknown")
        if meant is not None and (text := _of_outer(meant, title, keys, path)):
            return _details(Problem(path, text, About.KEY), depth=len(_keys(path)))
        kind = PydanticCustomError(OURS, "{text}", context)
        return InitErrorDetails(type=kind, loc=path, input=None)
    reading.refusal(Problem((), ""))
    if error["type"] == "extra_forbidden":
        text = f"unknown key of {title}; {_meant(path[-1], title, keys)}"
        return _details(Problem(path, text, About.KEY), unknown=path[-1])
    if error["type"] == "missing":
        is_item = isinstance(path[-1], int)
        text = f"required {'item' if is_item else f'key of {title}'} is missing"
        return _details(Problem(path, text))
    text = error["msg"].replace("Input should be", "expected")
    text = text.replace("Tuple should", "the list should")
    return _details(Problem(path, f"{text}, got {shown(error['input'])}"))


def _errors(error: ValidationError) -> Any:
    return error.errors(include_url=False)


def _meant(key: str, title: str, keys: list[str]) -> str:
    """What an unknown key of a table may stand for."""
    if key.replace("_", "").lower() == title.lower():
        return f"write the keys of {title} without a table `{key}` around them"
    habit = HABITS.get(key)
    if habit is None or not set(habit.keys) <= {*keys, "name"}:
        return suggestion(key, keys)
    return habit.text()


def _of_outer(key: str, title: str, keys: list[str], path: Location) -> str | None:
    """A hint for an unknown key that belongs to an enclosing table."""
    first = _keys(path)[0]
    if key in keys:
        return f"`{key}` is a key of {title}; move it out of `{first}`"
    habit = HABITS.get(key)
    if habit is not None and set(habit.keys) <= set(keys):
        return f"{habit.text()}, of {title}"
    return None


def nearest(error: ValidationError, reading: Reading) -> ValidationError:
    """The mistakes by that type of a union which the value is closest to.

    It is the one whose mistakes are the deepest. The first step of their locations is
    what pydantic calls the type.
    """
    by_type: dict[str | int, list[Any]] = {}
    for x in _errors(error):
        inner = {**x, "loc": x["loc"][1:]}
        details = _reworded(inner, "", [], reading)
        by_type.setdefault(x["loc"][0], []).append(details)
    found = max(by_type.values(), key=lambda xs: max(len(x["loc"]) for x in xs))
    return refusal(*found)


def problems_of(error: ValidationError, notation: Notation) -> list[Problem]:
    """All mistakes, with locations in the document."""
    return [_problem(x, notation) for x in _errors(error)]


def _problem(error: Any, notation: Notation) -> Problem:
    location = tuple(_keys(error["loc"]))
    context = error.get("ctx", {})
    text = error["msg"]
    if context.get("depth") == len(location) and notation.first_header is not None:
        text = re.sub("out of .*", f"above `{notation.first_header}`", text)
    return Problem(location, text, context.get("about", About.VALUE))


def _keys(path: Iterable[str | int]) -> list[str | int]:
    return [x for x in path if isinstance(x, int) or not x.startswith(MARK)]


def refusal_of_module(cls: type, error: Exception, reading: Reading) -> ValidationError:
    """The error of a constructor for values of the right types."""
    message = str(error).removesuffix(".")
    named = re.match(rf"`{cls.__name__}\.(\w+)` ", message)
    if named is None or named[1] not in {x.name for x in fields_of(cls)}:
        return reading.refusal(Problem((), message))
    return reading.refusal(Problem((named[1],), message[named.end() :]))

"""Documents that are nearly right, and some that are nothing at all."""

import copy
import datetime
import json
import math
import random
from typing import Any

import functional_opt as fo
from class_examples import example
from rooms import write


ODD = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**70,
    0.0,
    -0.0,
    0.5,
    1.0,
    1e5,
    5e-324,
    1e39,
    1e308,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "none",
    "name",
    "bfloat16",
    "float64",
    "float32 ",
    "a" * 300,
    "(",
    "a{99999999999}",
    "\ud800",
    "\0number",
    [],
    [1],
    [[]],
    {},
    {"name": "adamw"},
    {"name": "cosine"},
    {"name": None},
    {"name": []},
    {"array": 0.5},
    {"array": 1e39, "dtype": "float32"},
    {"array": 0.5, "dtype": "float64"},
    {"array": [0.5]},
    {"array": "x", "name": "array"},
    {"value": 3},
)
NOT_JSON = (
    10**5000,
    b"bytes",
    (),
    (1, 2),
    {1},
    frozenset(),
    1j,
    datetime.date(2020, 1, 1),
    datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    {1: 2},
    {None: 2},
    {(1, 2): 3},
    object,
    len,
)


class Mutations:
    """Makes documents out of right ones, the same for the same seed."""

    def __init__(self, registry: fo.Registry, seed: int) -> None:
        self.random = random.Random(seed)
        kinds = (fo.Recipe, *registry.kinds)
        self._right = [registry.encode(example(x, registry.kinds)) for x in kinds]
        self._texts = {
            format: [write(data, format) for data in self._right]
            for format in ("toml", "yaml", "json")
        }
        self._names = [*registry, "recipe", "steps", "fraction", "where"]
        self._keys = sorted({key for data in self._right for key in data})

    def plain(self, *, is_json: bool = False) -> Any:
        """A document with up to three changes."""
        data = copy.deepcopy(self.random.choice(self._right))
        for _ in range(self.random.randint(0, 3)):
            data = self._changed(data, is_json)
        return data

    def text(self, format: str) -> str:
        """A text with up to three changes."""
        text = self.random.choice(self._texts[format])
        for _ in range(self.random.randint(1, 3)):
            text = self._changed_text(text, format)
        return text

    def _changed(self, data: Any, is_json: bool) -> Any:
        parents = list(_tables_and_lists(data))
        if not parents or self.random.random() < 0.02:
            return self._odd(is_json)
        parent = self.random.choice(parents)
        if isinstance(parent, list):
            self._change_list(parent, is_json)
        else:
            self._change_table(parent, data, is_json)
        return data

    def _change_list(self, items: list[Any], is_json: bool) -> None:
        place = self.random.randint(0, len(items))
        items[place : place + self.random.randint(0, 1)] = [self._odd(is_json)]

    def _change_table(self, table: dict[Any, Any], data: Any, is_json: bool) -> None:
        keys = [*table, self.random.choice(self._keys), "beta1"]
        key = self.random.choice(keys)
        change = self.random.randrange(6)
        if change == 0:
            table.pop(key, None)
        elif change == 1:
            table["name"] = self.random.choice(self._names)
        elif change == 2:
            table[key] = copy.deepcopy(self.random.choice(self._right))
        elif change == 3:
            table[key] = [copy.deepcopy(table.get(key))]
        elif change == 4 and not is_json and self.random.random() < 0.05:
            table[key] = data
        else:
            table[key] = self._odd(is_json)

    def _odd(self, is_json: bool) -> Any:
        values = ODD if is_json else (*ODD, *NOT_JSON)
        return copy.deepcopy(self.random.choice(values))

    def _changed_text(self, text: str, format: str) -> str:
        start = self.random.randrange(len(text) + 1)
        end = min(len(text), start + self.random.choice((0, 1, 1, 2, 10)))
        other = self.random.choice(self._texts[format])
        place = self.random.randrange(len(other) + 1)
        new = self.random.choice(
            (
                "",
                chr(self.random.randrange(256)),
                self.random.choice("[]{}=:,.-&*!#|>'\"\\\n\t"),
                other[place : place + self.random.choice((1, 5, 40))],
                json.dumps(self.random.choice(ODD[3:])),
            )
        )
        return text[:start] + new + text[end:]


def _tables_and_lists(data: Any) -> Any:
    waiting, seen = [data], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting += value.values() if isinstance(value, dict) else value

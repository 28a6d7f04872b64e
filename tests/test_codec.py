"""Modules as plain data and files, and back: exactly, or refused with every mistake."""

import dataclasses
import json
from typing import Annotated, Any, get_args, get_type_hints, Literal

import functional_opt as fo
import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
from annotated_types import Interval
from hypothesis import given, settings, strategies as st
from jaxtyping import Array, Float
from module_strategies import kinds_of_the_library, modules
from rooms import arms_of, is_module, parse, root_choice, wires, write
from typing_extensions import is_typeddict


# Beartype looks at one item of a tuple, at random, when a module is made.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside")

FORMATS = ("toml", "yaml", "json")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two numbers.

    **Arguments:**

    - `first`, `second`: any.
    """

    first: float = 0.0
    second: float | None = 1.0


class Everything(fo.AbstractSchedule):
    """All types of fields that a document can say."""

    number: float
    maybe: Annotated[float, Interval(gt=0)] | None = 1.0
    whole: Annotated[int, Interval(ge=0, le=50)] | Pair = 3
    switch: bool | None = True
    text: str | None = "text"
    word: Literal["none", "some", "all"] | None = "some"
    level: Literal[1, 2, "auto"] = "auto"
    either: int | float = 1
    dtype: np.dtype | None = None
    array: Float[Array, ""] | None = None
    numbers: tuple[float, ...] = ()
    mixed: tuple[int, str, bool | None] = (1, "a", None)
    pair: Pair = Pair()
    parts: tuple[fo.AbstractSchedule, ...] = ()
    forms: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    nested: tuple[tuple[int | None, ...], ...] = ()

    def __call__(self, count):
        return self.number


LIBRARY = kinds_of_the_library()
KINDS = (*LIBRARY, Everything)
REGISTRY = fo.Registry.of(*KINDS)
ROOTS = (*KINDS, fo.Recipe)


@pytest.fixture(scope="module")
def schema():
    return validator(REGISTRY.json_schema())


def validator(schema: dict[str, Any]) -> Any:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def assert_same(actual: Any, expected: Any) -> None:
    """Equal, and with the same signs of zeros, dtypes and weak types."""
    assert type(actual) is type(expected)
    assert actual == expected
    structure = jax.tree.structure(expected)
    assert jax.tree.structure(actual) == structure
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for one, other in pairs:
        assert type(one) is type(other)
        if isinstance(one, jax.Array):
            assert (one.dtype, one.weak_type) == (other.dtype, other.weak_type)
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("cls", ROOTS, ids=lambda cls: cls.__name__)
@settings(max_examples=settings().max_examples // 3)  # There are many classes.
@given(data=st.data())
def test_round_trip(cls, data, schema):
    module = data.draw(modules(cls, KINDS))
    plain = REGISTRY.encode(module)
    schema.validate(plain)
    assert_same(REGISTRY.decode(plain), module)
    for format in FORMATS:
        if format == "toml" and has_none(plain):
            continue
        read = parse(write(plain, format), format).data
        assert text_of(read) == text_of(plain)


def text_of(data: Any) -> str:
    """The same text for data that is the same to the last bit, in whatever order."""
    return json.dumps(data, sort_keys=True)


def has_none(data: Any) -> bool:
    if isinstance(data, dict):
        return any(map(has_none, data.values()))
    if isinstance(data, list):
        return any(map(has_none, data))
    return data is None


@given(st.data())
def test_files_have_a_word_for_whatever_the_library_has(data):
    assert not has_none(REGISTRY.encode(data.draw(modules(fo.Recipe, LIBRARY))))


@pytest.mark.parametrize("suffix", ["toml", "yaml", "yml", "json", "JSON"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"recipe.{suffix}"
    recipe = fo.Recipe(
        optimizer=fo.AdamW(b2=jnp.float32(0.95), mu_dtype="bfloat16"),
        schedule=fo.Cosine(peak_value=3e-4, decay_steps=10),
        weight_decay=5e-324,
        decay_where=fo.Where("weight", min_ndim=2),
    )
    REGISTRY.save(recipe, path)
    assert_same(REGISTRY.load(path), recipe)
    assert_same(REGISTRY.load(str(path), fo.Recipe), recipe)
    with pytest.raises(fo.ConfigError) as caught:
        REGISTRY.load(path, Pair)
    places = [place for place, _ in caught.value.problems]
    assert sorted(places) == sorted(REGISTRY.encode(recipe))
    for position in caught.value.positions:
        assert position is not None and position.source == str(path)


def test_plain_data():
    recipe = fo.Recipe(
        optimizer=fo.Lion(b1=jnp.bfloat16(0.5), mask=fo.Where(min_ndim=2)),
        schedule=jnp.asarray(0.25),
        clip_norm=1,
    )
    assert REGISTRY.encode(recipe) == {
        "optimizer": {
            "name": "lion",
            "b1": {"array": 0.5, "dtype": "bfloat16"},
            "b2": 0.99,
            "weight_decay": 0.001,
            "mask": {"min_ndim": 2},
        },
        "schedule": {"name": "constant", "value": {"array": 0.25}},
        "clip_norm": 1.0,
        "accumulate": 1,
        "skip_nonfinite": False,
        "track_norm": False,
    }


def test_what_a_document_may_leave_out():
    recipe = REGISTRY.decode({"optimizer": {"name": "adamw"}, "schedule": 1})
    assert_same(recipe, fo.Recipe(optimizer=fo.AdamW(), schedule=1.0))
    assert_same(REGISTRY.decode({"name": "adamw"}), fo.AdamW())
    assert_same(REGISTRY.decode({"name": "adam"}, fo.AbstractOptimizer), fo.Adam())
    assert_same(REGISTRY.decode({}, fo.Adam), fo.Adam())
    assert_same(REGISTRY.decode({"name": "adam"}, fo.Adam), fo.Adam())
    plain = REGISTRY.encode(fo.Adam(), fo.Adam)
    assert REGISTRY.encode(fo.Adam()) == {"name": "adam", **plain}


def test_whole_floats_are_integers():
    data = {"name": "cosine", "peak_value": 1, "decay_steps": 1e5}
    assert type(REGISTRY.decode(data).decay_steps) is int


def test_words_for_none():
    data = {"name": "everything", "number": 1}
    read = REGISTRY.decode({**data, "maybe": "none", "switch": None, "word": "none"})
    assert read.maybe is None and read.switch is None and read.word == "none"
    written = REGISTRY.encode(Everything(1.0, maybe=None, switch=None, text=None))
    assert written["maybe"] == written["switch"] == "none"
    assert written["text"] is None  # Where any word could stand, no word is None.
    assert REGISTRY.decode({**data, "text": "none"}).text == "none"
    message = "^text: TOML has no null; use YAML or JSON$"
    with pytest.raises(fo.ConfigError, match=message):
        write(written, "toml")


def test_only_the_registry_is_known():
    small = fo.Registry.of(fo.SGD)
    recipe = fo.Recipe(
        optimizer=fo.Adam(), schedule=fo.Cosine(peak_value=1, decay_steps=2)
    )
    with pytest.raises(fo.ConfigError) as caught:
        small.encode(recipe)
    assert caught.value.problems == (
        ("optimizer", "`Adam` is not known here; known: sgd"),
        ("schedule", "`Cosine` is not known here; known: none"),
    )
    message = "^optimizer.name: no optimizer is named 'adam'; known: sgd$"
    with pytest.raises(fo.ConfigError, match=message):
        small.decode({"optimizer": {"name": "adam"}, "schedule": 1})


def test_a_constant_is_a_number_where_it_is_not_known():
    small = fo.Registry.of(fo.SGD)
    recipe = fo.Recipe(optimizer=fo.SGD(), schedule=3e-4)
    plain = small.encode(recipe)
    assert plain["schedule"] == 3e-4
    assert_same(small.decode(plain), recipe)


def test_what_has_no_plain_data():
    @jax.jit
    def encode(value):
        with pytest.raises(fo.ConfigError, match=r"^b1: a traced value has "):
            REGISTRY.encode(fo.Adam(b1=value))
        return value

    encode(0.5)
    with pytest.raises(fo.ConfigError, match=r"^mask: a function exists in Python "):
        REGISTRY.encode(fo.AdamW(mask=lambda params: params))
    swapped = np.dtype(">f4")
    assert fo.Adam(mu_dtype=swapped).mu_dtype == swapped
    with pytest.raises(fo.ConfigError, match=r"^mu_dtype: only dtypes in native byte "):
        REGISTRY.encode(fo.Adam(mu_dtype=swapped))
    with pytest.raises(fo.ConfigError, match=r"^`int` is not known here; "):
        REGISTRY.encode(3)


def test_a_field_called_name():
    class Named(fo.AbstractSchedule):
        name: str = "x"

        def __call__(self, count):
            return 0.0

    with pytest.raises(TypeError, match=r"`Named.name` cannot be in a document, where"):
        fo.Registry.of(Named).decode({"name": "named"})


def test_a_field_that_only_python_can_set():
    class Wrapped(fo.AbstractSchedule):
        schedule: Any
        numbers: list[int] | None = None

        def __call__(self, count):
            return self.schedule(count)

    registry = fo.Registry.of(Wrapped)
    with pytest.raises(fo.ConfigError) as caught:
        registry.decode({"name": "wrapped", "schedule": 1, "numbers": [1]})
    assert caught.value.problems == (
        ("schedule", "this key can only be set in Python, got 1"),
        ("numbers", "expected 'none', got [1]"),
    )


ADAMW = {"name": "adamw"}
TOO_LARGE = {"array": 1e39, "dtype": "float32"}
COSINE = {"name": "cosine", "peak_value": 1, "decay_steps": 9}
RECIPE = {"optimizer": ADAMW, "schedule": COSINE}
ADAMW_KEYS = "b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov"
SMALL = fo.Registry.of(fo.AdamW, fo.SGD, fo.Cosine, fo.Constant, Everything)


@pytest.mark.parametrize(
    "data, place, text",
    [
        (
            RECIPE | {"optimizer": ADAMW | {"beta1": 1}},
            "optimizer.beta1",
            "unknown key of AdamW; the first decay rate is `b1`",
        ),
        (
            RECIPE | {"optimizer": ADAMW | {"weight_decoy": 1}},
            "optimizer.weight_decoy",
            "unknown key of AdamW; did you mean 'weight_decay'? known: " + ADAMW_KEYS,
        ),
        (
            RECIPE | {"optimizer": ADAMW | {"b1": "0.9"}},
            "optimizer.b1",
            "expected a number in [0, 1), got '0.9'",
        ),
        (
            RECIPE | {"optimizer": ADAMW | {"b1": True}},
            "optimizer.b1",
            "expected a number in [0, 1), got true",
        ),
        (
            RECIPE | {"optimizer": ADAMW | {"b1": 1.5}},
            "optimizer.b1",
            "must be in [0, 1), got 1.5",
        ),
        (
            RECIPE | {"optimizer": ADAMW | {"b1": {"array": 1.5}}},
            "optimizer.b1",
            "must be in [0, 1), got 1.5",
        ),
        (
            RECIPE | {"optimizer": ADAMW | {"eps": float("nan")}},
            "optimizer.eps",
            "must be finite, got nan",
        ),
        (
            RECIPE
            | {"optimizer": ADAMW | {"eps": {"array": 1e39, "dtype": "float32"}}},
            "optimizer.eps",
            "must be finite, got inf",
        ),
        (
            RECIPE | {"optimizer": ADAMW | {"nesterov": 1}},
            "optimizer.nesterov",
            "expected true or false, got 1",
        ),
        (
            RECIPE | {"optimizer": ADAMW | {"mask": 1}},
            "optimizer.mask",
            "expected a table for Where or 'none', got 1",
        ),
        (
            RECIPE | {"optimizer": ADAMW | {"eps": {"array": 1, "dtyp": 1}}},
            "optimizer.eps.dtyp",
            "unknown key of an array; did you mean 'dtype'? known: array, dtype",
        ),
        (
            RECIPE | {"optimizer": ADAMW | {"eps": {"array": 1, "dtype": "float64"}}},
            "optimizer.eps.dtype",
            "float64 requires `jax.config.update('jax_enable_x64', True)`",
        ),
        (
            RECIPE | {"schedule": {"name": "cosine", "peak_value": 1}},
            "schedule.decay_steps",
            "required key of Cosine is missing",
        ),
        (
            RECIPE | {"schedule": COSINE | {"decay_steps": 1.5}},
            "schedule.decay_steps",
            "expected a positive integer or a table for Steps or Fraction, got 1.5",
        ),
        (
            RECIPE | {"schedule": COSINE | {"warmup_steps": 9}},
            "schedule.decay_steps",
            "must be greater than `Cosine.warmup_steps`, got 9 and 9. It includes "
            "the warmup",
        ),
        (
            RECIPE | {"schedule": "cosine"},
            "schedule",
            "expected a number or a schedule, got 'cosine'; write "
            '{"name": "cosine", "peak_value": ..., "decay_steps": ...}',
        ),
        (
            RECIPE | {"optimizer": {"name": "adamwx"}},
            "optimizer.name",
            "no optimizer is named 'adamwx'; did you mean 'adamw'? known: adamw, sgd",
        ),
        (
            RECIPE | {"optimizer": {"name": "AdamW"}},
            "optimizer.name",
            "no optimizer is named 'AdamW'; did you mean 'adamw'? known: adamw, sgd",
        ),
        (
            RECIPE | {"optimizer": COSINE},
            "optimizer.name",
            "'cosine' is a schedule; an optimizer is expected here; known: adamw, sgd",
        ),
        (
            RECIPE | {"optimizer": {"name": ["sgd"]}},
            "optimizer.name",
            "expected a name, got ['sgd']; known: adamw, sgd",
        ),
        (
            RECIPE | {"optimizer": {"b1": 0.5}},
            "optimizer.name",
            "the name of an optimizer is required; known: adamw, sgd",
        ),
        (
            RECIPE | {"optimizer": None},
            "optimizer",
            "expected an optimizer, got null",
        ),
        (
            RECIPE | {"decay_where": {"path": "("}, "weight_decay": 1},
            "decay_where.path",
            "must be a regular expression, got '(': missing ), unterminated subpattern "
            "at position 0. `re.escape` makes one of a plain path",
        ),
        (
            RECIPE | {"decay_where": {}},
            "decay_where",
            "requires `Recipe.weight_decay`, got Where(path=None, min_ndim=0) and "
            "None. Set it; the optimizer's own weight decay uses the optimizer's own "
            "mask",
        ),
        (
            RECIPE | {"decay_where": {"name": "wear"}},
            "decay_where.name",
            "expected the name of a table for Where, got 'wear'; did you mean 'where'? "
            "known: where, allof, anyof, not",
        ),
        (RECIPE | {1: 2}, "1", "a key must be a string, got 1"),
        (RECIPE | {"a.b": 2}, '"a.b"', "unknown key of Recipe; known: "),
        ([], "", "expected a table for Recipe, got []"),
        ({"name": "x"}, "name", "no module is named 'x'; known: recipe, adamw, sgd, "),
    ],
)
def test_mistakes(data, place, text):
    with pytest.raises(fo.ConfigError) as caught:
        SMALL.decode(data)
    ((found_place, found_text),) = caught.value.problems
    assert found_place == place
    assert found_text.startswith(text) if text.endswith(" ") else found_text == text


@pytest.mark.parametrize(
    "field, value, place, text",
    [
        (
            "maybe",
            "none ",
            "maybe",
            "expected a positive number or 'none', got 'none '",
        ),
        ("maybe", 0, "maybe", "must be greater than 0, got 0.0"),
        (
            "whole",
            "x",
            "whole",
            "expected an integer in [0, 50] or a table for Pair, got 'x'",
        ),
        (
            "whole",
            0.5,
            "whole",
            "expected an integer in [0, 50] or a table for Pair, got 0.5",
        ),
        ("whole", {"first": "x"}, "whole.first", "expected a number, got 'x'"),
        (
            "word",
            "sone",
            "word",
            "'sone' is not allowed; did you mean 'some'? known: none, some, all",
        ),
        ("level", 3, "level", "3 is not allowed; known: 1, 2"),
        ("level", True, "level", "expected an integer or 'auto', got true"),
        ("dtype", 3, "dtype", "expected a dtype or 'none', got 3"),
        ("level", "aut", "level", None),
        (
            "dtype",
            "f32",
            "dtype",
            "expected a dtype, got 'f32'; did you mean ",
        ),
        ("array", 1.0, "array", "expected 'none', got 1.0"),
        ("numbers", [1, "x"], "numbers[1]", "expected a number, got 'x'"),
        ("numbers", {1.0}, "numbers", "expected a list, got {1.0}"),
        ("numbers", "12", "numbers", "expected a list, got '12'"),
        ("mixed", [1, "a"], "mixed[2]", "required item is missing"),
        ("mixed", [1, "a", None, 3], "mixed", "the list should have at most 3 items"),
        ("forms", [[1, "x"]], "forms[0][1]", "expected a number, got 'x'"),
        ("forms", ["x", 1], "forms[0]", "expected a number, got 'x'"),
        ("forms", "all", "forms", "expected a list or 'none', got 'all'"),
        ("pair", {"first": None}, "pair.first", "expected a number, got null"),
        (
            "parts",
            [COSINE, {"name": "x"}],
            "parts[1].name",
            "no schedule is named 'x'; ",
        ),
        ("nested", [[1], [2, "y"]], "nested[1][1]", "expected an integer or 'none'"),
    ],
)
def test_mistakes_in_every_type(field, value, place, text):
    data = {"name": "everything", "number": 1, field: value}
    with pytest.raises(fo.ConfigError) as caught:
        SMALL.decode(data)
    ((found_place, found_text),) = caught.value.problems
    assert found_place == place
    assert text is None or found_text.startswith(text)
    with pytest.raises(jsonschema.ValidationError):
        plain = json.loads(json.dumps(data, default=list))
        validator(SMALL.json_schema()).validate(plain | {field: value})


def test_all_mistakes_at_once():
    with pytest.raises(fo.ConfigError) as caught:
        SMALL.decode(
            {
                "optimizer": {"name": "adamw", "b1": "x", "b2": 2, "beta": 1},
                "schedule": {"name": "sgd"},
                "clip_nrm": 1,
            }
        )
    places = ["optimizer.b1", "optimizer.b2", "optimizer.beta", "schedule.name"]
    assert [place for place, _ in caught.value.problems] == [*places, "clip_nrm"]
    lines = str(caught.value).splitlines()
    assert lines[0] == "optimizer.b1: expected a number in [0, 1), got 'x'"
    assert lines[3].startswith("schedule.name: 'sgd' is an optimizer; a schedule is ")
    assert len(lines) == 5


@pytest.mark.parametrize(
    "format, text, message",
    [
        ("toml", "a = 1\na = 2", "x:2:1: a: the key is given twice, first on line 1"),
        ("toml", "a = ", "x:1:5: invalid value"),
        ("toml", "\n a ? 1", "x:2:4: expected '=' after a key"),
        ("toml", "a = " + "[" * 9999, "x: there are more than 32 levels"),
        ("toml", "a." * 9999 + "a = 1", "x: there are more than 32 levels"),
        ("toml", "a = " + "9" * 5000, "x:1:1: Exceeds the limit"),
        ("yaml", "a: [1", "x:1:6: expected ',' or ']'"),
        ("yaml", "a: !!bool x", "x:1:4: tags are not allowed, got tag:yaml.org"),
        ("yaml", "!!python/name:os.system", "x:1:1: tags are not allowed, got "),
        ("yaml", "a: \0", "x:1:4: control characters are not allowed"),
        ("yaml", "a: \ud800", "x:1:4: UTF-8 has no surrogates"),
        ("yaml", "- " * 9999, "x: there are more than 32 levels"),
        ("yaml", "a: " + "9" * 5000, "x:1:4: Exceeds the limit"),
        ("yaml", "a: *b", "x:1:4: no anchor `&b` before here"),
        ("yaml", "%YAML 1.3\n---\na: 1", "x:1:1: found incompatible YAML document"),
        ("yaml", 'a: "\\Uffffffff"', "x:1:7: found invalid Unicode character"),
        ("json", "[1,]", "x:1:3: JSON allows no comma before "),
        ("json", "[1, NaN]", "x:1:5: JSON cannot represent NaN"),
        ("json", "[" * 100_000, "x: there are more than 32 levels"),
        ("json", "1" * 5000, "x:1:1: Exceeds the limit"),
    ],
)
def test_texts_that_are_no_documents(format, text, message):
    with pytest.raises(fo.ConfigError) as caught:
        parse(text, format, "x")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_keys_given_twice(tmp_path, suffix):
    path = tmp_path / f"recipe.{suffix}"
    path.write_text('{"optimizer": {"name": "sgd",\n"name": "sgd"}, "schedule": "x"}')
    message = r":2:1: optimizer.name: the key is given twice, first on line 1"
    with pytest.raises(fo.ConfigError, match=message):
        REGISTRY.load(path)


def test_what_a_file_cannot_be(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.toml, .* got 'recipe\.txt'"):
        REGISTRY.load("recipe.txt")
    with pytest.raises(FileNotFoundError):
        REGISTRY.load(tmp_path / "recipe.toml")
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(
        fo.ConfigError, match=r"recipe.toml:1:6: expected UTF-8, got the byte 0xff"
    ):
        REGISTRY.load(path)
    odd = Everything(1.0, text="\ud800")
    with pytest.raises(fo.ConfigError, match=r"UTF-8 cannot represent '.ud800'"):
        REGISTRY.save(odd, path)
    with pytest.raises(fo.ConfigError, match=r"^numbers\[0\]: JSON cannot "):
        REGISTRY.save(Everything(1.0, numbers=(float("inf"),)), tmp_path / "x.json")


def test_json_files_may_name_their_schema(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"$schema": "recipe.schema.json", **RECIPE}))
    assert REGISTRY.load(path) == REGISTRY.decode(RECIPE)


def test_documents_without_an_end():
    inside = dict(RECIPE)
    inside["optimizer"] = inside
    with pytest.raises(fo.ConfigError, match=r"there are more than 32 levels"):
        REGISTRY.decode(inside)
    many: Any = [0]
    for _ in range(20):
        many = [many, many]
    with pytest.raises(fo.ConfigError, match=r"there are more than 100,000 values"):
        REGISTRY.decode(RECIPE | {"x": many})
    with pytest.raises(fo.ConfigError, match=r"got a int too long to show"):
        REGISTRY.decode(RECIPE | {"decay_where": 10**5000})


def test_schema_refuses_what_decode_refuses(schema):
    schema.validate(RECIPE)
    for data in (
        RECIPE | {"optimizer": ADAMW | {"beta1": 1}},
        RECIPE | {"optimizer": ADAMW | {"b1": True}},
        RECIPE | {"optimizer": ADAMW | {"b1": 1.0}},
        RECIPE | {"optimizer": COSINE},
        RECIPE | {"optimizer": {}},
        RECIPE | {"decay_where": {"min_ndim": 1.5}},
        {"optimizer": ADAMW},
        {},
        [],
    ):
        with pytest.raises(jsonschema.ValidationError):
            schema.validate(data)


def test_schema_tells_editors_what_docstrings_say():
    definitions = REGISTRY.json_schema(fo.Recipe)["$defs"]
    b2 = definitions["AdamW"]["properties"]["b2"]
    assert b2["default"] == 0.999
    assert (
        b2["description"]
        == "exponential decay rate of the second moment $v$, in [0, 1)."
    )
    assert b2["if"] == {"type": "number"}
    assert b2["then"] == {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    assert definitions["Recipe"]["description"].startswith(
        "An optimizer with its learning"
    )
    assert definitions["AdamW"]["required"] == ["name"]
    for cls in LIBRARY:
        for key, value in definitions[cls.__name__]["properties"].items():
            assert key == "name" or value.get("description"), (cls, key)


def test_modules_never_meet_pydantic():
    """It would make them without `__init__` and `__check_init__`, and not frozen."""
    namespace = wires.Wires(KINDS)
    namespace.of_tables(root_choice(KINDS, None))
    tables = [get_args(table)[0] for table in namespace.tables.values()]
    assert len(tables) >= len(ROOTS) and all(map(is_typeddict, tables))
    for table in tables:
        hints = get_type_hints(table, namespace.aliases, include_extras=True)
        assert not any(is_module(arm) for x in hints.values() for arm, _ in arms_of(x))
    read = REGISTRY.decode(RECIPE)
    with pytest.raises(AttributeError):
        read.optimizer.b1 = 3


def test_none_where_there_is_no_default():
    class Required(fo.AbstractSchedule):
        value: float | None

        def __call__(self, count):
            return 0.0

    registry = fo.Registry.of(Required)
    assert registry.encode(Required(None)) == {"name": "required", "value": "none"}
    assert registry.decode(registry.encode(Required(None))) == Required(None)


def test_schema_where_the_registry_has_no_class_for_a_field():
    """Without a schedule in the registry, the decay can only be a number."""
    schema = fo.Registry.of(fo.Adafactor).json_schema(fo.Adafactor)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"name": "adafactor", "weight_decay_rate": 0.1})
    assert not validator.is_valid({"name": "adafactor", "weight_decay_rate": {}})

"""Where keys and values are in a text, compared with what the parsers read."""

import json

import functional_opt as fo
import pytest
from hypothesis import given, strategies as st
from rooms import FORMATS, library, parse, scalar, write


LIBRARY = library()

WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6)
KEYS = WORDS | st.sampled_from(["a.b", 'a"b', "a'b", "a\\b", "[", "a = b", "#", "<<"])
LEAVES = (
    st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | WORDS
    | st.sampled_from(["1e3", "]", '"""', "'''", "# a", "a\nb", "yes", "~", "0x1F"])
)
DATA = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)
TABLES = st.dictionaries(KEYS, DATA, min_size=1, max_size=4)


def values_of(data, location=()):
    """The location of each value that is not empty, and the value."""
    yield location, data
    if isinstance(data, dict):
        for key, value in data.items():
            yield from values_of(value, (*location, key))
    if isinstance(data, list):
        for number, value in enumerate(data):
            yield from values_of(value, (*location, number))


@pytest.mark.parametrize("format", ["toml", "yaml", "json"])
@given(data=TABLES)
def test_every_value_is_found(format, data):
    text = write(data, format)
    document = parse(text, format)
    assert json.dumps(document.data, sort_keys=True) == json.dumps(data, sort_keys=True)
    spans = list(FORMATS[format].spans(text))
    found = {x.location: text[x.start : x.end] for x in spans if not x.is_key}
    expected = dict(values_of(data))
    assert set(found) - {()} <= set(expected)
    for location, value in expected.items():
        if location not in found:  # TOML makes some tables and lists by headers.
            assert format == "toml" and isinstance(value, dict | list)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            assert float(found[location]) == float(value)
    keys = {x.location for x in spans if x.is_key}
    assert keys == {x for x in expected if x and isinstance(x[-1], str)}


TOML = """\
a = 1 # [b]
c.'d.e'."f" = [ # x
  {g = 2}, "]", 1979-05-27 07:32:00,
]
[h . i]
j = \"\"\"
k = 1\"\"\"
[[l.m]]
n = {o.p = [[], [1]]}
[[l.m]]
[l.m.q]
r = 'x'
"""
YAML = """\
a: &x {b: 1}
c:
- *x
- <<: *x
  d: |
    e: 1
? f
: - - 'g'
"""


def test_layouts_of_toml():
    spans = list(FORMATS["toml"].spans(TOML))
    found = {x.location: TOML[x.start : x.end] for x in spans if not x.is_key}
    assert found == {
        ("a",): "1",
        ("c", "d.e", "f"): "[",
        ("c", "d.e", "f", 0): "{",
        ("c", "d.e", "f", 0, "g"): "2",
        ("c", "d.e", "f", 1): '"]"',
        ("c", "d.e", "f", 2): "1979-05-27 07:32:00",
        ("h", "i"): "[h . i]",
        ("h", "i", "j"): '"""\nk = 1"""',
        ("l", "m", 0): "[[l.m]]",
        ("l", "m", 0, "n"): "{",
        ("l", "m", 0, "n", "o", "p"): "[",
        ("l", "m", 0, "n", "o", "p", 0): "[",
        ("l", "m", 0, "n", "o", "p", 1): "[",
        ("l", "m", 0, "n", "o", "p", 1, 0): "1",
        ("l", "m", 1): "[[l.m]]",
        ("l", "m", 1, "q"): "[l.m.q]",
        ("l", "m", 1, "q", "r"): "'x'",
    }


def test_layouts_of_yaml():
    assert parse(YAML, "yaml").data == {
        "a": {"b": 1},
        "c": [{"b": 1}, {"b": 1, "d": "e: 1\n"}],
        "f": [["g"]],
    }
    spans = list(FORMATS["yaml"].spans(YAML))
    keys = [x.location for x in spans if x.is_key]
    assert keys == [("a",), ("a", "b"), ("c",), ("c", 1, "<<"), ("c", 1, "d"), ("f",)]


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("+.INF", float("inf")),
        ("~", None),
        ("", None),
        ("Null", None),
        ("True", True),
        ("yes", "yes"),
        ("off", "off"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("0b1", "0b1"),
        ("2020-01-01", "2020-01-01"),
        ("=", "="),
        ("tRUE", "tRUE"),
    ],
)
def test_scalars_of_yaml(text, value):
    """The core schema of YAML 1.2."""
    read = scalar(text)
    assert type(read) is type(value) and read == value


def test_positions(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("optimizer:\n  name: adamw\n  b1: 2\nclip_nrm: 1\n")
    with pytest.raises(fo.ConfigError) as caught:
        LIBRARY.load(path)
    places = [place for place, _ in caught.value.problems]
    assert places == ["optimizer.b1", "schedule", "clip_nrm"]
    first, second, third = caught.value.positions
    assert first is not None and second is None and third is not None
    assert (first.line, first.column, first.text, first.width) == (3, 7, "  b1: 2", 1)
    assert (third.line, third.column, third.width) == (4, 1, len("clip_nrm"))
    assert str(first) == f"{path}:3:7"


def test_many_mistakes_come_to_an_end():
    data = {"name": "allof", "parts": [{"path": 1}] * 5_000}
    with pytest.raises(fo.ConfigError) as caught:
        LIBRARY.decode(data)
    assert len(caught.value.problems) == 101
    assert caught.value.problems[0][0] == "parts[0].path"
    assert caught.value.problems[-1] == ("", "there may be more mistakes than these")

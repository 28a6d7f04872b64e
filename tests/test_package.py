import dataclasses
import doctest
import importlib
import inspect
import json
import pathlib
import pkgutil
import random
import re
import subprocess
import sys

import functional_opt as fo
import pytest
from rooms import AbstractConfig


ROOT = pathlib.Path(fo.__file__).parents[1]


def modules():
    names = pkgutil.walk_packages(fo.__path__, "functional_opt.")
    return [fo, *(importlib.import_module(info.name) for info in names)]


def subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def run(code):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_abstract_or_final():
    ours = [
        cls for cls in subclasses(AbstractConfig) if cls.__module__.startswith("func")
    ]
    assert {fo.AbstractOptimizer, fo.AbstractSchedule, fo.AdamW, fo.Recipe} <= set(ours)
    for cls in ours:
        is_final = getattr(cls, "__final__", False)
        assert inspect.isabstract(cls) is not is_final
        assert cls.__name__.startswith("Abstract") is not is_final


def test_checks_without_the_import_hook():
    code = """
import functional_opt as fo

for make in (
    lambda: fo.AdamW(b1=1.5),
    lambda: fo.AdamW(b1="x"),
    lambda: fo.Where(path=3),
    lambda: fo.Adam().build("0.1"),
    lambda: fo.Recipe(optimizer=fo.Adam(), schedule=0.1).build_mpmd({}, 3),
):
    try:
        make()
    except (TypeError, ValueError) as error:
        print(type(error).__name__, str(error).splitlines()[0])
"""
    assert run(code).splitlines() == [
        "ValueError `AdamW.b1` must be in [0, 1), got 1.5.",
        "TypeError `AdamW.b1` must be a float or a 0-d float array, got 'x'.",
        "TypeError `Where.path` must be a str or None, got 3.",
        "TypeError `schedule` of `Adam.build` must be a function of the update count, "
        "a float or a 0-d float array, got '0.1'. Did you mean `0.1`?",
        "TypeError `partition` of `Recipe.build_mpmd` must be a StagePartition, got 3. "
        "Make one with `fo.partition(params, stage_of)`.",
    ]


def test_import_changes_nothing():
    code = """
import json, sys, warnings
import beartype, equinox, jax, jaxtyping, numpy, optax
import annotated_types, beartype.door, jax.extend.core
import optax.contrib, optax.transforms

before = set(sys.modules)

def contents(module):
    for name, value in list(vars(module).items()):
        if name == "__warningregistry__":
            continue
        try:
            size = len(value) if isinstance(value, (dict, list, set)) else 0
        except TypeError:
            size = 0
        yield f"{module.__name__}.{name}", id(value), size

def snapshot():
    theirs = ("optax", "equinox", "numpy")
    names = [name for name in sorted(before) if name.split(".")[0] in theirs]
    found = {x for name in names for x in contents(sys.modules[name])}
    return found, dict(jax.config.values), list(warnings.filters)

one = snapshot()
import functional_opt
two = snapshot()
new = sorted(x[0] for x in one[0] ^ two[0])
print(json.dumps([new, one[1] == two[1], one[2] == two[2]]))
"""
    changed, same_config, same_filters = json.loads(run(code))
    # Equinox keeps its own record of the modules that exist.
    ours = ("equinox._module._module.", "equinox._better_abstract.")
    assert [name for name in changed if not name.startswith(ours)] == []
    assert same_config and same_filters


def test_the_global_random_state_stays_as_it_is():
    before = random.getstate()
    group = fo.Group(fo.Where("bias"), optimizer=fo.AdamW())
    fo.Groups((group,), rest=fo.Muon()).build(0.1)
    assert random.getstate() == before


def test_no_module_holds_a_mutable():
    for module in modules():
        held = {
            name
            for name, value in vars(module).items()
            if isinstance(value, dict | list | set | bytearray)
            and not name.startswith("__")
        }
        assert held == set(), module.__name__


def public_names():
    """The classes and functions of `fo` and of `fo.testing`, by name."""
    found = {}
    for module, names in ((fo, vars(fo)), (fo.testing, fo.testing.__all__)):
        for name in names:
            value = getattr(module, name)
            is_code = inspect.isroutine(value) or inspect.isclass(value)
            if is_code and not name.startswith("_"):
                found[f"{module.__name__}.{name}"] = value
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_every_example_is_run_and_right(module):
    results = doctest.testmod(module)
    assert results.failed == 0
    text = pathlib.Path(module.__file__ or "").read_text()
    # What doctest does not find, such as an example behind a decorator that hides it,
    # it passes over.
    assert results.attempted == len(re.findall(r"^ *>>> ", text, re.MULTILINE))


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_has_an_example(name):
    doc = inspect.getdoc(public_names()[name]) or ""
    assert doctest.DocTestParser().get_examples(doc), "what users see has an example"


def test_public_names_are_found():
    names = {"functional_opt.stage_local", "functional_opt.Adam"}
    assert names | {"functional_opt.testing.assert_equal"} <= public_names().keys()


def test_fields_are_documented():
    for name, value in vars(fo).items():
        if inspect.isclass(value) and not name.startswith("Abstract"):
            if issubclass(value, AbstractConfig):
                doc = inspect.getdoc(value) or ""
                for field in dataclasses.fields(value):
                    assert f"`{field.name}`" in doc, f"{name}.{field.name}"

"""Language servers complete, explain and check recipes by the JSON Schema.

`nox -s editors` installs yaml-language-server and Taplo from npm, and runs this.
"""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import functional_opt as fo
import pytest
from client import Editor


NODE_MODULES = Path(os.environ["NODE_MODULES"])
COMMANDS = {
    "yaml": [str(NODE_MODULES / ".bin" / "yaml-language-server"), "--stdio"],
    "toml": ["node", str(Path(__file__).with_name("taplo.cjs"))],
}
SETTINGS = {
    "yaml": {"validate": True, "completion": True, "hover": True},
    "evenBetterToml": {"schema": {"enabled": True, "catalogs": []}},
}
FIRST_LINES = {
    "yaml": "# yaml-language-server: $schema=recipe.schema.json\n",
    "toml": "#:schema ./recipe.schema.json\n",
}
OPTIMIZERS = [
    name.lower()
    for name, kind in vars(fo).items()
    if inspect.isclass(kind)
    and issubclass(kind, fo.AbstractOptimizer)
    and not inspect.isabstract(kind)
]
SCHEMA = subprocess.check_output(
    [sys.executable, "-m", "functional_opt", "schema"], text=True
)


@pytest.fixture(scope="module", params=["yaml", "toml"])
def editor(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "recipe.schema.json").write_text(SCHEMA)
    editor = Editor(COMMANDS[request.param], folder, SETTINGS, request.param)
    yield editor
    editor.close()


@pytest.fixture
def opened(editor, request):
    """Opens a document, whose cursor is at `|`. Returns its name, line and column."""

    def open(**texts):
        name = f"{request.node.originalname}.{editor.format}"
        text = FIRST_LINES[editor.format] + texts[editor.format]
        before = text.partition("|")[0]
        editor.open(name, text.replace("|", ""))
        return name, before.count("\n"), len(before) - before.rfind("\n") - 1

    return open


def marks(editor, name):
    """The lines that are marked, with the texts."""
    return {line: text for line, _, text in editor.diagnostics(name)}


def test_a_wrong_value(editor, opened):
    name, *_ = opened(
        yaml="schedule: 1\noptimizer:\n  name: adamw\n  b1: x\n",
        toml='schedule = 1\n[optimizer]\nname = "adamw"\nb1 = "x"\n',
    )
    found = marks(editor, name)
    assert list(found) == [4]
    assert "number" in found[4]


def test_a_value_out_of_range(editor, opened):
    name, *_ = opened(
        yaml="schedule: 1\noptimizer: {name: adamw}\nclip_norm: -1\n",
        toml='schedule = 1\noptimizer = {name = "adamw"}\nclip_norm = -1\n',
    )
    found = marks(editor, name)
    assert list(found) == [3]
    assert "minimum of 0" in found[3]


def test_an_unknown_key(editor, opened):
    """Taplo marks the table, and names the key."""
    name, *_ = opened(
        yaml="schedule: 1\noptimizer:\n  name: adamw\n  beta: 2\n",
        toml='schedule = 1\n[optimizer]\nname = "adamw"\nbeta = 2\n',
    )
    found = marks(editor, name)
    assert list(found) == [4 if editor.format == "yaml" else 2]
    assert all("beta" in text and "allowed" in text for text in found.values())


def test_an_unknown_name(editor, opened):
    name, *_ = opened(
        yaml="schedule: 1\noptimizer:\n  name: adamwx\n",
        toml='schedule = 1\n[optimizer]\nname = "adamwx"\n',
    )
    found = marks(editor, name)
    assert list(found) == [3]
    assert '"adamw"' in found[3]


def test_a_mistake_in_a_group(editor, opened):
    name, *_ = opened(
        yaml="schedule: 1\noptimizer:\n  name: groups\n  groups:\n"
        "  - where: {path: embed}\n    optimizer:\n      name: lion\n      b1: x\n",
        toml='schedule = 1\n[optimizer]\nname = "groups"\n[[optimizer.groups]]\n'
        'where = {path = "embed"}\n[optimizer.groups.optimizer]\nname = "lion"\n'
        'b1 = "x"\n',
    )
    assert list(marks(editor, name)) == [8]


def test_keys_are_completed(editor, opened):
    at = opened(
        yaml="schedule: 1\noptimizer:\n  name: adamw\n  |\n",
        toml='schedule = 1\n[optimizer]\nname = "adamw"\n|\n',
    )
    found = set(editor.completions(*at))
    fields = {field.name for field in dataclasses.fields(fo.AdamW)}
    assert fields <= found
    # Taplo offers the keys of all optimizers.
    assert editor.format == "toml" or found == fields


def test_keys_of_the_recipe_are_completed(editor, opened):
    at = opened(yaml="schedule: 1\n|\n", toml="schedule = 1\n|\n")
    fields = {field.name for field in dataclasses.fields(fo.Recipe)} - {"schedule"}
    assert fields <= set(editor.completions(*at))


def test_names_are_completed(editor, opened):
    at = opened(
        yaml="schedule: 1\noptimizer:\n  name: |\n",
        toml='schedule = 1\n[optimizer]\nname = "|"\n',
    )
    names = [name.strip('"') for name in editor.completions(*at)]
    assert sorted(names) == sorted(OPTIMIZERS)


def test_keys_are_explained(editor, opened):
    at = opened(
        yaml="schedule: 1\noptimizer:\n  name: adamw\n  b|1: 0.9\n",
        toml='schedule = 1\n[optimizer]\nname = "adamw"\nb|1 = 0.9\n',
    )
    properties = json.loads(SCHEMA)["$defs"]["AdamW"]["properties"]
    words = properties["b1"]["description"].split("[")[0]
    assert words in editor.hover(*at)

"""The command line: what it prints, where, and how it ends."""

import importlib.metadata
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import functional_opt as fo
import jsonschema
import pytest
from rooms import (
    assignment,
    changed,
    coloured,
    Document,
    field_rows,
    fields_of,
    library,
    main,
    name_of,
    parse,
    reachable,
)


ROOT = Path(fo.__file__).parents[1]
LIBRARY = library()

RECIPE = """\
clip_norm = 1.0
weight_decay = 0.1
decay_where = {min_ndim = 2}

[optimizer]
name = "adamw"
b2 = 0.95

[schedule]
name = "cosine"
peak_value = 3e-4
warmup_steps = {name = "fraction", value = 0.01}
decay_steps = {name = "fraction", value = 1.0}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def run(capsys):
    """Runs a command: how it ends, and what is on standard output and error."""

    def run(*arguments):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def python(*arguments, stdout=subprocess.PIPE):
    """Runs the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "functional_opt", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_check(run, recipe):
    assert run("check", recipe) == (0, "", "")
    code, out, err = run("check", recipe, "--set", "optimizer.b1=2", "--set", "b=1")
    assert (code, out) == (1, "")
    first, second = err.splitlines()
    assert first == "--set optimizer.b1=2: optimizer.b1: must be in [0, 1), got 2.0"
    assert second.startswith("--set b=1: b: unknown key of Recipe; known")
    Path(recipe).write_text(RECIPE.replace("b2 = 0.95", "b3 = 0.95"))
    code, out, err = run("check", recipe)
    assert (code, out) == (1, "")
    head, line, mark = err.splitlines()
    assert head.startswith(f"{recipe}:7:1: optimizer.b3: unknown key of AdamW; ")
    assert (line, mark) == ("    7 | b3 = 0.95", "      | ^^")


def test_check_of_lengths(run, recipe):
    longer = ["--set", "schedule.decay_steps=500", "--set", "schedule.warmup_steps=9"]
    assert run("check", recipe, "--total-steps", "500", *longer) == (0, "", "")
    code, out, err = run("check", recipe, "--total-steps", "400", *longer)
    assert (code, out) == (1, "")
    assert err.startswith("functional-opt: schedule: `Cosine` takes 500 updates, but")


def test_standard_input():
    process = python("check", "-", "--format", "yaml")
    out, err = process.communicate("optimizer: {name: adam}\nschedul: 1\n")
    assert (process.returncode, out) == (1, "")
    assert err.splitlines() == [
        "<stdin>: schedule: required key of Recipe is missing",
        "<stdin>:2:1: schedul: unknown key of Recipe; did you mean 'schedule'? known: "
        + ", ".join(fo.Recipe.__dataclass_fields__),
        "    2 | schedul: 1",
        "      | ^^^^^^^",
    ]
    process = python("check", "-")
    out, err = process.communicate(RECIPE)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_reader_that_stops_reading():
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = python("schema", stdout=write_end)
    os.close(write_end)
    assert process.communicate()[1] == ""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required: COMMAND"),
        (["chek", "x.toml"], "invalid choice: 'chek'"),
        (["check"], "required: FILE"),
        (["check", "x.toml", "--set", "b2"], "expected KEY=VALUE, got 'b2'"),
        (["check", "x.toml", "--set", "=3"], "expected KEY=VALUE, got '=3'"),
        (["check", "x.toml", "--total-steps", "0"], "a positive integer, got '0'"),
        (["check", "x.toml", "--total-steps", "1k"], "a positive integer, got '1k'"),
        (["completion", "ksh"], "invalid choice: 'ksh'"),
        (["check", "x.toml", "--registry", "no_such:thing"], "No module named"),
        (
            ["check", "x.toml", "--registry", "json:dumps"],
            "json:dumps is not a Registry",
        ),
        (["check", "x.toml", "--registry", "json:x"], "has no attribute 'x'"),
        (["check", "x.toml", "--registry", ":x"], "Empty module name"),
        (["plot", "x.toml"], "required: -o/--output"),
    ],
)
def test_wrong_usage(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("usage: functional-opt")


def test_files_that_are_not_there(run, tmp_path, recipe):
    path = str(tmp_path / "none.toml")
    message = f"functional-opt: {path}: No such file or directory\n"
    assert run("check", path) == (1, "", message)
    arguments = ["show", recipe, "--total-steps", "9", "--model-shapes", path]
    assert run(*arguments) == (1, "", message)
    assert run("schema", "-o", f"{path}/schema.json")[0] == 1
    code, _, err = run("check", str(tmp_path / "recipe.ini"))
    assert code == 1 and "end in .toml, .yaml, .yml or .json, got" in err
    assert run("check", str(tmp_path))[0] == 1


def test_show(run, recipe):
    code, out, err = run("show", recipe, "--total-steps", "10000")
    assert (code, err) == (0, "")
    head, fields, rate = out.split("\n\n")
    assert head == "gradient -> clip_norm 1.0 -> adamw -> weight_decay 0.1 -> update"
    rows = [line.split() for line in fields.splitlines()]
    assert rows[0] == ["field", "value", "default"]
    assert ["optimizer", "adamw"] in rows
    assert ["optimizer.b2", "0.95", "0.999"] in rows
    assert ["optimizer.mu_dtype", "none", "none"] in rows
    assert ["schedule.warmup_steps.value", "0.01"] in rows
    assert ["decay_where.min_ndim", "2", "0"] in rows
    assert rate.splitlines()[0] == "learning rate"
    assert rate.splitlines()[3].split() == ["100", "0.0003", "decay"]


def test_show_one_module(run, tmp_path):
    path = tmp_path / "sequence.yaml"
    path.write_text(
        "name: sequence\n"
        "schedules:\n"
        "- {name: linear, init_value: 0, end_value: 1, transition_steps: 5}\n"
        "- {name: constant, value: {array: 1, dtype: bfloat16}}\n"
    )
    _, out, _ = run("show", str(path))
    rows = [line.split(maxsplit=1) for line in out.splitlines()]
    assert ["name", "sequence"] in rows
    assert ["schedules", "[linear, constant]"] in rows
    assert ["schedules[0].transition_steps", "5"] in rows
    assert ["schedules[1].value", "1.0 (bfloat16 array)"] in rows


def test_show_state(run, recipe, tmp_path):
    shapes = tmp_path / "shapes.json"
    parameters = {
        "embed": {"shape": [256, 64]},
        "layers[0].weight": {"shape": [64, 64], "dtype": "bfloat16", "stage": 1},
        "layers[0].bias": {"shape": [64], "stage": [1]},
    }
    shapes.write_text(json.dumps(parameters))
    arguments = ["show", recipe, "--total-steps", "100", "--model-shapes", str(shapes)]
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["embed", "(256,", "64)", "AdamW", "x", "1", "0.1"] in rows
    assert ["layers[0].bias", "(64,)", "AdamW", "x", "1", "0"] in rows
    (head,) = (n for n, row in enumerate(rows) if row[:2] == ["stage", "leaves"])
    assert rows[head + 1][:6] == ["0", "1", "65.5", "kB", "131.1", "kB"]
    assert rows[head + 2][:6] == ["1", "2", "8.4", "kB", "16.9", "kB"]
    assert "round of exchange" in out

    parameters["embed"] = {"shape": [-1], "dtyp": "float32"}
    shapes.write_text(json.dumps(parameters))
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.splitlines()[::3] == [
        f"{shapes}:1:22: embed.shape[0]: must be at least 0, got -1",
        f"{shapes}:1:27: embed.dtyp: unknown key of Parameter; did you mean 'dtype'? "
        "known: shape, dtype, stage",
    ]
    shapes.write_text("[]")
    code, out, err = run(*arguments)
    assert err.startswith(f"{shapes}:1:1: expected the parameters by their paths\n")


def test_rules_find_parameters_by_their_paths(run, recipe, tmp_path):
    shapes = tmp_path / "shapes.json"
    shapes.write_text('{"layers[0].weight": {"shape": [4, 4]}}')
    arguments = ["show", recipe, "--total-steps", "100", "--model-shapes", str(shapes)]
    where = r"decay_where.path='^layers\[\d\]\.weight$'"
    assert run(*arguments, "--set", where)[0] == 0
    code, _, err = run(*arguments, "--set", "decay_where.path='head'")
    assert code == 1 and "finds no parameter" in err


def test_lengths_that_are_not_known(run, recipe):
    code, out, err = run("show", recipe)
    assert (code, out) == (1, "")
    assert err.startswith("functional-opt: schedule: ")
    assert "depends on the number of updates of the run, got " in err
    assert "; pass --total-steps" in err


def test_plot(run, recipe, tmp_path):
    picture = tmp_path / "rate.png"
    arguments = ["plot", recipe, "--total-steps", "50", "-o"]
    assert run(*arguments, str(picture)) == (0, "", "")
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    assert run(*arguments, str(picture), "--set", "schedule=3e-4")[0] == 0
    assert picture.exists()
    message = f"functional-opt: {picture}: the file exists; pass --force to overwrite"
    assert run(*arguments, str(picture)) == (1, "", f"{message} it\n")
    assert run(*arguments, str(picture), "--force")[0] == 0
    code, _, err = run(*arguments, str(tmp_path / "rate.word"))
    assert code == 1 and err.startswith(
        "functional-opt: Format 'word' is not supported"
    )
    adam = tmp_path / "adam.toml"
    adam.write_text('name = "adam"')
    assert run("plot", str(adam), "--force", "-o", str(picture)) == (
        1,
        "",
        "functional-opt: adam has no learning rate to plot\n",
    )


def test_schema(run, tmp_path):
    target = tmp_path / "recipe.schema.json"
    assert run("schema", "-o", str(target)) == (0, "", "")
    schema = json.loads(target.read_text())
    assert schema == json.loads(run("schema")[1])
    jsonschema.validate(parse(RECIPE, "toml").data, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(parse(RECIPE, "toml").data | {"clip_nrm": 1}, schema)


KNOWN = {name_of(cls): cls for cls in reachable(LIBRARY.kinds)}
PARTS = ("recipe", "where", "allof", "not", "group", "fraction", "steps", "boundary")


@pytest.mark.parametrize("format", ["toml", "yaml", "json"])
@pytest.mark.parametrize("name", [*PARTS, *LIBRARY])
def test_templates(run, tmp_path, name, format):
    """They have every field, and load if nothing must be filled in."""
    target = tmp_path / f"template.{format}"
    arguments = ["template", name, "--format", format, "-o", str(target)]
    assert run(*arguments) == (0, "", "")
    cls = KNOWN[name]
    text = target.read_text()
    for field in fields_of(cls):
        assert field.name in text or (format == "json" and field.name == "path")
    code, out, err = run("check", str(target))
    required = [field.name for field in fields_of(cls) if field.required]
    if not required:
        assert (code, out, err) == (0, "", "")
        assert LIBRARY.load(target) == cls()
        return
    assert (code, out) == (1, "")
    for field in required:
        assert re.search(rf"template\.{format}[:\d]*: {field}[.:]", err), err


def test_a_template_filled_in(run, tmp_path):
    target = tmp_path / "recipe.toml"
    assert run("template", "recipe", "-o", str(target))[0] == 0
    text = target.read_text()
    for value in ("1e-3", "10"):
        text = text.replace("...", value, 1)
    target.write_text(re.sub(r"^# (\w+ = [^.\s]+)$", r"\1", text, flags=re.MULTILINE))
    recipe = LIBRARY.load(target)
    schedule = fo.Cosine(peak_value=1e-3, decay_steps=10)
    assert recipe == fo.Recipe(optimizer=fo.AdamW(), schedule=schedule)
    assert run("template", "recipe", "-o", str(target))[0] == 1
    assert LIBRARY.load(target) == recipe
    assert run("template", "adam", "-o", str(target), "--force")[0] == 0
    assert LIBRARY.load(target) == fo.Adam()


def test_template_says_what_fields_mean(run):
    _, out, _ = run("template", "adamw", "--format", "toml")
    assert out.splitlines()[:6] == [
        "# AdamW (Loshchilov and Hutter 2019).",
        "",
        'name = "adamw"',
        "# exponential decay rate of the first moment $m$, in [0, 1).",
        "b1 = 0.9",
        "# exponential decay rate of the second moment $v$, in [0, 1).",
    ]
    code, out, err = run("template", "adamwx")
    assert (code, out) == (1, "")
    assert err.startswith(
        "functional-opt: no module is named 'adamwx'; did you mean 'adamw'? known: "
    )


def test_registries_of_users(run, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import functional_opt as fo\n"
        "class Halving(fo.AbstractSchedule):\n"
        "    value: float\n"
        "    def __call__(self, count):\n"
        "        return self.value * 0.5**count\n"
        "registry = fo.Registry.of(fo.Adam, Halving)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "recipe.json").write_text(
        '{"optimizer": {"name": "adam"}, "schedule": {"name": "halving", "value": 1}}'
    )
    arguments = ["check", "recipe.json", "--registry", "mine:registry"]
    assert run(*arguments) == (0, "", "")
    code, _, err = run(*arguments, "--set", "optimizer.name=lion")
    assert code == 1 and "no optimizer is named 'lion'; known: adam" in err


@pytest.mark.parametrize(
    "text, path, value",
    [
        ("b2=0.95", ["b2"], 0.95),
        ("optimizer.b2 = 1e-3", ["optimizer", "b2"], 1e-3),
        ("optimizer.name=lion", ["optimizer", "name"], "lion"),
        ("optimizer.name='lion'", ["optimizer", "name"], "lion"),
        ("a.\"b=c\".'d'=true", ["a", "b=c", "d"], True),
        ("parts[1].b2=2", ["parts", "1", "b2"], 2),
        ("parts.1.b2=[1, 2]", ["parts", "1", "b2"], [1, 2]),
        ("where.path=a=b", ["where", "path"], "a=b"),
        ("a={b = 1}", ["a"], {"b": 1}),
        ("a=", ["a"], ""),
        ("a=1\nb=2", ["a"], "1\nb=2"),
    ],
)
def test_assignments(text, path, value):
    assert assignment(text) == (tuple(path), value, f"--set {text}")


def set_in(data, *assignments):
    document = Document(data, "", "toml", "x")
    return changed(document, map(assignment, assignments))


def test_overrides():
    data = {"a": {"b": 1}, "parts": [{"c": 1}, {"c": 2}], "n": 1, "w": "none"}
    before = json.dumps(data)
    texts = ("a.b=3", "x.y=4", "parts[1].c=5", "a.d=6", "n.m=7", "w.path=bias")
    document = set_in(data, *texts)
    assert document.data == {
        "a": {"b": 3, "d": 6},
        "parts": [{"c": 1}, {"c": 5}],
        "n": {"m": 7},
        "w": {"path": "bias"},
        "x": {"y": 4},
    }
    assert [change.location for change in document.changes] == [
        ("a", "b"),
        ("x",),
        ("parts", 1, "c"),
        ("a", "d"),
        ("n",),
        ("w",),
    ]
    assert json.dumps(data) == before
    for text, key in (("parts[2].c=1", "2"), ("parts.x=1", "x")):
        with pytest.raises(fo.ConfigError) as caught:
            set_in(data, text)
        message = f"has no item {key}, it is a list of 2 items"
        assert str(caught.value) == f"--set {text}: parts: {message}"


@pytest.mark.parametrize(
    "assignments, message",
    [
        (["decay_where=none", "decay_where.path=bias"], ""),
        (["accumulate=10k"], "accumulate: expected a positive integer, got '10k'"),
        (["schedule=1", "schedule.name=cosine"], "schedule.peak_value: required key"),
        (
            ["optimizer.lr=1"],
            "optimizer.lr: the learning rate is `schedule`, of Recipe",
        ),
        (["optimizer[3].x=1"], "optimizer.3: unknown key of AdamW"),
    ],
)
def test_mistakes_of_assignments(run, recipe, assignments, message):
    arguments = [x for assignment in assignments for x in ("--set", assignment)]
    code, out, err = run("check", recipe, *arguments)
    assert out == "" and code == (1 if message else 0)
    start = f"--set {assignments[-1]}: {message}"
    assert err.startswith(start) if message else err == ""


def test_diff(run, recipe, tmp_path):
    assert run("diff", recipe, recipe) == (0, "", "")
    other = tmp_path / "recipe.json"
    other.write_text('{"optimizer": {"name": "adamw", "eps": 1e-8}, "schedule": 1e-3}')
    code, out, err = run("diff", recipe, str(other))
    assert (code, err) == (1, "")
    rows = [re.split("  +", line) for line in out.splitlines()]
    assert rows[0] == ["field", "first", "second"]
    assert ["optimizer.b2", "0.95", "0.999"] in rows
    assert ["schedule", "cosine", "constant"] in rows
    assert ["schedule.peak_value", "0.0003"] in rows
    assert not any(row[0] == "optimizer.eps" for row in rows)


def test_version(run):
    version = importlib.metadata.version("functional_opt")
    assert run("--version") == (0, f"functional-opt {version}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run, shell):
    code, out, err = run("completion", shell)
    assert (code, err) == (0, "")
    assert "--model-shapes" in out or "model-shapes" in out
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=out, text=True, check=True)


def test_colours_on_terminals_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    text = "x.toml:1:1: b: wrong\n    1 | b = 1\n      | ^"
    assert coloured(text, True) == (
        "\033[1mx.toml:1:1:\033[0m b: wrong\n    1 | b = 1\n      | \033[31m^\033[0m"
    )
    assert coloured(text, False) == text
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured(text, True) == text


def test_interrupted(run, recipe, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr("functional_opt._cli.documents.parse", lambda *_: stop())
    assert run("check", recipe) == (130, "", "")


def test_show_says_which_decay_is_used():
    groups = fo.Groups(
        (fo.Group(fo.Where("norm"), optimizer=fo.AdamW(), weight_decay=0.0),),
        rest=fo.Muon(),
    )
    recipe = fo.Recipe(optimizer=groups, schedule=0.1, weight_decay=0.2)
    text = {row[0]: row[1] for row in field_rows(recipe)}
    assert text["weight_decay"] == "0.2"
    assert text["optimizer.groups[0].weight_decay"] == "0.0"
    assert text["optimizer.groups[0].optimizer.weight_decay"] == (
        "0.0001 (replaced by optimizer.groups[0].weight_decay)"
    )
    assert text["optimizer.rest.adam_weight_decay"] == "0.0 (replaced by weight_decay)"
    plain = fo.Recipe(optimizer=fo.AdamW(), schedule=0.1)
    assert ("optimizer.weight_decay", "0.0001", "0.0001") in field_rows(plain)


def installed(*arguments, stdin=None) -> "subprocess.Popen[bytes]":
    """The command as it is installed, with the library under test."""
    command = shutil.which("functional-opt", path=os.path.dirname(sys.executable))
    assert command is not None, "The package is not installed: `pip install -e .`"
    return subprocess.Popen(
        [command, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_installed_with_a_pipe_closed_early():
    process = installed("schema")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file or directory"),
        ("folder", "Is a directory"),
        (b"name = '\xff'", ":1:9: expected UTF-8, got the byte 0xff"),
        (b"\xff\xfen\0", ":1:1: expected UTF-8, got the byte 0xff"),
        (b"a = 1\0", ":1:6: "),
        (b"", ": optimizer: required key of Recipe is missing"),
        (b"x" * 1_000_001, "the document is too large: at most 1,000,000 bytes"),
    ],
)
def test_files_that_cannot_be_read(run, tmp_path, content, message):
    path = tmp_path / "recipe.toml"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    code, out, err = run("check", str(path))
    assert (code, out) == (1, "")
    assert message in err and str(path) in err


def test_installed_with_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"name = '\xff'")
    process = installed("check", str(path))
    out, err = process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.startswith(f"{path}:1:9: expected UTF-8, got the byte 0xff".encode())
    assert b"Traceback" not in err


def test_installed_without_standard_input():
    process = installed("check", "-", stdin=subprocess.DEVNULL)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.startswith(b"<stdin>: optimizer: required key of Recipe is missing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_installed_with_an_unreadable_file(tmp_path):
    path = tmp_path / "recipe.toml"
    path.touch(mode=0)
    process = installed("check", str(path))
    assert b"Permission denied" in process.communicate()[1]
    assert process.returncode == 1

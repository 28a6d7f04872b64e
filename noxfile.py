"""One command for each check, the same at home and in CI."""

import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nox


nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.default_venv_backend = "uv|virtualenv"

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")

# The peer to compare with. It pins versions of many packages that conflict with others,
# but imports only the few in the group "bench".
PEER = "eformer==0.0.101"

# A pipeline runtime. Its licence is the AGPL: nothing but its session installs it.
RUNTIME = "spectrax-lib==0.1.4"

# What old dependencies have broken before, and one test of each large part.
REDUCED = [
    "tests/test_package.py::test_checks_without_the_import_hook",
    "tests/test_package.py::test_import_changes_nothing",
    "tests/test_stage_local.py::test_the_same_as_on_the_whole_tree",
    "tests/test_recipe_stages.py",
    "tests/test_composition.py::test_decay_reaches_the_optimizer_inside",
    "tests/test_slicing.py",
    *(
        f"tests/test_optax.py::test_the_same_as_on_the_whole_tree[{row}]"
        for row in (
            "clip_by_global_norm",
            "contrib.dadapt_adamw",
            "contrib.mechanize",
            "contrib.momo",
            "contrib.momo_adam",
            "lbfgs, no line search",
        )
    ),
    "tests/test_optax.py::test_what_cannot_be_cut_is_an_error_that_explains[lookahead]",
    "tests/test_schedules.py::test_array_of_counts_gives_array_of_values",
    "tests/test_codec.py::test_mistakes",
    "tests/test_codec.py::test_files",
    "tests/test_checkpoints.py::test_every_kind_of_leaf_is_restored_exactly",
    "tests/test_checkpoints.py::test_goes_on_in_other_stages_as_if_never_stopped",
    "tests/test_example.py::test_two_processes_end_with_the_parameters_of_one",
]

SMOKE_TEST = """
import importlib.resources
import sys

import jax.numpy as jnp
import functional_opt as fo

assert not fo.__file__.startswith(sys.argv[1]), fo.__file__
assert importlib.resources.files(fo).joinpath("py.typed").is_file()

params = {"first": jnp.ones(3), "second": jnp.ones(2)}
recipe = fo.Recipe(optimizer=fo.AdamW(), schedule=fo.Constant(0.1), clip_norm=1.0)
partition = fo.partition(params, {"first": 0, "second": 1})
staged = recipe.build_mpmd(params, partition)
pieces = partition.split(params)
pieces, _ = staged.step(pieces, staged.init(pieces), pieces)
print(partition.merge(pieces))
print(staged)
"""


def groups(*names: str) -> tuple[str, ...]:
    """The requirements of dependency groups."""
    return nox.project.dependency_groups(PROJECT, *names)


@nox.session
def train(session: nox.Session) -> None:
    """Trains the language model of the example, with its arguments."""
    session.install(".[checkpoint,examples]")
    session.run("python", "examples/pipeline_lm.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Runs the tests, with arguments for pytest."""
    session.install("-e", ".[checkpoint,examples]", *groups("tests"))
    run_tests(session, "ci", session.posargs)


@nox.session
def thorough(session: nox.Session) -> None:
    """Runs the tests with far more examples of each property."""
    session.install("-e", ".[checkpoint,examples]", *groups("tests"))
    run_tests(session, "thorough", session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """Runs the tests with the oldest dependencies; `-- --reduced` runs a few."""
    session.install("uv")
    session.run(
        *("uv", "pip", "install", "--python", session_python(session)),
        *("--resolution", "lowest-direct"),
        *("-e", ".[checkpoint,examples]", *groups("tests")),
    )
    reduced = session.posargs == ["--reduced"]
    run_tests(session, "ci", REDUCED if reduced else session.posargs)


@nox.session
def killed(session: nox.Session) -> None:
    """Kills a training run at 100 random points, and resumes it each time."""
    session.install("-e", ".[checkpoint]", *groups("tests"))
    session.run(
        *("pytest", "tests/test_killed.py", "-s", *session.posargs),
        env={"KILLS": "100", "SEED": str(random.randrange(2**32))},
    )


@nox.session
def processes(session: nox.Session) -> None:
    """Trains in 2 and in 4 processes, and compares the results with the whole tree."""
    session.install("-e", ".", *groups("tests"))
    session.run(
        *("pytest", "tests/test_processes.py", *session.posargs),
        env={"FUNCTIONAL_OPT_PROCESSES": "more"},
    )


@nox.session
def table(session: nox.Session) -> None:
    """Writes the documentation pages about all optimizers and transformations."""
    session.install("-e", ".", *groups("third-party"))
    session.run("python", "tests/optimizers_table.py")
    session.run("python", "tests/optax_table.py")
    session.run("python", "tests/sharded_states_table.py")


@nox.session
def exchange(session: nox.Session) -> None:
    """Compares the exchanges of stages with the minimum, on trees of many sizes."""
    session.install("-e", ".", *groups("third-party"))
    session.run("python", "tests/exchange_table.py", *session.posargs)


@nox.session
def optax_suite(session: nox.Session) -> None:
    """Runs Optax's own tests split into stages: `-- DIR`, a checkout, then options."""
    source, *options = session.posargs
    session.install("-e", ".", "absl-py", "scikit-learn", *groups("tests"))
    copies = Path(session.create_tmp()) / "optax_tests"
    shutil.rmtree(copies, ignore_errors=True)
    for path in (Path(source) / "optax").rglob("*_test.py"):
        # Without the package around them, tests import the Optax that is installed.
        copy = copies / path.relative_to(source)
        if "GradientTransformation" in (text := path.read_text()) or ".update(" in text:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    session.chdir(copies)
    session.run(
        *("pytest", "-p", "optax_suite", "--import-mode=importlib", "--tb=short"),
        *(options or ["."]),
        env={"PYTHONPATH": str(ROOT / "tests")},
    )


@nox.session
def bench(session: nox.Session) -> None:
    """Runs the benchmarks and writes their page; `-- --quick` is a quick test."""
    session.install("-e", ".", *groups("bench"))
    session.install("--no-deps", PEER)
    (ROOT / "out").mkdir(exist_ok=True)
    page = [] if session.posargs else [f"--page={ROOT / 'docs' / 'benchmarks.md'}"]
    results = f"--benchmark-json={ROOT / 'out' / 'benchmarks.json'}"
    session.run("pytest", "benchmarks", results, *page, *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Feeds a million nearly valid documents to the decoder."""
    session.install("-e", ".")
    count, *seed = session.posargs or ["1000000"]
    session.run("python", "-W", "ignore", "tests/fuzz_codec.py", count, *seed)


@nox.session
def fuzz_programs(session: nox.Session) -> None:
    """Splits 100,000 random programs, and counts those that are exact or refused."""
    session.install("-e", ".", *groups("tests"))
    count, *seed = session.posargs or ["100000"]
    session.run("python", "tests/fuzz_programs.py", count, *seed)


@nox.session
def editors(session: nox.Session) -> None:
    """Drives the language servers of YAML and TOML with the schema of recipes."""
    session.install("-e", ".", "pytest")
    folder = session.create_tmp()
    servers = ("yaml-language-server@2.0.0", "@taplo/lsp@0.8.0")
    session.run("npm", "install", "--prefix", folder, *servers, external=True)
    modules = str(Path(folder, "node_modules").resolve())
    session.run(
        *("pytest", "--noconftest", "tests/editors/try_editors.py"),
        *session.posargs,
        env={"NODE_MODULES": modules, "NODE_PATH": modules},
    )


@nox.session
def peer(session: nox.Session) -> None:
    """Compares optimizers and schedules with those of eformer, and writes the page."""
    session.install("-e", ".", *groups("tests", "bench"))
    session.install("--no-deps", PEER)
    session.run("python", "tests/peer_table.py")
    session.run("pytest", "tests/test_peer.py", *session.posargs)


@nox.session
def runtimes(session: nox.Session) -> None:
    """Trains in the pipelines of spectrax, and writes the tables of the page."""
    session.install("-e", ".", "pytest", RUNTIME, *groups("bench"))
    session.install("--no-deps", PEER)
    run_outside(session, "tests/runtimes/try_spectrax.py")
    run_outside(session, "tests/runtimes/try_eformer.py")


@nox.session
def launchers(session: nox.Session) -> None:
    """Trains under SLURM and Open MPI, on this machine, and compares the parameters."""
    session.install("-e", ".[checkpoint,examples]", "pytest")
    run_outside(session, "tests/launchers/try_launchers.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the site into out/site; `-- serve` shows it and follows changes."""
    session.install("-e", ".[checkpoint,examples]", *groups("docs", "lint"))
    env = {"NO_MKDOCS_2_WARNING": "1"}
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]), env=env)


@nox.session
def browser(session: nox.Session) -> None:
    """Opens all pages of the site in headless Chromium, which must be installed."""
    packages = groups("docs", "lint", "browser")
    session.install("-e", ".[checkpoint,examples]", *packages)
    env = {"NO_MKDOCS_2_WARNING": "1"}
    session.run("mkdocs", "build", "--strict", env=env)
    options = ("--noconftest", *session.posargs)
    session.run("pytest", "tests/browser/try_site.py", *options)


@nox.session
def lint(session: nox.Session) -> None:
    """Checks style and layout of the code."""
    session.install(*groups("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Checks the types."""
    packages = groups("tests", "types", "docs", "browser")
    session.install("-e", ".[checkpoint,examples]", "nox", *packages)
    python = session_python(session)
    session.run("pyright", "--pythonpath", python)
    session.run("mypy", "--python-executable", python)


@nox.session
def wheel(session: nox.Session) -> None:
    """Builds the wheel, and uses it from outside the checkout."""
    session.install("build")
    built = Path(session.create_tmp()) / "dist"
    shutil.rmtree(built, ignore_errors=True)
    session.run("python", "-m", "build", "--wheel", "--outdir", str(built), str(ROOT))
    (path,) = built.glob("*.whl")
    with tempfile.TemporaryDirectory() as elsewhere:
        clean = Path(elsewhere) / "venv"
        session.run("python", "-m", "venv", str(clean))
        python = str(clean / ("Scripts" if os.name == "nt" else "bin") / "python")
        session.run(python, "-m", "pip", "install", str(path), external=True)
        session.chdir(elsewhere)
        session.run(python, "-c", SMOKE_TEST, str(ROOT), external=True)
        command = str(Path(python).with_name("functional-opt"))
        session.run(command, "template", "recipe", external=True)


def run_tests(session: nox.Session, profile: str, tests: Sequence[str]) -> None:
    """Runs pytest on all cores, with a profile of Hypothesis.

    Tests that follow each other stay in one process, since they share compiled
    programs. What is imported is compiled once, not by each process that tests start.
    """
    env = {"HYPOTHESIS_PROFILE": profile, "PYTHONDONTWRITEBYTECODE": ""}
    options = ("--numprocesses=auto", "--dist=worksteal")
    session.run("pytest", *options, *tests, env=env)


def run_outside(session: nox.Session, tests: str) -> None:
    """Runs tests that are not part of the suite, without its settings."""
    options = ("--noconftest", "-o", "addopts=", "-W", "ignore", "-ra")
    env = {"PYTHONPATH": os.pathsep.join(str(ROOT / d) for d in ("tests", "examples"))}
    session.run("pytest", *options, tests, *session.posargs, env=env)


def session_python(session: nox.Session) -> str:
    """The Python of the session's own environment."""
    return str(Path(session.bin) / "python")

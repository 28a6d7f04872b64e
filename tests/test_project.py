"""Files around the project agree with each other and with what is there."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
GROUPS = PROJECT["dependency-groups"]


def read(path):
    return (ROOT / path).read_text()


def pins(name):
    """The versions that a dependency group pins, by package."""
    pairs = (x.split("==") for x in GROUPS[name] if isinstance(x, str) and "==" in x)
    return {package: version for package, version in pairs}


def sessions():
    """The names of the sessions of noxfile.py."""
    return {
        node.name
        for node in ast.parse(read("noxfile.py")).body
        if isinstance(node, ast.FunctionDef)
        if any("session" in ast.unparse(x) for x in node.decorator_list)
    }


def workflow_sessions():
    jobs = yaml.safe_load(read(".github/workflows/checks.yml"))["jobs"]
    include = jobs["session"]["strategy"]["matrix"]["include"]
    return {entry["session"].split()[0] for entry in include}


def test_versions_agree():
    newest = re.search(r"^## (\S+) - (\S+)$", read("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    citation = yaml.safe_load(read("CITATION.cff"))
    assert newest.group(1) == VERSION == citation["version"]
    assert newest.group(2) == str(citation["date-released"])


def test_authors_are_those_of_the_citation():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["authors"] == PROJECT["project"]["authors"]
    assert citation["license"] == PROJECT["project"]["license"]


def test_hooks_have_the_versions_of_the_project():
    (repo,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    pinned = [
        x for hook in repo["hooks"] for x in hook.get("additional_dependencies", [])
    ]
    assert set(pinned) == {f"ruff=={pins('lint')['ruff']}"}
    (types,) = (hook for hook in repo["hooks"] if hook["id"] == "pyright")
    assert types["entry"] == "nox -s types"  # which installs the pinned pyright


def test_the_workflow_calls_sessions_that_exist():
    assert workflow_sessions() <= sessions()


def test_the_workflow_calls_what_ci_calls():
    called = re.findall(r"-s ([a-z ]+?)(?: --|$)", read(".ci/run"), re.MULTILINE)
    assert {name for names in called for name in names.split()} <= workflow_sessions()


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
)
def test_issue_forms_have_what_is_required(form):
    found = yaml.safe_load(form.read_text())
    if form.stem == "config":
        return
    assert found["name"] and found["description"]
    ids = [part["id"] for part in found["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids))


def test_the_readme_runs_what_ci_runs():
    """Its commands are those that are tried for every commit."""
    in_readme = set(re.findall(r"python -m nox -s (\w+)", read("README.md")))
    in_ci = re.findall(r"python -m nox .*-s ([a-z ]+?)(?: --|$)", read(".ci/run"), re.M)
    assert {"train", "tests"} <= in_readme <= set(" ".join(in_ci).split())


def test_the_readme_fits_on_a_screen():
    assert len(read("README.md").splitlines()) <= 100


def test_files_that_contributing_names_exist():
    text = read("CONTRIBUTING.md")
    table = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    rooms = [name for cell in table for name in re.findall(r"`(\S+?)`", cell)]
    files = re.findall(r"`((?:tests|_\w+)/[\w./]*)`", text)
    assert len(rooms) > 15 and len(files) > 8
    for name in {*rooms, *files}:
        assert (ROOT / name).exists() or (ROOT / "functional_opt" / name).exists(), name


def test_no_address_is_invented():
    """Where an owner's address belongs, there is one marked line."""
    for path in ("SECURITY.md", "CITATION.cff", "pyproject.toml"):
        assert read(path).count("OWNER:") == 1, path
    assert "urls" not in PROJECT["project"]

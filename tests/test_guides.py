"""The scripts of the guides run, and print what the pages say."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rooms import main


ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples" / "guides").glob("*.py"))
PAGES = sorted((ROOT / "docs" / "guides").glob("*.md"))
INCLUDED = re.compile(r'^--8<-- "examples/guides/(\w+\.py):(\w+)"$', re.MULTILINE)
OUTPUT = re.compile(r"```text\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```console\n(.*?)```", re.DOTALL)
DEVICES = "--xla_force_host_platform_device_count=4"
UNSHOWN = {"own_processes.py"}  # its page shows the code alone


def without_lines(text):
    return re.sub(r"\S*?(\w+\.py):\d+", r"\1", text)


def commands(page):
    """The commands of a page, and what each of them prints."""
    for block in COMMANDS.findall(page):
        for command in block.removeprefix("$ ").split("\n$ "):
            line, _, output = command.partition("\n")
            yield shlex.split(line), output.rstrip("\n")


def run_command(arguments, capsys):
    assert arguments[0] == "functional-opt"
    try:
        main(arguments[1:])
    except SystemExit:
        pass  # with the status of the mistake that the page shows
    return "".join(capsys.readouterr()).rstrip("\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_prints_what_the_page_says(script, tmp_path, monkeypatch, capsys):
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": DEVICES},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    included = f'--8<-- "examples/guides/{script.name}:'
    pages = [page for page in map(Path.read_text, PAGES) if included in page]
    assert len(pages) == 1
    if script.name not in UNSHOWN:
        said = "".join(OUTPUT.findall(pages[0]))
        assert without_lines(result.stdout) == without_lines(said)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(script.parent))
    for arguments, output in commands(pages[0]):
        assert run_command(arguments, capsys) == output, arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_code_is_that_of_scripts(page):
    text = page.read_text()
    assert text.count("```py\n") == len(INCLUDED.findall(text))

"""What the site makes of itself when it is built."""

import functools
import html
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gallery
import latex2mathml.converter
import mermaidx
import reference
import slicing_figure
from mkdocs.structure.files import File


ROOT = Path(__file__).parents[2]

# Names outside of the library that docstrings refer to.
ELSEWHERE = {
    "json": "https://docs.python.org/3/library/json.html",
    "tomllib": "https://docs.python.org/3/library/tomllib.html",
}

# Files of the project that are pages too, and where their links lead from there.
PROJECT = {
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/security.md": "SECURITY.md",
}

MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Parts of pages that are made of the objects of the library.
MADE = {
    "clip-picture": slicing_figure.picture,
    "clip-programs": slicing_figure.programs,
}
MADE_HERE = re.compile(r"^```made\n([\w-]+)\n```$", re.MULTILINE)
MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: Any) -> Any:
    for name, url in ELSEWHERE.items():
        config.plugins["autorefs"].register_url(name, url)
    return config


def on_files(files: Any, config: Any) -> Any:
    for path, content in _generated():
        files.append(File.generated(config, path, content=content))
    return files


def _generated() -> Any:
    yield "api/index.md", reference.index_text()
    for page in reference.TITLES:
        yield f"api/{page}.md", reference.page_text(page)
    for path, source in PROJECT.items():
        text = (ROOT / source).read_text()
        yield path, re.sub(r"\]\(docs/", "](../", text)
    yield from gallery.files()
    yield "guides/sweeps.svg", _drawn_by("sweeps")


@functools.cache
def _drawn_by(guide: str) -> str:
    """The picture that the script of a guide leaves where it runs."""
    script = ROOT / "examples" / "guides" / f"{guide}.py"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(script)]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return Path(folder, f"{guide}.svg").read_text()


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    made = MADE_HERE.sub(lambda found: MADE[found[1]](), markdown)
    return MERMAID.sub(lambda found: _diagram(found[1]), made)


def _diagram(text: str) -> str:
    svg = mermaidx.render(text).svg()
    return f'<figure class="diagram">{" ".join(svg.split())}</figure>'


def on_post_page(output: str, **kwargs: Any) -> str:
    return MATH.sub(lambda found: _math(found[1], found[2]), output)


def _math(tag: str, text: str) -> str:
    display = "block" if tag == "div" else "inline"
    return latex2mathml.converter.convert(html.unescape(text), display=display)

"""The site shows every public name, and every page is in its navigation."""

import inspect
import re
from pathlib import Path

import functional_opt as fo
import gallery
import public_names
import pytest
import yaml


ROOT = Path(__file__).parents[1]


class Tagged(yaml.SafeLoader):
    """Reads the tags of MkDocs as plain values."""


Tagged.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(), Tagged)


def nav(entries):
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else nav(value)


def every_name():
    ours = {
        f"functional_opt.{name}"
        for name, value in vars(fo).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    return ours | {f"functional_opt.testing.{name}" for name in fo.testing.__all__}


def test_the_reference_has_every_public_name_once():
    shown = [path for paths in public_names.pages().values() for path in paths]
    assert sorted(shown) == sorted(every_name())


@pytest.mark.parametrize("path", sorted(every_name()))
def test_every_public_name_says_what_it_is(path):
    assert public_names.summary(public_names.public()[path]).endswith(".")


def test_every_page_is_in_the_navigation():
    listed = list(nav(CONFIG["nav"]))
    assert len(listed) == len(set(listed))
    pages = {str(x.relative_to(ROOT / "docs")) for x in (ROOT / "docs").rglob("*.md")}
    assert pages <= set(listed)
    assert {f"api/{page}.md" for page in public_names.TITLES} <= set(listed)


GENERATED = {ROOT / "docs" / folder for folder in ("api", "gallery", "project")}
LINKING = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\(([\w./-]+\.md)?(?:#([\w-]+))?\)")


def slug(heading):
    return re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page):
    for path, anchor in LINK.findall(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        if target.parent in GENERATED:
            continue
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert not anchor or anchor in map(slug, headings), (path, anchor)


PARTS = [
    pytest.param(*found, id=f"{page.stem}-{found[-1]}")
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for found in re.findall(r'^(--8.*?"([^":]*):?([^"]*)")$', page.read_text(), re.M)
]


@pytest.mark.parametrize("line, path, part", PARTS)
def test_every_included_part_exists(line, path, part):
    assert line == f'--8<-- "{path}:{part}"'  # formatted as code, it is not included
    script = (ROOT / path).read_text()
    assert f"[start:{part}]" in script and f"[end:{part}]" in script


def drawn(base):
    kinds = [cls for cls in gallery.concrete(base) if cls not in gallery.NOT_DRAWN]
    return pytest.mark.parametrize("cls", kinds, ids=lambda cls: cls.__name__)


def coordinates(svg):
    return re.findall(r"<path d=\"M [\d.]+ [\d.]+ \n?L", svg)


@drawn(fo.AbstractSchedule)
def test_every_schedule_is_drawn(cls):
    assert coordinates(gallery.schedule_picture(gallery.example(cls)))


# They begin with small steps, and have to find their learning rate on the way.
SLOW = (fo.COCOB, fo.Mechanize)


@drawn(fo.AbstractOptimizer)
def test_every_optimizer_is_drawn_and_comes_closer(cls):
    factor = 0.4 if cls in SLOW else 0.3
    paths, _ = gallery.paths(gallery.example(cls))
    for path, (function, start, end, _) in zip(paths, gallery.FUNCTIONS, strict=True):
        assert path[0].tolist() == pytest.approx(start)
        assert len(path) == gallery.STEPS + 1
        assert function(*path[-1]) < factor * function(*start), (path[-1], end)


def test_all_but_a_few_optimizers_are_drawn():
    assert set(gallery.NOT_DRAWN) == {
        *(fo.DPSGD, fo.Frozen, fo.Groups, fo.Hyperball, fo.Lookahead, fo.QKClip)
    }

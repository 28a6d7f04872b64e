"""A reader of the site: every page, every link, the search, a phone and both schemes.

`nox -s browser` builds the site and runs this. With `SHOTS=DIR` it leaves pictures.
"""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import sync_playwright


SITE = Path(__file__).parents[2] / "out" / "site"
PAGES = sorted(str(path.parent.relative_to(SITE)) for path in SITE.rglob("index.html"))
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

# What a reader who knows Optax looks for from the front page: the pages to click, and
# what is on the last.
WALKS = {
    "how to decay only matrices": (["First recipe"], "min_ndim=2"),
    "what is exchanged per step": (["First staged step"], "sent per step"),
    "how to resume on another number of stages": (
        ["Checkpoints, and resuming elsewhere"],
        "restored in 2 stages",
    ),
    "how to add an optimizer": (["Your own optimizer"], "AbstractOptimizer"),
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        del format, args


@pytest.fixture(scope="session")
def address():
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def chromium():
    assert CHROMIUM is not None, f"none of {NAMES} is installed"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


class Reader:
    """A page that keeps what goes wrong, and what is asked of other hosts."""

    def __init__(self, chromium, address, **options):
        self.page = chromium.new_context(**options).new_page()
        self.address, self.wrong = address, []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._ask)
        self.page.on("response", self._answer)

    def _hear(self, message):
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _ask(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.wrong.append(f"asks another host: {request.url}")

    def _answer(self, response):
        if response.status >= 400:
            self.wrong.append(f"{response.status}: {response.url}")

    def open(self, path):
        self.page.goto(self.address + path, wait_until="networkidle")
        return self.page


@pytest.fixture
def reader(chromium, address):
    reader = Reader(chromium, address)
    yield reader
    reader.page.context.close()
    assert reader.wrong == []


def url_of(page):
    return "" if page == "." else f"{page}/"


def test_there_are_pages():
    assert len(PAGES) > 20


@pytest.mark.parametrize("page", PAGES)
def test_loads_without_errors_and_links_lead_somewhere(reader, page):
    opened = reader.open(url_of(page))
    assert opened.title()
    hrefs = opened.eval_on_selector_all("a[href]", "found => found.map(a => a.href)")
    for href in sorted(set(hrefs)):
        if href.startswith(reader.address):
            assert_leads_somewhere(href)
    pictures = opened.eval_on_selector_all(
        "img", "found => found.filter(i => i.loading != 'lazy' && !i.naturalWidth)"
    )
    assert pictures == []


@functools.cache
def ids_of(path):
    text = path.read_text()
    return {part.partition('"')[0] for part in text.split(' id="')[1:]}


def assert_leads_somewhere(href):
    parts = urlsplit(href)
    path = SITE / unquote(parts.path).lstrip("/")
    path = path / "index.html" if path.is_dir() else path
    assert path.is_file(), href
    fragment = unquote(parts.fragment)
    if fragment and path.suffix == ".html" and not fragment.startswith("__"):
        assert fragment in ids_of(path), href


@pytest.mark.parametrize("page", PAGES)
def test_fits_a_phone(chromium, address, page):
    reader = Reader(chromium, address, viewport={"width": 360, "height": 740})
    width = reader.open(url_of(page)).evaluate("document.documentElement.scrollWidth")
    reader.page.context.close()
    assert width <= 360


def test_search_finds_where(reader):
    page = reader.open("")
    page.click("label[for=__search]:visible, .md-search__input:visible")
    page.keyboard.type("Where")
    page.wait_for_selector(".md-search-result__link")
    links = page.eval_on_selector_all(
        ".md-search-result__link", "found => found.map(a => a.href)"
    )
    assert any(
        "functional_opt.Where" in link or "/api/recipes/" in link for link in links
    )


@pytest.mark.parametrize("walk", WALKS)
def test_walks_from_the_front_page(reader, walk):
    clicks, found = WALKS[walk]
    page = reader.open("")
    for text in clicks:
        page.locator("a:visible", has_text=text).first.click()
        page.wait_for_load_state("networkidle")
    assert found in page.inner_text("article")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system(chromium, address, scheme):
    reader = Reader(chromium, address, color_scheme=scheme)
    body = reader.open("").locator("body")
    assert body.get_attribute("data-md-color-scheme") == (
        "default" if scheme == "light" else "slate"
    )
    reader.page.context.close()


SHOTS = {
    "front": ("", {}),
    "phone": ("start/stages/", {"viewport": {"width": 390, "height": 844}}),
    "dark": ("ideas/slicing/", {"color_scheme": "dark"}),
    "gallery": ("gallery/optimizers/", {}),
    "reference": ("api/optimizers/", {}),
}


@pytest.mark.skipif("SHOTS" not in os.environ, reason="pictures are for people")
@pytest.mark.parametrize("name", SHOTS)
def test_pictures(chromium, address, name):
    path, options = SHOTS[name]
    reader = Reader(chromium, address, **options)
    reader.open(path).screenshot(path=Path(os.environ["SHOTS"]) / f"{name}.png")
    reader.page.context.close()

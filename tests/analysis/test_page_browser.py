"""The page in a headless Chromium; skipped where there is none."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gloss_graph.visualization import write_html
from tests.analysis.test_page import NASTY, documents

playwright = pytest.importorskip(
    "playwright.sync_api", reason='no playwright: pip install "gloss-graph[browser]"'
)
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on PATH and no CHROMIUM in the environment"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def wait(page: Any, condition: str) -> None:
    """Poll from here: the page's own policy forbids the driver to evaluate strings inside it."""
    deadline = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"never came true: {condition}"
        time.sleep(0.05)


class Visit:
    """A page with what it said and asked for."""

    def __init__(self, browser: Any, path: Path, **settings: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(viewport={"width": 1200, "height": 800}, **settings)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        wait(self.page, "documentGraph.layer.ready !== null")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_html(documents(), tmp_path_factory.mktemp("page") / "graph.html")


@pytest.fixture
def visit(browser: Any, path: Path) -> Iterator[Visit]:
    visit = Visit(browser, path)
    yield visit
    assert visit.said == []
    assert visit.asked == [path.as_uri()]
    assert visit.page.evaluate("window.broken") is None
    visit.page.close()


def test_click_shows_text_label_and_reasons(visit):
    page = visit.page
    page.mouse.click(*page.evaluate("documentGraph.place(50)"))
    panel = page.inner_text("#panel")
    for words in ("Document #150", "document number 50", "Who decides", "Neighbours", "propagated"):
        assert words in panel
    rows = page.locator("#panel .row")
    first = page.evaluate("DATA.masses.by[50][0]")
    rows.first.click()
    assert page.evaluate("documentGraph.state.selected") == first
    assert "What the other labels say" in page.inner_text("#panel")


def test_search_by_keyboard(visit):
    page = visit.page
    page.keyboard.press("/")
    page.keyboard.type("NUMBER 3")
    assert page.inner_text("#count") == "10 documents"
    assert page.inner_text("#hits mark >> nth=0") == "number 3"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.inner_text("#panel h2") == "Document #131"
    page.fill("#query", "#142")
    page.press("#query", "Enter")
    assert page.inner_text("#panel h2") == "Document #142"
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert page.inner_text("#panel h2") == "No document chosen"
    page.fill("#query", "nowhere to be found")
    assert page.inner_text("#count") == "0 documents"


@pytest.mark.parametrize("number", range(len(NASTY)))
def test_hostile_texts_are_shown_as_text(visit, number):
    page = visit.page
    page.evaluate(f"documentGraph.select({number}, true)")
    shown = page.evaluate("document.querySelector('#panel .text').textContent")
    assert shown == NASTY[number].replace("\x00", "\ufffd").replace("\x07", "\ufffd").replace(
        "\ud800", "\ufffd"
    )
    assert page.locator("#panel img, #panel b, #legend b").count() == 0


def test_legend_colours_and_theme(visit):
    page = visit.page
    names = page.locator("#looks .name")
    assert names.all_inner_texts() == ["tea", "<b>coffee</b>", "water & ice"]
    page.click("#looks button >> nth=0")
    assert page.get_attribute("#looks button >> nth=0", "aria-pressed") == "false"
    x, y = page.evaluate("documentGraph.place(0)")
    assert page.evaluate(f"documentAt({x}, {y})") != 0
    page.click("#looks button >> nth=0")
    page.select_option("#mode", label="propagated label")
    page.select_option("#mode", label="community")
    assert "edge between communities" in page.inner_text("#edge-key")
    dark = page.evaluate("documentGraph.state.dark")
    page.click("#theme")
    assert page.evaluate("documentGraph.state.dark") is not dark


def test_pan_and_zoom_keep_the_point_under_the_pointer(visit):
    page = visit.page
    x, y = page.evaluate("documentGraph.place(7)")
    page.mouse.move(x, y)
    scale = page.evaluate("documentGraph.state.scale")
    page.mouse.wheel(0, -200)
    wait(page, f"documentGraph.state.scale > {scale}")
    assert page.evaluate("documentGraph.place(7)") == pytest.approx([x, y], abs=1)
    page.mouse.down()
    page.mouse.move(x + 40, y + 25, steps=4)
    page.mouse.up()
    assert page.evaluate("documentGraph.place(7)") == pytest.approx([x + 40, y + 25], abs=1)
    assert page.evaluate("documentGraph.state.selected") == -1
    page.focus("#map")
    page.keyboard.press("0")
    assert page.evaluate("documentGraph.state.scale") == pytest.approx(scale)


def test_pages_without_labels_and_without_documents(browser, tmp_path):
    import torch
    from torch_geometric.data import Data

    for size in (0, 1, 5):
        edges = torch.tensor([[0, 1], [1, 0]]) if size > 1 else torch.empty(2, 0).long()
        graph = Data(edge_index=edges, num_nodes=size)
        visit = Visit(browser, write_html(graph, tmp_path / f"{size}.html"), color_scheme="dark")
        assert visit.page.inner_text("#facts").startswith(f"{size} document")
        if size:
            visit.page.evaluate("documentGraph.select(0, true)")
            assert "unlabeled" in visit.page.inner_text("#panel")
        assert visit.said == []
        visit.page.close()

"""The page in a headless Chromium; skipped where there is none."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

from gloss_graph.text import read_table
from gloss_graph.text.tables import read_columns
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
    graph = documents()
    graph.text[5] = 'first line\nsecond "line", with =1+1; ünïcødé 東京\ttab'
    graph.loss = torch.arange(60) / 10
    graph.split = ["train" if i < 40 else "test" for i in range(60)]
    return write_html(graph, tmp_path_factory.mktemp("page") / "graph.html")


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
    for words in ("Document #150", "document number 50", "Who decides", "Neighbors", "propagated"):
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


def test_legend_colors_and_theme(visit):
    page = visit.page
    names = page.locator("#looks .name")
    lines = [text.split("\n") for text in names.all_inner_texts()]
    assert [line[0] for line in lines] == ["tea", "<b>coffee</b>", "water & ice"]
    assert lines[0][1].startswith("document, number")  # the words of the class
    page.click("#looks button >> nth=0")
    assert page.get_attribute("#looks button >> nth=0", "aria-pressed") == "false"
    x, y = page.evaluate("documentGraph.place(0)")
    assert page.evaluate(f"documentAt({x}, {y})") != 0
    page.click("#looks button >> nth=0")
    page.select_option("#mode", label="propagated")
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


def chosen(page: Any) -> set[int]:
    return set(page.evaluate("[...documentGraph.state.chosen]"))


def drag(page: Any, *points: tuple[float, float]) -> None:
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()


def places(page: Any) -> list[list[float]]:
    return page.evaluate("[...Array(SHOWN).keys()].map(documentGraph.place)")


def saved(page: Any, button: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.click(button)
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file


def test_box_and_lasso_select(visit):
    page = visit.page
    where = places(page)
    right = max(x for x, _ in where) + 8
    low, high = min(y for _, y in where) - 8, max(y for _, y in where) + 8
    middle = sorted(x for x, _ in where)[40] + 0.5
    page.click("[data-tool=box]")
    assert page.get_attribute("[data-tool=box]", "aria-pressed") == "true"
    drag(page, (right, high), (middle, low))
    inside = {i for i, (x, _) in enumerate(where) if x > middle}
    assert chosen(page) == inside
    assert places(page) == where  # the map did not move
    assert page.inner_text("#chosen h2") == f"{len(inside)} documents selected"
    assert page.locator("#panel .row").count() == len(inside)
    # A triangle by lasso; Shift adds.
    page.click("[data-tool=lasso]")
    corners = (right, low), (right, high), (where[7][0], high)
    drag(page, *corners)
    triangle = chosen(page)
    assert 0 < len(triangle) < 60
    assert triangle != inside
    page.click("[data-tool=pan]")
    x, y = where[11]
    page.keyboard.down("Shift")
    drag(page, (x - 3, y - 3), (x + 3, y + 3))
    page.keyboard.up("Shift")
    assert chosen(page) >= triangle | {11}
    # A document that is switched off is not selected.
    page.click("#looks button >> nth=0")
    page.click("[data-tool=box]")
    drag(page, (right, high), (middle, low))
    assert chosen(page) == {i for i in inside if i % 3}
    page.keyboard.press("Escape")
    assert chosen(page) == set()
    assert page.is_hidden("#chosen")
    # Escape while drawing gives up the outline.
    page.mouse.move(right, high)
    page.mouse.down()
    page.mouse.move(middle, low, steps=4)
    page.keyboard.press("Escape")
    page.mouse.move(middle, low + 5)
    page.mouse.up()
    assert chosen(page) == set()


def test_everything_by_keyboard(visit, tmp_path):
    page = visit.page
    page.keyboard.press("/")
    page.keyboard.type("number 3")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert chosen(page) == set(range(30, 40))
    assert page.inner_text("#said") == "10 documents selected"
    page.keyboard.press("Shift+Tab")
    while page.evaluate("document.activeElement.id") != "correct-all-class":
        page.keyboard.press("Tab")
    page.keyboard.type("water & ice")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "correct-all-class"
    assert page.evaluate("LABEL.values.slice(29, 41)") == [2] + [2] * 10 + [1]
    assert page.inner_text("#corrected") == "7 corrected labels"
    page.keyboard.type("/")
    assert page.input_value("#correct-all-class") == "/"
    page.focus("#map")
    page.keyboard.press("Control+a")
    assert len(chosen(page)) == 60


def test_selection_as_csv(visit, tmp_path):
    page = visit.page
    page.evaluate("documentGraph.choose([5, 2, 30])")
    table = read_columns(saved(page, "text=Save as CSV", tmp_path / "x")).columns
    assert table["id"] == ["102", "105", "130"]
    assert table["text"][1] == 'first line\nsecond "line", with =1+1; ünïcødé 東京\ttab'
    assert table["label"] == ["water & ice", "water & ice", "tea"]
    assert table["split"] == ["train"] * 3
    assert table["loss"] == ["0.2", "0.5", "3"]
    assert list(table)[:5] == ["id", "text", "label", "propagated", "community"]
    assert set(map(float, table["suspicion"])) < set(page.evaluate("MODES[3].numbers"))


def test_corrected_labels_are_a_file_to_train_on(visit, path, tmp_path):
    page = visit.page
    before = page.evaluate("LABEL.values")
    assert page.is_hidden("#corrections")
    # One document, then several, a new class, and no label.
    page.evaluate("documentGraph.select(50, true)")
    page.fill("#correct-one-class", "tea")
    page.click("#correct-one >> text=Set")
    assert "tea (was water & ice)" in page.inner_text("#panel dl")
    page.evaluate("documentGraph.choose([1, 2])")
    page.fill("#correct-all-class", "  <img src=x onerror='window.broken = 3'>, \"quoted\" ")
    page.press("#correct-all-class", "Enter")
    page.evaluate("documentGraph.choose([7, 8, 9])")
    page.click("#correct-all >> text=Remove")
    page.evaluate("documentGraph.choose([9])")
    page.click("#correct-all >> text=Undo")
    assert "5 corrected labels · new classes: <img" in page.inner_text("#corrected")
    assert "<img" in page.inner_text("#looks")
    assert "hidden from the propagation" in page.inner_text("#labels-note")
    file = saved(page, "#save-labels", tmp_path / "x")
    corpus = read_table(file)
    names = ["tea", "<b>coffee</b>", "water & ice"]
    expected = [names[label] for label in before]
    expected[50], expected[7], expected[8] = "tea", None, None
    expected[1] = expected[2] = "<img src=x onerror='window.broken = 3'>, \"quoted\""
    got = [corpus.label_names[label] if label >= 0 else None for label in corpus.labels]
    assert got == expected
    assert corpus.texts == page.evaluate("DOCS.text")
    assert page.evaluate("unsaved") is False
    # Undone altogether, nothing is left to save.
    page.focus("#map")
    page.keyboard.press("Control+a")
    page.click("#correct-all >> text=Undo")
    assert page.evaluate("LABEL.values") == before
    assert page.is_hidden("#corrections")


def test_leaving_with_unsaved_corrections_asks(browser, path):
    visit = Visit(browser, path)
    asked = []
    visit.page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    visit.page.click("#map")
    visit.page.evaluate("documentGraph.select(5, true)")
    visit.page.click("#correct-one >> text=Remove")
    visit.page.reload()
    assert asked == ["beforeunload"]
    visit.page.reload()
    assert asked == ["beforeunload"]
    visit.page.close()


def test_every_column_colors_the_map(visit):
    page = visit.page
    for name in page.locator("#mode option").all_inner_texts():
        page.select_option("#mode", label=name)
        counts = page.locator("#looks .number").all_inner_texts()
        assert sum(map(int, counts)) == 60, name
    page.select_option("#mode", label="loss")
    assert page.locator("#looks .name").all_inner_texts() == [f"{i} – {i + 1}" for i in range(6)]
    assert page.is_hidden("#edge-key")
    page.select_option("#mode", label="suspicion")
    assert "contradict" in page.inner_text("#meaning")
    page.select_option("#mode", label="split")
    page.click("#looks button >> nth=0")  # "test" off: a filter
    page.focus("#map")
    page.keyboard.press("Control+a")
    assert chosen(page) == set(range(40))


def test_long_texts_are_cut_and_the_page_says_so(browser, tmp_path):
    graph = documents(12, k=3)
    file = write_html(graph, tmp_path / "a.html", max_text=10, max_nodes=8)
    visit = Visit(browser, file)
    visit.page.evaluate("documentGraph.select(0, true)")
    visit.page.click("#correct-one >> text=Remove")
    note = visit.page.inner_text("#labels-note")
    assert "cut at 10 characters" in note
    assert "only a sample" in note
    assert visit.said == []
    visit.page.close()


def test_pages_without_labels_and_without_documents(browser, tmp_path):
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

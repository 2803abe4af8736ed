"""The report in a browser: on paper, on a phone, by keyboard, in dark mode.

VITLAB_SCREENSHOTS names a folder that keeps the screenshots.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]
MAX_PAGES = 8
CONTRAST = 4.5  # of text, WCAG 2 level AA


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, run: Path) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((run / "report.html").as_uri())
    yield page
    page.close()
    assert errors == []


@pytest.fixture(scope="module")
def shared(browser: Browser, small_run: Path) -> Iterator[Page]:
    with opened(browser, small_run) as page:
        yield page


@pytest.fixture
def page(shared: Page) -> Page:
    """The report on a screen, opened once, for tests that do not change it."""
    shared.set_viewport_size({"width": 1280, "height": 900})
    shared.emulate_media(media="null", color_scheme="light")
    return shared


@pytest.fixture
def own_page(browser: Browser, small_run: Path) -> Iterator[Page]:
    with opened(browser, small_run) as page:
        yield page


def test_it_fetches_nothing_and_shows_every_figure(page: Page, small_run: Path) -> None:
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.reload()
    assert {url.split(":")[0] for url in fetched} <= {"file", "data"}
    widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) == len(list(small_run.glob("figures/*.png"))) >= 8
    assert min(widths) > 300
    if folder := os.environ.get("VITLAB_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "report.png", full_page=True)


@pytest.mark.parametrize("paper", ["A4", "Letter"])
def test_it_is_printed_on_few_pages(page: Page, paper: str) -> None:
    printed = page.pdf(format=paper)
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= MAX_PAGES


def test_nothing_is_cut_and_no_control_is_visible_on_paper(page: Page) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    for selector in ("figure", "tr", "table.short", "pre"):
        breaks = page.eval_on_selector_all(selector, "all => all.map(one => getComputedStyle(one).breakInside)")
        assert set(breaks) == {"avoid"}, selector
    assert not any(button.is_visible() for button in page.locator(".copy").all())
    assert not any(folded.is_visible() for folded in page.locator("details").all())
    # Ink on white, also of a page that is dark on the screen.
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(31, 35, 40)"


@pytest.mark.parametrize("width", [390, 768, 1280, 1600])
def test_nothing_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    narrowest = page.eval_on_selector_all("img", "images => Math.min(...images.map(image => image.clientWidth))")
    assert narrowest > 280


def test_columns_of_figures_have_no_holes(page: Page) -> None:
    bottoms = "columns => [...columns.children].map(column => column.lastElementChild.getBoundingClientRect().bottom)"
    heights = page.eval_on_selector_all(".columns", f"all => all.map({bottoms})")
    assert len(heights) >= 3
    assert all(abs(left - right) < 60 for left, right in heights)  # three lines of a caption


def test_the_contents_list_leads_to_the_sections_by_keyboard(page: Page) -> None:
    page.locator("nav a", has_text="Results").focus()
    page.keyboard.press("Enter")
    assert page.url.endswith("#results")
    top = page.evaluate("document.querySelector('#results').getBoundingClientRect().top")
    assert 0 <= top < 100
    contents = page.locator("nav").bounding_box()
    assert contents is not None
    assert contents["y"] >= 0  # it stays in view


def test_a_button_copies_its_command(browser: Browser, small_run: Path) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto((small_run / "report.html").as_uri())
    code = page.locator(".code", has_text="reproduce=")
    code.locator("button").focus()
    page.keyboard.press("Enter")
    code.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == code.locator("pre").inner_text()
    context.close()


def test_without_a_clipboard_the_command_is_selected(own_page: Page) -> None:
    own_page.evaluate("""() => {
        Object.defineProperty(navigator, "clipboard", {value: undefined});
        document.execCommand = () => false;
    }""")
    code = own_page.locator(".code", has_text="reproduce=")
    code.locator("button").click()
    code.get_by_text("Selected").wait_for()
    assert own_page.evaluate("getSelection().toString()") == code.locator("pre").inner_text()


def test_a_table_is_sorted_by_keyboard(own_page: Page) -> None:
    table = own_page.locator("table.sortable")
    head = table.locator("th", has_text="recall")
    recall = table.locator("tbody tr td:nth-child(4)")
    before = [float(text.rstrip("%")) for text in recall.all_inner_texts()]
    head.locator("button").focus()
    for order, reverse in (("descending", True), ("ascending", False)):
        own_page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        assert [float(text.rstrip("%")) for text in recall.all_inner_texts()] == sorted(before, reverse=reverse)


# The lowest contrast of a text with its background, and the text (WCAG 2, relative luminance).
LOWEST_CONTRAST = """() => {
  const rgb = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = color => rgb(color).slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const background = node => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if ((rgb(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  let lowest = [99, ""];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    const node = text.parentElement;
    if (!text.textContent.trim() || ["SCRIPT", "STYLE"].includes(node.tagName)) continue;
    const [low, high] = [luminance(getComputedStyle(node).color), luminance(background(node))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, text.textContent.trim()];
  }
  return lowest;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    ratio, text = page.evaluate(LOWEST_CONTRAST)
    assert CONTRAST <= ratio < 21, text

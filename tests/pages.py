"""Pages that vitlab writes, parsed, and what holds for all of them."""

from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

VOID = ("meta", "img", "br")


class Page(HTMLParser):
    """The elements of a page: tag, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(text)
        assert self._open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        element: tuple[str, dict[str, str], list[str]] = (tag, {key: value or "" for key, value in attributes}, [])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, text: str) -> None:
        for _, _, words in self._open:
            words.append(text)

    def all(self, *tags: str) -> list[tuple[str, dict[str, str], str]]:
        return [(tag, given, " ".join("".join(words).split())) for tag, given, words in self.elements if tag in tags]

    @property
    def sections(self) -> list[str]:
        return [text for _, _, text in self.all("h2")]

    @property
    def commands(self) -> list[str]:
        return [text for _, _, text in self.all("pre")]


def check_page(page: Page, folder: Path) -> None:
    """Check what holds for every page in the folder."""
    ids = Counter(given["id"] for _, given, _ in page.all("section"))
    assert set(ids.values()) == {1}
    links = [(given["href"], text) for _, given, text in page.all("a")]
    assert [text for href, text in links if href.startswith("#")] == page.sections
    assert [href[1:] for href, _ in links if href.startswith("#")] == list(ids)
    for href, _ in links:
        assert href.startswith("#") or (folder / unquote(href)).exists(), href
        assert not href.startswith(("/", "file:", ".."))
    levels = [int(tag[1]) for tag, _, _ in page.all("h1", "h2", "h3")]
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    titles = [given["alt"] for _, given, _ in page.all("img")]
    assert all(titles)
    assert len(set(titles)) == len(titles) == len(page.all("figcaption"))

"""Arrange figures in two columns of the same height, so that a page has no holes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil

PAGE = 1040  # px, width of a page's text
GAP, MARGIN = 30, 38  # px, between columns; above and below a caption
WIDE = 800  # px; wider figures do not share the page
MOST = 10  # figures that are arranged together: there are 2^9 ways
NARROWEST = 0.4  # fraction of the page
CHARACTER, LINE = 7.2, 20  # px, of a caption
LABEL = len("Figure 10. ")
PRINTED = 1320  # px, height of a printed page (Letter; A4 is higher) that is as wide as PAGE
PRINTED_TEXT = 1.1  # height of captions on that page / on the screen
SMALLEST = 0.7  # fraction to which images are reduced to fit on a printed page


@dataclass(frozen=True)
class PageFigure:
    """A figure of a page; `width` and `height` (px) are those at which its text is as large as the page's."""

    title: str
    caption: str
    image: str  # data URI
    width: int
    height: int
    link: str = ""  # to its file, relative to the page


@dataclass(frozen=True)
class Block:
    """Figures in one or two columns; `left` is the first column's fraction of the page."""

    columns: list[list[PageFigure]]
    left: float = 1.0

    @property
    def is_narrow(self) -> bool:
        """There is room for a caption beside the figure."""
        return self.columns[0][0].width <= WIDE

    @property
    def print_width(self) -> float:
        """The fraction of a column's width for its images with which the block fits on a printed page; 1 if that is too
        small."""
        texts = [_height(column, 0) for column in self.columns]
        wholes = map(_height, self.columns, (self.left, 1 - self.left))
        fits = min((PRINTED - PRINTED_TEXT * text) / (whole - text) for text, whole in zip(texts, wholes, strict=True))
        return min(fits, 1.0) if fits >= SMALLEST else 1.0


def arrange(figures: Sequence[PageFigure]) -> Iterator[Block]:
    """Narrow figures in two columns that end level, then wide ones, each with the page to itself.

    Column widths and the choice of figures for each column make the columns end level. Figures keep their order within
    a column. Equal columns are preferred, because then all figures have text of the same size.
    """
    narrow = [figure for figure in figures if figure.width <= WIDE]
    parts = ceil(len(narrow) / MOST)
    size = ceil(len(narrow) / max(parts, 1))
    for part in range(parts):
        yield _balance(narrow[part * size : (part + 1) * size])
    yield from (Block([[figure]]) for figure in figures if figure.width > WIDE)


def _balance(figures: Sequence[PageFigure]) -> Block:
    """The way of filling two columns for which they are most equally wide; the first figure is on the left."""
    if len(figures) == 1:
        return Block([[figures[0]]])
    blocks = []
    others = range(1, len(figures))
    for count in others:
        for right in combinations(others, count):
            columns = [[f for place, f in enumerate(figures) if (place in right) == side] for side in (False, True)]
            blocks.append(Block(columns, _left_fraction(*columns)))
    return min(blocks, key=lambda block: abs(block.left - 0.5))


def _left_fraction(left: Sequence[PageFigure], right: Sequence[PageFigure]) -> float:
    """The fraction of the page for the left column so that both are equally high."""
    # A column of width w is w * sum(height / width) high, without its captions.
    shapes = [_height(column, 1) - _height(column, 0) for column in (left, right)]
    fraction = (shapes[1] + _height(right, 0) - _height(left, 0)) / sum(shapes)
    return min(max(fraction, NARROWEST), 1 - NARROWEST)


def _height(column: Sequence[PageFigure], fraction: float) -> float:
    """The height (px) of a column with this fraction of the page, whose captions are as high as in half of the page."""
    width = PAGE - GAP
    lines = sum(ceil((LABEL + len(figure.caption)) * CHARACTER / (width / 2)) for figure in column)
    images = sum(fraction * width * figure.height / figure.width for figure in column)
    return LINE * lines + MARGIN * len(column) + images

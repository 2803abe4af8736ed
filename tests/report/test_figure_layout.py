"""Figures fill two columns that end level."""

import random

import pytest

from vitlab.report.figure_layout import LINE, MARGIN, NARROWEST, WIDE, PageFigure, _height, arrange


def draw(number: int, width: int = 500, height: int = 400, words: int = 50) -> PageFigure:
    return PageFigure(f"figure {number}", "word " * words, "data:", width, height)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 9, 12])
def test_columns_end_level_whatever_the_figures(count: int) -> None:
    chance = random.Random(count)
    for _ in range(20):
        figures = [draw(n, 500, chance.randint(300, 650), chance.randint(20, 90)) for n in range(count)]
        blocks = list(arrange(figures))
        shown = [figure for block in blocks for column in block.columns for figure in column]
        assert sorted(figure.title for figure in shown) == sorted(figure.title for figure in figures)
        for block in blocks:
            assert len(block.columns) == 2
            here = len(block.columns[0]) + len(block.columns[1])
            left, right = map(_height, block.columns, (block.left, 1 - block.left))
            if NARROWEST < block.left < 1 - NARROWEST:
                assert left == pytest.approx(right, abs=1)
            else:  # two or three figures can't always end level at legible sizes
                assert here <= 3


def test_figures_keep_their_order_within_a_column() -> None:
    figures = [draw(n, height=300 + 37 * n) for n in range(7)]
    (block,) = arrange(figures)
    assert block.columns[0][0] is figures[0]
    for column in block.columns:
        assert column == sorted(column, key=figures.index)


def test_one_figure_is_alone_and_wide_ones_have_the_page_to_themselves() -> None:
    wide, narrow = draw(1, width=WIDE + 1), draw(2)
    blocks = list(arrange([wide, narrow]))
    assert [block.columns for block in blocks] == [[[narrow]], [[wide]]]
    assert [block.is_narrow for block in blocks] == [True, False]
    assert list(arrange([])) == []


def test_a_block_shrinks_to_fit_on_a_printed_page_unless_it_is_far_too_high() -> None:
    sizes = {count: next(iter(arrange([draw(n) for n in range(count)]))).print_width for count in (2, 6, 10)}
    assert sizes[2] == 1
    assert 0.7 <= sizes[6] < 1
    assert sizes[10] == 1


def test_a_caption_has_a_line_for_each_70_characters_with_its_number() -> None:
    assert _height([draw(1, words=11)], 0) == LINE + MARGIN  # 55 + 11 characters
    assert _height([draw(1, words=12)], 0) == 2 * LINE + MARGIN

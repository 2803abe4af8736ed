from functools import partial

import pytest
import torch
from matplotlib.figure import Figure

from vitlab.plots import grid
from vitlab.plots.io import render
from vitlab.plots.vit_plots import (
    Explanation,
    draw_attention,
    draw_distances,
    draw_explanation,
    draw_filters,
    draw_positions,
    fit_scale,
)

WHITE, BLACK = (torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (255, 0))


def test_the_average_patch_has_the_colour_in_the_middle() -> None:
    scale = fit_scale([torch.tensor([[0.5, 1.0], [4.0, 1.0]])])
    assert scale(1.0) == pytest.approx(0.5)
    assert scale(0.5) == pytest.approx(1 - scale(2.0))
    assert scale(0.0) == 0.0  # a patch without attention is black, not missing
    even = fit_scale([torch.ones(2, 8, 8)])
    assert (even.vmin, even.vmax) == pytest.approx((2**-0.5, 2**0.5))  # small differences stay small


def test_the_brightness_of_an_image_does_not_look_like_attention() -> None:
    heat = torch.tensor([[0.5, 2.0]])
    scale = fit_scale([heat])
    white, black = (grid.overlay_heat(image, heat, scale) for image in (WHITE, BLACK))
    for drawn in (white, black):
        assert drawn[:, -1].sum() > 1.5 * drawn[:, 0].sum()
    assert white[0, 0].sum() < black[0, -1].sum()


def test_extreme_maps_can_be_drawn() -> None:
    images = torch.stack([WHITE, BLACK])
    names = ["$x^$", "a class with a long name"]
    ones = torch.ones(2, 37, 37)
    sizes = {}
    for name, draw in {
        "attention": partial(draw_attention, images, names, {"start": ones, "epoch 1": torch.rand(2, 37, 37) ** 9}),
        "zeros": partial(draw_attention, images, names, {f"head {head}": torch.zeros(2, 3, 3) for head in range(5)}),
        "distances": partial(draw_distances, {"start": torch.zeros(1, 1)}, 5.0, 32),
        "filters": partial(draw_filters, torch.zeros(3, 3, 4, 4), torch.tensor([0.5, 0.3, 0.2])),
        "positions": partial(draw_positions, torch.eye(37 * 20), (37, 20)),
    }.items():
        sizes[name] = render(draw, name).size
    assert all(500 < width < 1400 for width, _ in sizes.values()), sizes


def test_an_explanation_shows_all_heads() -> None:
    def made(heads: int) -> Figure:
        maps = torch.rand(heads, 14, 14)
        probabilities = {"$x^$": 0.6, "b": 0.4}
        return draw_explanation(Explanation(WHITE, probabilities, "b", maps[0], torch.zeros(14, 14), maps))

    heights = [render(partial(made, heads), "title").height for heads in (3, 12, 17)]
    assert heights[2] > heights[1]

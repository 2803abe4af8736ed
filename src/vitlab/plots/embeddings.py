"""Patch filters and position embeddings of a ViT."""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from vitlab.plots.grid import Tile, draw_sheet, remove_frame, split_into_rows, stretch_image
from vitlab.plots.io import FigureText

MAX_MAPS = 8  # maps of position similarity on each side
COLUMNS = 7
SIDE = 74  # px, of a filter in the figure

FILTERS = FigureText(
    "learnt/patch_filters",
    "Patch filters: principal components",
    "The principal components of the filters that turn patches into tokens, largest first (as figure 7, left, of "
    "the ViT paper); grey is zero. Smooth colours, waves and edges are learnt; noise is not, or not yet. On the "
    "left: the cumulative fraction of the filters' variance at the end of each row.",
)
POSITIONS = FigureText(
    "learnt/position_similarity",
    "Similarity of position embeddings",
    "One small map for each patch: the similarity of its position embedding to those of all patches (as figure 7, "
    "centre, of the ViT paper). A bright spot at the patch's own position that fades with the distance, along the "
    "row and the column, means that the model knows which patches are neighbours.",
)
LEARNED_POSITIONS = "These started at random and were learnt."
FIXED_POSITIONS = "These are a fixed table (as with pos_embed=sincos2d) and were not learnt."


def draw_filters(components: Tensor, fractions: Tensor) -> Figure:
    """Principal components of the patch embedding's filters.

    Args:
        components: float `[n, 3, height, width]`, of any scale and sign.
        fractions: Of the filters' variance, float `[n]`.
    """
    signed = components / components.abs().amax(dim=(1, 2, 3), keepdim=True)
    tiles = [Tile(stretch_image(127.5 * (1 + each), SIDE)) for each in signed]  # zero is mid-grey
    rows = split_into_rows(tiles, COLUMNS)
    total = fractions.cumsum(dim=0)
    names = [f"to {100 * total[min((row + 1) * COLUMNS, len(total)) - 1]:.0f} %" for row in range(len(rows))]
    return draw_sheet(rows, names=names, label="cumulative variance")


def draw_positions(similarity: Tensor, grid: tuple[int, int]) -> Figure:
    """For each patch, the similarity of its position embedding to those of all patches.

    Args:
        similarity: Cosines, float `[patches, patches]`, patches row by row.
        grid: Rows and columns of patches; of a large grid, at most `MAX_MAPS` each have a map.
    """
    rows, columns = (np.linspace(0, side - 1, min(side, MAX_MAPS)).round().astype(int) for side in grid)
    gap = max(1, round(max(grid) / 8))
    height, width = grid[0] + gap, grid[1] + gap
    sheet = np.full((height * len(rows) - gap, width * len(columns) - gap), np.nan)
    maps = similarity.reshape(*grid, *grid).cpu().numpy()
    for down, row in enumerate(rows):
        for across, column in enumerate(columns):
            area = np.s_[down * height : down * height + grid[0], across * width : across * width + grid[1]]
            sheet[area] = maps[row, column]
    figure = Figure(figsize=(5.2, 4.5))
    axes = figure.add_subplot(xlabel="column of the patch", ylabel="row of the patch")
    image = axes.imshow(sheet, vmin=float(similarity.min()), vmax=1.0)
    axes.set_xticks(np.arange(len(columns)) * width + (grid[1] - 1) / 2, [str(column + 1) for column in columns])
    axes.set_yticks(np.arange(len(rows)) * height + (grid[0] - 1) / 2, [str(row + 1) for row in rows])
    axes.tick_params(length=0)
    remove_frame(axes)
    figure.colorbar(image, ax=axes, shrink=0.8, label="cosine similarity")
    return figure

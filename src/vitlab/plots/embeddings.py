"""What a ViT makes of a patch and its place, before the first block."""

import math

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from vitlab.plots.captions import About
from vitlab.plots.grid import add_tiles, sheet_figure, tile

POSITIONS_A_SIDE = 8
COLUMNS = 7
SIDE = 74  # px of a filter, as it is shown

FILTERS: About = {
    "tag": "learnt/patch_filters",
    "title": "Patch filters: principal components",
    "caption": (
        "The directions in which the filters that turn patches into tokens differ most, first ones first (as figure 7, "
        "left, of the ViT paper); grey is zero. Smooth colours, waves and edges are learnt; noise is not, or not yet. "
        "On the left: the share of the filters' variance that the components up to the row's end hold."
    ),
}
POSITIONS: About = {
    "tag": "learnt/position_similarity",
    "title": "Similarity of position embeddings",
    "caption": (
        "A small map for each patch: how similar its position embedding is to those of all places of the image (as "
        "figure 7, centre, of the ViT paper). A bright spot at the patch's own place that fades with the distance, "
        "along row and column, means that the network knows what is near to what."
    ),
}
LEARNED_POSITIONS = "These were drawn at random and have become so."
FIXED_POSITIONS = "These are a fixed table (as of pos_embed=sincos2d), so from the start: nothing of it is learnt."


def draw_filters(components: Tensor, shares: Tensor) -> Figure:
    """Principal components of the patch embedding's filters.

    Args:
        components: float `[n, 3, height, width]`, of any scale and sign.
        shares: Of the filters' variance, float `[n]`.
    """
    # Zero is the grey in the middle.
    signed = components / components.abs().amax(dim=(1, 2, 3), keepdim=True)
    tiles = [tile(127.5 * (1 + each), SIDE) for each in signed]
    blank = np.ones_like(tiles[0])
    rows = math.ceil(len(tiles) / COLUMNS)
    tiles += [blank] * (rows * COLUMNS - len(tiles))
    total = shares.cumsum(dim=0)
    names = [f"to {100 * total[min((row + 1) * COLUMNS, len(total)) - 1]:.0f} %" for row in range(rows)]
    figure, axes = sheet_figure(rows, COLUMNS, side=SIDE, top=0.4)
    axes.set_ylabel("variance so far")
    add_tiles(axes, [tiles[row * COLUMNS : (row + 1) * COLUMNS] for row in range(rows)], [""] * COLUMNS, names)
    return figure


def draw_positions(similarity: Tensor, grid: tuple[int, int]) -> Figure:
    """For each place, how similar the position embeddings of all places are to its own.

    Args:
        similarity: Cosines, float `[patches, patches]`, patches row by row.
        grid: Rows and columns of patches; of a large one not each place has its map.
    """
    rows, columns = (_shown(side) for side in grid)
    gap = max(1, round(max(grid) / 8))
    height, width = grid[0] + gap, grid[1] + gap
    sheet = np.full((height * len(rows) - gap, width * len(columns) - gap), np.nan)
    maps = similarity.reshape(*grid, *grid).cpu().numpy()
    for down, row in enumerate(rows):
        for across, column in enumerate(columns):
            place = np.s_[down * height : down * height + grid[0], across * width : across * width + grid[1]]
            sheet[place] = maps[row, column]
    figure = Figure(figsize=(5.2, 4.5))
    axes = figure.add_subplot(xlabel="column of the patch", ylabel="row of the patch")
    image = axes.imshow(sheet, vmin=float(similarity.min()), vmax=1.0)
    axes.set_xticks(
        [across * width + (grid[1] - 1) / 2 for across in range(len(columns))], [str(c + 1) for c in columns]
    )
    axes.set_yticks([down * height + (grid[0] - 1) / 2 for down in range(len(rows))], [str(r + 1) for r in rows])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.8, label="cosine similarity")
    return figure


def _shown(side: int) -> list[int]:
    count = min(side, POSITIONS_A_SIDE)
    return [int(place) for place in np.linspace(0, side - 1, count).round()]

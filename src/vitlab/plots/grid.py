"""Images and heat maps in rows and columns, drawn as one large image.

One axes for all tiles takes a tenth of a second to draw; one axes for each tile takes seconds.
"""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.float32]

TILE = 110  # px, side of a tile in the figure
GAP = 6  # px
HEAT = "inferno"
OPACITY = 0.75  # of the heat map over the image


def make_tile(image: Tensor, side: int = TILE) -> Pixels:
    """Scale an image `[3, H, W]` in [0, 255] to a tile `[side, side, 3]` in [0, 1]."""
    return _stretch(image.permute(1, 2, 0).float().div(255).cpu().numpy(), side)


def overlay_heat(image: Tensor, heat: Tensor, scale: Normalize, side: int = TILE) -> Pixels:
    """Colour a heat map `[rows, columns]` over its image, uint8 `[3, H, W]`: a tile `[side, side, 3]` in [0, 1]."""
    # In pale grey: a white sky would look like attention.
    grey = 0.2 + 0.6 * make_tile(image, side).mean(axis=2, keepdims=True)
    colors = _stretch(matplotlib.colormaps[HEAT](scale(heat.float().cpu().numpy()))[..., :3], side)
    mixed: Pixels = (OPACITY * colors + (1 - OPACITY) * grey).astype(np.float32)
    return mixed


def _stretch(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """Resize `[rows, columns, ...]` to `[side, side, ...]` by nearest neighbour."""
    rows, columns = (np.arange(side) * length // side for length in pixels.shape[:2])
    return pixels[rows[:, None], columns]


def split_into_rows(tiles: Sequence[Pixels], columns: int) -> list[list[Pixels]]:
    """Arrange tiles in rows of equal length, the last one filled up with white tiles."""
    filled = [*tiles, *[np.ones_like(tiles[0])] * (-len(tiles) % columns)]
    return [filled[start : start + columns] for start in range(0, len(filled), columns)]


def add_tiles(axes: Axes, rows: Sequence[Sequence[Pixels]], columns: Sequence[str], names: Sequence[str]) -> None:
    """Draw rows of tiles, with the columns' names above and the rows' names on the left."""
    side = len(rows[0][0])
    step = side + GAP
    sheet = np.ones((step * len(rows) - GAP, step * len(rows[0]) - GAP, 3), dtype=np.float32)
    for row, tiles in enumerate(rows):
        for column, pixels in enumerate(tiles):
            sheet[row * step : row * step + side, column * step : column * step + side] = pixels
    axes.imshow(sheet, interpolation="antialiased")
    axes.set_xticks([column * step + side / 2 for column in range(len(rows[0]))], columns, fontsize=9)
    axes.set_yticks([row * step + side / 2 for row in range(len(rows))], names)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    remove_frame(axes)


def remove_frame(axes: Axes) -> None:
    """Hide the grid lines and the frame of axes that show an image."""
    axes.grid(False)
    axes.spines[:].set_visible(False)


def make_sheet(
    rows: int, columns: int, *, side: int = TILE, right: float = 0.1, top: float = 0.65
) -> tuple[Figure, Axes]:
    """A figure whose size fits its tiles and their names, and its axes.

    The layout is computed here: matplotlib's own takes twice the time.

    Args:
        rows, columns: Numbers of tiles.
        side: Side of a tile, px.
        right, top: Margins in inches; the title stands in the top one.
    """
    left, bottom = 1.05, 0.12
    step = (side + GAP) / matplotlib.rcParams["figure.dpi"]
    width, height = left + columns * step + right, top + rows * step + bottom
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")
    return figure, figure.add_axes((left / width, bottom / height, columns * step / width, rows * step / height))


def fit_scale(maps: Sequence[Tensor]) -> Normalize:
    """A logarithmic colour scale with the average patch, which is 1, in its middle.

    Attention has a long tail: on a linear scale, one patch would leave the rest dark. The scale covers 98 % of the
    patches, at most from 1/8 to 8.
    """
    octaves = torch.cat([one.flatten() for one in maps]).clamp_min(1e-6).log2().abs()
    widest = float(octaves.quantile(0.98).clamp(0.5, 3.0))
    return LogNorm(2.0**-widest, 2.0**widest, clip=True)


def add_colorbar(figure: Figure, scale: Normalize, label: str, **place: Any) -> None:
    """Add a heat map's colour bar, with ticks at powers of two."""
    label_powers(figure.colorbar(ScalarMappable(scale, HEAT), label=label, **place))


def add_colorbar_in_margin(figure: Figure, axes: Axes, scale: Normalize, label: str) -> None:
    """Add a colour bar in the right margin of a `make_sheet` figure."""
    width, sheet = figure.get_figwidth(), axes.get_position()
    place = figure.add_axes((sheet.x1 + 0.12 / width, sheet.y0, 0.18 / width, sheet.height))
    add_colorbar(figure, scale, label, cax=place)


def label_powers(bar: Colorbar) -> None:
    """Put ticks at powers of two, as fractions below 1; the ends of the bar also stand for values beyond them."""
    low, high = (math.log2(limit) for limit in bar.mappable.get_clim())
    if high >= 1:
        powers = range(math.ceil(low), math.floor(high) + 1)
        labels = [f"1/{2**-power}" if power < 0 else str(2**power) for power in powers]
        bar.set_ticks([2.0**power for power in powers], labels=labels)
    else:
        ticks = [2.0 ** (0.9 * low), 1.0, 2.0 ** (0.9 * high)]
        bar.set_ticks(ticks, labels=["1" if tick == 1 else f"{tick:.2f}" for tick in ticks])
    bar.minorticks_off()


def shorten_name(name: str, length: int) -> str:
    """Leave out the middle of a name of more than `length` characters."""
    return name if len(name) <= length else f"{name[: length // 2 - 1]}...{name[-(length // 2 - 2) :]}"

"""Pictures and heat maps in rows and columns, as the pixels of one image: one axes, which takes a tenth of a second to
draw, where one axes a picture takes seconds."""

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

TILE = 110  # px a side, as they are shown
GAP = 6  # px
HEAT = "inferno"
COVER = 0.75  # of the heat over the picture


def tile(picture: Tensor, side: int = TILE) -> Pixels:
    """A picture, `[3, H, W]` in [0, 255], as large as a tile: `[side, side, 3]` in [0, 1]."""
    return _stretched(picture.permute(1, 2, 0).float().div(255).cpu().numpy(), side)


def heat_over(picture: Tensor, heat: Tensor, scale: Normalize, side: int = TILE) -> Pixels:
    """A heat map `[rows, columns]` in colours over its picture, uint8 `[3, H, W]`: `[side, side, 3]` in [0, 1]."""
    # In weak greys, or a white sky would look like attention.
    grey = 0.2 + 0.6 * tile(picture, side).mean(axis=2, keepdims=True)
    colours = _stretched(matplotlib.colormaps[HEAT](scale(heat.float().cpu().numpy()))[..., :3], side)
    mixed: Pixels = (COVER * colours + (1 - COVER) * grey).astype(np.float32)
    return mixed


def _stretched(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """`[rows, columns, ...]` as `[side, side, ...]`, each pixel the nearest one."""
    rows, columns = (np.arange(side) * length // side for length in pixels.shape[:2])
    return pixels[rows[:, None], columns]


def add_tiles(axes: Axes, rows: Sequence[Sequence[Pixels]], columns: Sequence[str], names: Sequence[str]) -> None:
    """Draws rows of tiles, with a name over each column and beside each row."""
    side = len(rows[0][0])
    step = side + GAP
    sheet = np.ones((step * len(rows) - GAP, step * len(rows[0]) - GAP, 3), dtype=np.float32)
    for row, pictures in enumerate(rows):
        for column, pixels in enumerate(pictures):
            sheet[row * step : row * step + side, column * step : column * step + side] = pixels
    axes.imshow(sheet, interpolation="antialiased")
    axes.set_xticks([column * step + side / 2 for column in range(len(rows[0]))], columns, fontsize=9)
    axes.set_yticks([row * step + side / 2 for row in range(len(rows))], names)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def sheet_figure(
    rows: int, columns: int, *, side: int = TILE, right: float = 0.1, top: float = 0.65
) -> tuple[Figure, Axes]:
    """A figure whose size fits so many tiles and what is written beside them, and its axes.

    Laid out by hand, which takes half the time of matplotlib's own layout.

    Args:
        rows, columns: Of tiles.
        side: Of a tile, px.
        right, top: Inches beside them, and above, where the title stands.
    """
    left, bottom = 1.05, 0.12
    step = (side + GAP) / matplotlib.rcParams["figure.dpi"]
    width, height = left + columns * step + right, top + rows * step + bottom
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")
    place = (left / width, bottom / height, columns * step / width, rows * step / height)
    return figure, figure.add_axes(place)


def scale_of(maps: Sequence[Tensor]) -> Normalize:
    """Logarithmic, with the average patch in its middle, for maps in which that is 1: attention has a long tail, and on
    a linear scale one patch would leave the rest in the dark. It spans what 98 % of the patches have, at most from an
    eighth to 8 times the average."""
    octaves = torch.cat([one.flatten() for one in maps]).clamp_min(1e-6).log2().abs()
    widest = float(octaves.quantile(0.98).clamp(0.5, 3.0))
    return LogNorm(2.0**-widest, 2.0**widest, clip=True)


def add_scale(figure: Figure, axes: Axes, scale: Normalize, label: str) -> None:
    """A colour bar in the margin that `sheet_figure` has left on the right."""
    width, sheet = figure.get_figwidth(), axes.get_position()
    place = figure.add_axes((sheet.x1 + 0.12 / width, sheet.y0, 0.18 / width, sheet.height))
    label_scale(figure.colorbar(ScalarMappable(scale, HEAT), cax=place, label=label))


def label_scale(bar: Colorbar) -> None:
    """Ticks at powers of two, as fractions below 1, on a bar whose ends stand for what lies beyond them too."""
    limits = [math.log2(limit) for limit in bar.mappable.get_clim()]
    if limits[1] >= 1:
        powers = [float(power) for power in range(math.ceil(limits[0]), math.floor(limits[1]) + 1)]
    else:
        powers = [limits[0] * 0.9, 0.0, limits[1] * 0.9]
    bar.set_ticks([2.0**power for power in powers], labels=[_fraction(power) for power in powers])
    bar.minorticks_off()


def _fraction(power: float) -> str:
    if power != int(power):
        return f"{2.0**power:.2f}"
    return f"1/{2 ** -int(power)}" if power < 0 else str(2 ** int(power))


def fit_name(name: str, length: int) -> str:
    """A name without its middle where it has more than `length` letters."""
    return name if len(name) <= length else f"{name[: length // 2 - 1]}...{name[-(length // 2 - 2) :]}"

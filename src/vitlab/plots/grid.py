"""Images and heat maps in rows and columns, drawn as one large image.

One axes for all tiles takes a tenth of a second to draw; one axes for each tile takes seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.float32]

SIDE = 110  # px, of a tile in the figure
GAP = 6  # px
HEAT = "inferno"
OPACITY = 0.75  # of the heat map over the image


@dataclass(frozen=True)
class Tile:
    """Pixels `[height, width, 3]` in [0, 1], with a text above and one below."""

    pixels: Pixels
    above: str = ""
    below: str = ""


def stretch_image(image: Tensor, side: int = SIDE) -> Pixels:
    """Scale an image `[3, H, W]` in [0, 255] to `[side, side, 3]` in [0, 1]."""
    return _stretch(image.permute(1, 2, 0).float().div(255).cpu().numpy(), side)


def overlay_heat(image: Tensor, heat: Tensor, scale: Normalize, side: int = SIDE) -> Pixels:
    """Colour a heat map `[rows, columns]` over its image, uint8 `[3, H, W]`: `[side, side, 3]` in [0, 1]."""
    # In pale grey: a white sky would look like attention.
    grey = 0.2 + 0.6 * stretch_image(image, side).mean(axis=2, keepdims=True)
    colors = _stretch(matplotlib.colormaps[HEAT](scale(heat.float().cpu().numpy()))[..., :3], side)
    mixed: Pixels = (OPACITY * colors + (1 - OPACITY) * grey).astype(np.float32)
    return mixed


def _stretch(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """Resize `[rows, columns, ...]` to `[side, side, ...]` by nearest neighbour."""
    rows, columns = (np.arange(side) * length // side for length in pixels.shape[:2])
    return pixels[rows[:, None], columns]


def split_into_rows(tiles: Sequence[Tile], columns: int) -> list[list[Tile | None]]:
    """Arrange tiles in rows of equal length, the last one filled up with gaps."""
    filled = [*tiles, *[None] * (-len(tiles) % columns)]
    return [filled[start : start + columns] for start in range(0, len(filled), columns)]


def draw_sheet(
    rows: Sequence[Sequence[Tile | None]],
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    *,
    label: str = "",
    right: float = 0.1,
    font_size: float = 9.0,
    colors: tuple[str, str] = ("black", "black"),
) -> Figure:
    """A figure that fits rows of tiles of one size (None leaves a gap), with headings of columns, names of rows and a
    label for those; `right` is the right margin in inches, `colors` those of the texts above and below the tiles.

    The layout is computed here: matplotlib's own takes several times as long.
    """
    dpi = matplotlib.rcParams["figure.dpi"]
    tiles = [tile for row in rows for tile in row if tile is not None]
    line = 1.25 * font_size / 72  # inches
    above = line * max(len(tile.above.splitlines()) for tile in tiles)
    below = line * max(len(tile.below.splitlines()) for tile in tiles)
    left = 0.15 + 0.085 * max(map(len, names), default=0) + 0.25 * bool(label)
    top, bottom = 0.4 + 0.25 * bool(columns), 0.12
    height, width = tiles[0].pixels.shape[:2]
    sheet_width = max(map(len, rows)) * (width + GAP) / dpi
    sheet_height = len(rows) * ((height + GAP) / dpi + above + below)
    size = (left + sheet_width + right, top + sheet_height + bottom)
    figure = Figure(figsize=size)
    figure.set_layout_engine("none")
    axes = figure.add_axes((left / size[0], bottom / size[1], sheet_width / size[0], sheet_height / size[1]))
    axes.set_ylabel(label)
    rooms = (round(above * dpi), round(below * dpi))
    draw_tiles(axes, rows, columns, names, rooms=rooms, fontsize=font_size, colors=colors)
    return figure


def draw_tiles(
    axes: Axes,
    rows: Sequence[Sequence[Tile | None]],
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    *,
    rooms: tuple[int, int] = (0, 0),
    colors: tuple[str, str] = ("black", "black"),
    **text: Any,
) -> None:
    """Draw rows of tiles into axes, with `rooms` of so many pixels for the texts above and below each."""
    height, width = next(tile for row in rows for tile in row if tile is not None).pixels.shape[:2]
    step = height + GAP + sum(rooms), width + GAP
    widest = max(map(len, rows))
    sheet = np.ones((step[0] * len(rows), step[1] * widest, 3), dtype=np.float32)
    centers = [column * step[1] + width / 2 for column in range(widest)]
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            if tile is None:
                continue
            top, left = row * step[0] + rooms[0], column * step[1]
            sheet[top : top + height, left : left + width] = tile.pixels
            for words, edge, align, color in (
                (tile.above, top - 3, "bottom", colors[0]),
                (tile.below, top + height + 3, "top", colors[1]),
            ):
                if words:
                    axes.text(centers[column], edge, words, ha="center", va=align, color=color, in_layout=False, **text)
    axes.imshow(sheet, interpolation="antialiased")
    for center, heading in zip(centers, columns, strict=False):
        axes.text(center, -6, heading, ha="center", va="bottom", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([row * step[0] + rooms[0] + height / 2 for row in range(len(names))], names)
    axes.tick_params(length=0)
    remove_frame(axes)


def remove_frame(axes: Axes) -> None:
    """Hide the grid lines and the frame of axes that show an image."""
    axes.grid(False)
    axes.spines[:].set_visible(False)


def shorten_name(name: str, length: int) -> str:
    """Leave out the middle of a name of more than `length` characters; bytes that are not UTF-8 become `?`."""
    name = name.encode(errors="replace").decode()
    return name if len(name) <= length else f"{name[: length // 2 - 1]}...{name[-(length // 2 - 2) :]}"

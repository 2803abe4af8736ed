"""How figures look."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from cycler import cycler

# Told apart by colour-blind readers (Okabe and Ito 2008, "Color universal design"), in the order of use.
COLORS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
}
STYLE: dict[Any, Any] = {
    # Few inches with many dots each: TensorBoard shows an image some 340 pixels wide, and its words must be read there.
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "figure.figsize": (5.0, 3.4),  # inches
    "font.size": 11.0,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "axes.prop_cycle": cycler(color=list(COLORS.values())),
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called $
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures that are made, and drawn, inside have the house's look."""
    with matplotlib.rc_context(STYLE):
        yield

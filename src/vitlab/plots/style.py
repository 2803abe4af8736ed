"""One look for all figures: colours, fonts, sizes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from cycler import cycler

# Colour-blind readers can distinguish these (Okabe and Ito 2008, "Color universal design"). In the order of use.
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
    # Few inches with many dots each: TensorBoard shows an image about 340 pixels wide, and its text must be legible.
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
    """Apply the style to figures that are created and drawn inside."""
    with matplotlib.rc_context(STYLE):
        yield

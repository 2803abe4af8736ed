"""One look for all figures, and their PNG files with title and caption."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vitlab.files import replacing

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class FigureText:
    """The texts of a figure: its tag in the dashboard (the part before the slash is the section), title and caption."""

    tag: str
    title: str
    caption: str

    def add(self, finding: str, *, last: bool = False) -> "FigureText":
        """Add a sentence at the beginning, or the end, of the caption."""
        sentences = (self.caption, finding) if last else (finding, self.caption)
        return replace(self, caption=" ".join(filter(None, sentences)))


@dataclass(frozen=True)
class FigureFile(FigureText):
    """A figure of a run: its texts, its PNG, and that file's size in pixels."""

    file: Path
    width: int
    height: int


@contextmanager
def never_failing(what: str) -> Iterator[None]:
    """Turn any exception inside into a warning with its cause: a figure never fails a run."""
    try:
        yield
    except Exception as error:
        log.warning(f"{what} is left out: {type(error).__name__}: {' '.join(str(error).split())}")
        log.info("traceback:", exc_info=error)


def render(draw: Callable[[], Figure], title: str) -> Image.Image:
    """Draw a figure below its title and return its pixels."""
    with matplotlib.rc_context(STYLE):
        figure = draw()
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save(image: Image.Image, file: Path, text: FigureText) -> None:
    """Write a PNG that contains its texts, for `read_figures`."""
    info = PngInfo()
    for key, value in (("Title", text.title), ("Description", text.caption), ("Source", text.tag)):
        info.add_itxt(key, value)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        image.save(temporary, format="png", pnginfo=info)


def read_figures(run: Path) -> list[FigureFile]:
    """List the figures of a run directory in reading order."""
    found = []
    for file in sorted((run / "figures").glob("*.png")):
        with Image.open(file) as image:
            info = {"Source": "", "Title": file.stem, "Description": "", **image.info}
            tag, title, caption = (str(info[key]) for key in ("Source", "Title", "Description"))
            found.append(FigureFile(tag, title, caption, file, *image.size))
    return found

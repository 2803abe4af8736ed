"""Write figures as PNG files and as images of the dashboard."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.writer import SummaryWriter

from vitlab.compat import add_summary
from vitlab.files import replacing
from vitlab.plots.style import styled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FigureText:
    """The texts of a figure: its tag in the dashboard (the part before the slash is the section), title and caption."""

    tag: str
    title: str
    caption: str

    def add(self, finding: str, section: str = "", *, last: bool = False) -> "FigureText":
        """Add a sentence at the beginning, or the end, of the caption, and a section before the tag."""
        sentences = (self.caption, finding) if last else (finding, self.caption)
        return FigureText(f"{section}{self.tag}", self.title, " ".join(filter(None, sentences)))


@dataclass(frozen=True)
class FigureFile(FigureText):
    """A figure of a run: its texts, its PNG, and that file's width in pixels."""

    file: Path
    width: int


@contextmanager
def never_failing(what: str) -> Iterator[None]:
    """Turn any exception inside into a warning with its cause: a figure never fails a run."""
    try:
        yield
    except Exception as error:
        log.warning(f"{what} is left out: {type(error).__name__}: {' '.join(str(error).split())}")
        log.info("traceback:", exc_info=error)


def publish(trainer: pl.Trainer, name: str, draw: Callable[[], Figure], text: FigureText, step: int) -> None:
    """Draw a figure into `figures/<name>.png` of the run and into its dashboard, on rank 0; never fails.

    Args:
        trainer: The run's trainer.
        name: File name. It starts with two digits, because `figures/` is read in the order of names. An existing file
            is replaced: the same figure at an earlier time.
        draw: Creates the figure.
        text: Its texts; plain text, also stored in the PNG.
        step: Optimizer steps so far.
    """
    if not trainer.is_global_zero:
        return
    with never_failing(f"the figure {name}"):
        image = render(draw, text.title)
        file = Path(trainer.default_root_dir) / "figures" / f"{name}.png"
        save(image, file, text)
        # Not add_image, which would encode the image a second time.
        size = {"height": image.height, "width": image.width, "colorspace": 3}
        value = Summary.Value(tag=text.tag, image=Summary.Image(**size, encoded_image_string=file.read_bytes()))
        for writer in writers(trainer):
            add_summary(writer, Summary(value=[value]), step)


def writers(trainer: pl.Trainer) -> Iterator[Any]:
    """Yield the TensorBoard SummaryWriters of a run's loggers."""
    for logger in trainer.loggers:
        writer = getattr(logger, "experiment", None)
        if isinstance(writer, SummaryWriter):
            yield writer


def render(draw: Callable[[], Figure], title: str) -> Image.Image:
    """Draw a figure below its title and return its pixels."""
    with styled():
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
            found.append(FigureFile(tag, title, caption, file, image.width))
    return found

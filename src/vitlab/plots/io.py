"""From a drawing to a PNG in the run's `figures/` and an image of its dashboard."""

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

from vitlab.files import replacing
from vitlab.plots.style import styled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A figure of a run: its PNG, that one's width in pixels, and what it says of itself."""

    file: Path
    width: int
    tag: str
    title: str
    caption: str


@contextmanager
def never_failing(what: str) -> Iterator[None]:
    """Whatever goes wrong inside is a warning with its cause: a figure never fails a run."""
    try:
        yield
    except Exception as error:
        log.warning(f"{what} is left out: {type(error).__name__}: {' '.join(str(error).split())}")
        log.info("where the error arose:", exc_info=error)


def publish(
    trainer: pl.Trainer, name: str, draw: Callable[[], Figure], *, tag: str, title: str, caption: str, step: int
) -> None:
    """Draws a figure into `figures/<name>.png` of the run directory and into its dashboard, on the first rank; never
    fails.

    Args:
        trainer: Of the run.
        name: Of the file. Two digits in front, for `figures/` is read in the order of names. A name that is there
            already is drawn over: the same figure of a later time.
        draw: Makes the figure, in the house's style.
        tag: In the dashboard, as `test/confusion_matrix`; what stands before the slash is the section in the report.
        title, caption: What it shows, and how it is read; plain text, kept in the PNG.
        step: Optimizer steps before it.
    """
    if not trainer.is_global_zero:
        return
    with never_failing(f"the figure {name}"):
        image = render(draw, title)
        file = Path(trainer.default_root_dir) / "figures" / f"{name}.png"
        save(image, file, tag=tag, title=title, caption=caption)
        # Not add_image, which would encode the image once more.
        shown = Summary.Image(
            height=image.height, width=image.width, colorspace=3, encoded_image_string=file.read_bytes()
        )
        for writer in writers(trainer):
            writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=shown)]), step)


def writers(trainer: pl.Trainer) -> Iterator[Any]:
    """TensorBoard's SummaryWriters of a run's loggers."""
    for logger in trainer.loggers:
        writer = getattr(logger, "experiment", None)
        if isinstance(writer, SummaryWriter):
            yield writer


def render(draw: Callable[[], Figure], title: str) -> Image.Image:
    """The pixels of a figure beneath its title."""
    with styled():
        figure = draw()
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save(image: Image.Image, file: Path, *, tag: str, title: str, caption: str) -> None:
    """Writes a PNG that says what it is, as `published` reads it."""
    text = PngInfo()
    for key, value in (("Title", title), ("Description", caption), ("Source", tag)):
        text.add_itxt(key, value)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        image.save(temporary, format="png", pnginfo=text)


def published(run: Path) -> list[Published]:
    """The figures of a run directory in reading order."""
    found = []
    for file in sorted((run / "figures").glob("*.png")):
        with Image.open(file) as image:
            said = {key: str(value) for key, value in image.info.items()}
            about = (said.get("Source", ""), said.get("Title", file.stem), said.get("Description", ""))
            found.append(Published(file, image.width, *about))
    return found

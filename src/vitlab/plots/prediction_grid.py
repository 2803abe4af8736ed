"""A picture of pictures, each with what was seen on it."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vitlab.data.decoding import read_image
from vitlab.plots.grid import fit_name


def draw_grid(predictions: Sequence[tuple[Path, str, float]], file: Path) -> None:
    """Writes a PNG: each picture whole, under its class and probability, over its file's name."""
    columns = min(6, len(predictions))
    rows = math.ceil(len(predictions) / columns)
    figure = Figure(figsize=(2.2 * columns, 2.6 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (path, name, probability) in enumerate(predictions, start=1):
        axes = figure.add_subplot(rows, columns, place)
        image = read_image(path)
        image.thumbnail((400, 400))
        axes.imshow(image, interpolation="nearest" if max(image.size) < 100 else "antialiased")
        axes.set_title(f"{name}  {probability:.0%}", fontsize=10, parse_math=False)
        axes.set_xlabel(fit_name(path.name, 28), fontsize=7, color="0.4", parse_math=False)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(file, format="png")

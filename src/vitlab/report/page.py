"""Fill the templates of HTML pages; their figures are inside of them."""

import re
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from vitlab.report.figure_layout import PageFigure

# page.html is the layout of all pages, parts.html has their parts.
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1]),
    autoescape=True,
    undefined=StrictUndefined,
    extensions=["jinja2.ext.do"],
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "number": format,
    "yaml": OmegaConf.to_yaml,
    "anchor": lambda heading: re.sub(r"\W+", "-", heading.lower()).strip("-"),
}


def render_page(template: str, **values: Any) -> str:
    """Fill a template, by its path in this package, that extends page.html; its sections are the contents list."""
    return TEMPLATES.get_template(template).render(contents=[], **values)


def page_figure(title: str, figure: Figure, caption: str) -> PageFigure:
    """A figure that is only on the page, in no file."""
    file = BytesIO()
    figure.savefig(file, format="png")
    width, height = (round(100 * inches) for inches in figure.get_size_inches())
    return PageFigure(title, caption, data_uri(file.getvalue()), width, height)


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"

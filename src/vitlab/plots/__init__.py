"""Drawings of a run: how they look, and the one way by which they get into its directory and dashboard."""

from vitlab.plots.io import Published, never_failing, publish, published, render, save, writers
from vitlab.plots.style import COLORS, styled

__all__ = ["COLORS", "Published", "never_failing", "publish", "published", "render", "save", "styled", "writers"]

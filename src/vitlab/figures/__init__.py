"""Drawings of a run: how they look, and the one way by which they get into its directory and dashboard."""

from vitlab.figures.gallery import Published, never_failing, publish, published, render, save, writers
from vitlab.figures.style import COLORS, styled

__all__ = ["COLORS", "Published", "never_failing", "publish", "published", "render", "save", "styled", "writers"]

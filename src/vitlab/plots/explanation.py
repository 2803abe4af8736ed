"""Explain one prediction of a ViT: attention rollout, evidence, heads."""

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vitlab.plots.attention_heatmaps import UNIT, divide_by_mean
from vitlab.plots.grid import Tile, add_colorbar, draw_tiles, fit_scale, overlay_heat, remove_frame, split_into_rows
from vitlab.plots.style import COLORS

SIDE = 210  # px, of a map in the figure
CAPTION = (
    "Rollout: attention followed through all blocks; bright patches contribute more to the classifier's input, "
    "whatever the class. Evidence: the attention that raises the score of the class; bright patches speak for it. "
    "Heads: the attention of each head of the last block. Colours are logarithmic: 2 is twice the average patch."
)


@dataclass(frozen=True)
class Explanation:
    """A prediction and the maps that explain it.

    Attributes:
        image: uint8 `[3, side, side]`: the part of the image that the model sees.
        probabilities: By class, highest first.
        explained: The class that `relevance` explains.
        rollout, relevance: For each patch, float `[rows, columns]`.
        heads: Attention of each head of the last block, float `[heads, rows, columns]`.
    """

    image: Tensor
    probabilities: dict[str, float]
    explained: str
    rollout: Tensor
    relevance: Tensor
    heads: Tensor

    @property
    def summary(self) -> str:
        """The predicted and the explained class with their probabilities."""
        names = dict.fromkeys([next(iter(self.probabilities)), self.explained])
        return "  ".join(f"{name} {self.probabilities[name]:.1%}" for name in names)


def draw_explanation(explanation: Explanation) -> Figure:
    """Image, probabilities, rollout and evidence; below them the heads and the caption."""
    columns = 4 if len(explanation.heads) <= 4 else 8
    height = 9.0 * -(-len(explanation.heads) // columns) / columns + 0.6
    figure = Figure(figsize=(11.0, 3.7 + height + 0.7))
    parts: Any = figure.subfigures(3, 1, height_ratios=(3.7, height, 0.7))
    above, below, text = parts
    image, bars, rollout, evidence = above.subplots(1, 4, width_ratios=(1.0, 0.9, 1.0, 1.0))
    image.imshow(explanation.image.permute(1, 2, 0).numpy(), interpolation="antialiased")
    image.set(title="model input", xticks=[], yticks=[])
    remove_frame(image)
    _draw_probabilities(bars, explanation)
    for axes, heat, title in (
        (rollout, explanation.rollout, "rollout"),
        (evidence, explanation.relevance, f"evidence for {explanation.explained}"),
    ):
        heat = divide_by_mean(heat)
        scale = fit_scale([heat])
        axes.imshow(overlay_heat(explanation.image, heat, scale, SIDE), interpolation="antialiased")
        axes.set(title=title, xticks=[], yticks=[])
        remove_frame(axes)
        add_colorbar(above, scale, UNIT, ax=axes, location="bottom", shrink=0.9, aspect=15)
    _draw_heads(below, explanation, columns)
    text.text(0.01, 0.5, CAPTION, wrap=True, fontsize=10, va="center", color="0.3")
    return figure


def _draw_probabilities(axes: Axes, explanation: Explanation) -> None:
    names, values = list(explanation.probabilities), list(explanation.probabilities.values())
    colors = [COLORS["orange"] if name == explanation.explained else COLORS["sky"] for name in names]
    bars = axes.barh(names, values, color=colors)
    axes.bar_label(bars, [f"{value:.1%}" for value in values], padding=3, fontsize=10)
    axes.set(xlim=(0, 1.35), xlabel="probability", title="prediction")
    axes.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.invert_yaxis()
    axes.grid(False)


def _draw_heads(figure: Any, explanation: Explanation, columns: int) -> None:
    maps = divide_by_mean(explanation.heads)
    scale = fit_scale([maps])
    rows = split_into_rows([Tile(overlay_heat(explanation.image, each, scale)) for each in maps], columns)
    firsts = range(1, len(maps) + 1, columns)
    axes = figure.add_subplot(title="last block, head by head")
    names = [f"heads {first} to {min(first + columns - 1, len(maps))}" for first in firsts]
    draw_tiles(axes, rows, names=names)
    add_colorbar(figure, scale, "times average", ax=axes, aspect=12)

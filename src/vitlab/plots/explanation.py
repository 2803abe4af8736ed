"""What a ViT sees in one picture, and why it says what it says."""

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor

from vitlab.plots.attention_heatmaps import LABEL, relative_to_mean
from vitlab.plots.grid import HEAT, add_tiles, heat_over, label_scale, scale_of
from vitlab.plots.style import COLORS

SIDE = 210  # px of a map, as it is shown
CAPTION = (
    "Rollout: attention followed through all blocks; what the classifier reads comes from the bright patches, whatever "
    "the class. Evidence: the attention that, if there were more of it, would raise the score of the class; bright "
    "patches speak for it. Heads: what each head of the last block attends to. Colours are logarithmic: 2 is twice the "
    "average patch."
)


@dataclass(frozen=True)
class Explanation:
    """What is drawn of a picture.

    Attributes:
        picture: uint8 `[3, side, side]`: the part of it that the network sees.
        probabilities: Of the classes that are shown, falling.
        explained: The class that `relevance` is of.
        rollout, relevance: For each patch, float `[rows, columns]`.
        heads: Attention of each head of the last block, float `[heads, rows, columns]`.
    """

    picture: Tensor
    probabilities: dict[str, float]
    explained: str
    rollout: Tensor
    relevance: Tensor
    heads: Tensor

    @property
    def summary(self) -> str:
        """The most probable class, and the probability of the one explained."""
        best = next(iter(self.probabilities))
        said = [best] if best == self.explained else [best, self.explained]
        return "  ".join(f"{name} {self.probabilities[name]:.1%}" for name in said)


def draw_explanation(explanation: Explanation) -> Figure:
    """Picture, probabilities, rollout, evidence, and a row of heads below."""
    rows = -(-len(explanation.heads) // _heads_a_row(explanation))
    height = 9.0 * rows / _heads_a_row(explanation) + 0.6
    figure = Figure(figsize=(11.0, 3.7 + height + 0.7))
    parts: Any = figure.subfigures(3, 1, height_ratios=(3.7, height, 0.7))
    above, below, text = parts
    picture, bars, rollout, evidence = above.subplots(1, 4, width_ratios=(1.0, 0.9, 1.0, 1.0))
    picture.imshow(explanation.picture.permute(1, 2, 0).numpy(), interpolation="antialiased")
    picture.set_title("what the network gets")
    _bare(picture)
    _draw_probabilities(bars, explanation)
    _draw_map(rollout, explanation.picture, explanation.rollout, "rollout")
    _draw_map(evidence, explanation.picture, explanation.relevance, f"evidence for {explanation.explained}")
    _draw_heads(below.add_subplot(), explanation)
    text.text(0.01, 0.5, CAPTION, wrap=True, fontsize=10, va="center", color="0.3")
    return figure


def _draw_probabilities(axes: Axes, explanation: Explanation) -> None:
    names = list(explanation.probabilities)
    colours = [COLORS["orange"] if name == explanation.explained else COLORS["sky"] for name in names]
    bars = axes.barh(names, list(explanation.probabilities.values()), color=colours)
    axes.bar_label(bars, [f"{value:.1%}" for value in explanation.probabilities.values()], padding=3, fontsize=10)
    axes.set(xlim=(0, 1.35), xlabel="probability", title="prediction")
    axes.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.invert_yaxis()
    axes.grid(False)


def _draw_map(axes: Axes, picture: Tensor, heat: Tensor, title: str) -> None:
    relative = relative_to_mean(heat)
    scale = scale_of([relative])
    axes.imshow(heat_over(picture, heat=relative, scale=scale, side=SIDE), interpolation="antialiased")
    axes.set_title(title)
    _bare(axes)
    figure = axes.get_figure()
    assert figure is not None
    mappable = ScalarMappable(scale, HEAT)
    label_scale(figure.colorbar(mappable, ax=axes, location="bottom", label=LABEL, shrink=0.9, aspect=15))


def _draw_heads(axes: Axes, explanation: Explanation) -> None:
    maps = relative_to_mean(explanation.heads)
    scale = scale_of([maps])
    tiles = [heat_over(explanation.picture, each, scale) for each in maps]
    blank = tiles[0] * 0 + 1
    columns = _heads_a_row(explanation)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    firsts = range(1, len(maps) + 1, columns)
    names = [f"heads {first} to {min(first + columns - 1, len(maps))}" for first in firsts]
    add_tiles(axes, rows, [""] * columns, names)
    axes.set_title("last block, head by head")
    figure = axes.get_figure()
    assert figure is not None
    label_scale(figure.colorbar(ScalarMappable(scale, HEAT), ax=axes, label="times average", aspect=12))


def _heads_a_row(explanation: Explanation) -> int:
    return 4 if len(explanation.heads) <= 4 else 8


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)

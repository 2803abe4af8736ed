"""Attention, patch filters and position embeddings of a ViT."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vitlab.plots.grid import (
    HEAT,
    Tile,
    draw_sheet,
    draw_tiles,
    overlay_heat,
    remove_frame,
    shorten_name,
    split_into_rows,
    stretch_image,
)
from vitlab.plots.io import COLORS, FigureText

UNIT = "times the average patch"
MAX_MAPS = 8  # maps of position similarity on each side
FILTER_COLUMNS = 7
FILTER_SIDE, EXPLANATION_SIDE = 74, 210  # px, of a filter and of an explanation's map in the figure

FILTERS = FigureText(
    "learnt/patch_filters",
    "Patch filters: principal components",
    "The principal components of the filters that turn patches into tokens, largest first (as figure 7, left, of "
    "the ViT paper); grey is zero. Smooth colours, waves and edges are learned; noise is not, or not yet. On the "
    "left: the cumulative fraction of the filters' variance at the end of each row.",
)
POSITIONS = FigureText(
    "learnt/position_similarity",
    "Similarity of position embeddings",
    "One small map for each patch: the similarity of its position embedding to those of all patches (as figure 7, "
    "centre, of the ViT paper). A bright spot at the patch's own position that fades with the distance, along the "
    "row and the column, means that the model knows which patches are neighbours.",
)
POSITION_ORIGIN = {  # by whether they are a parameter
    True: "These started at random and were learned.",
    False: "These are a fixed table (as with pos_embed=sincos2d) and were not learned.",
}
DISTANCE = FigureText(
    "learnt/attention_distance",
    "Attention distance of each head",
    "Each dot is a head: the distance in pixels between a patch and the patches it attends to, weighted by the "
    "attention, mean over images (as figure 7, right, of the ViT paper). An untrained head attends to all patches "
    "equally (dashed line). Low dots are heads that have learned to attend to nearby patches, as a convolution "
    "does, usually in the first blocks.",
)
ROLLOUT = FigureText(
    "learnt/attention_rollout",
    "Attention rollout",
    "Attention followed through all blocks down to the patches (Abnar and Zuidema 2020), at several times of the "
    "training: bright patches contribute more to the classifier's input. The colours are logarithmic, 1 is the "
    "average patch. If all patches have its colour, the model attends to all equally. In a well-trained model the "
    "object is brighter than its background.",
)
LAST_BLOCK = FigureText(
    "learnt/attention_last_block",
    "Attention of the last block",
    "What the class token attends to in the last block, mean of the heads, at several times of the training; "
    "without a class token, how much the classifier uses each patch. Earlier blocks have mixed the tokens: a "
    "bright patch need not show the object itself.",
)
HEADS = FigureText(
    "learnt/attention_heads",
    "Attention of each head of the last block",
    "The attention of the last block, head by head. Heads with similar maps are redundant; a head with an even map "
    "contributes nothing.",
)
EXPLANATION_CAPTION = (
    "Rollout: attention followed through all blocks; bright patches contribute more to the classifier's input, "
    "whatever the class. Evidence: the attention that raises the score of the class; bright patches speak for it. "
    "Heads: the attention of each head of the last block. Colours are logarithmic: 2 is twice the average patch."
)


def draw_filters(components: Tensor, fractions: Tensor) -> Figure:
    """Principal components of the patch embedding's filters, `[n, 3, height, width]` of any scale and sign, with their
    fractions of the filters' variance, `[n]`."""
    signed = components / components.abs().amax(dim=(1, 2, 3), keepdim=True)
    tiles = [Tile(stretch_image(127.5 * (1 + each), FILTER_SIDE)) for each in signed]  # zero is mid-grey
    total = fractions.cumsum(dim=0)
    ends = [*range(FILTER_COLUMNS - 1, len(total) - 1, FILTER_COLUMNS), -1]  # of the rows
    names = [f"to {100 * total[end]:.0f} %" for end in ends]
    return draw_sheet(split_into_rows(tiles, FILTER_COLUMNS), names=names, label="cumulative variance")


def draw_positions(similarity: Tensor, grid: tuple[int, int]) -> Figure:
    """For each patch, the similarity of its position embedding to those of all patches: cosines `[patches, patches]`,
    row by row of the grid. Of a large grid, at most `MAX_MAPS` rows and columns have a map."""
    rows, columns = (np.linspace(0, side - 1, min(side, MAX_MAPS)).round().astype(int) for side in grid)
    gap = max(1, round(max(grid) / 8))
    # Every map gets a gap below it and on its right; those of the last ones are cut off.
    maps = similarity.reshape(*grid, *grid).cpu().numpy()[rows][:, columns]
    padded = np.pad(maps, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    height, width = padded.shape[2:]
    sheet = padded.swapaxes(1, 2).reshape(len(rows) * height, len(columns) * width)[:-gap, :-gap]
    figure = Figure(figsize=(5.2, 4.5))
    axes = figure.add_subplot(xlabel="column of the patch", ylabel="row of the patch")
    image = axes.imshow(sheet, vmin=float(similarity.min()), vmax=1.0)
    axes.set_xticks(np.arange(len(columns)) * width + (grid[1] - 1) / 2, [str(column + 1) for column in columns])
    axes.set_yticks(np.arange(len(rows)) * height + (grid[0] - 1) / 2, [str(row + 1) for row in rows])
    axes.tick_params(length=0)
    remove_frame(axes)
    figure.colorbar(image, ax=axes, shrink=0.8, label="cosine similarity")
    return figure


def draw_distances(distances: dict[str, Tensor], uniform: float, image_size: int) -> Figure:
    """The attention distance of each head by block, in pixels `[depth, heads]`, for times of the training, the last
    one in the foreground; `uniform` is that of a head that attends to all patches equally."""
    figure = Figure()
    axes = figure.add_subplot(xlabel="block", ylabel=f"mean attention distance (px of {image_size})")
    first, last = next(iter(distances)), next(reversed(distances))
    now = distances[last]
    blocks = range(1, len(now) + 1)
    for name in dict.fromkeys((first, last)):
        color = COLORS["blue"] if name == last else "0.75"
        labels = [name, *["_"] * (now.shape[1] - 1)]  # "_" keeps the other heads out of the legend
        axes.plot(blocks, distances[name], "o", color=color, markersize=5, label=labels)
    axes.plot(blocks, now.mean(dim=1), color=COLORS["blue"], linewidth=1.5, label=f"{last}, mean of the heads")
    axes.axhline(uniform, color=COLORS["vermilion"], linestyle="--", label="all patches equally")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0, top=1.25 * max(uniform, float(now.max())))
    axes.legend(loc="upper left", ncols=2, fontsize=9)
    return figure


def draw_attention(images: Tensor, names: Sequence[str], maps: dict[str, Tensor]) -> Figure:
    """Each image, uint8 `[3, H, W]`, and next to it its attention maps, all on one scale; `maps` are the columns:
    attention to each patch, float `[N or more, rows, columns]`, of any sum."""
    relative = [divide_by_mean(each) for each in maps.values()]
    scale = fit_scale(relative)
    rows = [
        [Tile(stretch_image(image)), *(Tile(overlay_heat(image, heat, scale)) for heat in heats)]
        for image, *heats in zip(images, *relative, strict=False)
    ]
    figure = draw_sheet(rows, ["image", *maps], [shorten_name(name, 12) for name in names], right=1.0)
    width, sheet = figure.get_figwidth(), figure.axes[0].get_position()
    margin = figure.add_axes((sheet.x1 + 0.12 / width, sheet.y0, 0.18 / width, sheet.height))
    add_colorbar(figure, scale, UNIT, cax=margin)
    return figure


def divide_by_mean(maps: Tensor) -> Tensor:
    """Scale maps `[..., rows, columns]` so that the average patch is 1."""
    return maps / maps.mean(dim=(-2, -1), keepdim=True).clamp_min(1e-12)


def fit_scale(maps: Sequence[Tensor]) -> Normalize:
    """A logarithmic colour scale with the average patch, which is 1, in its middle.

    Attention has a long tail: on a linear scale, one patch would leave the rest dark. The scale covers 98 % of the
    patches, at most from 1/8 to 8.
    """
    octaves = torch.cat([one.flatten() for one in maps]).clamp_min(1e-6).log2().abs()
    widest = float(octaves.quantile(0.98).clamp(0.5, 3.0))
    return LogNorm(2.0**-widest, 2.0**widest, clip=True)


def add_colorbar(figure: Any, scale: Normalize, label: str, **place: Any) -> None:
    """Add a colour bar with ticks at powers of two; its ends also stand for values beyond them."""
    bar = figure.colorbar(ScalarMappable(scale, HEAT), label=label, **place)
    octaves = math.log2(scale.vmax or 1)
    if octaves >= 1:
        powers = range(-math.floor(octaves), math.floor(octaves) + 1)
        bar.set_ticks([2.0**power for power in powers], labels=[str(Fraction(2) ** power) for power in powers])
    else:
        ticks = [2.0 ** (-0.9 * octaves), 1.0, 2.0 ** (0.9 * octaves)]
        bar.set_ticks(ticks, labels=[f"{round(tick, 2):g}" for tick in ticks])
    bar.minorticks_off()


@dataclass(frozen=True)
class Explanation:
    """A prediction and the maps that explain it."""

    image: Tensor  # uint8 [3, side, side]: the part of the image that the model sees
    probabilities: dict[str, float]  # by class, highest first
    explained: str  # the class that `relevance` explains
    rollout: Tensor  # of each patch, float [rows, columns]
    relevance: Tensor  # the same
    heads: Tensor  # attention of each head of the last block, float [heads, rows, columns]

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
    image.set_title("model input")
    image.set_axis_off()
    _draw_probabilities(bars, explanation)
    for axes, heat, title in (
        (rollout, explanation.rollout, "rollout"),
        (evidence, explanation.relevance, f"evidence for {explanation.explained}"),
    ):
        heat = divide_by_mean(heat)
        scale = fit_scale([heat])
        axes.imshow(overlay_heat(explanation.image, heat, scale, EXPLANATION_SIDE), interpolation="antialiased")
        axes.set_title(title)
        axes.set_axis_off()
        add_colorbar(above, scale, UNIT, ax=axes, location="bottom", shrink=0.9, aspect=15)
    _draw_heads(below, explanation, columns)
    text.text(0.01, 0.5, EXPLANATION_CAPTION, wrap=True, fontsize=10, va="center", color="0.3")
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
    draw_tiles(axes, rows, names=[f"heads {first} to {min(first + columns - 1, len(maps))}" for first in firsts])
    add_colorbar(figure, scale, "times average", ax=axes, aspect=12)

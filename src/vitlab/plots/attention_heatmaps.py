"""Attention maps over images, and the attention distance of each head."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vitlab.plots.grid import (
    Tile,
    add_colorbar_in_margin,
    draw_sheet,
    fit_scale,
    overlay_heat,
    shorten_name,
    stretch_image,
)
from vitlab.plots.io import FigureText
from vitlab.plots.style import COLORS

UNIT = "times the average patch"

DISTANCE = FigureText(
    "learnt/attention_distance",
    "Attention distance of each head",
    "Each dot is a head: the distance in pixels between a patch and the patches it attends to, weighted by the "
    "attention, mean over images (as figure 7, right, of the ViT paper). An untrained head attends to all patches "
    "equally (dashed line). Low dots are heads that have learnt to attend to nearby patches, as a convolution "
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


def draw_attention(images: Tensor, names: Sequence[str], maps: Mapping[str, Tensor]) -> Figure:
    """Each image, and next to it its attention maps, all on one scale.

    Args:
        images: uint8 `[N, 3, H, W]`.
        names: Names of the images.
        maps: A column each: attention to each patch, float `[N, rows, columns]`, of any sum.
    """
    relative = {name: divide_by_mean(each) for name, each in maps.items()}
    scale = fit_scale(list(relative.values()))
    rows = [
        [Tile(stretch_image(image)), *(Tile(overlay_heat(image, each[number], scale)) for each in relative.values())]
        for number, image in enumerate(images)
    ]
    figure = draw_sheet(rows, ["image", *maps], [shorten_name(name, 12) for name in names], right=1.0)
    add_colorbar_in_margin(figure, scale, UNIT)
    return figure


def divide_by_mean(maps: Tensor) -> Tensor:
    """Scale maps `[..., rows, columns]` so that the average patch is 1."""
    return maps / maps.mean(dim=(-2, -1), keepdim=True).clamp_min(1e-12)


def draw_distances(distances: Mapping[str, Tensor], uniform: float, image_size: int) -> Figure:
    """The attention distance of each head, by block.

    Args:
        distances: By time of the training, the last one in the foreground: pixels, float `[depth, heads]`.
        uniform: Pixels, of a head that attends to all patches equally.
        image_size: Pixels, for the axis.
    """
    figure = Figure()
    axes = figure.add_subplot(xlabel="block", ylabel=f"mean attention distance (px of {image_size})")
    *earlier, (last, now) = distances.items()
    depth, heads = now.shape
    blocks = range(1, depth + 1)
    for name, before in earlier[:1]:
        axes.plot(blocks, before, "o", color="0.75", markersize=5, label=[name, *["_"] * (heads - 1)])
    axes.plot(blocks, now, "o", color=COLORS["blue"], markersize=5, label=[last, *["_"] * (heads - 1)])
    axes.plot(blocks, now.mean(dim=1), color=COLORS["blue"], linewidth=1.5, label=f"{last}, mean of the heads")
    axes.axhline(uniform, color=COLORS["vermilion"], linestyle="--", label="all patches equally")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0, top=1.25 * max(uniform, float(now.max())))
    axes.legend(loc="upper left", ncols=2, fontsize=9)
    return figure

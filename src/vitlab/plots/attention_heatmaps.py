"""Where a ViT looks."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vitlab.plots.captions import About
from vitlab.plots.grid import add_scale, add_tiles, fit_name, heat_over, scale_of, sheet_figure, tile
from vitlab.plots.style import COLORS

LABEL = "times the average patch"

DISTANCE: About = {
    "tag": "learnt/attention_distance",
    "title": "How far each head looks",
    "caption": (
        "A dot a head: the distance in pixels between a patch and what it attends to, weighted by the attention, mean "
        "over images (as figure 7, right, of the ViT paper). An untrained head looks everywhere alike (dashed line); "
        "low dots are heads that have learnt to look nearby, as a convolution does, usually in the first blocks."
    ),
}
ROLLOUT: About = {
    "tag": "learnt/attention_rollout",
    "title": "Where the network looks: attention rollout",
    "caption": (
        "Attention followed through all blocks down to the patches (Abnar and Zuidema 2020), at several moments of "
        "training: bright patches count more in what the classifier reads. The colours are logarithmic, 1 is the "
        "average patch; where all patches have its colour, the network looks everywhere alike. What to hope for at the "
        "end: the object is brighter than its background."
    ),
}
LAST_BLOCK: About = {
    "tag": "learnt/attention_last_block",
    "title": "Where the last block looks",
    "caption": (
        "What the class token attends to in the last block (without one: the patches, as much as the classifier reads "
        "of each), mean of the heads, at several moments of training. The tokens have mixed before: a bright patch "
        "need not show the object itself."
    ),
}
HEADS: About = {
    "tag": "learnt/attention_heads",
    "title": "Where each head of the last block looks",
    "caption": (
        "As the last block's attention, head by head. Heads that look alike do the same work; an even one does none."
    ),
}


def draw_attention(pictures: Tensor, names: Sequence[str], maps: Mapping[str, Tensor]) -> Figure:
    """Each picture, and beside it where it was looked at, a column a moment, all on one scale.

    Args:
        pictures: uint8 `[N, 3, H, W]`.
        names: Of the pictures.
        maps: By the moment's name, attention to each patch, float `[N, rows, columns]`, of any sum.
    """
    relative = {name: relative_to_mean(each) for name, each in maps.items()}
    scale = scale_of(list(relative.values()))
    figure, axes = sheet_figure(len(pictures), 1 + len(maps), right=1.0)
    rows = [
        [tile(picture), *(heat_over(picture, each[number], scale) for each in relative.values())]
        for number, picture in enumerate(pictures)
    ]
    add_tiles(axes, rows, ["picture", *maps], [fit_name(name, 12) for name in names])
    add_scale(figure, axes, scale, LABEL)
    return figure


def draw_heads(pictures: Tensor, names: Sequence[str], maps: Tensor) -> Figure:
    """Each picture, and beside it where each head looks.

    Args:
        pictures: uint8 `[N, 3, H, W]`.
        names: Of the pictures.
        maps: Attention to each patch, float `[N, heads, rows, columns]`, of any sum.
    """
    return draw_attention(pictures, names, {f"head {head}": maps[:, head - 1] for head in range(1, maps.shape[1] + 1)})


def relative_to_mean(maps: Tensor) -> Tensor:
    """Maps `[..., rows, columns]` in which 1 is the average patch."""
    return maps / maps.mean(dim=(-2, -1), keepdim=True).clamp_min(1e-12)


def draw_distances(distances: Mapping[str, Tensor], uniform: float, image_size: int) -> Figure:
    """How far each head looks, by block.

    Args:
        distances: By the moment's name, the last one in the foreground: pixels, float `[depth, heads]`.
        uniform: Pixels of a head that looks everywhere alike.
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
    axes.axhline(uniform, color=COLORS["vermilion"], linestyle="--", label="looking everywhere alike")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0, top=1.25 * max(uniform, float(now.max())))
    axes.legend(loc="upper left", ncols=2, fontsize=9)
    return figure

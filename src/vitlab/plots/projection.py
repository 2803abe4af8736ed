"""Features of images in two dimensions, by their principal components."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from vitlab.plots.classification import MAX_NAMED, NAME_LENGTH
from vitlab.plots.grid import shorten_name
from vitlab.plots.io import COLORS, FigureText

MAX_POINTS = 1000
COMPONENTS = 4  # two for each panel
MARKERS = "o^sDvPX<"
OTHERS = "0.8"  # grey
LABELLED = 10  # at most so many classes have their names in the figure too, at the medians of their points
LABEL_LENGTH = 12  # characters
LABEL: dict[str, Any] = {
    **{"ha": "center", "va": "center", "fontsize": 8, "fontweight": "bold", "in_layout": False},
    "path_effects": [withStroke(linewidth=2.5, foreground="white")],
}

PROJECTION = FigureText(
    "test/features",
    "Features in two dimensions: their principal components",
    "Each point is an image: the features that the head reads, projected onto their principal components (PCA). The "
    "projection is linear and keeps as much of the variance as two dimensions can. Classes that overlap here may be "
    "separate in the other dimensions.",
)
PROJECTOR = "TensorBoard's Projector shows the same features with their images, by t-SNE and UMAP too."


def project(features: Tensor) -> tuple[Tensor, Tensor]:
    """Project features, float `[N, D]`, onto their first `COMPONENTS` principal components, fewer of fewer images:
    float32 `[N, components]`, and the fraction of the variance that each explains, `[components]`."""
    centred = features.double() - features.double().mean(dim=0)
    scores, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary: here its largest coefficient is positive, on every machine.
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign().flatten()
    explained = singular.square() / singular.square().sum().clamp(min=1e-30)
    return (scores * singular * signs)[:, :COMPONENTS].float(), explained[:COMPONENTS].float()


def describe_projection(explained: Tensor, shown: int, total: int) -> str:
    fractions = [f"{fraction:.0%}" for fraction in explained.tolist()]
    sample = f" {shown:,} of the {total:,} images are shown, chosen at random." if shown < total else ""
    return f"The components explain {', '.join(fractions)} of the variance.{sample}"


def draw_projection(points: Tensor, labels: Tensor, classes: Sequence[str]) -> Figure:
    """Points, float `[N, 2 to 4]`, with a colour and a marker for each class of the labels, int64 `[N]`: components 1
    and 2, and 3 and 4. Of more than `MAX_NAMED` classes, those with the most images; the others are grey."""
    counts = torch.bincount(labels, minlength=len(classes))
    most = len(MARKERS) if len(classes) > MAX_NAMED else len(classes)
    named = sorted(counts.argsort(descending=True, stable=True)[:most].tolist())
    panels = points.shape[1] // 2
    figure = Figure(figsize=(4.2 * panels + 1.4, 4.4))
    for panel, axes in enumerate(figure.subplots(1, panels, squeeze=False)[0]):
        across, up = points[:, 2 * panel].numpy(), points[:, 2 * panel + 1].numpy()
        look: dict[str, Any] = {"s": 14, "linewidths": 0.3, "edgecolors": "white"}
        if len(named) < len(classes):
            others = ~torch.isin(labels, torch.tensor(named)).numpy()
            axes.scatter(across[others], up[others], color=OTHERS, label=f"{len(classes) - most:,} others", **look)
        for place, label in enumerate(named):
            chosen, turn = (labels == label).numpy(), place // len(COLORS)
            color, marker = list(COLORS.values())[place % len(COLORS)], MARKERS[(place + turn) % len(MARKERS)]
            name = shorten_name(classes[label], NAME_LENGTH)
            axes.scatter(across[chosen], up[chosen], color=color, marker=marker, label=name, **look)
            if len(classes) <= LABELLED and chosen.any():
                middle = np.median(across[chosen]), np.median(up[chosen])
                axes.text(*middle, shorten_name(name, LABEL_LENGTH), **LABEL)
        axes.set(xlabel=f"component {2 * panel + 1}", ylabel=f"component {2 * panel + 2}", xticks=[], yticks=[])
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=9, markerscale=1.6, handletextpad=0.1)
    return figure

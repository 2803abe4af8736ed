"""Contact sheet of every augmentation at three strengths."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vitlab.arguments.command import read_command
from vitlab.cli import run
from vitlab.config.compose import compose_training

if TYPE_CHECKING:  # --help does not import torch
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig
    from torch import Tensor

    # A row's name, and three captions, each over uint8 images [EXAMPLES, 3, H, W].
    Row = tuple[str, list[tuple[str, Tensor]]]

EXAMPLES = 3


def draw_augmentations(command: DictConfig, overrides: Sequence[Override]) -> None:
    """Write a PNG of three training images of different classes: a row for each augmentation at three strengths, each
    after the images themselves, and one for all of `augment` in three epochs."""
    import torch
    from matplotlib.figure import Figure
    from torchvision.utils import make_grid

    from vitlab.compat import silence_libraries
    from vitlab.components import load_data
    from vitlab.files import new_file, shorten
    from vitlab.runs.console import show

    silence_libraries()
    file = new_file(command.out, "outputs/figures/augmentations_{time}.png")
    typed = [str(override.input_line) for override in overrides]
    data = load_data(compose_training(["name=augmentations", "run_dir=outputs", *typed]))
    train = data.splits["train"]
    labels = train.labels.bincount().nonzero().flatten()[:EXAMPLES]  # some classes may have no training image
    indices = torch.stack([(train.labels == label).nonzero()[0, 0] for label in labels])
    images = train.pick(indices)
    rows = [*apply_each(images, indices), apply_all(data, images, indices)]
    figure = Figure(figsize=(10.4, 1.25 * len(rows)), dpi=110, layout="constrained")
    for axes_of_row, (name, panels) in zip(figure.subplots(len(rows), 4), rows, strict=True):
        for axes, (title, batch) in zip(axes_of_row, [(name, images), *panels], strict=True):
            axes.imshow(make_grid(batch, EXAMPLES, padding=1, pad_value=255).permute(1, 2, 0), interpolation="nearest")
            axes.set_title(title, fontsize=8, loc="left", parse_math=False)
            axes.set_axis_off()
    figure.savefig(file, format="png")
    show(f"written: {shorten(file)}")


def apply_each(images: Tensor, indices: Tensor) -> Iterator[Row]:
    """Apply each augmentation to uint8 images `[N, 3, H, W]`, which have these indices, at three strengths."""
    import torch
    from torchvision.transforms import v2

    from vitlab import data
    from vitlab.data.counter_rng import CounterRNG
    from vitlab.data.random_augment import BINS, OPERATIONS, SIGNED, apply, magnitudes

    side, rng = images.shape[-1], CounterRNG(0, 0, indices)
    paddings = [side // divisor for divisor in (16, 8, 4)]
    yield "RandomCrop", [(f"padding {padding} px", data.RandomCrop(padding)(images, rng, 0)) for padding in paddings]
    yield "RandomHorizontalFlip", [(f"p={p}", data.RandomHorizontalFlip(p)(images, rng, 1)) for p in (0.0, 0.5, 1.0)]
    flip = data.RandomHorizontalFlip(0.5, alternating=True)
    epochs = [(f"epoch {epoch + 1}", flip(images, CounterRNG(0, epoch, indices), 1)) for epoch in range(3)]
    yield "RandomHorizontalFlip, alternating", epochs
    yield "RandomVerticalFlip", [(f"p={p}", data.RandomVerticalFlip(p)(images, rng, 2)) for p in (0.0, 0.5, 1.0)]
    crops = [(scale, data.RandomResizedCrop((scale, scale), (0.75, 1.333))) for scale in (0.8, 0.4, 0.1)]
    yield "RandomResizedCrop", [(f"{scale:.0%} of the area", crop(images, rng, 3)) for scale, crop in crops]
    jitters = [(x, data.ColorJitter(1.0, x, x, x, x / 4)) for x in (0.1, 0.4, 0.8)]
    yield "ColorJitter", [(f"{x:.0%}, hue {x / 4:.1%}", jitter(images, rng, 4)) for x, jitter in jitters]
    yield "RandomGrayscale", [(f"p={p}", data.RandomGrayscale(p)(images, rng, 5)) for p in (0.0, 0.5, 1.0)]
    blurs = [(sigma, data.GaussianBlur(1.0, 7, (sigma, sigma))) for sigma in (0.5, 1.0, 2.0)]
    yield "GaussianBlur", [(f"sigma {sigma:g} px", blur(images, rng, 6)) for sigma, blur in blurs]
    table = magnitudes(v2.TrivialAugmentWide, side, images.device)
    for operation, name in enumerate(OPERATIONS[1:], start=1):
        panels = []
        for strength in (BINS // 3, 2 * BINS // 3, BINS - 1):
            magnitude = table[operation, strength].repeat(len(images))
            caption = f"{magnitude[0]:.3g}" if table[operation].any() else "no strength"
            if name in SIGNED:
                magnitude[1::2] *= -1
                caption = f"±{caption}"
            panels.append((caption, apply(images, torch.full_like(indices, operation), magnitude)))
        yield name, panels
    boxes = [(area, data.RandomErasing(1.0, (area, area), (0.3, 3.33))) for area in (0.05, 0.2, 0.4)]
    yield "RandomErasing", [(f"{area:.0%} of the area", erase(images, rng, 2)) for area, erase in boxes]
    for name, cutmix_share in (("mixup", 0.0), ("CutMix", 1.0)):
        mixing = data.Mixing(p=1.0, mixup_alpha=1.0, cutmix_alpha=1.0, cutmix_share=cutmix_share, off_share=0)
        yield name, [_mix(mixing, images, 0, 0, batch_number) for batch_number in (0, 3, 6)]


def apply_all(data: Any, images: Tensor, indices: Tensor) -> Row:
    """Apply all augmentations of a data module to images, in three epochs."""
    from vitlab.data.counter_rng import CounterRNG

    panels = []
    for epoch in range(3):
        result, rng = images, CounterRNG(data.seed, epoch, indices)
        for op_index, augmentation in enumerate(data.augmentations):
            result = augmentation(result, rng, op_index)
        caption = f"epoch {epoch + 1}"
        if data.mixing is not None:
            share, result = _mix(data.mixing, result, data.seed, epoch, 0)
            caption = f"{caption}, {share}"
        panels.append((caption, result))
    return "all of augment", panels


def _mix(mixing: Any, images: Tensor, seed: int, epoch: int, number: int) -> tuple[str, Tensor]:
    """The fraction that mixed images keep of themselves, as a caption, and the images, uint8."""
    labels = images.new_tensor(range(len(images))).long()
    mixed, targets = mixing(images.float(), labels, classes=len(images), seed=seed, epoch=epoch, number=number)
    caption = f"{targets[0, 0]:.0%} the image itself" if targets.is_floating_point() else "not mixed"
    return caption, mixed.round().byte()


def main() -> None:
    draw_augmentations(*read_command("augmentations", sys.argv[1:], additions=True))


if __name__ == "__main__":
    run(main)

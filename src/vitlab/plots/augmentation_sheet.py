"""A contact sheet: what each augmentation does to images, weakly and strongly."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from hydra.core.override_parser.types import Override
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from vitlab.cli import run
from vitlab.compat import silence_libraries
from vitlab.config.command import CONF, compose_training, read_command
from vitlab.data import ImageDataModule, Mixing, RandomCrop, RandomErasing, RandomHorizontalFlip
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.random_augment import BINS, OPERATIONS, SIGNED, apply, wide_magnitudes
from vitlab.experiment import load_data
from vitlab.files import new_file, shorten

EXAMPLES = 3
BINS_SHOWN = (BINS // 3, 2 * BINS // 3, BINS - 1)
PADDINGS = (16, 8, 4)  # the image's side by these
AREAS = (0.05, 0.2, 0.4)  # of what is erased
MIXED = range(0, 9, 3)  # batches shown: their draws differ
Row = tuple[str, list[tuple[str, Tensor]]]  # its name, and three times a caption over uint8 images [EXAMPLES, 3, H, W]


def draw_augmentations(command: DictConfig, overrides: Sequence[Override], conf: Path) -> Path:
    """Writes a PNG: a row for each augmentation at three strengths or draws, and one for all of `augment` in three
    epochs, on three training images of different classes.

    Raises:
        UserError: the file is there already, or the data can't be had.
    """
    silence_libraries()
    file = new_file(command.out, "outputs/figures/augmentations_{time}.png")
    typed = [str(override.input_line) for override in overrides]
    config = compose_training(["name=augmentations", "run_dir=outputs", *typed], conf)
    data = load_data(config)
    labels = data.splits["train"].labels
    places = torch.stack([(labels == label).nonzero()[0, 0] for label in range(min(EXAMPLES, len(data.spec.classes)))])
    images = data.splits["train"].pick(places)
    file.parent.mkdir(parents=True, exist_ok=True)
    _draw(images, [*_each(images, places), _together(data, images, places)], file)
    Console(soft_wrap=True, highlight=False).print(f"written: {shorten(file)}", markup=False)
    return file


def _each(images: Tensor, places: Tensor) -> Iterator[Row]:
    side, draws = images.shape[-1], CounterRNG(0, 0, places)
    paddings = [side // share for share in PADDINGS]
    yield "RandomCrop", [(f"padding {padding} px", RandomCrop(padding)(images, draws, 0)) for padding in paddings]
    yield "RandomHorizontalFlip", [(f"p={p}", RandomHorizontalFlip(p)(images, draws, 1)) for p in (0.0, 0.5, 1.0)]
    flip = RandomHorizontalFlip(0.5, alternating=True)
    epochs = [CounterRNG(0, epoch, places) for epoch in range(3)]
    yield "RandomHorizontalFlip, alternating", [(f"epoch {d.epoch}", flip(images, d, 1)) for d in epochs]
    table = wide_magnitudes(images.device)
    for operation, name in enumerate(OPERATIONS[1:], start=1):
        panels = []
        for number in BINS_SHOWN:
            magnitude = table[operation, number].repeat(len(images))
            caption = f"{magnitude[0]:.3g}" if table[operation].any() else "no strength"
            if name in SIGNED:
                magnitude[1::2] *= -1
                caption = f"±{caption}"
            panels.append((caption, apply(images, torch.full_like(places, operation), magnitude)))
        yield name, panels
    boxes = [(area, RandomErasing(1.0, (area, area), (0.3, 3.33))) for area in AREAS]
    yield "RandomErasing", [(f"{area:.0%} of the area", erasing(images, draws, 2)) for area, erasing in boxes]
    for name, cutmix_share in (("mixup", 0.0), ("CutMix", 1.0)):
        mixing = Mixing(p=1.0, mixup_alpha=1.0, cutmix_alpha=1.0, cutmix_share=cutmix_share, off_share=0)
        yield name, [_mix(mixing, images, 0, 0, number) for number in MIXED]


def _mix(mixing: Mixing, images: Tensor, seed: int, epoch: int, number: int) -> tuple[str, Tensor]:
    """The mixed images, uint8, beneath the share of each in itself."""
    labels = torch.arange(len(images))
    mixed, shares = mixing(images.float(), labels, classes=len(images), seed=seed, epoch=epoch, number=number)
    share = f"{shares[0, 0]:.0%} the image itself" if shares.is_floating_point() else "not mixed"
    return share, mixed.round().to(torch.uint8)


def _together(data: ImageDataModule, images: Tensor, places: Tensor) -> Row:
    panels = []
    for epoch in range(3):
        result, draws = images, CounterRNG(data.seed, epoch, places)
        for stream, augmentation in enumerate(data.augmentations):
            result = augmentation(result, draws, stream)
        caption = f"epoch {epoch}"
        if data.mixing is not None:
            share, result = _mix(data.mixing, result, data.seed, epoch, 0)
            caption = f"{caption}, {share}"
        panels.append((caption, result))
    return "all of augment", panels


def _draw(images: Tensor, rows: Sequence[Row], file: Path) -> None:
    columns = 1 + len(rows[0][1])
    figure = Figure(figsize=(2.6 * columns, 1.25 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, panels) in enumerate(rows):
        for column, (caption, batch) in enumerate([("stored images", images), *panels]):
            axes = figure.add_subplot(len(rows), columns, number * columns + column + 1)
            strip = torch.nn.functional.pad(batch, (0, 1, 0, 0), value=255)  # a white line between images
            axes.imshow(strip.permute(2, 0, 3, 1).flatten(1, 2)[:, :-1].numpy(), interpolation="nearest")
            axes.set_title(caption if column else name, fontsize=8, loc="left", parse_math=False)
            axes.set_axis_off()
    figure.savefig(file, format="png")


def main() -> None:
    command, overrides = read_command(CONF, "augmentations", sys.argv[1:])
    draw_augmentations(command, overrides, CONF)


if __name__ == "__main__":
    run(main)

"""Write the features of images, which a model's head reads, as NumPy or CSV."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from vitlab.arguments.command import check_switches, read_command
from vitlab.cli import run
from vitlab.errors import UserError
from vitlab.evaluate import load_images
from vitlab.files import new_file, replacing, write_csv
from vitlab.predict import check_all_read, find_images, read_batches
from vitlab.runs.imports import fast_imports

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("npz", "csv")
SPLITS = ("train", "val", "test")


def main() -> None:
    embed(*read_command("embed", sys.argv[1:]))


def embed(command: DictConfig, overrides: Sequence[Override]) -> Path:
    """Write the features of images, and what the model predicts, into a new file, and return it.

    An `.npz` file opens with `numpy.load`: `features` float32 `[N, D]`, `predictions` int64 `[N]`, `images` (names) and
    `classes` text, `model` (its checkpoint) and `weights` ("raw" or "ema"); of a split also `labels` int64 `[N]`.

    `command` holds the values of `conf/embed.yaml`, `overrides` those of the run's config. Raises UserError if one of
    them is wrong, if the model has no features or, after all others are done, for images that can't be read.
    """
    format = _check_options(command)
    with fast_imports():  # torch is imported once the command is known to be right
        import numpy as np
        import torch

        from vitlab.loaded_model import open_model
        from vitlab.metrics.evaluation import rank_classes
        from vitlab.models.features import features_and_logits
        from vitlab.report.terminal import print_written
        from vitlab.runs.console import show
        from vitlab.runs.progress import track

    model = open_model(command, overrides)
    folder = (model.run.path if model.run else Path()) / "embeddings"
    out = new_file(command.out or str(folder / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}.{format}"), "")
    figure = new_file(str(out.with_suffix(".png")), "") if command.projection else None

    failures: dict[str, str] = {}
    labels: Tensor | None = None
    size = model.config.data.eval_batch_size
    if command.split is None:
        files, failures = find_images(command.images)
        count = len(files)
        batches: Iterator[tuple[Sequence[Any], Tensor]] = read_batches(files, model.config.data, failures, size)
    else:
        arrays = load_images(model, command.split, overrides).splits.get(command.split)
        if not arrays:
            raise UserError(f"split={command.split}: the run has no such images")
        count, labels = len(arrays), arrays.labels
        batches = ((arrays.names[rows], arrays.pick(rows)) for rows in _slices(count, size))
    names: list[str] = []
    parts = []
    for some, images in track(batches, "", -(-count // size)):
        with torch.inference_mode():
            features, logits = features_and_logits(model.forward, model.preprocess(images))
        names += map(str, some)
        parts.append((features.cpu(), rank_classes(logits)[:, 0].cpu()))

    if parts:
        features, predictions = (torch.cat(part) for part in zip(*parts, strict=True))
        content: dict[str, Any] = {
            "features": features,
            "images": names,
            **({} if labels is None else {"labels": labels}),
            "predictions": predictions,
            "classes": model.classes,
            "model": str(model.checkpoint),
            "weights": model.weights,
        }
        show(f"features: {len(names):,} x {features.shape[1]:,} (images x width)")
        if format == "csv":
            _write_csv(out, content)
        else:
            with replacing(out) as temporary, temporary.open("wb") as file:  # given a name, numpy would add .npz to it
                np.savez(file, **content)
        print_written(out)
        if figure is not None and len(names) > 1:
            _draw(figure, features, predictions if labels is None else labels, model.classes)
            print_written(figure)
    check_all_read(failures, len(names), command.images)
    return out


def _check_options(command: DictConfig) -> str:
    """The format to write; UserError for an option that is wrong."""
    if command.images is None and command.split is None:
        raise UserError("which images? give images=<files or folder>, or split=train, val or test of the run's data")
    if command.images is not None and command.split is not None:
        raise UserError(f"split={command.split} and images= exclude each other: leave one out")
    if command.split not in (None, *SPLITS):
        raise UserError(f"split={command.split} is unknown; choose {', '.join(SPLITS)}")
    check_switches(command, "projection")
    suffix = "" if command.out is None else Path(str(command.out)).suffix.removeprefix(".")
    format = command.format or suffix or "npz"
    if format not in FORMATS or (suffix in FORMATS and suffix != format):
        given = f"format={command.format}" if command.format else f"out={command.out}"
        raise UserError(f"{given}: embed writes .npz or .csv, as format= or the name of out= says")
    return str(format)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _write_csv(out: Path, content: dict[str, Any]) -> None:
    """A row for each image: its name, class, prediction and features, in as many digits as float32 has."""
    features, classes = content["features"].tolist(), content["classes"]
    named = {name: content[f"{name}s"].tolist() for name in ("label", "prediction") if f"{name}s" in content}
    heads = ["image", *named, *(f"feature_{number}" for number in range(1, len(features[0]) + 1))]
    rows = (
        [name, *(classes[label] for label in labels), *(f"{value:.9g}" for value in values)]
        for name, *labels, values in zip(content["images"], *named.values(), features, strict=True)
    )
    write_csv(out, heads, rows)


def _draw(file: Path, features: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    from vitlab.data.loader import epoch_order
    from vitlab.plots.io import render, save
    from vitlab.plots.projection import MAX_POINTS, PROJECTION, describe_projection, draw_projection, project

    shown = epoch_order(len(features), 0, 0)[:MAX_POINTS]
    points, explained = project(features[shown])
    text = PROJECTION.add(describe_projection(explained, len(shown), len(features)), last=True)
    save(render(partial(draw_projection, points, labels[shown], classes), text.title), file, text)


if __name__ == "__main__":
    run(main)

"""Evaluate a run on its test or validation images."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from vitlab.cli import no_gc_imports, run
from vitlab.config.compose import read_command
from vitlab.errors import UserError, list_some
from vitlab.files import set_aside, shorten, write_csv, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from vitlab.data import ImageDataModule
    from vitlab.data.arrays import ImageArrays
    from vitlab.loaded_model import LoadedModel


def main() -> None:
    evaluate(*read_command("evaluate", sys.argv[1:]))


def evaluate(command: DictConfig, overrides: Sequence[Override]) -> dict[str, Any]:
    """Write `evaluation_<split>.json` and `predictions_<split>.csv` into the run, or without a run into the working
    directory; earlier ones are renamed.

    `command` holds the values of `conf/evaluate.yaml`, `overrides` those of the run config. UserError if one is wrong.
    Returns the content of the JSON file: loss (nats) and accuracy by their metric names, and each class's accuracy.
    With `flip` also `<split>/loss_flip` and `<split>/acc_flip`; everything else is of the images alone.
    """
    split = command.split
    if split not in ("test", "val"):
        raise UserError(f"split={split} is unknown; choose test or val")
    if not isinstance(command.flip, bool):
        raise UserError(f"flip={command.flip} must be true or false")
    with no_gc_imports():  # torch is imported once the command is known to be right
        from vitlab.callbacks import CollectLogits, FlipTTA, RunProgressBar
        from vitlab.classifier import ImageClassifier, rank_classes
        from vitlab.compat import translate_lightning_exits
        from vitlab.config.instantiate import build
        from vitlab.distributed.strategies import cluster
        from vitlab.loaded_model import open_model
        from vitlab.report.terminal import print_evaluation
        from vitlab.runs.directory import shorten_values

    model = open_model(command, overrides)
    config, folder = model.config, model.run.path if model.run else Path()
    data = load_images(model, split, overrides)
    if not len(data.splits[split]):
        raise UserError("split=val: the run has no validation images (data.val_size=0)")
    classifier = ImageClassifier(
        model.network, num_classes=config.data.num_classes, label_smoothing=0.0, seed=config.seed
    )
    collected = CollectLogits()
    given = {override.key_or_group for override in overrides}
    left_out = {  # a run that left out the test or validation is evaluated on all images
        key: None
        for key in ("limit_val_batches", "limit_test_batches")
        if config.trainer[key] == 0 and f"trainer.{key}" not in given
    }
    trainer = build(
        config.trainer,
        "trainer",
        **left_out,
        devices=1,  # so that every image is counted once, and nothing is gathered
        num_nodes=1,
        strategy="auto",
        plugins=cluster(),
        callbacks=[collected, *([FlipTTA()] if command.flip else []), RunProgressBar(refresh_seconds=1.0)],
        logger=False,
        profiler=None,
        enable_progress_bar=True,
        enable_checkpointing=False,
        default_root_dir=str(folder),
    )
    loop = trainer.test if split == "test" else trainer.validate
    with translate_lightning_exits(trainer):
        results = loop(classifier, datamodule=data, verbose=False)
    if not results:
        raise UserError(f"trainer.limit_{split}_batches=0 leaves no image to evaluate")

    logits, index = collected.gather(trainer)
    images = data.splits[split].take(index)
    predictions = rank_classes(logits)[:, 0]
    metrics = {
        **shorten_values(results[0]),
        "images": len(images),
        "per_class": per_class(predictions, images.labels, model.classes),
        "checkpoint": str(model.checkpoint),
        "weights": model.weights,
        "overrides": [override.input_line for override in overrides],
    }
    json_file, csv_file = folder / f"evaluation_{split}.json", folder / f"predictions_{split}.csv"
    for old in (json_file, csv_file):
        set_aside(old)
    columns = ["image", "label", "prediction", "probability", "correct", *(f"p({name})" for name in model.classes)]
    write_csv(csv_file, columns, prediction_rows(logits, predictions, images, model.classes))
    write_json(json_file, metrics)
    print_evaluation(metrics, split, len(data.splits[split]), [json_file, csv_file])
    return metrics


def load_images(model: LoadedModel, split: str, overrides: Sequence[Override]) -> ImageDataModule:
    """The images to evaluate on, without augmentations, in memory.

    If `data.root` is given and has `<split>/<class>/*` or `<class>/*`, with some of the run's classes, these are all
    images in it. They are those of the run if they are its own, or its data has another layout.
    """
    config, given = model.config, {override.key_or_group for override in overrides}
    root = config.data.get("root") if given & {"data", "data.root"} else None
    places = [] if root is None else [Path(root).expanduser() / split, Path(root).expanduser()]
    folder = next((place for place in places if _holds_classes(place, model.classes)), None)
    if folder is None:
        return model.load_data()
    if folder == places[-1] and model.run:  # the run may have split it into train, val and test
        with suppress(UserError):
            data, known = model.load_data(), model.run.manifest().get("data", {})
            if data.fingerprints()[split] == known.get(split):
                return data
    return model.with_images(**{split: _read_class_folders(folder, config)})


def _holds_classes(folder: Path, classes: Sequence[str]) -> bool:
    """Whether a folder has subfolders that are named after classes; UserError if others have other names."""
    entries = folder.iterdir() if folder.is_dir() else ()
    names = {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    if (known := names & set(classes)) and known != names:
        unknown = list_some(sorted(names - known))
        raise UserError(f"data.root: {folder} has folders that are none of the run's classes: {unknown}")
    return bool(known)


def _read_class_folders(folder: Path, config: DictConfig) -> ImageArrays:
    """All images of `folder/<class>/*`; UserError if there are none, or one can't be read."""
    import torch

    from vitlab.data.arrays import ImageArrays
    from vitlab.predict import check_all_read, find_images, read_batches
    from vitlab.runs.console import show

    labels: dict[Path, int] = {}
    for label, name in enumerate(config.data.classes):
        if (folder / name).is_dir():
            labels |= dict.fromkeys(find_images(folder / name)[0], label)
    failures: dict[str, str] = {}
    batches = list(read_batches(list(labels), config.data, failures, config.data.eval_batch_size))
    paths = [path for some, _ in batches for path in some]
    check_all_read({} if config.data.get("skip_unreadable") else failures, len(paths), folder)
    left_out = f"; left out, because they can't be read: {len(failures)}" if failures else ""
    show(f"evaluating on all {len(paths):,} images of the class folders in {shorten(folder)}{left_out}")
    names = [str(path.relative_to(folder)) for path in paths]
    return ImageArrays.of(torch.cat([images for _, images in batches]), torch.tensor([labels[p] for p in paths]), names)


def per_class(predictions: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Number of images and accuracy of each class (None without images)."""
    table = {}
    for label, name in enumerate(classes):
        own = predictions[labels == label] == label
        table[name] = {"images": len(own), "acc": own.float().mean().item() if len(own) else None}
    return table


def prediction_rows(
    logits: Tensor, predictions: Tensor, images: ImageArrays, classes: Sequence[str]
) -> Iterator[list[Any]]:
    columns = images.names, images.labels.tolist(), predictions.tolist(), logits.softmax(dim=1).tolist()
    for name, label, best, probabilities in zip(*columns, strict=True):
        cells = [f"{p:.6f}" for p in probabilities]
        yield [name, classes[label], classes[best], cells[best], int(best == label), *cells]


if __name__ == "__main__":
    run(main)

"""Evaluate a run on its test or validation images."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from vitlab.arguments.command import read_command
from vitlab.cli import no_gc_imports, run
from vitlab.errors import UserError
from vitlab.files import make_folder, set_aside, write_csv, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from vitlab.data.arrays import ImageArrays


def main() -> None:
    evaluate(*read_command("evaluate", sys.argv[1:]))


def evaluate(command: DictConfig, overrides: Sequence[Override]) -> dict[str, Any]:
    """Write `evaluation_<split>.json` and `predictions_<split>.csv` into the run; earlier ones are renamed.

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
    assert model.run is not None  # conf/evaluate.yaml asks for it
    make_folder(model.run.path, key="run")  # the results go there
    config = model.config
    data = model.load_data()
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
        default_root_dir=str(model.run.path),
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
    json_file, csv_file = (model.run.path / name for name in (f"evaluation_{split}.json", f"predictions_{split}.csv"))
    for old in (json_file, csv_file):
        set_aside(old)
    columns = ["image", "label", "prediction", "probability", "correct", *(f"p({name})" for name in model.classes)]
    write_csv(csv_file, columns, prediction_rows(logits, predictions, images, model.classes))
    write_json(json_file, metrics)
    print_evaluation(metrics, split, len(data.splits[split]), [json_file, csv_file])
    return metrics


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

"""Evaluate a run on its test or validation images."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from vitlab.cli import no_gc_imports, run
from vitlab.config.compose import read_command
from vitlab.errors import UserError
from vitlab.files import set_aside, write_csv, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from vitlab.data.arrays import ImageArrays


def main() -> None:
    evaluate(*read_command("evaluate", sys.argv[1:]))


def evaluate(command: DictConfig, overrides: Sequence[Override]) -> dict[str, Any]:
    """Write `evaluation_<split>.json`, `predictions_<split>.csv` and `confusion_<split>.csv` into the run; earlier ones
    are renamed.

    `command` holds the values of `conf/evaluate.yaml`, `overrides` those of the run config. UserError if one is wrong.
    Returns the content of the JSON file: loss (nats) and accuracy by their metric names, and each class's accuracy.
    With `flip` also `<split>/loss_flip` and `<split>/acc_flip`; everything else is of the images alone.
    """
    split = command.split
    if split not in ("test", "val", "train"):
        raise UserError(f"split={split} is unknown; choose test, val or train")
    if not isinstance(command.flip, bool):
        raise UserError(f"flip={command.flip} must be true or false")
    with no_gc_imports():  # torch is imported once the command is known to be right
        from vitlab.callbacks import CollectLogits, FlipTTA, RunProgressBar
        from vitlab.classifier import rank_classes
        from vitlab.compat import translate_lightning_exits
        from vitlab.config.instantiate import build
        from vitlab.distributed.strategies import cluster
        from vitlab.experiment import build_classifier
        from vitlab.loaded_model import open_model
        from vitlab.plots.classification import Predictions
        from vitlab.report.terminal import print_evaluation
        from vitlab.runs.directory import shorten_values

    model = open_model(command, overrides)
    assert model.run is not None  # conf/evaluate.yaml asks for it
    config = model.config
    data = model.load_data()
    if not len(data.splits[split]):
        raise UserError("split=val: the run has no validation images (data.val_size=0)")
    stage = "test" if split == "test" else "val"  # Lightning evaluates training images as validation images
    data.splits = {**data.splits, stage: data.splits[split]}
    classifier = build_classifier(config, model.network)
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
    loop = trainer.test if stage == "test" else trainer.validate
    with translate_lightning_exits(trainer):
        results = loop(classifier, datamodule=data, verbose=False)
    if not results:
        raise UserError(f"trainer.limit_{stage}_batches=0 leaves no image to evaluate")

    logits, index = collected.gather(trainer)
    images = data.splits[split].take(index)
    predictions = rank_classes(logits)[:, 0]
    found = Predictions(logits.softmax(dim=1), predictions, images.labels, model.classes)
    metrics = {
        **{f"{split}/{key.partition('/')[2]}": value for key, value in shorten_values(results[0]).items()},
        "images": len(images),
        "per_class": found.per_class(),
        "checkpoint": str(model.checkpoint),
        "weights": model.weights,
        "overrides": [override.input_line for override in overrides],
    }
    names = f"evaluation_{split}.json", f"predictions_{split}.csv", f"confusion_{split}.csv"
    json_file, csv_file, matrix_file = files = [model.run.path / name for name in names]
    for old in files:
        set_aside(old)
    columns = ["image", "label", "prediction", "probability", "correct", *(f"p({name})" for name in model.classes)]
    write_csv(csv_file, columns, prediction_rows(logits, predictions, images, model.classes))
    write_json(json_file, metrics)
    heads, *rows = found.confusion_table()
    write_csv(matrix_file, heads, rows)
    print_evaluation(metrics, split, len(data.splits[split]), files)
    return metrics


def prediction_rows(
    logits: Tensor, predictions: Tensor, images: ImageArrays, classes: Sequence[str]
) -> Iterator[list[Any]]:
    columns = images.names, images.labels.tolist(), predictions.tolist(), logits.softmax(dim=1).tolist()
    for name, label, best, probabilities in zip(*columns, strict=True):
        cells = [f"{p:.6f}" for p in probabilities]
        yield [name, classes[label], classes[best], cells[best], int(best == label), *cells]


if __name__ == "__main__":
    run(main)

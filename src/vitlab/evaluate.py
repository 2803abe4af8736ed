"""Evaluate a run on its test, validation or training images."""

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
from vitlab.metrics import VIEWS

if TYPE_CHECKING:
    from torch import Tensor

    from vitlab.data.arrays import ImageArrays
    from vitlab.loaded_model import LoadedModel


def main() -> None:
    evaluate(*read_command("evaluate", sys.argv[1:]))


def evaluate(command: DictConfig, overrides: Sequence[Override]) -> dict[str, Any]:
    """Write `evaluation_<split>.json`, `predictions_<split>.csv` and `confusion_<split>.csv` into the run; earlier ones
    are renamed.

    `command` holds the values of `conf/evaluate.yaml`, `overrides` those of the run config. UserError if one is wrong.
    Returns the content of the JSON file: loss and accuracy by their metric names, and each class's recall, precision
    and F1. With `tta=flip` also `<split>/loss_flip` and `<split>/acc_flip`; everything else is of the images alone.
    With `calibrate` also writes `calibration.json`.
    """
    split = command.split
    if split not in ("test", "val", "train"):
        raise UserError(f"split={split} is unknown; choose test, val or train")
    if command.tta not in (None, *VIEWS):
        raise UserError(f"tta={command.tta} is unknown; choose {', '.join(VIEWS)}, or null")
    if not isinstance(command.calibrate, bool):
        raise UserError(f"calibrate={command.calibrate} must be true or false")
    with no_gc_imports():  # torch is imported once the command is known to be right
        from vitlab.calibration import calibration_error, fit_temperature, write_calibration
        from vitlab.classifier import rank_classes
        from vitlab.loaded_model import open_model
        from vitlab.plots.classification import Predictions
        from vitlab.report.terminal import print_calibration, print_evaluation
        from vitlab.runs.directory import shorten_values

    model = open_model(command, overrides)
    assert model.run is not None  # conf/evaluate.yaml asks for it
    data = model.load_data()
    for needed in {split, "val"} if command.calibrate else {split}:
        if not len(data.splits[needed]):
            other = "; split=val evaluates on the validation images" if needed == "test" else " (data.val_size=0)"
            raise UserError(f"split={split}: the run has no {needed} images{other}")
    results, logits, images = measure(model, data, split, command, overrides)

    predictions = rank_classes(logits)[:, 0]
    found = Predictions(logits.softmax(dim=1), predictions, images.labels, model.classes)
    metrics = {
        **shorten_values(results),
        "images": len(images),
        "per_class": found.per_class(),
        "checkpoint": str(model.checkpoint),
        "weights": model.weights,
        "overrides": [override.input_line for override in overrides],
    }
    if command.calibrate:
        val = (logits, images.labels)
        if split != "val":
            _, val_logits, val_images = measure(model, data, "val", command, overrides)
            val = (val_logits, val_images.labels)
        temperature = fit_temperature(*val)
        metrics["calibration"] = {
            "temperature": temperature,
            "images": len(val[1]),
            f"{split}/ece": calibration_error(logits, images.labels),
            f"{split}/ece_calibrated": calibration_error(logits / temperature, images.labels),
        }
        write_calibration(model.run, metrics["calibration"], model.checkpoint, model.weights)
        print_calibration(metrics["calibration"], split)
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


def measure(
    model: LoadedModel, data: Any, split: str, command: DictConfig, overrides: Sequence[Override]
) -> tuple[dict[str, float], Tensor, ImageArrays]:
    """Metrics by their names, logits float32 `[N, classes]`, and the images of a split in the same order."""
    from vitlab.callbacks import CollectLogits, RunProgressBar, ViewAveraging
    from vitlab.compat import translate_lightning_exits
    from vitlab.config.instantiate import build
    from vitlab.distributed.strategies import cluster
    from vitlab.experiment import build_classifier

    config, collected = model.config, CollectLogits()
    given = {override.key_or_group for override in overrides}
    left_out = {  # a run that left out the test or validation is evaluated on all images
        key: None
        for key in ("limit_val_batches", "limit_test_batches")
        if config.trainer[key] == 0 and f"trainer.{key}" not in given
    }
    averaging = [ViewAveraging(command.tta)] if command.tta else []
    trainer = build(
        config.trainer,
        "trainer",
        **left_out,
        devices=1,  # so that every image is counted once, and nothing is gathered
        num_nodes=1,
        strategy="auto",
        plugins=cluster(),
        callbacks=[collected, *averaging, RunProgressBar(refresh_seconds=1.0)],
        logger=False,
        profiler=None,
        enable_progress_bar=True,
        enable_checkpointing=False,
        default_root_dir=str(model.checkpoint.parent),
    )
    stage = "test" if split == "test" else "val"  # Lightning evaluates training images as validation images
    splits, data.splits = data.splits, {**data.splits, stage: data.splits[split]}
    loop = trainer.test if stage == "test" else trainer.validate
    with translate_lightning_exits(trainer):
        results = loop(build_classifier(config, model.network), datamodule=data, verbose=False)
    data.splits = splits
    if not results:
        raise UserError(f"trainer.limit_{stage}_batches=0 leaves no image to evaluate")
    logits, index = collected.gather(trainer)
    named = {f"{split}/{key.partition('/')[2]}": value for key, value in results[0].items()}
    return named, logits, splits[split].take(index)


def prediction_rows(
    logits: Tensor, predictions: Tensor, images: ImageArrays, classes: Sequence[str]
) -> Iterator[list[Any]]:
    columns = images.names, images.labels.tolist(), predictions.tolist(), logits.softmax(dim=1).tolist()
    for name, label, best, probabilities in zip(*columns, strict=True):
        cells = [f"{p:.6f}" for p in probabilities]
        yield [name, classes[label], classes[best], cells[best], int(best == label), *cells]


if __name__ == "__main__":
    run(main)

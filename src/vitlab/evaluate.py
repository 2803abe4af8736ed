"""Evaluates a run on its validation or test images."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig
from torch import Tensor

from vitlab.callbacks import CollectLogits, FlipTTA, RunProgressBar
from vitlab.classifier import ImageClassifier, rank_classes
from vitlab.compat import silence_libraries, translate_lightning_exits
from vitlab.config.compose import apply_overrides
from vitlab.config.instantiate import build
from vitlab.config.resolve import choose_attention, resolve_machine
from vitlab.data import ImageDataModule
from vitlab.data.arrays import ImageArrays
from vitlab.distributed.strategies import cluster
from vitlab.errors import UserError
from vitlab.files import set_aside, write_json, write_text
from vitlab.loaded_model import rebuild_network
from vitlab.memory import keep_freed_memory
from vitlab.report.terminal import print_choice, print_evaluation
from vitlab.runs.checkpoint import choose_weights, read_checkpoint
from vitlab.runs.directory import RunDirectory


def evaluate(command: DictConfig, overrides: Sequence[Override], conf: Path) -> dict[str, Any]:
    """Writes `evaluation_<split>.json` and `predictions_<split>.csv` into the run; earlier ones are set aside.

    Args:
        command: The values of `conf/evaluate.yaml`.
        overrides: Of the run's config.
        conf: The folder of YAML files.

    Returns:
        What the JSON file holds: loss (nats) and accuracy by their metric names, and each class's accuracy. With `flip`
        also `<split>/loss_flip` and `<split>/acc_flip`; all else is of the single view.

    Raises:
        UserError: run, checkpoint, split or an override is wrong.
    """
    silence_libraries()
    keep_freed_memory()
    split = command.split
    if split not in ("test", "val"):
        raise UserError(f"split={split} is unknown; choose test or val")
    if not isinstance(command.flip, bool):
        raise UserError(f"flip={command.flip} must be true or false")
    run = RunDirectory.open(str(command.run), command.outputs)
    config = run.config()
    for limit in ("limit_val_batches", "limit_test_batches"):
        if config.trainer[limit] == 0:  # a run that left it out is evaluated on all images
            config.trainer[limit] = None
    apply_overrides(config, overrides, conf, command)
    resolve_machine(config)
    torch.set_float32_matmul_precision(config.matmul_precision)
    file = run.checkpoint(str(command.checkpoint))
    checkpoint = read_checkpoint(file)
    weights = choose_weights(checkpoint, command.weights, file)
    network = rebuild_network(config, checkpoint, file, list(command.trusted_targets), weights)
    choose_attention(config, network)
    print_choice(checkpoint, weights)

    data: ImageDataModule = build(config.data, "data", augmentations=[], seed=config.seed)
    data.prepare_data()
    data.setup()
    arrays = data.splits[split]
    if not len(arrays):
        raise UserError("split=val: the run has no validation images (data.val_size=0)")
    classifier = ImageClassifier(network, num_classes=config.data.num_classes, label_smoothing=0.0, seed=config.seed)
    collected = CollectLogits()
    # One device: every image is counted once, and nothing is gathered.
    trainer: pl.Trainer = build(
        config.trainer,
        "trainer",
        devices=1,
        num_nodes=1,
        strategy="auto",
        plugins=cluster(),
        callbacks=[collected, *([FlipTTA()] if command.flip else []), RunProgressBar(refresh_seconds=1.0)],
        logger=False,
        profiler=None,
        enable_progress_bar=True,
        enable_checkpointing=False,
        default_root_dir=str(run.path),
    )
    loop = trainer.test if split == "test" else trainer.validate
    with translate_lightning_exits(trainer):
        results = loop(classifier, datamodule=data, verbose=False)
    if not results:
        raise UserError(f"trainer.limit_{split}_batches=0 leaves no image to evaluate")
    metrics: dict[str, Any] = dict(results[0])

    logits, index = collected.logits, collected.index
    seen = arrays.take(index)
    metrics["images"] = len(seen)
    metrics["per_class"] = per_class(logits, seen.labels, data.spec.classes)
    metrics["checkpoint"] = str(file)
    metrics["weights"] = weights
    metrics["overrides"] = [override.input_line for override in overrides]
    json_file, csv_file = run.path / f"evaluation_{split}.json", run.path / f"predictions_{split}.csv"
    for old in (json_file, csv_file):
        set_aside(old)
    write_text(csv_file, predictions_csv(logits, seen, data.spec.classes))
    write_json(json_file, metrics)
    print_evaluation(metrics, split, [json_file, csv_file])
    return metrics


def per_class(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each class its number of images and the fraction of them recognised (None without images)."""
    correct = rank_classes(logits)[:, 0] == labels
    table = {}
    for label, name in enumerate(classes):
        own = correct[labels == label]
        table[name] = {"images": len(own), "acc": own.float().mean().item() if len(own) else None}
    return table


def predictions_csv(logits: Tensor, arrays: ImageArrays, classes: Sequence[str]) -> str:
    """A row an image: its name, label, prediction, the prediction's probability, and the probability of each class."""
    probabilities = logits.softmax(dim=1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "prediction", "probability", "correct", *(f"p({name})" for name in classes)])
    predictions = rank_classes(logits)[:, 0].tolist()
    labels = arrays.labels.tolist()
    for name, label, best, row in zip(arrays.names, labels, predictions, probabilities.tolist(), strict=True):
        cells = [f"{p:.6f}" for p in row]
        writer.writerow([name, classes[label], classes[best], cells[best], int(best == label), *cells])
    return text.getvalue()

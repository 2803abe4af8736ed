"""Evaluate a run on its test, validation or training images."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from vitlab.arguments.command import check_switches, read_command
from vitlab.cli import run
from vitlab.errors import UserError, list_some
from vitlab.files import expand_home, make_folder, set_aside, shorten, write_csv, write_json
from vitlab.metrics import VIEWS
from vitlab.runs.imports import fast_imports

# Sources that would download their images into another folder.
DOWNLOADED = tuple(f"vitlab.data.{name}DataModule" for name in ("CIFAR10", "CIFAR100", "Torchvision"))

if TYPE_CHECKING:
    from torch import Tensor

    from vitlab.data import ImageDataModule
    from vitlab.data.arrays import ImageArrays
    from vitlab.loaded_model import LoadedModel


def main() -> None:
    evaluate(*read_command("evaluate", sys.argv[1:]))


def evaluate(command: DictConfig, overrides: Sequence[Override]) -> dict[str, Any]:
    """Write `evaluation_<split>.json`, `predictions_<split>.csv` and `confusion_<split>.csv` into the run, or without a
    run into the working directory; earlier ones are renamed.

    `command` holds the values of `conf/evaluate.yaml`, `overrides` those of the run config. UserError if one is wrong.
    Returns the content of the JSON file: loss and accuracy by their metric names, and each class's recall, precision
    and F1. With `tta=flip` also `<split>/loss_flip` and `<split>/acc_flip`; everything else is of the images alone.
    With `calibrate` also writes `calibration.json`. With `knn` also `<split>/knn_acc`, with neighbours among all
    training images.
    """
    split = command.split
    if split not in ("test", "val", "train"):
        raise UserError(f"split={split} is unknown; choose test, val or train")
    if command.tta not in (None, *VIEWS):
        raise UserError(f"tta={command.tta} is unknown; choose {', '.join(VIEWS)}, or null")
    check_switches(command, "calibrate", "knn")
    if command.knn and split == "train":
        raise UserError("knn=true needs split=test or split=val: a training image would be its own neighbour")
    with fast_imports():  # torch is imported once the command is known to be right
        import torch

        from vitlab.loaded_model import open_model
        from vitlab.metrics.evaluation import rank_classes
        from vitlab.models.features import head_features
        from vitlab.plots.classification import Predictions
        from vitlab.report.terminal import print_calibration, print_evaluation
        from vitlab.runs.calibration import calibration_error, fit_temperature, write_calibration
        from vitlab.runs.directory import shorten_values

    model = open_model(command, overrides)
    folder = model.run.path if model.run else Path()
    make_folder(folder, key="run")  # the results go there
    if command.calibrate and model.run is None:
        raise UserError("calibrate=true needs run=<run directory>, which keeps the temperature")
    evaluated = {split, "val"} if command.calibrate else {split}
    data = load_images(model, split, overrides, {*evaluated, "train"} if command.knn else evaluated)
    for needed in evaluated:
        if not len(data.splits.get(needed, ())):
            words = {"val": "validation", "train": "training"}.get(needed, needed)
            other = "; split=val evaluates on the validation images" if needed == "test" else " (data.val_size=0)"
            raise UserError(f"split={split}: the run has no {words} images{other}")
    if command.knn:
        if not data.splits.get("train"):
            raise UserError("knn=true needs the run's own data: leave out data.root")
        with torch.inference_mode():  # refuse a model without features before all images are evaluated
            head_features(model.forward, model.preprocess(data.splits["train"].pick(slice(1))))
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
            plain: Any = OmegaConf.merge(command, {"tta": None, "knn": False})
            _, val_logits, val_images = measure(model, data, "val", plain, overrides)
            val = (val_logits, val_images.labels)
        temperature = fit_temperature(*val)
        metrics["calibration"] = {
            "temperature": temperature,
            "images": len(val[1]),
            f"{split}/ece": calibration_error(logits, images.labels),
            f"{split}/ece_calibrated": calibration_error(logits / temperature, images.labels),
        }
        assert model.run is not None
        write_calibration(model.run, metrics["calibration"], model.checkpoint, model.weights)
        print_calibration(metrics["calibration"], split)
    names = f"evaluation_{split}.json", f"predictions_{split}.csv", f"confusion_{split}.csv"
    json_file, csv_file, matrix_file = files = [folder / name for name in names]
    for old in files:
        set_aside(old)
    columns = ["image", "label", "prediction", "probability", "correct", *(f"p({name})" for name in model.classes)]
    write_csv(csv_file, columns, prediction_rows(logits, predictions, images, model.classes))
    write_json(json_file, metrics)
    heads, *rows = found.confusion_table()
    write_csv(matrix_file, heads, rows)
    print_evaluation(metrics, split, len(data.splits[split]), files)
    return metrics


def load_images(
    model: LoadedModel, split: str, overrides: Sequence[Override], needed: Collection[str] = ()
) -> ImageDataModule:
    """The images of a split to evaluate on, and the splits that are `needed` for that, without augmentations, in
    memory.

    If `data.root` is given and has `<split>/<class>/*` or `<class>/*`, with some of the run's classes, these are all
    images in it. They are those of the run, with its splits, if they are its own, or its data has another layout.
    """
    from vitlab.data.folder_layout import class_folders

    config, given = model.config, {override.key_or_group for override in overrides}
    root = config.data.get("root") if given & {"data", "data.root"} else None
    if root is None:
        return model.load_data()
    top = Path(expand_home(root))
    places = {folder: class_folders(folder) for folder in (top / split, top)}
    # All images of test/<class>/ are the run's own test images, or others; what else it has, only its data can tell.
    found = set(places[top / split])
    is_plain = split == "test" and {*needed} <= {split} and found and found <= set(model.classes)
    if model.run and not is_plain and config.data["_target_"] not in DOWNLOADED:
        with suppress(UserError):
            data, known = model.load_data(), model.run.manifest().get("data", {})
            if all(known.get(name) and data.fingerprints().get(name) == known[name] for name in {split, *needed}):
                return data
    folder = next((place for place, inner in places.items() if _holds_classes(place, inner, model.classes)), None)
    if folder is None:
        return model.load_data()
    return model.with_images(**{split: _read_class_folders(folder, places[folder], config)})


def _holds_classes(folder: Path, inner: Collection[str], classes: Sequence[str]) -> bool:
    """Whether a folder has `inner` folders that are named after classes; UserError if others have other names."""
    names = set(inner)
    if (known := names & set(classes)) and known != names:
        unknown = list_some(sorted(names - known))
        raise UserError(f"data.root: {folder} has folders that are none of the run's classes: {unknown}")
    return bool(known)


def _read_class_folders(folder: Path, inner: Mapping[str, Path], config: DictConfig) -> ImageArrays:
    """All images of the folders in `folder`, by their classes; UserError if there are none, or one can't be read."""
    import torch

    from vitlab.data.arrays import ImageArrays
    from vitlab.predict import check_all_read, find_images, read_batches
    from vitlab.runs.console import show

    labels: dict[Path, int] = {}
    for name, place in inner.items():
        labels |= dict.fromkeys(find_images(place)[0], config.data.classes.index(name))
    failures: dict[str, str] = {}
    batches = list(read_batches(list(labels), config.data, failures, config.data.eval_batch_size))
    paths = [path for some, _ in batches for path in some]
    check_all_read({} if config.data.get("skip_unreadable") else failures, len(paths), folder)
    left_out = f"; left out, because they can't be read: {len(failures)}" if failures else ""
    show(f"images: all {len(paths):,} of the class folders in {shorten(folder)}{left_out}")
    names = [str(path.relative_to(folder)) for path in paths]
    return ImageArrays.of(torch.cat([images for _, images in batches]), torch.tensor([labels[p] for p in paths]), names)


def measure(
    model: LoadedModel, data: ImageDataModule, split: str, command: DictConfig, overrides: Sequence[Override]
) -> tuple[dict[str, float], Tensor, ImageArrays]:
    """Metrics by their names, logits float32 `[N, classes]`, and the images of a split in the same order."""
    from vitlab.callbacks import CollectLogits, Features, RunProgressBar, ViewAveraging
    from vitlab.compat import translate_lightning_exits
    from vitlab.components import build_classifier
    from vitlab.config.instantiate import build
    from vitlab.distributed.strategies import cluster

    config, collected = model.config, CollectLogits()
    given = {override.key_or_group for override in overrides}
    left_out = {  # a run that left out the test or validation is evaluated on all images
        key: None
        for key in ("limit_val_batches", "limit_test_batches")
        if config.trainer[key] == 0 and f"trainer.{key}" not in given
    }
    further: list[Any] = [ViewAveraging(command.tta)] if command.tta else []
    further += [Features("off", knn_images=None)] if command.knn else []
    trainer = build(
        config.trainer,
        "trainer",
        **left_out,
        devices=1,  # so that every image is counted once, and nothing is gathered
        num_nodes=1,
        strategy="auto",
        plugins=cluster(),
        callbacks=[collected, *further, RunProgressBar(refresh_seconds=1.0)],
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

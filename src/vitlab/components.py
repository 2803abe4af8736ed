"""Build the components of a run from its config: data, classifier, trainer."""

from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar

from vitlab.callbacks import (
    BestCheckpoint,
    EpochCheckpoint,
    FinalValidation,
    LastCheckpoint,
    MetricsCSV,
    RunProgressBar,
    TimeLimit,
)
from vitlab.classifier import ImageClassifier
from vitlab.compat import count_epochs_from_one, skip_signal_broadcast
from vitlab.config.instantiate import build as build_node
from vitlab.config.instantiate import build_loss, build_named_metrics
from vitlab.data import ImageDataModule
from vitlab.distributed.failure_report import FailureReporter
from vitlab.distributed.strategies import cluster
from vitlab.metrics import mode_of
from vitlab.runs.checkpoint import ConfigInCheckpoint, WholeCheckpointIO
from vitlab.runs.directory import RunDirectory


def load_data(config: DictConfig, stage: str | None = None) -> ImageDataModule:
    """The data module of a config, with its images in memory; `stage` is "fit" for a training."""
    data = build_data(config)
    data.prepare_data()
    data.setup(stage)
    return data


def build_data(config: DictConfig) -> ImageDataModule:
    augmentations = [build_node(node, f"augment.{name}") for name, node in config.augment.items() if node is not None]
    data: ImageDataModule = build_node(config.data, "data", augmentations=augmentations, seed=config.seed)
    return data


def build_classifier(config: DictConfig, model: torch.nn.Module) -> ImageClassifier:
    return ImageClassifier(
        model,
        num_classes=config.data.num_classes,
        loss=build_loss(config.loss),
        metrics=build_named_metrics(config.metrics),
        seed=config.seed,
        optimizer=build_node(config.optimizer, "optimizer"),
        finetuning=build_node(config.finetune, "finetune"),
        scheduler=build_node(config.scheduler.schedule, "scheduler.schedule"),
        interval=config.scheduler.interval,
        monitor=config.scheduler.monitor,
        max_steps=config.trainer.max_steps,
    )


def build_trainer(config: DictConfig, run: RunDirectory, loggers: list[Any]) -> pl.Trainer:
    """The trainer, with the config's callbacks and those that end the run and write its directory."""
    named = {name: build_node(n, f"callbacks.{name}") for name, n in config.callbacks.items() if n is not None}
    for name, callback in named.items():
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:  # else it would follow the logger
            callback.dirpath = str(run.checkpoints / str(name))
    bars = [callback for callback in named.values() if isinstance(callback, ProgressBar)]
    own_bars = [bar for bar in bars if not isinstance(bar, RunProgressBar)]  # replace vitlab's: Lightning takes one
    shown = (own_bars or bars) if config.trainer.enable_progress_bar else []
    callbacks = [callback for callback in named.values() if callback in shown or callback not in bars]
    validates = config.data.val_size > 0 and config.trainer.limit_val_batches != 0

    # In this order: what ends the run, what then validates its last state, and what saves that.
    callbacks += [FailureReporter(run.path), *time_limit(config), FinalValidation()]
    callbacks += [ConfigInCheckpoint(as_plain_data(config)), MetricsCSV(run.epochs_file)]
    monitor = config.checkpoint.monitor
    if validates or not monitor.startswith("val/"):
        selection: dict[str, Any] = {
            "monitor": monitor,
            "mode": mode_of(monitor, config.checkpoint.get("mode")),
            "save_on_train_epoch_end": monitor.startswith("train/") or None,  # None: Lightning decides
        }
        callbacks.append(BestCheckpoint(run.checkpoints, "best", enable_version_counter=False, **selection))
        if (kept := config.checkpoint.save_top_k) != 1:
            callbacks.append(_epochs_to_keep(run, "top_epoch_{epoch:03d}", save_top_k=kept, **selection))
    if every := config.checkpoint.every_n_epochs:  # of all epochs: Lightning by itself saves only validated ones
        which = {"every_n_epochs": every, "save_top_k": -1, "save_on_train_epoch_end": True}
        callbacks.append(_epochs_to_keep(run, "epoch_{epoch:03d}", **which))
    epochs, minutes = config.checkpoint.last_every_n_epochs, config.checkpoint.every_minutes
    callbacks.append(LastCheckpoint(run.checkpoints / "last.ckpt", every_n_epochs=epochs, every_minutes=minutes))

    trainer: pl.Trainer = build_node(
        config.trainer,
        "trainer",
        callbacks=callbacks,
        max_epochs=-1 if config.trainer.max_epochs is None else config.trainer.max_epochs,
        max_time=None,  # TimeLimit ends the run
        max_steps=-1,  # FinalValidation ends it: with max_steps Lightning resumes the end of an epoch as its middle
        limit_val_batches=config.trainer.limit_val_batches if validates else 0,
        # A compiled model needs one graph for validation and test, made before the clock of trainer.max_time starts:
        # Lightning validates without inference mode, and its sanity check changes neither random numbers nor metrics.
        inference_mode=config.trainer.inference_mode and not config.compile,
        num_sanity_val_steps=config.trainer.num_sanity_val_steps or int(bool(config.compile)),
        logger=loggers or False,
        enable_progress_bar=bool(shown),
        plugins=[WholeCheckpointIO(), *cluster()],
        default_root_dir=str(run.path),
    )
    skip_signal_broadcast(trainer)
    count_epochs_from_one(trainer)
    return trainer


def _epochs_to_keep(run: RunDirectory, name: str, **which: Any) -> EpochCheckpoint:
    return EpochCheckpoint(run.checkpoints, name, auto_insert_metric_name=False, enable_version_counter=False, **which)


def time_limit(config: DictConfig) -> list[TimeLimit]:
    """The callback that ends the run after `trainer.max_time`; empty without that."""
    duration = config.trainer.max_time
    if isinstance(duration, DictConfig):
        duration = build_node(duration, "trainer.max_time")
    return [] if duration is None else [TimeLimit(duration)]


def as_plain_data(config: DictConfig) -> dict[str, Any]:
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return plain

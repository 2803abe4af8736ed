"""A training run on one page: config -> objects -> fit -> test -> run directory."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.utilities import rank_zero_only

from vitlab.callbacks import BestCheckpoint, FinalValidation, LastCheckpoint, MetricsCSV, TimeLimit
from vitlab.classifier import ImageClassifier
from vitlab.compat import silence_libraries, translate_lightning_exits
from vitlab.config.compose import typed_overrides
from vitlab.config.instantiate import build, build_network, keep_accepted_model_keys, weight_keys
from vitlab.config.resolve import choose_attention, resolve_machine
from vitlab.data import ImageDataModule
from vitlab.distributed.broadcast import broadcast_from_rank0
from vitlab.distributed.failure_report import FailureReporter, fail_together
from vitlab.distributed.strategies import cluster
from vitlab.errors import PeerError, TerminatedError, UserError
from vitlab.files import set_aside, write_json
from vitlab.memory import keep_freed_memory
from vitlab.preflight import CheckContext, run_preflight
from vitlab.report.page import write_report
from vitlab.report.tensorboard import finish_tensorboard, log_text, start_tensorboard
from vitlab.report.terminal import print_header, print_interrupted, print_preflight, print_results, print_weights
from vitlab.runs.checkpoint import METRICS_KEY, ConfigInCheckpoint, WholeCheckpointIO, read_checkpoint
from vitlab.runs.directory import RunDirectory
from vitlab.runs.loggers import resume_kwargs, save_logger_run_id
from vitlab.runs.manifest import describe_origin, differences
from vitlab.weights import LoadReport, Weights, find_weights, fit_weights

log = logging.getLogger(__name__)


def train(
    config: DictConfig, overrides: Sequence[str] | None = None, beside: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Trains and tests what a composed config describes, and leaves the run directory.

    Args:
        config: Composed.
        overrides: What of it the user typed; None asks Hydra.
        beside: The manifest of the run that this one is to repeat; what differs is said before training.

    Returns:
        The final metrics, as in `metrics.json`.

    Raises:
        UserError: the config or the data is wrong.
        KeyboardInterrupt, TerminatedError: the run was interrupted; `checkpoints/last.ckpt` is written.
    """
    started = time.perf_counter()
    configure_process(config)
    keep_accepted_model_keys(config, typed_overrides(HydraConfig.get()) if overrides is None else overrides)
    weights = weights_to_start_from(config)
    data = load_data(config)
    network = build_network(config.model)
    report = fit_weights(network, weights, data.facts["classes"]) if weights and weights.state else None
    choose_execution(config, network)
    classifier = build_classifier(config, network)

    resolved = as_plain_data(config)
    run = RunDirectory(Path(config.run_dir))
    trainer = build_trainer(config, resolved, run)
    save_logger_run_id(trainer, resolved)
    begin_run(run, resolved, data, network, weights, report)
    if beside is not None:
        warn_of_differences(beside, run)
    print_header(config, data, network, trainer, run.path)
    if weights and report:
        print_weights(weights, report)
    with run_lock(run), record_final_status(run, config):
        mode = config.preflight or "off"  # YAML reads an unquoted off as false
        if mode != "off" and trainer.is_global_zero:
            subject = CheckContext(
                classifier,
                data,
                trainer,
                expected_input=weights.input if weights else {},
                head_is_loaded=report is not None and not report.new_head,
                positions=config.model.get("pos_embed") != "none",
                batch=data.first_batch(trainer.strategy.root_device),
            )
            check_before_training(subject, run, mode)
        if mode == "only":
            end_run(run, "checked")
            return {}
        start_tensorboard(trainer, resolved, run)
        return fit_and_test(config, trainer, classifier, data, run, started)


def configure_process(config: DictConfig) -> None:
    """What holds for the whole process: messages, precision, seeds."""
    silence_libraries()
    keep_freed_memory()
    resolve_machine(config)
    torch.set_float32_matmul_precision(config.matmul_precision)
    pl.seed_everything(config.seed, verbose=False)


def as_plain_data(config: DictConfig) -> dict[str, Any]:
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return resolved


@contextmanager
def run_lock(run: RunDirectory) -> Iterator[None]:
    """Keeps other runs' processes out of a run's directory; the first process does it for those beside it."""
    with run.locked() if getattr(rank_zero_only, "rank", 0) == 0 else nullcontext():
        yield


@contextmanager
def record_final_status(run: RunDirectory, config: DictConfig) -> Iterator[None]:
    """Writes into the manifest how a run ended that did not get to its end."""
    try:
        yield
    except (KeyboardInterrupt, TerminatedError):
        with suppress(OSError):  # the disk may be full
            end_run(run, "interrupted")
        print_interrupted(config, run)
        write_report(run)
        raise
    except BaseException as error:
        with suppress(OSError):
            end_run(run, "failed")
        if isinstance(error, PeerError):
            print_interrupted(config, run)
        write_report(run)
        raise


def fit_and_test(
    config: DictConfig,
    trainer: pl.Trainer,
    classifier: ImageClassifier,
    data: ImageDataModule,
    run: RunDirectory,
    started: float,
    checkpoint: Path | None = None,
) -> dict[str, float]:
    """Trains, from a checkpoint on where there is one, tests, and writes and prints the final metrics."""
    broadcast_from_rank0(
        "start", lambda: "", wait=timedelta(days=1)
    )  # the first process has looked at images and network alone
    with translate_lightning_exits(trainer):
        with fail_together(trainer, lambda: end_run(run, "failed")):
            trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            rows = next(c for c in trainer.callbacks if isinstance(c, MetricsCSV))  # type: ignore[attr-defined]
            before = rows.seconds  # of earlier processes; the test loads the checkpoint's, which has this one's too
            metrics = test_selected(trainer, classifier, data, run)
        if trainer.is_global_zero:
            metrics["seconds"] = round(before + time.perf_counter() - started, 1)
            set_aside(run.metrics_file)  # of a run that was finished, and was made longer
            write_json(run.metrics_file, metrics)
            end_run(run, "finished")
            finish_tensorboard(trainer, as_plain_data(config), metrics, run)
            write_report(run)
            print_results(config, metrics, run.path)
    return metrics


def build_data(config: DictConfig) -> ImageDataModule:
    augmentations = [build(node, f"augment.{name}") for name, node in config.augment.items() if node is not None]
    data: ImageDataModule = build(config.data, "data", augmentations=augmentations, seed=config.seed)
    return data


def load_data(config: DictConfig) -> ImageDataModule:
    """The images in memory; what they say of themselves is in the config then."""
    data = build_data(config)
    data.prepare_data()
    data.setup()
    adopt_facts(config, data)
    return data


def adopt_facts(config: DictConfig, data: ImageDataModule) -> None:
    """Writes what the data knows of itself (classes, mean ...) into the config, where the config left it open."""
    for key, value in data.facts.items():
        config.data[key] = value


def weights_to_start_from(config: DictConfig) -> Weights | None:
    """Finds the weights that the config asks for, and writes what they were trained on (image size, mean, std,
    interpolation) into it where it left that open; says so where it chose something else.

    Raises:
        UserError: the weights can't be had, or nothing says how the images come to the network.
    """
    if config.init_from is not None:
        if config.model.get("weights") is not None:
            raise UserError("init_from and model.weights both name weights to start from: take one")
        config.model.weights = str(checkpoint_of(config.init_from))
    choice = {key: config.model.get(key) for key in weight_keys(config.model)}
    weights = find_weights(choice, config.model.get("name"), config.init_weights)
    known, origin = (weights.input, weights.input_origin) if weights else ({}, "")
    for key, value in known.items():
        chosen = config.data[key]
        if chosen is None:
            config.data[key] = value
        elif chosen != value:  # a ListConfig equals the list
            rank_zero_only(log.warning)(
                f"data.{key}={chosen}, but {origin} was trained with {value}; data.{key}=null takes that"
            )
    for key in ("image_size", "interpolation"):
        if config.data[key] is None:
            raise UserError(f"data.{key} must be given: there are no pretrained weights that it could be taken from")
    return weights


def checkpoint_of(place: str) -> Path:
    """The file behind a run directory (its best checkpoint) or a path to a checkpoint.

    Raises:
        UserError: there is none.
    """
    path = Path(place)
    if path.is_dir():
        return RunDirectory.open(place, "outputs", key="init_from").checkpoint("best")
    if not path.exists():
        raise UserError(f"init_from={place} does not exist; it names a run directory or a checkpoint")
    return path


def choose_execution(config: DictConfig, network: torch.nn.Module) -> None:
    """How the network is computed when it trains.

    Raises:
        UserError: it can't be computed so.
    """
    if config.gradient_checkpointing:
        recompute: Any = getattr(network, "set_grad_checkpointing", None)
        try:
            recompute(True)
        except (TypeError, AssertionError):  # there is no such method, or as timm says it
            raise UserError(
                f"gradient_checkpointing=true: {type(network).__name__} has no such thing; timm's name for it is a "
                "method set_grad_checkpointing(enable)"
            ) from None
    choose_attention(config, network)
    if config.compile:
        network.compile()  # in place: unlike torch.compile(network), it leaves the names of the weights alone


def build_classifier(config: DictConfig, network: torch.nn.Module) -> ImageClassifier:
    return ImageClassifier(
        network,
        num_classes=config.data.num_classes,
        label_smoothing=config.label_smoothing,
        seed=config.seed,
        optimizer=build(config.optimizer, "optimizer"),
        finetuning=build(config.finetune, "finetune"),
        scheduler=build(config.scheduler.schedule, "scheduler.schedule"),
        interval=config.scheduler.interval,
        monitor=config.scheduler.monitor,
    )


def build_trainer(
    config: DictConfig, resolved: dict[str, Any], run: RunDirectory, step: int | None = None
) -> pl.Trainer:
    """The trainer of a run; of one that goes on from a `step` on, with the dashboard that it had."""
    callbacks = [build(node, f"callbacks.{name}") for name, node in config.callbacks.items() if node is not None]
    if not config.trainer.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    clock = time_limit(config)
    selects = config.data.val_size > 0 and config.trainer.limit_val_batches != 0
    trainer: pl.Trainer = build(
        config.trainer,
        "trainer",
        callbacks=[
            *callbacks,
            FailureReporter(run.path),
            *([clock] if clock is not None else []),
            FinalValidation(),
            ConfigInCheckpoint(resolved),
            MetricsCSV(run.epochs_file),
            *([best_checkpoint(run, config.checkpoint)] if selects else []),
            LastCheckpoint(
                run.checkpoints / "last.ckpt",
                every_n_epochs=config.checkpoint.last_every_n_epochs,
                every_minutes=config.checkpoint.every_minutes,
            ),
        ],
        max_time=None,  # the clock's affair
        limit_val_batches=config.trainer.limit_val_batches if selects else 0,
        logger=build(config.logger, "logger", **resume_kwargs(config.logger, step)) if config.logger else False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        plugins=[WholeCheckpointIO(), *cluster()],
        default_root_dir=str(run.path),
    )
    # Where the run's length is given in steps, Lightning takes an epoch's end, at which we save, for its middle.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    return trainer


def time_limit(config: DictConfig) -> TimeLimit | None:
    """What ends the run by `trainer.max_time`."""
    duration = config.trainer.max_time
    if isinstance(duration, DictConfig):
        duration = build(duration, "trainer.max_time")
    return None if duration is None else TimeLimit(duration)


def best_checkpoint(run: RunDirectory, choice: DictConfig) -> ModelCheckpoint:
    """`best.ckpt` by the monitored metric."""
    return BestCheckpoint(
        dirpath=run.checkpoints,
        filename="best",
        monitor=choice.monitor,
        mode=choice.mode,
        enable_version_counter=False,
    )


@rank_zero_only
def end_run(run: RunDirectory, status: str) -> None:
    run.end(status)


def fingerprints(data: ImageDataModule) -> dict[str, dict[str, Any]]:
    """Number and SHA-256 of each split's images and labels."""
    return {name: {"images": len(split), "sha256": split.fingerprint()} for name, split in data.splits.items()}


@rank_zero_only
def begin_run(
    run: RunDirectory,
    resolved: dict[str, Any],
    data: ImageDataModule,
    network: torch.nn.Module,
    weights: Weights | None,
    report: LoadReport | None,
) -> None:
    """Writes what is known before training."""
    manifest = {**describe_origin(), "seed": resolved["seed"], "data": fingerprints(data), "weights": None}
    manifest["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    if weights and report:
        manifest["weights"] = {"from": weights.origin, "sha256": weights.fingerprint(), **asdict(report)}
    run.create(resolved, manifest)


@rank_zero_only
def warn_of_differences(then: Mapping[str, Any], run: RunDirectory) -> None:
    different = differences(then, run.manifest())
    if different:
        log.warning(f"the numbers may differ from the other run's, as there differ {', '.join(different)}")


def check_before_training(subject: CheckContext, run: RunDirectory, mode: str) -> None:
    """Looks at the run's objects, prints what was found, and keeps it in `preflight.json` and the dashboard.

    Raises:
        UserError: a check failed, and the mode is not "warn".
    """
    preflight = run_preflight(subject, run.checkpoints)
    write_json(run.path / "preflight.json", preflight.as_data())
    log_text(subject.trainer, "preflight", preflight.as_markdown())
    print_preflight(preflight, every_check=mode == "only")
    if preflight.failures and mode != "warn":
        names = ", ".join(finding.check for finding in preflight.failures)
        raise UserError(f"preflight: {names} failed: see above; preflight=warn trains all the same")


def test_selected(
    trainer: pl.Trainer, classifier: ImageClassifier, data: ImageDataModule, run: RunDirectory
) -> dict[str, float]:
    """Tests the best checkpoint (the last one where nothing was selected): metrics of its epoch and of the test."""
    # The first process looks for all: another machine's view of the file system may lag behind.
    selected: Any = trainer.strategy.broadcast(_selected(run) if trainer.is_global_zero else None)
    file, metrics = selected
    if trainer.limit_test_batches != 0:
        results = trainer.test(classifier, datamodule=data, ckpt_path=file, verbose=False, weights_only=True)
        metrics = {**metrics, **results[0]}
    return metrics


def _selected(run: RunDirectory) -> tuple[str, dict[str, float]]:
    """The checkpoint that is tested, and the metrics of its epoch."""
    file = run.checkpoint("best")
    checkpoint = read_checkpoint(file, tensors=False)
    # The checkpoint's own validation: with val_check_interval it may have come in the middle of its epoch.
    metrics = {**run.epoch_row(checkpoint["epoch"]), **checkpoint[METRICS_KEY]}
    return str(file), {**metrics, "epoch": checkpoint["epoch"], "step": checkpoint["global_step"]}

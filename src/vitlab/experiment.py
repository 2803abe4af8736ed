"""Train and test a model: resolve the config, build its objects, fit, test.

`train` is the whole story. A resumed run (`vitlab.resume`) takes its config from its directory, and then uses the same
`resolve`, `build` and `fit_and_test`.
"""

import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write
from pytorch_lightning.utilities import rank_zero_only

from vitlab.callbacks import MetricsCSV
from vitlab.classifier import ImageClassifier
from vitlab.compat import silence_libraries, translate_lightning_exits
from vitlab.components import as_plain_data, build_classifier, build_trainer, load_data, time_limit
from vitlab.config.compose import typed_overrides
from vitlab.config.cross_field_checks import few_classes
from vitlab.config.instantiate import build_network, fill_collections, keep_accepted_keys
from vitlab.config.resolve import resolve_machine
from vitlab.data import ImageDataModule
from vitlab.distributed.failure_report import fail_together
from vitlab.distributed.process import broadcast_from_rank0
from vitlab.errors import PeerError, TerminatedError, UserError
from vitlab.files import expand_home, write_json, write_text
from vitlab.losses import balanced_weights
from vitlab.models.execution import check_logits, choose_execution, has_cuda, pays_to_compile
from vitlab.preflight import CheckContext, TimeEstimate, run_preflight
from vitlab.report.html import write_report
from vitlab.report.tensorboard import finish_tensorboard, log_text, start_tensorboard
from vitlab.report.terminal import print_header, print_interrupted, print_preflight, print_results, print_weights
from vitlab.runs.checkpoint import METRICS_KEY, read_checkpoint
from vitlab.runs.console import show
from vitlab.runs.directory import RunDirectory, shorten_values
from vitlab.runs.loggers import build_loggers, logger_run_ids
from vitlab.runs.manifest import describe_origin, differences
from vitlab.system import keep_freed_memory
from vitlab.weights import LoadReport, Weights, fit_weights, weights_to_start_from
from vitlab.weights.hub import PREFIX

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """What `build` makes of a config: `config` is complete and read-only, and is what the run saves."""

    config: DictConfig
    run: RunDirectory
    data: ImageDataModule
    classifier: ImageClassifier
    trainer: pl.Trainer
    weights: Weights | None  # that the model starts from
    load_report: LoadReport | None  # which of them fit the model


def train(
    config: DictConfig, overrides: Sequence[str] | None = None, compare_with: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Trains and tests what a composed config describes, and writes the run directory.

    Args:
        config: Composed by Hydra; it is not changed.
        overrides: The part of it that the user gave on the command line; None asks Hydra.
        compare_with: Manifest of a run that this one repeats; differences in code, versions and machine are logged.

    Returns the final metrics, as in `metrics.json`. Raises UserError if the config or the data is wrong, and
    KeyboardInterrupt or TerminatedError if the run was interrupted, once `checkpoints/last.ckpt` is written.
    """
    started = time.perf_counter()

    # Resolve: decide what the config leaves open. From here on it is read-only.
    prepare_process(config)
    weights = weights_to_start_from(config)
    config = resolve(config, weights, typed_overrides(HydraConfig.get()) if overrides is None else overrides)

    # Build: the data in memory, the model with its first weights, the trainer.
    experiment = build(config, weights)

    # Open the run directory: config.yaml and manifest.json.
    begin_run(experiment, compare_with)
    with experiment.run.locked(), record_final_status(experiment):
        # Preflight: check a copy of the model on the first batch. preflight=only ends here.
        check_before_training(experiment, started)
        if config.preflight == "only":
            experiment.run.end("checked")
            return {}

        # Fit, test, report.
        start_tensorboard(experiment.trainer, as_plain_data(experiment.config), experiment.run)
        return fit_and_test(experiment, started)


# Resolve


def prepare_process(config: DictConfig) -> None:
    """Sets what holds for the whole process: messages, memory, precision of matrix products, seeds."""
    silence_libraries()
    keep_freed_memory()
    torch.set_float32_matmul_precision(config.matmul_precision)
    pl.seed_everything(config.seed, verbose=False)


def resolve(config: DictConfig, weights: Weights | None = None, overrides: Sequence[str] = ()) -> DictConfig:
    """Returns a read-only copy of a config in which everything is decided that does not need the loaded data.

    Replaces each `auto` by what this machine has; takes image size, mean, std and interpolation from pretrained weights
    where the config has null; drops the keys that a `_target_` on the command line does not take, and says so.
    UserError if this machine can't train so, or nothing says how large the images are.
    """
    resolved = _editable_copy(config)
    fill_collections(resolved)
    if dropped := keep_accepted_keys(resolved, overrides):
        rank_zero_only(show)(f"left out, because the new _target_ does not take them: {', '.join(dropped)}")
    resolve_machine(resolved)
    if weights and str(resolved.model.get("name")).startswith(PREFIX):  # the run does not need the hub again
        arguments = {**weights.model["kwargs"], **(resolved.model.kwargs or {})}
        resolved.model.merge_with({**weights.model, "kwargs": arguments})
    for key, value in (weights.input if weights else {}).items():
        chosen = resolved.data[key]
        if chosen is None:
            resolved.data[key] = value
        elif chosen != value and weights:  # a ListConfig equals its list
            rank_zero_only(log.warning)(
                f"data.{key}={chosen}, but {weights.input_origin} was trained with {value}; data.{key}=null takes that"
            )
    for key in ("image_size", "interpolation"):
        if resolved.data[key] is None:
            raise UserError(f"data.{key} must be given: there are no pretrained weights to take it from")
    OmegaConf.set_readonly(resolved, True)
    return resolved


def add_data_facts(config: DictConfig, data: ImageDataModule, logger: Mapping[str, Any]) -> DictConfig:
    """Completes a resolved config by the facts of the loaded data, such as the classes and their weights in the loss,
    and keys of the `logger` group, in a read-only copy without interpolations: what `config.yaml` and checkpoints
    hold. UserError if a metric that selects epochs needs more classes."""
    complete = _editable_copy(config)
    complete.merge_with({"data": data.spec.as_config(), **({"logger": dict(logger)} if logger else {})})
    for key in ("root", "file", "cache_dir"):  # the run is also used from other folders
        if complete.data.get(key):
            complete.data[key] = str(Path(expand_home(complete.data[key])).absolute())
    if complete.loss.get("class_weights") == "balanced":
        complete.loss.class_weights = balanced_weights(data.splits["train"].labels, data.spec.num_classes)
    plain = as_plain_data(complete)
    if mistakes := [f"{path}: {sentence}" for path, sentence in few_classes(plain)]:
        raise UserError("; ".join(mistakes))
    complete = OmegaConf.create(plain)
    OmegaConf.set_readonly(complete, True)
    return complete


def _editable_copy(config: DictConfig) -> DictConfig:
    twin = copy.deepcopy(config)
    OmegaConf.set_readonly(twin, False)
    OmegaConf.set_struct(twin, False)
    return twin


# Build


def build(config: DictConfig, weights: Weights | None = None, step: int | None = None) -> Experiment:
    """Loads the data of a resolved config, then builds model, classifier and trainer; `step` is that of a resumed run.
    UserError if the data can't be loaded, or a class refuses its arguments."""
    data = load_data(config, "fit")
    loggers = build_loggers(config.logger, step)
    config = add_data_facts(config, data, logger_run_ids(loggers) if step is None else {})
    model = build_network(config.model)
    check_logits(config, model)
    load_report = fit_weights(model, weights, data.spec.classes) if weights and weights.state else None
    if config.compile == "auto":
        budget = min((clock.seconds for clock in time_limit(config)), default=math.inf)
        with read_write(config):
            config.compile = pays_to_compile(config, model, len(data.splits["train"]), budget)
    choose_execution(config, model)
    if config.compile and has_cuda(config.trainer.accelerator):  # a CPU augments only the images that are chosen
        data.transform.compile(dynamic=False)
    run = RunDirectory(Path(config.run_dir))
    trainer = build_trainer(config, run, list(loggers.values()))
    return Experiment(config, run, data, build_classifier(config, model), trainer, weights, load_report)


# Open and close the run directory


@rank_zero_only
def begin_run(experiment: Experiment, compare_with: Mapping[str, Any] | None) -> None:
    """Writes and prints what is known before training."""
    config, run, weights, report = experiment.config, experiment.run, experiment.weights, experiment.load_report
    model = experiment.classifier.network
    manifest = {
        **describe_origin(),
        "seed": config.seed,
        "tags": list(config.tags),
        "data": experiment.data.fingerprints(),
        "weights": None,
    }
    manifest["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if weights and report:
        manifest["weights"] = {"from": weights.origin, "sha256": weights.fingerprint(), **asdict(report)}
    manifest["notes"] = experiment.data.notes
    run.create(as_plain_data(config), manifest)
    if unreadable := experiment.data.unreadable:
        write_text(run.unreadable_file, "".join(f"{name}: {reason}\n" for name, reason in unreadable.items()))
    if compare_with is not None and (different := differences(compare_with, run.manifest())):
        log.warning(f"Results may differ from those of the other run: {', '.join(different)}")
    print_header(config, experiment.data, model, experiment.trainer, run.path)
    if weights and report:
        print_weights(weights, report)


@contextmanager
def record_final_status(experiment: Experiment) -> Iterator[None]:
    """Records in the manifest that a run was interrupted or failed, and prints how to resume it."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | TerminatedError)
        with suppress(OSError):  # the disk may be full
            experiment.run.end("interrupted" if interrupted else "failed")
        if interrupted or isinstance(error, PeerError):
            reason = "Interrupted" if interrupted else "Stopped because another process failed"
            print_interrupted(experiment.config, experiment.run, reason)
        write_report(experiment.run)
        raise


# Check, fit, test


def check_before_training(experiment: Experiment, started: float) -> None:
    """Runs the preflight checks on rank 0, prints them, and writes `preflight.json`; UserError if one failed. The run
    began at the `time.perf_counter()` of `started`."""
    trainer, weights, report = experiment.trainer, experiment.weights, experiment.load_report
    model = experiment.config.model
    mode = experiment.config.preflight or "off"  # YAML reads an unquoted off as false
    if mode == "off" or not trainer.is_global_zero:
        return
    device = trainer.strategy.root_device
    context = CheckContext(
        experiment.classifier,
        experiment.data,
        trainer,
        expected_input=weights.input if weights else {},
        head_is_loaded=report is not None and not report.new_head,
        positions=model.get("pos_embed") != "none" or bool(model.get("rotary") or model.get("relative_bias")),
        batch=experiment.data.first_batch(device),
        times_steps=mode == "only" or device.type != "cpu",
        started=started,
    )
    preflight = run_preflight(context)
    write_json(experiment.run.path / "preflight.json", preflight.as_data())
    log_text(trainer, "preflight", preflight.as_markdown())
    print_preflight(preflight, every_check=mode == "only")
    if preflight.failures and mode != "warn":
        names = ", ".join(finding.check for finding in preflight.failures)
        raise UserError(f"preflight: {names} failed: see above; preflight=warn trains all the same")
    if not context.times_steps:
        trainer.callbacks.append(TimeEstimate(context))  # type: ignore[attr-defined]


def fit_and_test(experiment: Experiment, started: float, checkpoint: Path | None = None) -> dict[str, float]:
    """Trains, from the start or a checkpoint, tests the selected checkpoint, writes and prints the final metrics;
    `started` is the `time.perf_counter()` at which this process began with the run."""
    trainer, run = experiment.trainer, experiment.run
    # Rank 0 alone ran the checks; the others wait for it here.
    broadcast_from_rank0("start", lambda: "", wait=timedelta(days=1))
    with translate_lightning_exits(trainer):
        with fail_together(trainer, lambda: run.end("failed")):
            trainer.fit(experiment.classifier, datamodule=experiment.data, ckpt_path=checkpoint, weights_only=True)
            rows = next(c for c in trainer.callbacks if isinstance(c, MetricsCSV))  # type: ignore[attr-defined]
            earlier = rows.seconds  # of earlier processes; the test will load a checkpoint's value over it
            metrics = test_selected(experiment)
        if trainer.is_global_zero:
            metrics["seconds"] = round(earlier + time.perf_counter() - started, 1)
            write_json(run.metrics_file, metrics)
            run.end("finished")
            finish_tensorboard(trainer, as_plain_data(experiment.config), metrics, run)
            write_report(run, experiment.config)
            print_results(experiment.config, metrics, run.path)
    return metrics


def test_selected(experiment: Experiment) -> dict[str, Any]:
    """Tests the best checkpoint, without validation the last one; returns the metrics of its epoch and of the test, if
    there are test images."""
    trainer, run = experiment.trainer, experiment.run
    selected: Any = None
    if trainer.is_global_zero:  # it reads for all: other machines may see new files late
        file = run.checkpoint("best")
        checkpoint = read_checkpoint(file, tensors=False)
        epoch = checkpoint["epoch"] + 1
        row = next((row for row in run.epoch_rows() if row["epoch"] == epoch), {})
        # The checkpoint's own validation: with val_check_interval it may be from the middle of its epoch.
        validated = not row or any(name.startswith("val/") for name in row)  # else they are an earlier epoch's
        values = checkpoint[METRICS_KEY] if validated else {}
        metrics = {**row, **values, "epoch": epoch, "step": checkpoint["global_step"]}
        selected = str(file), metrics
    file, metrics = trainer.strategy.broadcast(selected)
    if trainer.limit_test_batches != 0 and len(experiment.data.splits["test"]):
        data: Any = {"datamodule": experiment.data, "ckpt_path": file, "weights_only": True}
        metrics |= trainer.test(experiment.classifier, verbose=False, **data)[0]
    return shorten_values(metrics)

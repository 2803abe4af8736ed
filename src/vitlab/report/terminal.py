"""Print what a person needs to know before and after training."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from rich.table import Table
from rich.text import Text
from torch import nn

from vitlab.arguments.entry_points import as_typed, entry_point, this_command
from vitlab.data import ImageDataModule
from vitlab.files import shorten
from vitlab.metrics import VIEWS, format_metric, further_metrics, metric_title
from vitlab.preflight import Preflight, Status
from vitlab.report.run_summary import accuracy_interval, read_run_summary
from vitlab.runs.checkpoint import EMA_KEY
from vitlab.runs.console import format_duration, show
from vitlab.runs.directory import RunDirectory
from vitlab.runs.hparams import data_set
from vitlab.runs.trust import trust
from vitlab.system import quote_for_shell
from vitlab.weights import LoadReport, Weights

log = logging.getLogger(__name__)


@rank_zero_only
def print_header(config: DictConfig, data: ImageDataModule, network: nn.Module, trainer: pl.Trainer, run: Path) -> None:
    """The model and its device, the data, and the run directory."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items() if len(split))
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    several = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    show(
        f"{config.name}: {type(network).__name__}, {parameters:,} parameters, on {several}{name}, precision "
        f"{trainer.precision}",
        f"data: {data_set(config)}, {data.spec.num_classes} classes; {sizes} images of {config.data.image_size} px",
    )
    if not len(data.splits["val"]) and config.checkpoint.monitor.startswith("val/"):
        show("data.val_size=0: no validation, so no epoch is selected; the weights of the last epoch are tested")
    show(f"run directory: {shorten(run)}")


@rank_zero_only
def print_weights(weights: Weights, report: LoadReport) -> None:
    """The weights that training starts from: a warning if more than the head stays random."""
    text = report.describe(weights.origin)
    if not weights.input:
        text += "\n  the file does not say how its images were normalised: using data.mean and data.std"
    if report.complete:
        show(text)
    else:
        log.warning(text)


def print_choice(file: Path, checkpoint: Mapping[str, Any], weights: str) -> None:
    """The checkpoint that is used, and which of its weights if it has both raw and EMA weights."""
    show(f"checkpoint: {shorten(file)}")
    if EMA_KEY in checkpoint:
        other = "weights=raw for the raw weights" if weights == "ema" else "weights=ema for their moving average"
        show(f"weights: {weights} ({other})")


STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red", Status.SKIPPED: "dim"}


def print_preflight(preflight: Preflight, every_check: bool) -> None:
    """One line if all is well; else also the checks that warn or fail. `every_check` lists all of them."""
    for result in preflight.findings:
        if every_check or result.status in (Status.WARNING, Status.FAILED):
            status = f"{result.status:<8}", STYLES[result.status]
            meaning = [f"{'':<9}{result.meaning}"] if result.meaning else []
            show(Text.assemble(status, f" {result.check:<23} {result.figure}"), *meaning)
    counts = preflight.counts
    others = [f"{counts[status]} {status}" for status in Status if status is not Status.OK and counts[status]]
    said = ", ".join([f"{counts[Status.OK]} checks passed", *others])
    show(f"preflight: {said} in {preflight.seconds:.1f} s")


@rank_zero_only
def print_interrupted(config: DictConfig, run: RunDirectory, reason: str = "Interrupted") -> None:
    """The command that resumes the run, after the reason why it stopped."""
    if (last := run.checkpoints / "last.ckpt").exists():
        show(f"{reason}. The state is saved in {shorten(last)}. To resume:")
        show(f"  {command_for('train', f'resume={shorten(run.path)}', config)}")
    else:
        show(f"{reason} before the first checkpoint was saved: there is nothing to resume.")


@rank_zero_only
def print_resumed(config: DictConfig, run: Path, epoch: int, step: int, changed: dict[str, str | None]) -> None:
    """The point at which the run resumes, and the effects of changed keys."""
    show(f"Resuming {config.name} at epoch {epoch}, step {step:,} ({config.trainer.precision})")
    show(f"run directory: {shorten(run)}", *(f"{key} changed: {effect}" for key, effect in changed.items() if effect))


@rank_zero_only
def print_comparison(run: Path, compared: dict[str, tuple[Any, Any]], different: list[str]) -> None:
    """The metrics of a run and of its reproduction, and the differences in code, versions and hardware."""
    table = _table(f"compared with {shorten(run)}", "metric", "then", "now", "")
    for name, (then, now) in compared.items():
        table.add_row(name, f"{then}", f"{now}", "the same" if then == now else "differs")
    show(table, *(f"different: {line}" for line in different))


@rank_zero_only
def print_results(config: DictConfig, metrics: dict[str, float], run: Path) -> None:
    """The final table, the files of the run, and commands to continue with."""
    summary = read_run_summary(RunDirectory(run), config)
    table = _table(config.name, "split", "loss", "accuracy", "95% interval", "images")
    further: dict[str, list[str]] = {}  # the values of each further metric
    for split in ("val", "test"):
        for suffix, weights in (("", ""), ("_ema", ", EMA weights")):
            for name in further_metrics(metrics):
                if value := format_metric(f"{split}/{name}{suffix}", metrics):
                    further.setdefault(metric_title(name), []).append(f"{split}{weights} {value}")
            if f"{split}/loss{suffix}" in metrics:
                loss, accuracy = (metrics[f"{split}/{name}{suffix}"] for name in ("loss", "acc"))
                images = summary.used(split)
                cells = f"{loss:.4f}", f"{accuracy:.2%}", accuracy_interval(accuracy, images), f"{images:,}"
                table.add_row(f"{split}{weights}", *cells)
    if table.row_count:
        show(table, *(f"{title}: {'; '.join(values)}" for title, values in further.items()))
    selected = f"the best by {config.checkpoint.monitor}" if config.checkpoint.monitor in metrics else "the last one"
    show(f"weights kept: epoch {int(metrics['epoch'])} of {len(summary.epochs)}, {selected}")
    show(f"total time: {format_duration(metrics['seconds'])}", f"run directory: {shorten(run)}")
    if (run / "report.html").exists():
        show("  report.html  all results on one page")
    if any(run.glob("figures/*.png")):
        show("  figures/     its figures")
    show("next:")
    if any(run.rglob("events.out.tfevents.*")):
        show(f"  tensorboard --logdir {quote_for_shell(shorten(run))}")
    split = "" if summary.images("test") else " split=val"
    show(f"  {command_for('evaluate', f'run={shorten(run)}', config)}{split}")
    show(f"  {command_for('predict', f'run={shorten(run)}', config)} images=photos/")


def command_for(verb: str, argument: str, config: Mapping[str, Any]) -> str:
    """The command that runs an entry point on a run of this config, as you type it here."""
    return " ".join([entry_point(verb, this_command(), Path.cwd()), quote_for_shell(argument), *trust(config)])


def print_evaluation(metrics: dict[str, Any], split: str, available: int, files: list[Path]) -> None:
    """Loss, accuracy, and the accuracy of each class; and if only some of the `available` images were used."""
    if metrics["images"] < available:
        limit = f"trainer.limit_{'test' if split == 'test' else 'val'}_batches"  # training images: as validation images
        show(f"only {metrics['images']:,} of {available:,} {split} images, as the run has it; for all: {limit}=null")
    for suffix, images in (("", split), *((f"_{views}", f"averaged over views (tta={views})") for views in VIEWS)):
        if f"{split}/acc{suffix}" in metrics:
            loss, accuracy = (metrics[f"{split}/{name}{suffix}"] for name in ("loss", "acc"))
            interval = accuracy_interval(accuracy, metrics["images"])
            names = [name for name in further_metrics(metrics) if f"{split}/{name}{suffix}" in metrics]
            rest = "".join(f"  {metric_title(n)} {format_metric(f'{split}/{n}{suffix}', metrics)}" for n in names)
            show(f"{images}: loss {loss:.4f}  accuracy {accuracy:.2%} (95% interval {interval}){rest}")
    table = _table("", "class", "images", "accuracy", "precision", "F1")
    for name, row in metrics["per_class"].items():
        cells = ("-" if row[key] is None else f"{row[key]:.2%}" for key in ("acc", "precision", "f1"))
        table.add_row(name, f"{row['images']:,}", *cells)
    show(table)
    print_written(*files)


def print_calibration(calibration: Mapping[str, Any], split: str) -> None:
    """The temperature, and the calibration error before and after."""
    before, after = (calibration[f"{split}/ece{suffix}"] for suffix in ("", "_calibrated"))
    show(
        f"temperature {calibration['temperature']:.3f}, fitted on {calibration['images']:,} val images: calibration "
        f"error (ECE) of {split} {before:.2%} -> {after:.2%}; {as_typed('predict.py')} calibrate=true uses it"
    )


def print_written(*files: Path) -> None:
    show(*(f"written: {shorten(file)}" for file in files))


def _table(title: str, *columns: str) -> Table:
    """An empty table: the first and any unnamed column hold text, the others numbers."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place and column else "left")
    return table

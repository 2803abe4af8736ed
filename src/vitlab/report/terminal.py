"""What a run says on the terminal before and after training."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from vitlab.config.instantiate import trust
from vitlab.data import ImageDataModule
from vitlab.distributed.slurm import this_command
from vitlab.files import shorten
from vitlab.preflight import Preflight, Status
from vitlab.runs.checkpoint import EMA_KEY
from vitlab.runs.directory import RunDirectory
from vitlab.runs.manifest import entry_point
from vitlab.weights import LoadReport, Weights

log = logging.getLogger(__name__)


def _console() -> Console:
    # Paths and commands are there to be copied: no wrapping, no colouring of numbers.
    return Console(soft_wrap=True, highlight=False)


@rank_zero_only
def print_header(config: DictConfig, data: ImageDataModule, network: nn.Module, run: Path) -> None:
    parameters = sum(p.numel() for p in network.parameters())
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    console = _console()
    console.print(
        f"{config.name}: {type(network).__name__}, {parameters:,} parameters, {config.trainer.precision}; "
        f"{sizes} images, {data.spec.num_classes} classes"
    )
    if not len(data.splits["val"]):
        console.print("data.val_size=0: all images are trained on, no epoch is selected, the last one is tested")
    console.print(f"run directory: {shorten(run)}")


@rank_zero_only
def print_weights(weights: Weights, report: LoadReport) -> None:
    """What became of the weights: a warning, also in the log, where more than the head stays random."""
    text = report.describe(weights.origin)
    if not weights.input:
        text += "\n  the file does not say how its images were normalised: here by data.mean and data.std"
    log.log(logging.INFO if report.complete else logging.WARNING, text)
    if report.complete:
        _console().print(text, markup=False)


def print_choice(checkpoint: Mapping[str, Any], weights: str) -> None:
    """Which of a checkpoint's weights are taken, where it has several."""
    if EMA_KEY in checkpoint:
        other = "raw takes those that were trained" if weights == "ema" else "ema takes their average over the steps"
        _console().print(f"weights: {weights} (weights={other})")


STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red", Status.SKIPPED: "dim"}


def print_preflight(preflight: Preflight) -> None:
    """A line a check; below what is not in order, what it means."""
    console = _console()
    for finding in preflight.findings:
        style = STYLES[finding.status]
        console.print(f"[{style}]{finding.status.value:<8}[/] {finding.check:<23} {escape(finding.figure)}")
        if finding.meaning:
            console.print(f"[{style}]{'':<9}{escape(finding.meaning)}[/]")
    console.print(f"preflight: {preflight.verdict}", markup=False)


@rank_zero_only
def print_interrupted(config: DictConfig, run: RunDirectory) -> None:
    """Where the run stands, and what to type to go on."""
    last = run.checkpoints / "last.ckpt"
    console = _console()
    if last.exists():
        console.print(f"interrupted; the last state is in {shorten(last)}; to go on:", markup=False)
        console.print(f"  {_typed('train.py', f'resume={shorten(run.path)}', config)}", markup=False)
    else:
        console.print("interrupted; no checkpoint was written yet")


@rank_zero_only
def print_resumed(config: DictConfig, run: Path, epoch: int, step: int, changed: dict[str, str | None]) -> None:
    """Where the run is resumed (epoch from 1), and what the changed keys change."""
    console = _console()
    console.print(f"Resuming {config.name} at epoch {epoch}, step {step:,} ({config.trainer.precision})")
    console.print(f"run directory: {shorten(run)}", markup=False)
    for key, effect in changed.items():
        if effect:
            console.print(f"{key} changed: {effect}", markup=False)


def print_comparison(run: Path, compared: dict[str, tuple[Any, Any]], different: list[str]) -> None:
    """A row a metric, then and now; and what is different of the circumstances."""
    table = Table(title=f"beside {shorten(run)}", title_justify="left")
    for column in ("metric", "then", "now", ""):
        table.add_column(column, justify="left" if column in ("metric", "") else "right")
    for name, (then, now) in compared.items():
        table.add_row(name, f"{then}", f"{now}", "the same" if then == now else "differs")
    console = _console()
    console.print(table)
    for line in different:
        console.print(f"different: {line}", markup=False)


def print_results(config: DictConfig, metrics: dict[str, float], run: Path) -> None:
    """The final table, where everything is, and what to type next."""
    table = Table(title=config.name, title_justify="left")
    for column in ("split", "loss", "accuracy"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in ("val", "test"):
        for suffix, words in (("", split), ("_ema", f"{split}, ema weights")):
            if f"{split}/loss{suffix}" in metrics:
                loss, accuracy = (metrics[f"{split}/{name}{suffix}"] for name in ("loss", "acc"))
                table.add_row(words, f"{loss:.4f}", f"{accuracy:.2%}")
    console = _console()
    if table.row_count:
        console.print(table)
    minutes, seconds = divmod(round(metrics["seconds"]), 60)
    what = "best epoch by val" if "val/loss" in metrics else "last epoch"
    console.print(f"epoch {int(metrics['epoch'])} ({what}); {minutes} min {seconds:02d} s in all")
    console.print(f"run directory: {shorten(run)}")
    console.print("next:", markup=False)
    console.print(f"  {_typed('evaluate.py', f'run={shorten(run)}', config)}", markup=False)
    console.print(f"  {_typed('predict.py', f'run={shorten(run)}', config)} images=photos/", markup=False)


def _typed(script: str, argument: str, config: DictConfig) -> str:
    here = entry_point(script, this_command(), Path.cwd())
    return " ".join(["python", here, shlex.quote(argument), *trust(config)])


def print_evaluation(metrics: dict[str, Any], split: str, files: list[Path]) -> None:
    """Loss, accuracy, and each class's accuracy."""
    title = f"{split}: loss {metrics[f'{split}/loss']:.4f}  accuracy {metrics[f'{split}/acc']:.2%}"
    if f"{split}/acc_flip" in metrics:
        loss, accuracy = (metrics[f"{split}/{name}_flip"] for name in ("loss", "acc"))
        title += f"\nwith the mirror images: loss {loss:.4f}  accuracy {accuracy:.2%}"
    table = Table(title=title)
    table.title_justify = "left"
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    for name, figures in metrics["per_class"].items():
        accuracy = figures["acc"]
        table.add_row(name, str(figures["images"]), "-" if accuracy is None else f"{accuracy:.2%}")
    console = _console()
    console.print(table)
    for file in files:
        console.print(f"written: {shorten(file)}")


def print_export(files: list[Path], difference: float | None = None, images: int = 0) -> None:
    """Names the files, and by how much an ONNX file's logits differ from torch's."""
    for file in files:
        _console().print(f"written: {shorten(file)}", markup=False)
    if difference is not None:
        _console().print(f"  onnxruntime's logits of {images} test images are torch's to within {difference:.1e}")

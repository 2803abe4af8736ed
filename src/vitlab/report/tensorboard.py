"""Write a run's texts, chart layout and HPARAMS table for TensorBoard."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from vitlab.callbacks.checkpointing import best_metrics
from vitlab.callbacks.figures import writers
from vitlab.compat import add_summary, logged_step
from vitlab.files import shorten
from vitlab.metrics import ALWAYS, metric_title
from vitlab.plots.io import never_failing
from vitlab.report.terminal import command_for
from vitlab.runs.directory import RunDirectory
from vitlab.runs.hparams import all_settings
from vitlab.runs.tensorboard_logger import RunTensorBoardLogger

# Charts with several curves, by patterns of their tags, which TensorBoard matches at the start of a tag only. It
# colours curves by run: train/ and val/ have two colours, the curves of one run differ by their symbols.
LAYOUT = {
    "learning": {
        "loss (nats), train and val": ["Multiline", ["train/loss$", "val/loss$", "val/loss_ema$"]],
        "accuracy, train and val": ["Multiline", ["train/acc$", "val/acc$", "val/acc_ema$"]],
        "learning rate": ["Multiline", ["train/lr$", "weights/lr/"]],
    },
    "layers": {
        "gradient norm before clipping": ["Multiline", ["weights/gradient_norm/"]],
        "update / weight": ["Multiline", ["weights/update_to_weight/"]],
        "weight norm": ["Multiline", ["weights/weight_norm/"]],
    },
    "speed": {
        "images per second": ["Multiline", ["workload/images_per_second$"]],
        "fraction of time waiting for data, MFU": ["Multiline", ["workload/data_wait$", "workload/mfu$"]],
        "memory (GiB)": ["Multiline", ["workload/memory_gib$"]],
    },
}


def chart_layout(metrics: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """`LAYOUT`, with a chart for each further metric of a run."""
    names = [name for entry in metrics for name in (entry if isinstance(entry, Mapping) else [entry])]
    charts = {metric_title(n): ["Multiline", [f"val/{n}$", f"val/{n}_ema$"]] for n in names if n not in ALWAYS}
    return {**LAYOUT, "learning": {**LAYOUT["learning"], **charts}}


@rank_zero_only
def start_tensorboard(trainer: pl.Trainer, config: Mapping[str, Any], run: RunDirectory) -> None:
    """Write what is known before training."""
    with never_failing("the first page of the dashboard"):
        log_run_text(trainer, run)
        packages = (package.metadata for package in distributions())  # read once: `name` and `version` read it anew
        rows = sorted({f"| {found['Name']} | {found['Version']} |" for found in packages}, key=str.lower)
        heading = f"Python {platform.python_version()}, {platform.platform()}\n"
        log_text(trainer, "environment", "\n".join([heading, "| package | version |", "|---|---|", *rows]))
        resume = command_for("train", f"resume={shorten(run.path)}", config)
        log_text(trainer, "resume", f"To resume an interrupted run, in the folder `{Path.cwd()}`:\n\n{_block(resume)}")
        for writer in writers(trainer):
            writer.add_custom_scalars(chart_layout(config["metrics"]))
        _write_hparams(trainer, config, finished=False)


@rank_zero_only
def log_run_text(trainer: pl.Trainer, run: RunDirectory) -> None:
    """Write the config and the manifest as they are now."""
    log_text(trainer, "config", _block((run.path / "config.yaml").read_text(encoding="utf-8"), "yaml"))
    log_text(trainer, "manifest", _block(json.dumps(run.manifest(), indent=2), "json"))


@rank_zero_only
def finish_tensorboard(
    trainer: pl.Trainer, config: Mapping[str, Any], metrics: Mapping[str, float], run: RunDirectory
) -> None:
    """Write the final metrics of the selected epoch and of the test, which the HPARAMS table shows too."""
    with never_failing("the last page of the dashboard"):
        for logger in trainer.loggers:
            logger.log_metrics(best_metrics(metrics), step=logged_step(trainer))
        log_text(trainer, "manifest", _block(json.dumps(run.manifest(), indent=2), "json"))
        _write_hparams(trainer, config, finished=True)
        for logger in trainer.loggers:
            logger.save()


@rank_zero_only
def log_text(trainer: pl.Trainer, tag: str, markdown: str) -> None:
    for writer in writers(trainer):
        writer.add_text(tag, markdown, trainer.global_step)


def _write_hparams(trainer: pl.Trainer, config: Mapping[str, Any], *, finished: bool) -> None:
    # The logger's log_hyperparams leaves out a run without metrics. The experiment summary that torch writes first is
    # left out here: TensorBoard takes the summary of one run only, and then shows that run's columns for all runs.
    _, start, end = hparams(dict(all_settings(config)), {})  # type: ignore[no-untyped-call]
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            writer = logger.validation if isinstance(logger, RunTensorBoardLogger) else logger.experiment
            for summary in (start, end) if finished else (start,):
                add_summary(writer, summary)


def _block(text: str, language: str = "") -> str:
    return f"```{language}\n{text}\n```"

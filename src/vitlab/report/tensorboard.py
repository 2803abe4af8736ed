"""What TensorBoard shows of a run beside curves and figures: texts, the layout of charts, the HPARAMS table."""

import json
import os
import platform
import shlex
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from vitlab.callbacks.checkpointing import best_metrics
from vitlab.config.instantiate import trust
from vitlab.distributed.slurm import this_command
from vitlab.plots.io import never_failing, writers
from vitlab.runs.directory import RunDirectory
from vitlab.runs.hparams import KEY_SETTINGS, all_settings
from vitlab.runs.manifest import entry_point

# Charts of several curves, by the tags' patterns, which TensorBoard anchors at the front alone.
LAYOUT = {
    "learning": {
        "loss (nats), train and val": ["Multiline", ["train/loss$", "val/loss$", "val/loss_ema$"]],
        "accuracy, train and val": ["Multiline", ["train/acc$", "val/acc$", "val/acc_ema$"]],
        "learning rate": ["Multiline", ["lr$", "lr/"]],
    },
    "layers": {
        "gradient norm before clipping": ["Multiline", ["gradient_norm/"]],
        "update / weight": ["Multiline", ["update_to_weight/"]],
        "weight norm": ["Multiline", ["weight_norm/"]],
    },
    "speed": {
        "images a second": ["Multiline", ["images_per_second$"]],
        "share of time waiting for data, MFU": ["Multiline", ["data_wait$", "mfu$"]],
        "memory (GiB)": ["Multiline", ["memory_gib$"]],
    },
}


@rank_zero_only
def start_tensorboard(trainer: pl.Trainer, config: Mapping[str, Any], run: RunDirectory) -> None:
    """What is known before training."""
    with never_failing("the dashboard's first page"):
        log_run_text(trainer, config, run)
        log_text(trainer, "environment", _environment())
        log_text(trainer, "resume", _resume(config, run))
        for writer in writers(trainer):
            writer.add_custom_scalars(LAYOUT)
            _hyperparameters(writer, config, ended=False)


@rank_zero_only
def log_run_text(trainer: pl.Trainer, config: Mapping[str, Any], run: RunDirectory) -> None:
    """Config and manifest as they are now."""
    log_text(trainer, "config", _block("yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config)))))
    log_text(trainer, "manifest", _block("json", json.dumps(run.manifest(), indent=2)))


@rank_zero_only
def finish_tensorboard(
    trainer: pl.Trainer, config: Mapping[str, Any], metrics: Mapping[str, float], run: RunDirectory
) -> None:
    """The final metrics, of the selected epoch and of the test images, also under the names of the HPARAMS table."""
    with never_failing("the dashboard's last page"):
        values = best_metrics(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
            logger.save()
        log_text(trainer, "manifest", _block("json", json.dumps(run.manifest(), indent=2)))
        for writer in writers(trainer):
            _hyperparameters(writer, config, ended=True)
            writer.flush()


@rank_zero_only
def log_text(trainer: pl.Trainer, tag: str, markdown: str) -> None:
    """Shows a text where the logger can."""
    for writer in writers(trainer):
        writer.add_text(tag, markdown, trainer.global_step)


def _hyperparameters(writer: Any, config: Mapping[str, Any], *, ended: bool) -> None:
    # Not the logger's log_hyperparams: it leaves out a run without metrics, or would need made-up ones. And without the
    # table's own summary: of several runs TensorBoard takes one's, and with it that run's columns alone. It then shows
    # what differs first, the rest by name, and ticks five columns; a blank counts in a name, but is not shown.
    settings = all_settings(config)
    names = {path: " " * (len(KEY_SETTINGS) - place) + path for place, path in enumerate(KEY_SETTINGS)}
    make: Any = hparams
    _, begin, end = make({names.get(path, path): value for path, value in settings.items()}, {})
    for summary in (begin, *([end] if ended else [])):
        writer._get_file_writer().add_summary(summary)


def _environment() -> str:
    """Python, and every installed package with its version."""
    packages = {found.name: found.version for found in distributions()}
    rows = [f"| {name} | {packages[name]} |" for name in sorted(packages, key=str.lower)]
    return "\n".join(
        [f"Python {platform.python_version()}, {platform.platform()}\n", "| package | version |", "|---|---|", *rows]
    )


def _resume(config: Mapping[str, Any], run: RunDirectory) -> str:
    train = entry_point("train.py", this_command(), Path.cwd())
    command = _block(
        "", " ".join(["python", train, shlex.quote(f"resume={os.path.relpath(run.path)}"), *trust(config)])
    )
    return f"From the folder `{Path.cwd()}`:\n\n{command}\n\ngoes on where the run was interrupted."


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"

"""Checkpoint files: plain data and tensors, written whole, read without running anything."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from vitlab.config.instantiate import update_old_config
from vitlab.distributed.sharded_checkpoint import about, consolidated
from vitlab.errors import UserError
from vitlab.files import replacing

CONFIG_KEY = "vitlab_config"
METRICS_KEY = "vitlab_metrics"
EMA_KEY = "vitlab_ema"  # the network's state_dict, averaged over the steps; of a run with callbacks=ema
# Callbacks whose state earlier versions saved under another name.
RENAMED_STATES = {"TrainingClock": "TimeLimit", "EpochMetricsCSV": "MetricsCSV"}
WEIGHTS_PREFIX = "network."  # of the network's weights among the classifier's


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and puts it in place in one step.

    Lightning's own moves it there from $TMPDIR: on another filesystem that copies, and a kill leaves a cut file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file of Python's: what torch opens itself fails without saying that the disk is full.
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """As Lightning's, also of a folder that several processes wrote."""
        if Path(path).is_dir():
            return consolidated(Path(path))
        return _with_new_state_names(super().load_checkpoint(path, map_location, weights_only))


def _with_new_state_names(checkpoint: Any) -> Any:
    states = checkpoint.get("callbacks") if isinstance(checkpoint, dict) else None
    if isinstance(states, dict):
        checkpoint["callbacks"] = {RENAMED_STATES.get(name, name): state for name, state in states.items()}
    return checkpoint


class ConfigInCheckpoint(pl.Callback):
    """Puts the resolved config into every checkpoint, so that a model can be rebuilt from one file, and the last
    validation's metrics."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[CONFIG_KEY] = self.config
        metrics = trainer.callback_metrics.items()
        checkpoint[METRICS_KEY] = {name: float(value) for name, value in metrics if name.startswith("val/")}


def read_checkpoint(path: Path, *, tensors: bool = True) -> dict[str, Any]:
    """A checkpoint of vitlab's, on the CPU; nothing in the file can run code.

    Args:
        path: A file, or a folder that several processes wrote.
        tensors: Whether weights and optimizer state are wanted of a folder, which may be more than fits into memory.

    Raises:
        UserError: the file is missing, damaged, or no checkpoint of vitlab's.
    """
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}")
    try:
        if path.is_dir():
            checkpoint = consolidated(path) if tensors else {"state_dict": {}, "optimizer_states": [], **about(path)}
        else:
            checkpoint = _read_file(path)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} can't be read as a checkpoint: it is damaged or of another kind ({reason})") from error
    if not isinstance(checkpoint, dict) or not is_whole(checkpoint):
        raise UserError(f"{path} is no checkpoint of vitlab's: it does not carry the run's config and weights")
    checkpoint[CONFIG_KEY] = update_old_config(checkpoint[CONFIG_KEY])
    return checkpoint


def _read_file(path: Path) -> Any:
    check_sums(path)
    return _with_new_state_names(torch.load(path, map_location="cpu", weights_only=True))


def check_sums(path: Path) -> None:
    """Compares what a file of torch.save's holds with the checksums in it, at which torch.load does not look.

    Raises:
        ValueError, zipfile.BadZipFile: it was altered, or is no such file.
    """
    with zipfile.ZipFile(path) as archive:
        if any(part.CRC for part in archive.infolist()):  # torch.serialization.set_crc32_options(False) writes none
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")


def is_whole(checkpoint: Mapping[str, Any]) -> bool:
    """Whether it holds a run's config and weights, and what else it holds of weights is some."""
    config, state = checkpoint.get(CONFIG_KEY), checkpoint.get("state_dict")
    groups = [config.get(group) for group in ("model", "data")] if isinstance(config, Mapping) else [None]
    return all(isinstance(part, Mapping) for part in (state, checkpoint.get(EMA_KEY, {}), *groups))


def choose_weights(checkpoint: Mapping[str, Any], choice: str | None, path: Path) -> str:
    """Which weights of a checkpoint are meant, "raw" or "ema": `choice`, else those that the run selected epochs by.

    Raises:
        UserError: the checkpoint has none such.
    """
    if choice is None:
        monitor = str(checkpoint[CONFIG_KEY].get("checkpoint", {}).get("monitor"))
        return "ema" if EMA_KEY in checkpoint and monitor.endswith("_ema") else "raw"
    if choice not in ("raw", "ema"):
        raise UserError(f"weights={choice} is unknown; choose raw or ema")
    if choice == "ema" and EMA_KEY not in checkpoint:
        raise UserError(f"weights=ema: {path} has no averaged weights, its run was not trained with callbacks=ema")
    return choice


def load_network(network: torch.nn.Module, checkpoint: dict[str, Any], path: Path, which: str) -> None:
    """Puts a checkpoint's weights into a network, "raw" or "ema".

    Raises:
        UserError: they are another network's.
    """
    try:
        network.load_state_dict(network_weights(checkpoint, which))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the weights in {path} do not fit the model of the config: {reason[:300]}") from error


def network_weights(checkpoint: Mapping[str, Any], which: str) -> dict[str, Tensor]:
    """The network's own state_dict, "raw" or "ema"."""
    if which == "ema":
        return dict(checkpoint[EMA_KEY])
    return {
        name.removeprefix(WEIGHTS_PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(WEIGHTS_PREFIX)
    }

"""Write checkpoints atomically; read them without running code from them."""

import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from vitlab.distributed.sharded_checkpoint import consolidated, read_index, read_rest
from vitlab.errors import UserError, first_line
from vitlab.files import replacing
from vitlab.runs.old_config import update_old_config

CONFIG_KEY = "vitlab_config"
METRICS_KEY = "vitlab_metrics"  # of the last validation
RATE_KEY = "vitlab_learning_rate"  # of the last step
EMA_KEY = "vitlab_ema"  # state_dict of the averaged model, in runs with callbacks=ema
# Callbacks whose state earlier versions saved under another name: old name -> new name.
RENAMED_STATES = {"TrainingClock": "TimeLimit", "EpochMetricsCSV": "MetricsCSV", "FiniteLoss": "NaNGuard"}
CUT_OFF = re.compile("incomplete|header too small|invalid header length|unexpected EOF")  # as libraries put it
WEIGHTS_PREFIX = "network."  # of the model's weights in the classifier's state_dict


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to its target and replaces the target in one step.

    Lightning moves it from $TMPDIR: between filesystems that is a copy, and a kill leaves a truncated file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # torch.save to an open file: to a path it does not report that the disk is full.
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint file, or a folder that several processes wrote."""
        is_folder = Path(path).is_dir()
        loaded = consolidated(Path(path)) if is_folder else super().load_checkpoint(path, map_location, weights_only)
        return _with_new_state_names(loaded)


def _with_new_state_names(checkpoint: dict[str, Any]) -> dict[str, Any]:
    states = checkpoint.get("callbacks")
    if isinstance(states, dict):
        checkpoint["callbacks"] = {RENAMED_STATES.get(name, name): state for name, state in states.items()}
    return checkpoint


class ConfigInCheckpoint(pl.Callback):
    """Adds the config to each checkpoint, so that it suffices to rebuild the model, and the metrics of its validation,
    which are still needed if a run is resumed after that."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.loaded: dict[str, float] = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[CONFIG_KEY] = self.config
        metrics = trainer.callback_metrics.items()
        checkpoint[METRICS_KEY] = {name: float(value) for name, value in metrics if name.startswith("val/")}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.loaded = checkpoint.get(METRICS_KEY, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, value in self.loaded.items():  # Lightning empties its metrics after loading
            trainer.callback_metrics[name] = torch.tensor(value, device=pl_module.device)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:  # one that is not measured any more would stay
            for name in self.loaded:
                trainer.callback_metrics.pop(name, None)


def read_checkpoint(path: Path, *, tensors: bool = True) -> dict[str, Any]:
    """Reads a vitlab checkpoint, a file or a folder that several processes wrote, to the CPU; UserError if it is none.

    Without `tensors`, weights and optimizer state of a folder, which may not fit into memory, are left out.
    """
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}")
    try:
        if not path.is_dir():
            check_sums(path)
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        elif tensors:
            checkpoint = consolidated(path)
        else:
            read_index(path)  # fails if it is damaged
            checkpoint = {"state_dict": {}, "optimizer_states": [], **read_rest(path)}
    except Exception as error:
        reason = describe_damage(path, error)
        raise UserError(f"{path} can't be read as a checkpoint: it is damaged or no checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict) or not is_whole(checkpoint):
        raise UserError(f"{path} is no checkpoint of vitlab's: it lacks the run's config or weights")
    checkpoint[CONFIG_KEY] = update_old_config(checkpoint[CONFIG_KEY])
    return _with_new_state_names(checkpoint)


def check_sums(path: Path) -> None:
    """Verifies the checksums in a file of torch.save, which torch.load ignores; ValueError or BadZipFile if wrong."""
    with zipfile.ZipFile(path) as archive:
        if any(part.CRC for part in archive.infolist()):  # torch.serialization.set_crc32_options(False) writes none
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")


def describe_damage(path: Path, error: Exception) -> str:
    """Why a file of weights can't be read, without torch's advice to run the code in it."""
    if path.is_dir():  # a sharded checkpoint, whose reader says it itself
        return first_line(error)[:200]
    head = b""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(64)
    is_zip, is_pickle = zipfile.is_zipfile(path), isinstance(error, UnpicklingError)
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: git lfs pull downloads the file"
    if head.lstrip().startswith(b"<"):
        return "it is a web page, not the file"
    if not head:
        return "it is empty"
    if (head.startswith(b"PK") and not is_zip) or isinstance(error, EOFError) or CUT_OFF.search(str(error)):
        return "it is cut off: download or copy it again"
    if is_pickle or "allow_pickle" in str(error):
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(str(path)) if is_zip and is_pickle else []
        found = ", ".join(objects[:3]) or "other data than tensors"
        return f"it holds {found}: objects could run code, and are never loaded"
    return "it is no file of weights" if isinstance(error, LookupError) else first_line(error)[:200]


def is_whole(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has a config with model and data, and whether its weights are state_dicts."""
    config, state = checkpoint.get(CONFIG_KEY), checkpoint.get("state_dict")
    groups = [config.get(group) for group in ("model", "data")] if isinstance(config, Mapping) else [None]
    return all(isinstance(part, Mapping) for part in (state, checkpoint.get(EMA_KEY, {}), *groups))


def choose_weights(checkpoint: Mapping[str, Any], choice: str | None, path: Path) -> str:
    """Chooses between a checkpoint's "raw" and "ema" weights; without a choice, those that selected the best epoch."""
    if choice is None:
        monitor = str(checkpoint[CONFIG_KEY].get("checkpoint", {}).get("monitor"))
        return "ema" if EMA_KEY in checkpoint and monitor.endswith("_ema") else "raw"
    if choice not in ("raw", "ema"):
        raise UserError(f"weights={choice} is unknown; choose raw or ema")
    if choice == "ema" and EMA_KEY not in checkpoint:
        raise UserError(f"weights=ema: {path} has no averaged weights; its run was not trained with callbacks=ema")
    return choice


def network_weights(checkpoint: Mapping[str, Any], which: str) -> dict[str, Tensor]:
    """The model's own state_dict, "raw" or "ema"."""
    if which == "ema":
        return dict(checkpoint[EMA_KEY])
    own = [name for name in checkpoint["state_dict"] if name.startswith(WEIGHTS_PREFIX)]
    return {name.removeprefix(WEIGHTS_PREFIX): checkpoint["state_dict"][name] for name in own}

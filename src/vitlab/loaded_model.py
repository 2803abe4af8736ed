"""Open a run or a checkpoint: its model, ready for images."""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.types import Override
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vitlab.compat import silence_libraries
from vitlab.config.compose import compose_training
from vitlab.config.instantiate import build, build_network
from vitlab.config.resolve import resolve_machine
from vitlab.data import BatchTransform, ImageDataModule
from vitlab.data.arrays import ImageArrays
from vitlab.errors import UserError
from vitlab.models.execution import check_logits, choose_attention, compile_fault, compile_network, has_gpu
from vitlab.report.terminal import print_choice
from vitlab.runs.checkpoint import CONFIG_KEY, WEIGHTS_PREFIX, choose_weights, network_weights, read_checkpoint
from vitlab.runs.directory import RunDirectory, checkpoint_named
from vitlab.runs.overrides import FACTS, apply_overrides
from vitlab.runs.trust import check_trusted
from vitlab.system import keep_freed_memory
from vitlab.weights.hub import CONFIG_FILE, PREFIX, WEIGHTS_FILE, download
from vitlab.weights.loading import read_file

log = logging.getLogger(__name__)

# Of the trainer: one process opens a model, however many trained it.
ONE_PROCESS = {"num_nodes": "auto", "devices": 1, "strategy": "auto", "sync_batchnorm": False}


@dataclass(frozen=True)
class LoadedModel:
    """A trained model in eval mode on its device, and the config that it was trained with."""

    network: nn.Module
    forward: Any  # the model in the precision of the run: preprocessed images -> logits
    transform: BatchTransform  # resize and normalisation of uint8 images, on the device
    config: DictConfig  # the run's, with the command's overrides; read-only
    run: RunDirectory | None  # None if a checkpoint was opened by its path
    device: torch.device
    checkpoint: Path
    weights: str  # "raw", or "ema" for their moving average

    @property
    def classes(self) -> list[str]:
        return list(self.config.data.classes)

    @property
    def is_tested(self) -> bool:
        """Whether the final metrics of the run are those of this checkpoint."""
        with suppress(UserError):  # the run has no checkpoint any more
            return self.run is not None and self.checkpoint.samefile(self.run.checkpoint("best"))
        return False

    def preprocess(self, images: Tensor) -> Tensor:
        """Float32 `[B, 3, image_size, image_size]` on the device, from uint8 images `[B, 3, H, W]`."""
        inputs: Tensor = self.transform(images.to(self.device))
        return inputs

    def logits(self, images: Tensor) -> Tensor:
        """Float32 `[B, classes]` on the CPU, from uint8 images `[B, 3, H, W]`."""
        with torch.inference_mode():
            logits: Tensor = self.forward(self.preprocess(images)).float().cpu()
        return logits

    def load_data(self) -> ImageDataModule:
        """The run's data without augmentations, in memory."""
        data = self.with_images()
        data.prepare_data()
        data.setup()
        return data

    def with_images(self, **splits: ImageArrays) -> ImageDataModule:
        """The run's data module, without augmentations, with other images."""
        data: ImageDataModule = build(self.config.data, "data", augmentations=[], seed=self.config.seed)
        data.splits, data.transform = splits, self.transform
        return data


def open_model(command: DictConfig, overrides: Sequence[Override], *, quiet: bool = False) -> LoadedModel:
    """Opens the model that a command names by `run` or `checkpoint`, `weights`, `outputs` and `trusted_targets`, with
    overrides of its run's config; every command that uses a trained model starts here. Unless `quiet`, prints which
    checkpoint and weights these are.

    Raises:
        UserError: the run, the checkpoint or an override is wrong or changes what the model was trained with, or the
            config names a target that is not trusted.
    """
    silence_libraries()
    keep_freed_memory()
    file, run = _find_checkpoint(command)
    checkpoint = _read_export(file) if file.is_dir() and (file / WEIGHTS_FILE).exists() else read_checkpoint(file)
    config = OmegaConf.create(checkpoint[CONFIG_KEY])
    _adapt(config, overrides, command)
    trained_with = checkpoint[CONFIG_KEY]["data"]
    changed = [f"data.{fact}" for fact in FACTS if OmegaConf.select(config.data, fact) != trained_with.get(fact)]
    if changed:
        raise UserError(f"leave out {', '.join(changed)}: a model is used as it was trained")
    OmegaConf.set_readonly(config, True)
    weights = choose_weights(checkpoint, command.weights, file)
    network = rebuild_network(config, checkpoint, file, list(command.trusted_targets), weights)
    choose_attention(config, network)
    if not quiet:
        print_choice(file, checkpoint, weights)

    torch.set_float32_matmul_precision(config.matmul_precision)
    try:
        fabric = Fabric(accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"trainer: {error}; trainer=cpu uses the CPU") from error
    forward = fabric.setup_module(network)
    transform = BatchTransform(
        [],
        image_size=config.data.image_size,
        interpolation=config.data.interpolation,
        mean=list(config.data.mean),
        std=list(config.data.std),
    ).to(fabric.device)
    return LoadedModel(network, forward, transform, config, run, fabric.device, file, weights)


def _adapt(config: DictConfig, overrides: Sequence[Override], command: DictConfig) -> None:
    """Apply a command's overrides to a run's config, in place, for one process on this machine."""
    for key, value in ONE_PROCESS.items():
        if OmegaConf.select(config, f"trainer.{key}") is not None:
            config.trainer[key] = value
    saved = str(OmegaConf.select(config, "trainer.precision"))
    needs_gpu = saved.startswith("16-") and all(o.key_or_group != "trainer.precision" for o in overrides)
    if needs_gpu:  # the overrides may name another trainer, which tells whether there is a GPU
        config.trainer.precision = "auto"
    apply_overrides(config, overrides, command)
    if needs_gpu and has_gpu(config.trainer.accelerator):
        config.trainer.precision = saved
    elif needs_gpu:
        log.warning(f"trainer.precision={saved}, as the run had, needs a GPU: auto is used")
    resolve_machine(config)


def rebuild_network(
    config: DictConfig, checkpoint: dict[str, Any], path: Path, trusted: list[str], which: str = "raw"
) -> nn.Module:
    """The model with the "raw" or "ema" weights of a checkpoint, as read from `path`, in eval mode, on the CPU.

    UserError if the run's config names a target that is not vitlab's or `trusted`, or the weights do not fit.
    """
    check_trusted(OmegaConf.to_container(config, resolve=True), trusted)
    network: nn.Module = build_network(config.model)
    check_logits(config, network)
    try:
        network.load_state_dict(network_weights(checkpoint, which))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the weights in {path} do not fit the model of the config: {reason[:300]}") from error
    if config.compile and (fault := compile_fault(config.trainer.accelerator)):
        log.warning(f"not compiled, as the run was: this machine lacks {fault}")
    else:
        compile_network(network, config.compile)
    return network.eval()


def _find_checkpoint(command: DictConfig) -> tuple[Path, RunDirectory | None]:
    named = Path(str(command.checkpoint if command.run is None else command.run))
    if str(named).startswith(PREFIX):
        return download(str(named)), None
    folder = named.parent if named.name == WEIGHTS_FILE else named
    if all((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):
        return folder, None
    if command.run is not None:
        run = RunDirectory.open(str(command.run), command.outputs)
        return run.checkpoint(checkpoint_named(str(command.run), command.outputs, str(command.checkpoint))), run
    if command.checkpoint in ("best", "last"):
        raise UserError("which model? give run=<run directory>, run=latest, or checkpoint=<file>")
    return named, None


def _read_export(folder: Path) -> dict[str, Any]:
    """A folder that vitlab.export wrote, or timm, as a checkpoint; its config does not know `data.root`."""
    weights = read_file(folder / WEIGHTS_FILE)
    about = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if not weights.input:
        raise UserError(f"{folder / CONFIG_FILE} does not describe a model of timm's")
    config = compose_training(["name=export", "run_dir=.", "data=image_folder", "model=vit_pretrained"])
    OmegaConf.set_struct(config, False)
    classes = weights.classes or [str(label) for label in range(about["num_classes"])]
    stored_size = about.get("stored_size", weights.input["image_size"])
    config.data.merge_with(
        {**weights.input, "stored_size": stored_size, "classes": classes, "num_classes": len(classes)}
    )
    config.model.merge_with({"name": about["architecture"], "kwargs": about.get("model_args"), "pretrained": False})
    state = {f"{WEIGHTS_PREFIX}{name}": tensor for name, tensor in weights.state.items()}
    return {CONFIG_KEY: OmegaConf.to_container(config, resolve=True), "state_dict": state}

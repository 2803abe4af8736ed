"""A run's model, ready to be shown pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.types import Override
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vitlab.compat import silence_libraries
from vitlab.config.command import apply_overrides
from vitlab.config.resolve import choose_attention, resolve_machine
from vitlab.data import BatchTransform
from vitlab.errors import UserError
from vitlab.memory import keep_freed_memory
from vitlab.report.terminal import print_choice
from vitlab.runs.checkpoint import CONFIG_KEY, choose_weights, read_checkpoint
from vitlab.runs.directory import RunDirectory
from vitlab.runs.rebuild import rebuild_network


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode on its device, and what it was trained with.

    Attributes:
        network: As rebuilt.
        forward: The network in the precision of the run.
        transform: What the network takes of uint8 images, on the device.
        config: The run's.
        run: None where a bare checkpoint was named.
        device: Of the network.
        checkpoint, weights: The file, and which of its weights: `raw` or `ema`.
    """

    network: nn.Module
    forward: Any
    transform: BatchTransform
    config: DictConfig
    run: RunDirectory | None
    device: torch.device
    checkpoint: Path
    weights: str

    @property
    def classes(self) -> list[str]:
        return list(self.config.data.classes)

    def inputs(self, images: Tensor) -> Tensor:
        """What the network takes, float32 `[B, 3, image_size, image_size]`, of uint8 images `[B, 3, h, w]`."""
        inputs: Tensor = self.transform(images.to(self.device))
        return inputs

    def logits(self, images: Tensor) -> Tensor:
        """Float32 `[B, classes]`, on the CPU, of uint8 images `[B, 3, h, w]`."""
        with torch.inference_mode():
            logits: Tensor = self.forward(self.inputs(images)).float().cpu()
        return logits


def open_model(command: DictConfig, overrides: Sequence[Override], conf: Path) -> LoadedModel:
    """The model that a command names.

    Args:
        command: With `run`, `checkpoint`, `weights`, `outputs` and `trusted_targets`.
        overrides: Of the run's config.
        conf: The folder of YAML files.

    Raises:
        UserError: run, checkpoint or an override is wrong.
    """
    silence_libraries()
    keep_freed_memory()
    file, run = _find_checkpoint(command)
    checkpoint = read_checkpoint(file)
    config = OmegaConf.create(checkpoint[CONFIG_KEY])
    apply_overrides(config, overrides, conf, command)
    resolve_machine(config)
    weights = choose_weights(checkpoint, command.weights, file)
    network = rebuild_network(config, checkpoint, file, list(command.trusted_targets), weights)
    choose_attention(config, network)
    print_choice(checkpoint, weights)

    torch.set_float32_matmul_precision(config.matmul_precision)
    try:
        fabric = Fabric(accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"trainer: {error}; trainer=cpu takes the CPU") from error
    forward = fabric.setup_module(network)
    transform = BatchTransform(
        [],
        image_size=config.data.image_size,
        interpolation=config.data.interpolation,
        mean=list(config.data.mean),
        std=list(config.data.std),
    ).to(fabric.device)
    return LoadedModel(network, forward, transform, config, run, fabric.device, file, weights)


def _find_checkpoint(command: DictConfig) -> tuple[Path, RunDirectory | None]:
    if command.run is not None:
        run = RunDirectory.open(str(command.run), command.outputs)
        return run.checkpoint(str(command.checkpoint)), run
    if command.checkpoint in ("best", "last"):
        raise UserError("which model? give run=<run directory>, run=latest, or checkpoint=<file>")
    return Path(str(command.checkpoint)), None

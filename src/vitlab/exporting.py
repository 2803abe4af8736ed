"""Writes a run's model in formats that need no vitlab."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vitlab.config.building import build
from vitlab.config.command import apply_overrides
from vitlab.config.quiet import quiet_libraries
from vitlab.data import ImageDataModule
from vitlab.data.loader import epoch_order
from vitlab.errors import UserError
from vitlab.files import folder_for
from vitlab.report import print_export
from vitlab.runs.checkpoint import read_checkpoint
from vitlab.runs.directory import RunDirectory
from vitlab.runs.rebuild import rebuild_network
from vitlab.weights.onnx_file import save_onnx
from vitlab.weights.timm_layout import save_timm

FORMATS = ("timm", "onnx")


def export(command: DictConfig, overrides: Sequence[Override], conf: Path) -> list[Path]:
    """Writes `model.safetensors` and `config.json` (timm's layout) and `model.onnx` into a folder that has none.

    Args:
        command: The values of `conf/export.yaml`.
        overrides: Of the run's config.
        conf: The folder of YAML files.

    Returns:
        The files.

    Raises:
        UserError: run, checkpoint, format or an override is wrong, a package is missing, or timm has no such network.
    """
    quiet_libraries()
    formats = list(command.formats)
    for unknown in set(formats) - set(FORMATS):
        raise UserError(f"formats=[{unknown}] is unknown; choose of {', '.join(FORMATS)}")
    run = RunDirectory.open(str(command.run), command.outputs)
    config = run.config()
    apply_overrides(config, overrides, conf, command)
    config.compile = False
    file = run.checkpoint(str(command.checkpoint))
    network = rebuild_network(config, read_checkpoint(file), file, list(command.trusted_targets))
    groups: Any = OmegaConf.to_container(config, resolve=True)

    folder = folder_for(
        run.path / "export" if command.out is None else Path(str(command.out)),
        "model.safetensors",
        "config.json",
        "model.onnx",
    )
    files: list[Path] = []
    difference = None
    if "timm" in formats:
        files += save_timm(network, groups["model"], groups["data"], folder)
        print_export(files)
    if "onnx" in formats:
        images = _test_images(config, command.check_images)
        difference = save_onnx(network, groups["data"], images, folder / "model.onnx")
        files.append(folder / "model.onnx")
        print_export(files[-1:], difference, len(images))
    return files


def _test_images(config: DictConfig, count: int) -> Tensor:
    """The first test images in the order of evaluation, as the network takes them, float32 `[count, 3, H, W]`."""
    size = config.data.image_size
    if not count:
        return torch.empty(0, 3, size, size)
    data: ImageDataModule = build(config.data, "data", augmentations=[], seed=config.seed)
    data.prepare_data()
    data.setup()
    arrays = data.splits["test"]
    return data.transform(arrays.images[epoch_order(len(arrays), 0, 0)[:count]])

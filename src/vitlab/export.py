"""Writes a run's model in formats that need no vitlab."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from vitlab.cli import run
from vitlab.compat import silence_libraries
from vitlab.config.compose import CONF, FACTS, apply_overrides, read_command
from vitlab.config.instantiate import build
from vitlab.data import ImageDataModule
from vitlab.data.loader import epoch_order
from vitlab.errors import UserError
from vitlab.files import folder_for
from vitlab.loaded_model import rebuild_network
from vitlab.report.terminal import print_choice, print_export
from vitlab.runs.checkpoint import choose_weights, read_checkpoint
from vitlab.runs.directory import RunDirectory
from vitlab.weights.onnx_export import onnx_packages, save_onnx
from vitlab.weights.timm_export import save_timm

FORMATS = ("timm", "onnx")
FILES = ("model.safetensors", "config.json", "model.onnx")


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
    silence_libraries()
    formats = _formats(command)
    run = RunDirectory.open(str(command.run), command.outputs)
    config = run.config()
    _refuse_facts(overrides)
    apply_overrides(config, overrides, conf, command)
    config.compile = False
    file = run.checkpoint(str(command.checkpoint))
    checkpoint = read_checkpoint(file)
    weights = choose_weights(checkpoint, command.weights, file)
    network = rebuild_network(config, checkpoint, file, list(command.trusted_targets), weights)
    print_choice(checkpoint, weights)
    groups: Any = OmegaConf.to_container(config, resolve=True)
    images = _test_images(config, command.check_images) if "onnx" in formats else None

    folder = folder_for(run.path / "export" if command.out is None else Path(str(command.out)), *FILES)
    files: list[Path] = []
    try:
        if "timm" in formats:
            files += save_timm(network, groups["model"], groups["data"], folder)
            print_export(files)
        if images is not None:
            files.append(folder / "model.onnx")
            difference = save_onnx(network, groups["data"], images, files[-1])
            print_export(files[-1:], difference, len(images))
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
    return files


def _formats(command: DictConfig) -> list[str]:
    """What is asked for, once all that it takes is known to be there."""
    formats = command.formats
    if not isinstance(formats, ListConfig) or not formats or set(formats) - set(FORMATS):
        raise UserError(f"formats={formats} must be a list of {', '.join(FORMATS)}: formats=[timm]")
    if not isinstance(command.check_images, int) or command.check_images < 0:
        raise UserError(f"check_images={command.check_images} must be a number of images, 0 or more")
    if "onnx" in formats:
        onnx_packages()
    return list(formats)


def _refuse_facts(overrides: Sequence[Override]) -> None:
    """What the weights were trained with goes into the files: it is not to be changed here."""
    for override in overrides:
        group, _, key = override.key_or_group.partition(".")
        if group == "model" or (group == "data" and key in FACTS):
            raise UserError(f"{override.input_line}: an export is of the model as it was trained")


def _test_images(config: DictConfig, count: int) -> Tensor:
    """The first test images in the order of evaluation, as the network takes them, float32 `[count, 3, H, W]`."""
    size = config.data.image_size
    if not count:
        return torch.empty(0, 3, size, size)
    try:
        data: ImageDataModule = build(config.data, "data", augmentations=[], seed=config.seed)
        data.prepare_data()
        data.setup()
    except UserError as error:
        raise UserError(f"{error} (check_images=0 leaves the images out)") from error
    arrays = data.splits["test"]
    return data.transform(arrays.pick(epoch_order(len(arrays), 0, 0)[:count]))


def main() -> None:
    command, overrides = read_command(CONF, "export", sys.argv[1:])
    export(command, overrides, CONF)


if __name__ == "__main__":
    run(main)

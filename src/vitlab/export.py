"""Export a run's model to timm's format and to ONNX."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from vitlab.arguments.command import parse_overrides, read_command
from vitlab.cli import no_gc_imports, run
from vitlab.errors import UserError
from vitlab.files import folder_for
from vitlab.runs.overrides import FACTS

if TYPE_CHECKING:
    from torch import Tensor

    from vitlab.loaded_model import LoadedModel

FORMATS = ("timm", "onnx")
FILES = ("model.safetensors", "config.json", "model.onnx")
PLAIN = ("trainer=cpu", "trainer.precision=32-true", "compile=false")  # an export does not depend on the machine


def main() -> None:
    export(*read_command("export", sys.argv[1:]))


def export(command: DictConfig, overrides: Sequence[Override]) -> list[Path]:
    """Write `model.safetensors` and `config.json` (timm's format) and `model.onnx` into a folder that has none of them.

    `command` holds the values of `conf/export.yaml`, `overrides` those of the run's config. Returns the files.

    Raises:
        UserError: run, checkpoint, format or an override is wrong, a package is missing, or timm has no such model.
    """
    formats = _check_formats(command)
    for override in overrides:  # the files say what the weights were trained with
        group, _, key = override.key_or_group.partition(".")
        if group == "model" or (group == "data" and key in FACTS):
            raise UserError(f"{override.input_line}: a model is exported as it was trained")
    with no_gc_imports():  # torch is imported once the command is known to be right
        from vitlab.loaded_model import open_model
        from vitlab.report.terminal import print_written
        from vitlab.runs.console import show
        from vitlab.weights.export_formats import save_onnx, save_timm

    model = open_model(command, [*overrides, *parse_overrides(PLAIN)])
    if model.run is None:
        raise UserError(f"run={command.run} is no run, but was exported already")
    config: Any = OmegaConf.to_container(model.config, resolve=True)
    images = _test_images(model, command.check_images) if "onnx" in formats else None

    folder = folder_for(model.run.path / "export" if command.out is None else Path(str(command.out)), *FILES)
    files: list[Path] = []
    try:
        if "timm" in formats:
            files += save_timm(model.network, config["model"], config["data"], folder)
            print_written(*files)
        if images is not None:
            files.append(folder / "model.onnx")
            difference = save_onnx(model.network, config["data"], images, files[-1])
            print_written(files[-1])
            if difference is not None:
                show(f"  logits of {len(images)} test images differ from torch's by at most {difference:.1e}")
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
    return files


def _check_formats(command: DictConfig) -> list[str]:
    """The formats asked for, if they are known and their packages installed."""
    formats = command.formats
    if not isinstance(formats, ListConfig) or not formats or set(formats) - set(FORMATS):
        raise UserError(f"formats={formats} must be a list of {', '.join(FORMATS)}: formats=[timm]")
    if not isinstance(command.check_images, int) or command.check_images < 0:
        raise UserError(f"check_images={command.check_images} must be a number of images, 0 or more")
    if "onnx" in formats:
        from vitlab.weights.export_formats import onnx_packages

        onnx_packages()
    return list(formats)


def _test_images(model: LoadedModel, count: int) -> Tensor:
    """The first test images, else training images, in the order of an evaluation, float32 `[count, 3, H, W]`,
    normalised."""
    import torch

    from vitlab.data.loader import epoch_order

    size = model.config.data.image_size
    if not count:
        return torch.empty(0, 3, size, size)
    try:
        splits = model.load_data().splits
    except UserError as error:
        raise UserError(f"{error} (check_images=0 leaves the images out)") from error
    arrays = splits["test"] if len(splits["test"]) else splits["train"]
    return model.preprocess(arrays.pick(epoch_order(len(arrays), 0, 0)[:count]))


if __name__ == "__main__":
    run(main)

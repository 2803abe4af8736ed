"""Export a run's model with a card: for timm, ONNX, torch.export and the hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from vitlab.arguments.command import check_switches, parse_overrides, read_command
from vitlab.cli import run
from vitlab.errors import UserError
from vitlab.files import folder_for, shorten
from vitlab.runs.imports import fast_imports
from vitlab.system import quote_for_shell

if TYPE_CHECKING:
    from torch import Tensor

    from vitlab.loaded_model import LoadedModel

FORMATS = ("timm", "onnx", "torch_export")
FILES = ("README.md", "config.json", "model.safetensors", "model.onnx", "model.pt2")
PLAIN = ("trainer=cpu", "trainer.precision=32-true", "compile=false")  # an export does not depend on the machine


def main() -> None:
    export(*read_command("export", sys.argv[1:]))


def export(command: DictConfig, overrides: Sequence[Override]) -> list[Path]:
    """Write the files of `formats` and a model card into a folder that has none of them, and push it if asked to.

    `command` holds the values of `conf/export.yaml`, `overrides` those of the run's config. Returns the files.

    Raises:
        UserError: run, checkpoint, format or an override is wrong, a package is missing, timm has no such model, torch
            can't trace it, or the hub refuses it.
    """
    formats = _check_command(command)
    for override in overrides:  # the files say what the weights were trained with
        if override.key_or_group.partition(".")[0] == "model":
            raise UserError(f"{override.input_line}: a model is exported as it was trained")
    with fast_imports():  # torch is imported once the command is known to be right
        from vitlab.loaded_model import open_model
        from vitlab.report.model_card import Export, write_model_card
        from vitlab.report.run_summary import read_run_summary
        from vitlab.report.terminal import print_written
        from vitlab.runs.console import show
        from vitlab.weights.export_formats import save_onnx, save_timm, save_torch_export, trace
        from vitlab.weights.hub import push
        from vitlab.weights.standalone import Reference, StandaloneModel, classify_all

    model = open_model(command, [*overrides, *parse_overrides(PLAIN)])
    if model.run is None:
        raise UserError(f"run={command.run} is no run, but was exported already")
    summary = read_run_summary(model.run)
    config: Any = OmegaConf.to_container(model.config, resolve=True)
    images = _test_images(model, command.check_images) if {*formats} - {"timm"} else None

    folder = folder_for(model.run.path / "export" if command.out is None else Path(str(command.out)), *FILES)
    contents: dict[str, str] = {}
    try:
        if "timm" in formats:
            save_timm(model.network, config["model"], config["data"], folder)
            contents |= {"config.json": "architecture, classes, preprocessing", "model.safetensors": "weights"}
            print_written(folder / "config.json", folder / "model.safetensors")
        if images is not None:
            standalone = StandaloneModel(model.network, config["data"])
            reference = Reference(standalone, images, classify_all(model.logits, images))
            program = trace(standalone)
            for name, file, save, text in (
                ("onnx", "model.onnx", save_onnx, "ONNX"),
                ("torch_export", "model.pt2", save_torch_export, "torch.export"),
            ):
                if name in formats:
                    agreement = save(program, model.classes, reference, folder / file)
                    print_written(folder / file)
                    contents[file] = f"{text}, with the preprocessing inside"
                    if agreement:
                        contents[file] += f"; {agreement}"
                        show(f"  {agreement}")
        about = Export(
            contents,
            network=model.network,
            weights=model.weights,
            checkpoint=model.checkpoint.name,
            is_tested=model.is_tested,
            repo=command.push_to_hub,
            license=command.license and command.license.lower(),  # as the hub writes them
        )
        write_model_card(summary, about, folder / "README.md")
        print_written(folder / "README.md")
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
    files = [folder / name for name in FILES if name in {*contents, "README.md"}]
    if command.push_to_hub is None:
        show("to share it:", f"  hf upload <user>/<name> {quote_for_shell(shorten(folder))}")
        return files
    try:
        address = push(
            files, command.push_to_hub, private=command.private, replaced=FILES, message=f"Export {summary.config.name}"
        )
    except UserError as error:
        again = f"hf upload {command.push_to_hub} {quote_for_shell(shorten(folder))}"
        raise UserError(f"{error}; the files are written, and `{again}` uploads them later") from error
    show(f"pushed to {address}")
    return files


def _check_command(command: DictConfig) -> list[str]:
    """The formats asked for; UserError if a value is wrong, or a package or the user's token is missing."""
    formats = command.formats
    if not isinstance(formats, ListConfig) or not formats or set(formats) - set(FORMATS):
        raise UserError(f"formats={formats} must be a list of {', '.join(FORMATS)}: formats=[timm]")
    if not isinstance(command.check_images, int) or command.check_images < 0:
        raise UserError(f"check_images={command.check_images} must be a number of images, 0 or more")
    check_switches(command, "private")
    if command.private and command.push_to_hub is None:
        raise UserError("private=true needs push_to_hub=<user>/<name>")
    if command.license is not None and not isinstance(command.license, str):
        raise UserError(f"license={command.license} must be the hub's name of a licence, such as mit or apache-2.0")
    if command.push_to_hub is not None:
        from vitlab.weights.hub import check_push

        check_push(command.push_to_hub)
    if "onnx" in formats:
        from vitlab.weights.export_formats import onnx_packages

        onnx_packages()
    return list(formats)


def _test_images(model: LoadedModel, count: int) -> Tensor:
    """The first test images, else training images, in the order of an evaluation, uint8 `[count, 3, H, W]`."""
    import torch

    from vitlab.data.loader import epoch_order

    if not count:
        return torch.empty(0)
    try:
        splits = model.load_data().splits
    except UserError as error:
        raise UserError(f"{error} (check_images=0 leaves the images out)") from error
    arrays = splits["test"] if len(splits["test"]) else splits["train"]
    return arrays.pick(epoch_order(len(arrays), 0, 0)[:count])


if __name__ == "__main__":
    run(main)

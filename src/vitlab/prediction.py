"""Says what is on pictures of any format and size."""

import csv
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.types import Override
from lightning_fabric import Fabric
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from vitlab.classifier import rank_classes
from vitlab.config.command import apply_overrides
from vitlab.config.machine import resolve_machine
from vitlab.config.quiet import quiet_libraries
from vitlab.data import BatchTransform
from vitlab.data.decoding import describe_failure, picture_suffixes, read_image, to_square
from vitlab.errors import UserError
from vitlab.files import folder_for, replacing, shorten, write_text
from vitlab.prediction_grid import draw_grid
from vitlab.runs.checkpoint import CONFIG_KEY, read_checkpoint
from vitlab.runs.directory import RunDirectory
from vitlab.runs.rebuild import rebuild_network


def predict(command: DictConfig, overrides: Sequence[Override], conf: Path) -> None:
    """Prints the classes of pictures, and writes `predictions.csv` and `grid.png`.

    Args:
        command: The values of `conf/predict.yaml`.
        overrides: Of the run's config.
        conf: The folder of YAML files.

    Raises:
        UserError: run, checkpoint or an override is wrong; or, when all else is done, pictures could not be read.
    """
    quiet_libraries()
    file, run = _find_checkpoint(command)
    checkpoint = read_checkpoint(file)
    config = OmegaConf.create(checkpoint[CONFIG_KEY])
    apply_overrides(config, overrides, conf, command)
    if command.top_k < 1:
        raise UserError(f"top_k={command.top_k} must be at least 1")
    files, failures = find_images(command.images)
    network = rebuild_network(config, checkpoint, file, list(command.trusted_targets))
    classes = list(config.data.classes)
    top_k = min(command.top_k, len(classes))

    resolve_machine(config)
    torch.set_float32_matmul_precision(config.matmul_precision)
    try:
        fabric = Fabric(accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"trainer: {error}; trainer=cpu takes the CPU") from error
    model = fabric.setup_module(network)
    transform = BatchTransform(
        [],
        image_size=config.data.image_size,
        interpolation=config.data.interpolation,
        mean=list(config.data.mean),
        std=list(config.data.std),
    ).to(fabric.device)

    console = Console(soft_wrap=True, highlight=False)
    rows: list[tuple[Path, list[str], list[float]]] = []
    for paths, images in _batches(files, config.data.stored_size, config.data.eval_batch_size, failures):
        with torch.inference_mode():
            logits = model(transform(images.to(fabric.device))).float().cpu()
        top = rank_classes(logits)[:, :top_k]
        for path, values, labels in zip(
            paths, logits.softmax(dim=1).gather(1, top).tolist(), top.tolist(), strict=True
        ):
            names = [classes[label] for label in labels]
            rows.append((path, names, values))
            guesses = "  ".join(f"{name} {value:.1%}" for name, value in zip(names, values, strict=True))
            console.print(f"{path}  {guesses}", markup=False)

    if rows:
        folder = _output_folder(command.out, run)
        write_text(folder / "predictions.csv", _csv(rows, top_k))
        console.print(f"written: {shorten(folder / 'predictions.csv')}", markup=False)
        if command.grid > 0:
            with replacing(folder / "grid.png") as temporary:
                draw_grid([(path, names[0], values[0]) for path, names, values in rows[: command.grid]], temporary)
            console.print(f"written: {shorten(folder / 'grid.png')}", markup=False)
    if failures:
        listing = "\n".join(f"  {path}: {why}" for path, why in failures.items())
        sys.stdout.flush()
        raise UserError(f"{len(failures)} of {len(failures) + len(rows)} pictures could not be read:\n{listing}")
    if not rows:
        raise UserError(f"images={command.images}: there is no picture there")


def find_images(wanted: Any) -> tuple[list[Path], dict[str, str]]:
    """Files for files, folders (every picture below them) and patterns, each once, in order; and what is not there."""
    files: dict[Path, None] = {}
    missing: dict[str, str] = {}
    known = picture_suffixes()
    for item in list(wanted) if isinstance(wanted, ListConfig) else [wanted]:
        path = Path(str(item)).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in known and p.is_file())
            if not found:
                missing[str(item)] = "no pictures in this folder"
        elif path.exists():
            found = [path]
        else:
            # Path.glob takes no absolute patterns.
            found = sorted(p for p in map(Path, glob(str(path), recursive=True)) if p.is_file())  # noqa: PTH207
            if not found:
                missing[str(item)] = "no such file"
        files.update(dict.fromkeys(found))
    return list(files), missing


def _find_checkpoint(command: DictConfig) -> tuple[Path, RunDirectory | None]:
    if command.run is not None:
        run = RunDirectory.open(str(command.run), command.outputs)
        return run.checkpoint(str(command.checkpoint)), run
    if command.checkpoint in ("best", "last"):
        raise UserError("which model? give run=<run directory>, run=latest, or checkpoint=<file>")
    return Path(str(command.checkpoint)), None


def _batches(
    files: Sequence[Path], size: int, batch_size: int, failures: dict[str, str]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Paths and uint8 images `[b, 3, size, size]`; what can't be read goes into `failures`."""

    def decode(path: Path) -> Tensor | str:
        try:
            return torch.from_numpy(to_square(read_image(path), size))
        except Exception as error:  # Pillow's decoders raise whatever they stumble on
            return describe_failure(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), batch_size):
            chunk = files[start : start + batch_size]
            decoded = list(zip(chunk, pool.map(decode, chunk), strict=True))
            failures.update({str(path): image for path, image in decoded if isinstance(image, str)})
            good = [(path, image) for path, image in decoded if not isinstance(image, str)]
            if good:
                yield [path for path, _ in good], torch.stack([image for _, image in good])


def _output_folder(out: Any, run: RunDirectory | None) -> Path:
    """A new folder: nothing that an earlier call wrote is overwritten."""
    base = (
        Path(str(out))
        if out is not None
        else (run.path if run else Path()) / "predictions" / time.strftime("%Y-%m-%d_%H-%M-%S")
    )
    return folder_for(base, "predictions.csv")


def _csv(rows: Sequence[tuple[Path, list[str], list[float]]], top_k: int) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *(f"{what}_{rank}" for rank in range(1, top_k + 1) for what in ("class", "probability"))])
    for path, names, values in rows:
        guesses = [cell for name, value in zip(names, values, strict=True) for cell in (name, f"{value:.6f}")]
        writer.writerow([path, *guesses])
    return text.getvalue()

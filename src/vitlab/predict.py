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
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from torch import Tensor

from vitlab.classifier import rank_classes
from vitlab.data.decoding import describe_failure, picture_suffixes, read_image, to_square
from vitlab.errors import UserError
from vitlab.files import folder_for, replacing, shorten, write_text
from vitlab.loaded_model import open_model
from vitlab.plots.image_grid import draw_predictions
from vitlab.runs.directory import RunDirectory


def predict(command: DictConfig, overrides: Sequence[Override], conf: Path) -> None:
    """Prints the classes of pictures, and writes `predictions.csv` and `grid.png`.

    Args:
        command: The values of `conf/predict.yaml`.
        overrides: Of the run's config.
        conf: The folder of YAML files.

    Raises:
        UserError: run, checkpoint or an override is wrong; or, when all else is done, pictures could not be read.
    """
    if command.top_k < 1:
        raise UserError(f"top_k={command.top_k} must be at least 1")
    model = open_model(command, overrides, conf)
    top_k = min(command.top_k, len(model.classes))
    files, failures = find_images(command.images)

    console = Console(soft_wrap=True, highlight=False)
    rows: list[tuple[Path, list[str], list[float]]] = []
    data = model.config.data
    for paths, images in read_batches(files, data.stored_size, data.eval_batch_size, failures):
        logits = model.logits(images)
        top = rank_classes(logits)[:, :top_k]
        for path, values, labels in zip(
            paths, logits.softmax(dim=1).gather(1, top).tolist(), top.tolist(), strict=True
        ):
            names = [model.classes[label] for label in labels]
            rows.append((path, names, values))
            guesses = "  ".join(f"{name} {value:.1%}" for name, value in zip(names, values, strict=True))
            console.print(f"{path}  {guesses}", markup=False)

    if rows:
        folder = _output_folder(command.out, model.run)
        write_text(folder / "predictions.csv", _csv(rows, top_k))
        console.print(f"written: {shorten(folder / 'predictions.csv')}", markup=False)
        if command.grid > 0:
            with replacing(folder / "grid.png") as temporary:
                best = [(path, names[0], values[0]) for path, names, values in rows[: command.grid]]
                draw_predictions(best, temporary)
            console.print(f"written: {shorten(folder / 'grid.png')}", markup=False)
    check_all_read(failures, len(rows), command.images)


def check_all_read(failures: dict[str, str], read: int, images: Any) -> None:
    """Ends a command that has done all it could.

    Args:
        failures: Why each picture that could not be read couldn't.
        read: Number of the others.
        images: As typed.

    Raises:
        UserError: pictures could not be read, or there was none.
    """
    if failures:
        listing = "\n".join(f"  {path}: {why}" for path, why in failures.items())
        sys.stdout.flush()
        raise UserError(f"{len(failures)} of {len(failures) + read} pictures could not be read:\n{listing}")
    if not read:
        raise UserError(f"images={images}: there is no picture there")


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


def read_batches(
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

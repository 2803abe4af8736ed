"""Classify image files of any format and size."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig

from vitlab.arguments.command import check_switches, read_command
from vitlab.cli import run
from vitlab.errors import UserError
from vitlab.files import expand_home, folder_for, replacing, write_csv
from vitlab.runs.imports import fast_imports

if TYPE_CHECKING:
    from torch import Tensor


def main() -> None:
    predict(*read_command("predict", sys.argv[1:]))


def predict(command: DictConfig, overrides: Sequence[Override]) -> None:
    """Print the most probable classes of images, and write `predictions.csv` and `grid.png`.

    `command` holds the values of `conf/predict.yaml`, `overrides` those of the run's config. Raises UserError if one of
    them is wrong or, after all others are done, for images that can't be read.
    """
    check_top_k(command.top_k)
    check_switches(command, "calibrate")
    grid = command.grid or 0  # null: none
    if not isinstance(grid, int):
        raise UserError(f"grid={grid} must be a whole number of images")
    with fast_imports():  # torch is imported once the command is known to be right
        from vitlab.loaded_model import open_model
        from vitlab.metrics.evaluation import rank_classes
        from vitlab.plots.image_grid import draw_predictions
        from vitlab.plots.io import render
        from vitlab.report.terminal import print_written
        from vitlab.runs.calibration import read_temperature
        from vitlab.runs.console import show

    model = open_model(command, overrides)
    temperature = read_temperature(model.run, model.checkpoint, model.weights) if command.calibrate else 1.0
    files, failures = find_images(command.images)
    rows: list[tuple[Path, list[str], list[float]]] = []
    for paths, images in read_batches(files, model.config.data, failures, model.config.data.eval_batch_size):
        logits = model.logits(images) / temperature
        top = rank_classes(logits)[:, : command.top_k]
        probabilities = logits.softmax(dim=1).gather(1, top)
        for path, labels, values in zip(paths, top.tolist(), probabilities.tolist(), strict=True):
            names = [model.classes[label] for label in labels]
            rows.append((path, names, values))
            show(f"{path}  {'  '.join(f'{name} {value:.1%}' for name, value in zip(names, values, strict=True))}")

    if rows:
        parent = model.run.path if model.run else Path()
        base = command.out or parent / "predictions" / time.strftime("%Y-%m-%d_%H-%M-%S")
        folder = folder_for(Path(str(base)), "predictions.csv", "grid.png")  # nothing is overwritten
        ranks = range(1, len(rows[0][1]) + 1)
        columns = ["image", *(f"{column}_{rank}" for rank in ranks for column in ("class", "probability"))]
        write_csv(folder / "predictions.csv", columns, map(_cells, rows))
        print_written(folder / "predictions.csv")
        if grid > 0:
            best = [(path, names[0], values[0]) for path, names, values in rows[:grid]]
            with replacing(folder / "grid.png") as temporary:
                render(partial(draw_predictions, best), "Predictions").save(temporary, format="png")
            print_written(folder / "grid.png")
    check_all_read(failures, len(rows), command.images)


def check_top_k(top_k: Any) -> None:
    if not isinstance(top_k, int) or top_k < 1:
        raise UserError(f"top_k={top_k} must be at least 1, and a whole number")


def find_images(wanted: Any) -> tuple[list[Path], dict[str, str]]:
    """The image files of a file, folder (with its subfolders), pattern, or a list of those, in order, each file once;
    and for each item that has none the reason. UserError for an empty text."""
    from vitlab.data.folder_layout import describe_left_out, list_images
    from vitlab.runs.console import show

    files: dict[Path, None] = {}
    missing: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    for item in list(wanted) if isinstance(wanted, ListConfig) else [wanted]:
        if not str(item):  # Path("") is the working directory
            raise UserError("images= is empty: name a file, a folder or a pattern; images=. takes this folder")
        path = Path(expand_home(str(item)))
        if path.is_dir():
            found = [Path(file) for file, *_ in list_images(path, left_out)]
        elif path.exists():
            found = [path]
        else:  # a pattern, in a folder whose own name may look like one; Path.glob takes no absolute patterns
            folder = next(parent for parent in path.parents if parent.exists() or parent == parent.parent)
            pattern = Path(escape(str(folder)), path.relative_to(folder))
            found = sorted(p for p in map(Path, glob(str(pattern), recursive=True)) if p.is_file())  # noqa: PTH207
        if not found:
            missing[str(item)] = "no images in this folder" if path.is_dir() else "no such file"
        files.update(dict.fromkeys(found))
    if reason := describe_left_out(left_out):
        show(f"left out: {reason}")
    return list(files), missing


def read_batches(
    files: Sequence[Path], data: DictConfig, failures: dict[str, str], batch_size: int
) -> Iterator[tuple[list[Path], Tensor]]:
    """Decode images on all cores: yield paths and uint8 images `[b, 3, stored_size, stored_size]`.

    `data` is the run's group. `failures` gets the reason for each file that can't be read.
    """
    import torch

    from vitlab.data.decoding import decode_files

    for start in range(0, len(files), batch_size):
        chunk = files[start : start + batch_size]
        decoded = list(zip(chunk, decode_files(chunk, data.stored_size), strict=True))
        failures.update({str(path): file.remark for path, file in decoded if file.pixels is None})
        good = [(path, torch.from_numpy(file.pixels)) for path, file in decoded if file.pixels is not None]
        if good:
            yield [path for path, _ in good], torch.stack([image for _, image in good])


def check_all_read(failures: dict[str, str], read: int, images: Any) -> None:
    """Raise UserError, at the end of a command, if images could not be read or there was none."""
    if failures:
        reasons = "\n".join(f"  {path}: {reason}" for path, reason in failures.items())
        sys.stdout.flush()
        raise UserError(f"{len(failures)} of {len(failures) + read} images could not be read:\n{reasons}")
    if not read:
        raise UserError(f"images={images}: no images found")


def _cells(row: tuple[Path, list[str], list[float]]) -> list[Any]:
    path, names, values = row
    return [path, *(cell for name, value in zip(names, values, strict=True) for cell in (name, f"{value:.6f}"))]


if __name__ == "__main__":
    run(main)

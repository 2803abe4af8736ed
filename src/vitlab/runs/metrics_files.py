"""Read and write `metrics.csv`, one row per epoch, and `metrics.json`.

Epochs count from 1. Versions before manifest format 2 counted them from 0; their files are converted on reading.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.files import write_text

Row = dict[str, float]


def shortest(value: float) -> float:
    """The shortest decimal number with the same float32 value: 0.956, where float(tensor) is 0.9559999704360962."""
    return float(str(np.float32(value)))


def shorten_values(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as they are written: floats by `shortest`, except `seconds`, which float32 would round."""
    return {
        name: shortest(value) if isinstance(value, float) and name != "seconds" else value
        for name, value in metrics.items()
    }


def count_from_one(rows: Sequence[Row]) -> list[Row]:
    """Rows of `metrics.csv` with epochs counted from 1: an earlier version's first row is epoch 0."""
    offset = 1 if rows and rows[0]["epoch"] == 0 else 0
    return [{**row, "epoch": row["epoch"] + offset} for row in rows]


def read_epochs(file: Path) -> list[Row]:
    """The rows of `metrics.csv` without empty cells, epochs counted from 1; none if there is no file.

    Raises:
        OSError, ValueError: the file can't be read.
    """
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("epoch")]
    return count_from_one([{name: float(value) for name, value in row.items() if name and value} for row in rows])


def write_epochs(file: Path, rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> None:
    """Writes `metrics.csv` whole: a column for epoch, step, seconds and each of `columns`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ("epoch", "step", "seconds", *columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(shorten_values(row) for row in rows)
    write_text(file, text.getvalue())


def read_final(file: Path, *, from_zero: bool) -> dict[str, Any]:
    """The content of `metrics.json`; empty if there is no file.

    Args:
        file: `metrics.json`.
        from_zero: Whether an earlier version wrote it, which counted epochs from 0.

    Raises:
        OSError, ValueError: the file can't be read.
    """
    metrics: Any = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not isinstance(metrics, dict):
        raise ValueError(f"{file} holds no keys and values")
    if from_zero and "epoch" in metrics:
        metrics["epoch"] += 1
    return shorten_values(metrics) if from_zero else metrics

"""Calibrate probabilities by a temperature (Guo et al. 2017, section 4.2)."""

import json
import math
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from vitlab.errors import UserError
from vitlab.files import set_aside, write_json
from vitlab.metrics import METRICS
from vitlab.runs.directory import RunDirectory

CALIBRATION = "calibration.json"  # of a run: the temperature, and the weights that it belongs to


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The number that divides the logits, float32 `[N, classes]`, so that the cross-entropy of the labels, int64 `[N]`,
    is least. It changes no prediction: probabilities come nearer to the accuracy."""

    def cross_entropy(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / math.exp(log_temperature), labels).item()

    return round(math.exp(minimize_scalar(cross_entropy, bounds=(-4.0, 4.0), method="bounded").x), 4)


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """ECE, a fraction, of logits `[N, classes]`: the metric `ece`."""
    metric = METRICS["ece"].build(logits.shape[1])
    metric.update(logits.softmax(dim=1), labels)
    return round(metric.compute().item(), 6)


def write_calibration(run: RunDirectory, calibration: dict[str, Any], checkpoint: Path, weights: str) -> None:
    """Writes `calibration.json`, with the weights of the checkpoint that it is of; an earlier one is renamed."""
    file = run.path / CALIBRATION
    set_aside(file)
    write_json(file, {**calibration, "checkpoint": checkpoint.name, "weights": weights, "sha256": _digest(checkpoint)})


def read_temperature(run: RunDirectory | None, checkpoint: Path, weights: str) -> float:
    """The temperature that `evaluate.py calibrate=true` found for these weights of a run, else UserError."""
    file = None if run is None else run.path / CALIBRATION
    if file is None or not file.exists():
        raise UserError("calibrate=true: there is no calibration.json: run evaluate.py run=<run> calibrate=true first")
    found = json.loads(file.read_text(encoding="utf-8"))
    if (found["sha256"], found["weights"]) != (_digest(checkpoint), weights):
        raise UserError(
            f"calibrate=true: {file} is of other weights ({found['weights']} ones of {found['checkpoint']}): run "
            "evaluate.py with calibrate=true for these first"
        )
    return float(found["temperature"])


def _digest(checkpoint: Path) -> str:
    """SHA-256 of a file, or of the names and contents in a folder that several processes wrote."""
    if checkpoint.is_dir():
        parts = [f"{file.name} {_digest(file)}" for file in sorted(checkpoint.iterdir())]
        return sha256("\n".join(parts).encode()).hexdigest()
    with checkpoint.open("rb") as content:
        return file_digest(content, "sha256").hexdigest()

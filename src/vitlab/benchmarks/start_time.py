"""Time a command from Enter to its help, its config and its first step."""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from vitlab.benchmarks.measurement import Sections, Setup, Variant, run_process
from vitlab.config.compose import CONF

TRAIN = str(CONF.parent / "train.py")


class StopAtFirstStep(pl.Callback):
    """Exit the process, without any cleanup, when the first training step begins (`begins`) or ends."""

    def __init__(self, begins: bool) -> None:
        self.begins = begins

    def on_train_batch_start(self, *_: Any) -> None:
        if self.begins:
            os._exit(0)

    def on_train_batch_end(self, *_: Any) -> None:
        os._exit(0)


def sections(setup: Setup) -> Sections:
    """Time the help, the composed config and the first step; the reference is importing the libraries."""
    train, stop = [sys.executable, TRAIN, *setup.overrides], "+callbacks.stop."
    first = [*train, f"{stop}_target_={__name__}.StopAtFirstStep"]
    commands = {
        "importing the libraries": [sys.executable, "-c", "import torch, torchvision, timm, pytorch_lightning"],
        "--help": [sys.executable, TRAIN, "--help"],
        "--cfg job": [*train, "--cfg", "job"],
        "first step begins": [*first, f"{stop}begins=true"],
        "first step ends": [*first, f"{stop}begins=false"],
        "first step ends, preflight=off": [*first, f"{stop}begins=false", "preflight=off"],
    }
    return {"seconds from Enter": {name: _process_seconds(command) for name, command in commands.items()}}


def _process_seconds(command: Sequence[str]) -> Variant:
    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            directory = [f"hydra.run.dir={folder}/run"] if command[1] == TRAIN else []
            started = time.perf_counter()
            run_process([*command[:2], *directory, *command[2:]])
            return time.perf_counter() - started

    return run

"""Seconds from typing a command to what a person waits for."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from vitlab.benchmarks.variant import Sections, Variant, Work
from vitlab.config.compose import CONF
from vitlab.errors import UserError

TRAIN = str(CONF.parent / "train.py")


class StopAtFirstStep(pl.Callback):
    """Ends the process, without anything further, when the first training step begins, or when it is over."""

    def __init__(self, begins: bool) -> None:
        self.begins = begins

    def on_train_batch_start(self, *_: Any) -> None:
        if self.begins:
            os._exit(0)

    def on_train_batch_end(self, *_: Any) -> None:
        os._exit(0)


def start_times(work: Work) -> Sections:
    """Help, the composed config, and the first training step with all checks, beside what importing torch takes."""
    imports = [sys.executable, "-c", "import torch, torchvision, timm, pytorch_lightning"]
    callback = "+callbacks.stop._target_=vitlab.benchmarks.start.StopAtFirstStep"
    first = [sys.executable, TRAIN, *work.overrides, callback]
    begins, done = ([*first, f"+callbacks.stop.begins={begins}"] for begins in ("true", "false"))
    return {
        "seconds from typing": {
            "importing the libraries": _process(imports),
            "the same, without looking for garbage": _process([*imports[:2], f"import gc; gc.disable(); {imports[2]}"]),
            "--help": _process([sys.executable, TRAIN, "--help"]),
            "--cfg job": _process([sys.executable, TRAIN, *work.overrides, "--cfg", "job"]),
            "first step begins": _process(begins, leaves_a_run=True),
            "first step done": _process(done, leaves_a_run=True),
            "first step done, preflight=off": _process([*done, "preflight=off"], leaves_a_run=True),
        }
    }


def _process(command: Sequence[str], *, leaves_a_run: bool = False) -> Variant:
    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            place = [f"hydra.run.dir={Path(folder) / 'run'}"] if leaves_a_run else []
            started = time.perf_counter()
            result = subprocess.run([*command, *place], capture_output=True, text=True)
            seconds = time.perf_counter() - started
        if result.returncode:
            raise UserError(f"{' '.join(command)} ended with status {result.returncode}: {result.stderr[-500:]}")
        return seconds

    return run

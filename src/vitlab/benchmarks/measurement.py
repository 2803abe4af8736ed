"""Time the variants of a benchmark in interleaved rounds."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from vitlab.config.compose import CONF, compose_training
from vitlab.config.resolve import resolve_machine
from vitlab.data import ImageDataModule
from vitlab.errors import UserError
from vitlab.experiment import add_data_spec, load_data, resolve
from vitlab.weights import weights_to_start_from

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Variant = Callable[[int], float]  # runs that many steps and returns a figure, for example images per second
Sections = Mapping[str, Mapping[str, Variant]]  # tables of variants by title; the first variant is the reference


class Setup(NamedTuple):
    """The training config, the overrides it was composed with, and the values of `conf/bench.yaml`."""

    config: DictConfig
    overrides: Sequence[str]
    command: DictConfig


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Return the training config that `train.py` would use on this machine, without `auto`."""
    config = compose_training([*overrides, "name=bench", "run_dir=outputs"], CONF)
    resolve_machine(config)
    return config


def load(config: DictConfig) -> tuple[DictConfig, ImageDataModule]:
    """Load the data of a composed config; return the config as a run completes it, but editable, and the data."""
    config = resolve(config, weights_to_start_from(config))
    data = load_data(config)
    config = add_data_spec(config, data.spec, {})
    OmegaConf.set_readonly(config, False)
    return config, data


def measure(variants: Mapping[str, Variant], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return each variant's figures. A round runs each variant once, so all see the same changes of machine speed."""
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            figures[name].append(run(steps))
    return figures


def timed(loop: Callable[[int], int], *, warmup: int = 1, pause: float = 0.0) -> Variant:
    """Make a variant that returns the images per second of `loop`, which returns the number of images.

    Each round begins with `pause` seconds, in which workers of other variants fill their queues, and `warmup` steps:
    the first step is slower, and workers have some batches ready.
    """

    def run(steps: int) -> float:
        time.sleep(pause)
        loop(warmup)
        _wait_for_device()
        started = time.perf_counter()
        images = loop(steps)
        _wait_for_device()
        return images / (time.perf_counter() - started)

    return run


def endless(batches: Any) -> Iterator[Any]:
    """Iterate over `batches` again and again."""
    while True:
        yield from batches


def run_process(command: Sequence[str]) -> str:
    """Run a command and return what it printed, or raise a UserError if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{' '.join(command)} failed with status {result.returncode}: {result.stderr[-500:]}")
    return result.stdout + result.stderr


def _wait_for_device() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()

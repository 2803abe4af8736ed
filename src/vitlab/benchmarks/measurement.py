"""Time variants in interleaved rounds; a bare training loop as an upper bound."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vitlab.config.compose import compose_training
from vitlab.config.instantiate import build, build_network
from vitlab.config.resolve import resolve_machine
from vitlab.data import ImageDataModule
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.loader import ResidentLoader
from vitlab.data.transforms import BatchTransform
from vitlab.errors import UserError
from vitlab.experiment import add_data_facts, load_data, resolve
from vitlab.models.execution import choose_execution
from vitlab.weights import weights_to_start_from

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # dtype of matrix products by Lightning's precision

Variant = Callable[[int], float]  # runs that many steps and returns a figure, for example images per second
Sections = Mapping[str, Mapping[str, Variant]]  # tables of variants by title; the first variant is the reference


class Setup(NamedTuple):
    """The training config, the overrides it was composed with, and the values of `conf/bench.yaml`."""

    config: DictConfig
    overrides: Sequence[str]
    command: DictConfig


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Return the training config that `train.py` would use on this machine, without `auto`."""
    config = compose_training([*overrides, "name=bench", "run_dir=outputs"])
    resolve_machine(config)
    return config


def load(config: DictConfig) -> tuple[DictConfig, ImageDataModule]:
    """Load the data of a composed config; return the config as a run completes it, but editable, and the data."""
    config = resolve(config, weights_to_start_from(config))
    data = load_data(config)
    config = add_data_facts(config, data, {})
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


def run_process(command: Sequence[str]) -> str:
    """Run a command and return what it printed, or raise a UserError if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{' '.join(command)} failed with status {result.returncode}: {result.stderr[-500:]}")
    return result.stdout + result.stderr


def _wait_for_device() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def training_batches(data: ImageDataModule, transform: BatchTransform) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield full batches without end, as a run makes them: transformed images and labels on `DEVICE`."""
    arrays, size, transform = data.splits["train"], data.batch_size, transform.to(DEVICE)
    loader = ResidentLoader(arrays, size, seed=0, epoch=lambda: 0, drop_last=True, device=DEVICE, rank=0, world_size=1)
    for batch in chain.from_iterable(repeat(loader)):
        yield transform(batch.images, CounterRNG(0, 0, batch.indices)), batch.labels


def training_steps(config: DictConfig, data: ImageDataModule) -> Variant:
    """Make a variant of whole training steps: model, precision, optimizer, loss and clipping are the config's."""
    network = build_network(config.model).to(DEVICE)
    choose_execution(config, network)
    optimizer = build(config.optimizer, "optimizer")(network.parameters())
    batches = training_batches(data, data.transform)
    dtype, clip = HALF.get(config.trainer.precision, torch.float32), config.trainer.gradient_clip_val

    def loop(steps: int) -> int:
        network.train()
        for _ in range(steps):
            images, labels = next(batches)
            with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
                loss = F.cross_entropy(network(images), labels, label_smoothing=config.loss.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
        return steps * data.batch_size

    return timed(loop)

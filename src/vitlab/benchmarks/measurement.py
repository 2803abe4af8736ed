"""Time variants and processes; a bare training loop as an upper bound."""

import copy
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vitlab.compat import is_compiled
from vitlab.components import load_data
from vitlab.config.compose import compose_training
from vitlab.config.instantiate import build, build_network
from vitlab.config.resolve import resolve_machine
from vitlab.data import ImageDataModule
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.loader import ResidentLoader
from vitlab.data.transforms import BatchTransform
from vitlab.errors import UserError
from vitlab.experiment import add_data_facts, resolve
from vitlab.files import ROOT
from vitlab.models.execution import choose_execution
from vitlab.runs.directory import RunDirectory
from vitlab.weights import weights_to_start_from

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ACCELERATOR = "gpu" if DEVICE.type == "cuda" else "cpu"
TRAIN = str(ROOT / "train.py")
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # dtype of matrix products by Lightning's precision

Variant = Callable[[int], float]  # runs that many steps and returns a figure, for example images per second
Sections = Mapping[str, Mapping[str, Variant]]  # tables of variants by title; the first variant is the reference


class Setup(NamedTuple):
    """The training config, the overrides it was composed with, and the values of `conf/bench.yaml`."""

    config: DictConfig
    overrides: Sequence[str]
    command: DictConfig
    log: Path | None = None  # for the output of processes


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


def run_process(
    command: Sequence[str], *, log: Path | None, seconds: float | None = None, stop_at: Path | None = None
) -> str:
    """Run a command and return what it printed, which is also appended to `log`.

    Once the file `stop_at` exists it gets SIGTERM, and has to exit with 143. UserError if it exits with another status,
    TimeoutError if it is killed after `seconds`.
    """
    end = time.monotonic() + (seconds or math.inf)
    # Not a pipe, which would stay open in processes that a killed one leaves.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            while stop_at and not stop_at.exists() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            if stop_at:
                process.terminate()
            process.wait(None if seconds is None else max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"killed after {seconds:.0f} s") from None
        finally:
            process.kill()
            output.seek(0)
            printed = output.read()
            if log:
                with log.open("a", encoding="utf-8") as file:
                    file.write(f"$ {' '.join(command)}\n{printed}\n")
    if process.returncode != (143 if stop_at else 0):
        last = printed.rstrip().rpartition("\n")[2]
        raise UserError(f"it ended with status {process.returncode}: {last}")
    return printed


def train_speed(overrides: Sequence[str], log: Path | None, steps: int) -> float:
    """Run `train.py` for four short epochs; the figure is the third's, as the run draws figures in the others."""
    with tempfile.TemporaryDirectory() as folder:
        limits = ["trainer.max_epochs=4", f"trainer.limit_train_batches={steps}", "trainer.limit_test_batches=0"]
        limits += ["trainer.limit_val_batches=0", "preflight=off", f"hydra.run.dir={folder}/run"]
        run_process([sys.executable, TRAIN, *overrides, *limits], log=log)
        rows = RunDirectory(Path(folder) / "run").epoch_rows()
    return rows[2]["images_per_second"]


def _wait_for_device() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def training_batches(data: ImageDataModule, transform: BatchTransform) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield full batches without end, as a run makes them: transformed images and labels on `DEVICE`."""
    arrays, size, transform = data.splits["train"], data.batch_size, transform.to(DEVICE)
    loader = ResidentLoader(arrays, size, seed=0, epoch=lambda: 0, drop_last=True, device=DEVICE, rank=0, world_size=1)
    for batch in chain.from_iterable(repeat(loader)):
        rng = CounterRNG(0, 0, batch.indices)
        rng = rng.on_device(len(transform.augmentations)) if is_compiled(transform) else rng
        yield transform(batch.images, rng), batch.labels


def training_steps(config: DictConfig, data: ImageDataModule) -> Variant:
    """Make a variant of whole training steps: model, precision, optimizer, loss, clipping, compilation are the
    config's."""
    network = build_network(config.model).to(DEVICE)
    choose_execution(config, network)
    optimizer = build(config.optimizer, "optimizer")(network.parameters())
    transform = copy.deepcopy(data.transform)
    if config.compile in (True, "blocks") and DEVICE.type == "cuda":  # as a run does
        transform.compile(dynamic=False)
    batches = training_batches(data, transform)
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

"""A GPU machine in a quarter of an hour: smoke checks, kernels, speed, a recipe."""

import gc
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import torch
from omegaconf import DictConfig

from vitlab.benchmarks import measurement
from vitlab.benchmarks.kernels import kernel_sections, milliseconds
from vitlab.benchmarks.measurement import ACCELERATOR, DEVICE, HALF, TRAIN, Setup, Variant, compose_config
from vitlab.benchmarks.record import Record, Skipped
from vitlab.benchmarks.smoke import WORKERS, Check, Smoke
from vitlab.config.instantiate import build_network
from vitlab.data import ImageDataModule
from vitlab.models.execution import forward_flops
from vitlab.runs.directory import RunDirectory

MINUTES = 12
SECONDS = {"smoke": 90, "kernels": 60, "speed": 300}  # of the 12 minutes; the recipe gets the rest
RECIPE = "cifar10_gpu_10min"
RECIPE_TRAINS, RECIPE_AROUND = 180, 75  # seconds: training; start, compilation, last validation, test, report
MODELS = {
    "vit_scratch, 32 px, batch 1,024": "model=vit_scratch data.batch_size=1024",
    "vit_small, 32 px, batch 1,024": "model=vit_small data.batch_size=1024",
    "ViT-B/16, 224 px, batch 256": "model=vit_base model.patch_size=16 data.image_size=224 data.batch_size=256",
}
SIDE = 8192  # rows and columns of the multiplied matrices
TINY = [
    *("model.embed_dim=32", "model.depth=1", "model.num_heads=2", "model.patch_size=8", "data.image_size=32"),
    *("data.batch_size=8", "data.val_size=20", "data.max_train_images=200"),
]


def measure_gpu(setup: Setup, record: Record, started: float) -> None:
    """Run the chosen parts, each until its own time limit; `started` is the command's start on `time.monotonic`."""
    command, tiny = setup.command, TINY if setup.command.tiny else []
    precision = str(setup.config.trainer.precision)
    dtype = HALF.get(precision, torch.float32)
    generated = ["data=synthetic", f"data.train_images={400 if tiny else 24_000}"]
    data = [] if any(override.startswith("data=") for override in setup.overrides) else generated
    overrides = [*data, *setup.overrides, *tiny, f"trainer.accelerator={ACCELERATOR}", "trainer.devices=1"]
    for part in command.parts:
        seconds = SECONDS.get(part, 60 * MINUTES) * command.minutes / MINUTES
        end = min(time.monotonic() + seconds, started + 60 * command.minutes)
        measure = partial(record.measure, rounds=command.rounds, steps=command.steps, end=end)
        if part == "smoke":
            with tempfile.TemporaryDirectory() as folder:
                smoke = Smoke(Path(folder), record.log, end, [*generated, *tiny] if tiny else [])
                with ThreadPoolExecutor(WORKERS) as pool:
                    list(pool.map(partial(run_chain, record), smoke.chains()))
        elif part == "kernels":
            for title, variants in kernel_sections(dtype, tiny):
                measure(title, variants)
        elif part == "speed":
            products = partial(matrix_products, dtype, 64 if tiny else SIDE)
            measure("matrix products, TFLOP/s", {precision: products})
            for name, model in MODELS.items():
                variants = speed_variants(products, [*model.split(), *overrides], record.log)
                measure(f"{name}, {precision}, images/s; ratio: MFU", variants)
        else:
            train = partial(train_recipe, end, overrides, 5 if tiny else RECIPE_TRAINS, record.log)
            record.run("recipe", RECIPE, train, end)


def run_chain(record: Record, chain: Mapping[str, Check]) -> None:
    for name, check in chain.items():
        record.run("smoke checks", name, check)


def matrix_products(dtype: torch.dtype, side: int, steps: int) -> float:
    """Return the TFLOP/s of products of square matrices, the measured ceiling of the device."""
    left, right = (torch.randn(side, side, dtype=dtype, device=DEVICE) for _ in range(2))
    return 2 * side**3 / milliseconds(lambda: left @ right, steps) / 1e9


def free_memory() -> None:
    """Drop what the variant before left on the GPU, which a process would lack, and its graphs: after one batch size
    dynamo would compile the next as a symbol, but `train.py` compiles each as a constant."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def speed_variants(products: Variant, overrides: Sequence[str], log: Path) -> dict[str, Variant]:
    """Compare training steps with the images per second at which matrix products alone would do a model's work, so
    that the ratios are model FLOPs utilisations (MFU)."""

    @cache
    def loaded() -> tuple[DictConfig, ImageDataModule]:
        return measurement.load(compose_config(overrides))

    def products_alone(steps: int) -> float:
        config, _ = loaded()
        image = torch.zeros(1, 3, config.data.image_size, config.data.image_size)
        return 1e12 * products(steps) / (3 * forward_flops(build_network(config.model), image, training=True))

    def bare_loop(compiled: bool, steps: int) -> float:
        free_memory()
        config, data = loaded()
        config.compile = compiled
        return measurement.training_steps(config, data)(steps)

    def train(compiled: bool, steps: int) -> float:
        free_memory()
        return measurement.train_speed([*overrides, f"compile={str(compiled).lower()}"], log, steps)

    variants: dict[str, Variant] = {"matrix products alone": products_alone}
    for kind, compiled in (("eager", False), ("compiled", True)):
        variants[f"bare loop, {kind}"] = partial(bare_loop, compiled)
        variants[f"train.py, {kind}"] = partial(train, compiled)
    return variants


def train_recipe(end: float, overrides: Sequence[str], seconds: int, log: Path) -> str:
    """Train the recipe for `seconds`, or as long as there is time, in an ordinary run in `outputs/`; return metrics."""
    seconds = min(seconds, int(end - time.monotonic()) - RECIPE_AROUND)
    if seconds <= 0:
        raise Skipped(f"needs {RECIPE_AROUND} s around its training")
    free_memory()
    run = RunDirectory(Path(f"outputs/{RECIPE}/{time.strftime('%Y-%m-%d_%H-%M-%S')}"))
    limit = f"trainer.max_time=00:00:{seconds // 60:02}:{seconds % 60:02}"
    command = [sys.executable, TRAIN, f"experiment={RECIPE}", *overrides, limit, f"hydra.run.dir={run.path}"]
    measurement.run_process(command, log=log)
    metrics = {**run.final_metrics(), "epochs": len(run.epoch_rows())}
    wanted = ("epochs", "images_per_second", "mfu", "data_wait", "memory_gib", "val/acc", "test/acc")
    return f"{seconds} s of training, {', '.join(f'{key} {metrics[key]}' for key in wanted if key in metrics)}"

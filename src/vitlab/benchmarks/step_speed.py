"""Compare the training speed of `train.py` with a bare loop and timm's `train.py`."""

import csv
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from omegaconf import DictConfig
from torchvision.transforms.functional import to_pil_image

from vitlab.benchmarks.measurement import DEVICE, Sections, Setup, Variant, load, run_process
from vitlab.benchmarks.start_time import TRAIN
from vitlab.benchmarks.training_loop import training_steps
from vitlab.config.instantiate import build_network
from vitlab.data import ImageDataModule
from vitlab.errors import UserError
from vitlab.weights.export_formats import ARCHITECTURE, timm_arguments


def sections(setup: Setup) -> Sections:
    """Measure training in the precision that `train.py` would use."""
    config, data = load(setup.config)
    variants = {"bare loop": training_steps(config, data), "train.py": train_speed(setup.overrides)}
    if setup.command.timm_train:
        variants["timm's train.py"] = timm_speed(setup.command.timm_train, config, data)
    return {f"training, {config.trainer.precision}, images/s": variants}


def train_speed(overrides: Sequence[str]) -> Variant:
    """Run `train.py` for four short epochs; the figure is the third's, as the run draws figures in the others."""

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            limits = ["trainer.max_epochs=4", f"trainer.limit_train_batches={steps}", "trainer.limit_test_batches=0"]
            limits += ["trainer.limit_val_batches=0", "preflight=off", f"hydra.run.dir={folder}/run"]
            run_process([sys.executable, TRAIN, *overrides, *limits])
            rows = list(csv.DictReader((Path(folder) / "run" / "metrics.csv").open()))
        return float(rows[2]["images_per_second"])

    return run


def timm_speed(script: str, config: DictConfig, data: ImageDataModule) -> Variant:
    """Run timm's `train.py`, the file `script`, on the same model and images, otherwise with its defaults.

    The figure is the median over the second epoch's steps except the first, in which workers start.
    """
    shape, spec, precision = timm_arguments(build_network(config.model)), data.spec, str(config.trainer.precision)
    del shape["in_chans"]  # follows from --input-size
    side = str(config.data.image_size)
    options = ["--model", ARCHITECTURE, "--gp", shape.pop("global_pool"), "--input-size", "3", side, side]
    options += ["--model-kwargs", *(f"{key}={value}" for key, value in shape.items())]
    options += ["--num-classes", str(len(spec.classes)), "--batch-size", str(data.batch_size)]
    options += ["--device", DEVICE.type, "--epochs", "2", "--warmup-epochs", "0", "--log-interval", "1"]
    if precision != "32-true":
        options += ["--amp", "--amp-dtype", "bfloat16" if precision.startswith("bf16") else "float16"]

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            _write_images(data, Path(folder) / "train", steps * data.batch_size)
            _write_images(data, Path(folder) / "validation", len(spec.classes))
            output = run_process([sys.executable, script, folder, *options, "--output", f"{folder}/output"])
        # Train: 1 [   9/10 (100%)]  Loss: ...  Time: 0.123s, 1040.60/s  (0.125s, 1020.30/s)  LR: ...
        speeds = re.findall(r"^Train: 1 .* Time: [\d.]+s,\s*([\d.]+)/s", output, re.MULTILINE)
        if not speeds:
            raise UserError(f"timm_train={script} printed no images per second of epoch 1: {output[-500:]}")
        return median(map(float, speeds[1:] or speeds))

    return run


def _write_images(data: ImageDataModule, folder: Path, count: int) -> None:
    arrays = data.splits["train"]
    for label in range(len(data.spec.classes)):
        (folder / f"{label:04d}").mkdir(parents=True)
    for row in range(count):
        index = row % len(arrays)
        to_pil_image(arrays[index]).save(folder / f"{int(arrays.labels[index]):04d}" / f"{row}.png")

"""Training by `train.py`, beside a bare loop and timm's `train.py`; and evaluation beside training."""

import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from omegaconf import DictConfig
from torchvision.transforms.functional import to_pil_image

from vitlab.benchmarks.loops import augmented, dtype_of, evaluating, test_batches, this_device, training_as_configured
from vitlab.benchmarks.start import TRAIN
from vitlab.benchmarks.variant import Sections, Variant, Work
from vitlab.config.instantiate import build_network
from vitlab.data import ImageDataModule
from vitlab.errors import UserError
from vitlab.experiment import load_data, resolve, weights_to_start_from
from vitlab.weights.timm_export import ARCHITECTURE, timm_arguments


def step_speeds(work: Work) -> Sections:
    """Each in the precision that `train.py` would choose."""
    config, device = work.config, this_device()
    config = resolve(config, weights_to_start_from(config))
    data = load_data(config)
    precision = str(config.trainer.precision)
    network = build_network(config.model).to(device)
    bare = training_as_configured(config, network, augmented(data, device), device)
    variants = {"bare loop": bare, "train.py": train_speed(work.overrides)}
    if work.command.timm_train:
        variants["timm's train.py"] = timm_speed(work.command.timm_train, config, data, precision)
    batches = test_batches(data, data.eval_batch_size, device)
    evaluation = evaluating(network, batches, device=device, dtype=dtype_of(precision))
    return {
        f"training, {precision}, images/s": variants,
        f"evaluation, {precision}, images/s": {"training": bare, "evaluation": evaluation},
    }


def train_speed(overrides: Sequence[str]) -> Variant:
    """The third epoch of four: the ViT's figures are made in the middle and at the end of a run, however short."""

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            limits = ["trainer.max_epochs=4", f"trainer.limit_train_batches={steps}", "trainer.limit_test_batches=0"]
            limits += ["trainer.limit_val_batches=0", "preflight=off", f"hydra.run.dir={folder}/run"]
            _run([sys.executable, TRAIN, *overrides, *limits])
            rows = list(csv.DictReader((Path(folder) / "run" / "metrics.csv").open()))
        return float(rows[2]["images_per_second"])

    return run


def timm_speed(script: str, config: DictConfig, data: ImageDataModule, precision: str) -> Variant:
    """The second epoch of timm's script, with its own defaults but for the network, on image files of the same data.

    The median of its steps but the first, in which its workers start.
    """
    shape, spec = timm_arguments(build_network(config.model)), data.spec
    del shape["in_chans"]  # follows from --input-size
    side = str(config.data.image_size)
    options = ["--model", ARCHITECTURE, "--gp", shape.pop("global_pool")]
    options += ["--model-kwargs", *(f"{key}={value}" for key, value in shape.items())]
    options += ["--input-size", "3", side, side]
    options += ["--num-classes", str(len(spec.classes)), "--batch-size", str(data.batch_size)]
    options += ["--mean", *map(str, spec.mean), "--std", *map(str, spec.std)]
    options += ["--device", this_device().type, "--epochs", "2", "--warmup-epochs", "0", "--log-interval", "1"]
    if precision != "32-true":
        options += ["--amp", "--amp-dtype", "bfloat16" if precision.startswith("bf16") else "float16"]

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            _write_images(data, Path(folder) / "train", steps * data.batch_size)
            _write_images(data, Path(folder) / "validation", len(spec.classes))
            output = _run([sys.executable, script, folder, *options, "--output", f"{folder}/output"])
        # Train: 1 [   9/10 (100%)]  Loss: ...  Time: 0.123s, 1040.60/s  (0.125s, 1020.30/s)  LR: ...
        speeds = [
            float(speed) for speed in re.findall(r"^Train: 1 .* Time: [\d.]+s,\s*([\d.]+)/s", output, re.MULTILINE)
        ]
        if not speeds:
            raise UserError(f"timm_train={script} printed no images a second of its second epoch: {output[-500:]}")
        return median(speeds[1:] or speeds)

    return run


def _write_images(data: ImageDataModule, folder: Path, count: int) -> None:
    arrays = data.splits["train"]
    for label in range(len(data.spec.classes)):
        (folder / f"{label:04d}").mkdir(parents=True)
    for row in range(count):
        place = row % len(arrays)
        image = to_pil_image(arrays[place])
        image.save(folder / f"{int(arrays.labels[place]):04d}" / f"{row}.png")


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{' '.join(command)} ended with status {result.returncode}: {result.stderr[-500:]}")
    return result.stdout + result.stderr

"""Measure training steps on a GPU and their model FLOPs utilisation (MFU)."""

from collections.abc import Sequence

import torch

from vitlab.benchmarks.measurement import DEVICE, Sections, Setup, Variant, compose_config, load, timed
from vitlab.benchmarks.step_speed import timm_speed, train_speed
from vitlab.benchmarks.training_loop import HALF, training_steps
from vitlab.config.instantiate import build_network
from vitlab.errors import UserError
from vitlab.models.execution import forward_flops

MODELS = {
    "ViT-B/16, 224 px, batch 256": "model=vit_base model.patch_size=16 data.image_size=224 data.batch_size=256",
    "vit_small, 32 px, patch 4, batch 1,024": "model=vit_small data.batch_size=1024",
}
SIDE = 8192  # rows and columns of the matrices


def sections(setup: Setup) -> Sections:
    """Measure the training of `MODELS`, or raise a UserError if there is no GPU."""
    if not torch.cuda.is_available():
        raise UserError("name=gpu needs a CUDA GPU; name=step also runs on a CPU")
    return model_sections(setup)


def model_sections(setup: Setup) -> Sections:
    """Compare training steps with matrix products, the measured ceiling of the device.

    The first line of each model is the images per second at which matrix products alone would do its work, so that
    the ratios are MFUs.
    """
    precision = str(setup.config.trainer.precision)
    products = _products(HALF.get(precision, torch.float32))
    title = f"matrix products, {SIDE:,} x {SIDE:,}, TFLOP/s"
    sections = {title: {precision: lambda steps: products(steps) / 1e12}}
    for name, overrides in MODELS.items():
        variants = _training_variants(setup, [*overrides.split(), *setup.overrides], products)
        sections[f"{name}, {precision}, images/s; ratio: MFU"] = variants
    return sections


def _training_variants(setup: Setup, overrides: Sequence[str], products: Variant) -> dict[str, Variant]:
    config, data = load(compose_config(overrides))
    image = torch.zeros(1, 3, config.data.image_size, config.data.image_size)
    flops = 3 * forward_flops(build_network(config.model), image, training=True)
    variants: dict[str, Variant] = {"matrix products alone": lambda steps: products(steps) / flops}
    for kind, compiled in (("eager", False), ("compiled", True)):
        config.compile = compiled
        variants[f"bare loop, {kind}"] = training_steps(config, data)
        variants[f"train.py, {kind}"] = train_speed([*overrides, f"compile={str(compiled).lower()}"])
    if setup.command.timm_train:
        variants["timm's train.py"] = timm_speed(setup.command.timm_train, config, data)
    return variants


def _products(dtype: torch.dtype) -> Variant:
    """Make a variant that returns FLOP/s of products of square matrices."""
    left, right = (torch.randn(SIDE, SIDE, dtype=dtype, device=DEVICE) for _ in range(2))

    def loop(steps: int) -> int:
        for _ in range(steps):
            left @ right
        return steps * 2 * SIDE**3

    return timed(loop)

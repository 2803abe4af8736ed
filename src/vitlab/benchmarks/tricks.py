"""What single tricks gain: the same work without one, then with it.

Attention kernels, input and imports have benchmarks of their own.
"""

from collections.abc import Callable, Sequence

import timm
import torch
from torch import Tensor

from vitlab.benchmarks.loops import (
    augmented,
    best_dtype,
    evaluating,
    one_batch,
    test_batches,
    this_device,
    training_as_configured,
)
from vitlab.benchmarks.process import InItsOwnProcess
from vitlab.benchmarks.variant import Sections, Variant, Work, timed
from vitlab.config.building import build_network
from vitlab.config.command import CONF, compose_training
from vitlab.data import ImageDataModule
from vitlab.data.transforms import Normalize
from vitlab.experiment import load_data
from vitlab.memory import keep_freed_memory
from vitlab.models import fuse_timm_attention, fused_is_faster
from vitlab.weights.timm_layout import ARCHITECTURE, timm_arguments

SIDES = (32, 224)  # px of images that are normalised


def tricks(work: Work) -> Sections:
    """In the precision that `train.py` would choose."""
    config, device = work.config, this_device()
    data = load_data(config)
    network = build_network(config.model).to(device)
    theirs = timm.create_model(ARCHITECTURE, **timm_arguments(network)).to(device)
    fuse_timm_attention(theirs, fused_is_faster(device.type, best_dtype()))
    side, classes = config.data.image_size, config.data.num_classes
    return {
        "training steps, freed memory, images/s": {
            "given back": InItsOwnProcess(_steps, list(work.overrides), False),
            "kept": InItsOwnProcess(_steps, list(work.overrides), True),
        },
        "training steps, network, images/s": {
            name: training_as_configured(config, module, one_batch(data.batch_size, side, classes, device), device)
            for name, module in (("timm's", theirs), ("vitlab's", network))
        },
        "evaluation, images/s": {
            f"batches of {size}": evaluating(
                network, test_batches(data, size, device), device=device, dtype=best_dtype()
            )
            for size in (data.batch_size, data.eval_batch_size)
        },
        **{f"normalising, {side} px, images/s": _normalising(data, side, device) for side in SIDES},
    }


def _steps(overrides: Sequence[str], keep: bool) -> Variant:
    if keep:
        keep_freed_memory()
    config = compose_training([*overrides, "name=bench", "run_dir=outputs"], CONF)
    data, device = load_data(config), this_device()
    return training_as_configured(config, build_network(config.model).to(device), augmented(data, device), device)


def _normalising(data: ImageDataModule, side: int, device: torch.device) -> dict[str, Variant]:
    images = torch.randint(256, (data.batch_size, 3, side, side), dtype=torch.uint8).to(device)
    in_place = Normalize(data.facts["mean"], data.facts["std"]).to(device)
    mean, std = in_place.mean, in_place.std
    return {
        "one operation after another": _repeated(lambda x: (x / 255 - mean) / std, images),
        "in place": _repeated(in_place, images),
    }


def _repeated(function: Callable[[Tensor], Tensor], images: Tensor) -> Variant:
    def loop(steps: int) -> int:
        for _ in range(steps):
            function(images)
        return steps * len(images)

    return timed(loop)

"""What single tricks gain: the same work without one, then with it.

Attention kernels, input and imports have benchmarks of their own.
"""

from collections.abc import Callable, Sequence

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from vitlab.benchmarks.loops import augmented, composed, settle, this_device, training_as_configured
from vitlab.benchmarks.process import InItsOwnProcess
from vitlab.benchmarks.variant import Sections, Variant, Work, timed
from vitlab.compat import silence_libraries
from vitlab.config.instantiate import build_network
from vitlab.data import ImageDataModule
from vitlab.data.transforms import Normalize, Resize
from vitlab.experiment import load_data, resolve, weights_to_start_from
from vitlab.memory import keep_freed_memory
from vitlab.models.last_block import shortened

LARGE = 224  # px, as pretrained networks take them


def tricks(work: Work) -> Sections:
    """As the config has the steps."""
    config = resolve(work.config, weights_to_start_from(work.config))
    data = load_data(config)  # what can't be had is said here, not by another process
    normalize, size = Normalize([0.5] * 3, [0.25] * 3).to(this_device()), config.data.batch_size
    return {
        "training steps, freed memory, images/s": _memory(_steps, work),
        **_last_block(config, data),
        f"resizing from 32 to {LARGE} px, freed memory, images/s": _memory(_resizing, work),
        f"normalising, {LARGE} px, images/s": {
            "one operation after another": _repeated(lambda x: (x / 255 - normalize.mean) / normalize.std, LARGE, size),
            "in place": _repeated(normalize, LARGE, size),
        },
    }


def _memory(make: Callable[[DictConfig], Variant], work: Work) -> dict[str, Variant]:
    choices = {"given back": False, "kept": True}
    return {name: InItsOwnProcess(_begin, make, list(work.overrides), keep) for name, keep in choices.items()}


def _begin(make: Callable[[DictConfig], Variant], overrides: Sequence[str], keep: bool) -> Variant:
    if keep:
        keep_freed_memory()
    silence_libraries()
    return make(composed(overrides))


def _steps(config: DictConfig) -> Variant:
    config = resolve(config, weights_to_start_from(config))
    data = load_data(config)  # says how many classes there are
    return _training(config, build_network(config.model), data)


def _training(config: DictConfig, network: nn.Module, data: ImageDataModule) -> Variant:
    device = this_device()
    return training_as_configured(config, network.to(device), augmented(data, device), device)


def _last_block(config: DictConfig, data: ImageDataModule) -> Sections:
    """Nothing where the head reads the patches."""
    whole = build_network(config.model)
    last = shortened(whole)
    if last is None:
        return {}
    last.read = None
    variants = {"all tokens": whole, "those that the head reads": build_network(config.model)}
    return {
        "training steps, last block, images/s": {
            name: _training(config, network, data) for name, network in variants.items()
        }
    }


def _resizing(config: DictConfig) -> Variant:
    return _repeated(Resize(LARGE, "bicubic"), 32, config.data.batch_size)


def _repeated(function: Callable[[Tensor], Tensor], side: int, size: int) -> Variant:
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8).to(this_device())

    def loop(steps: int) -> int:
        for _ in range(steps):
            function(images)
        settle(images.device)
        return steps * len(images)

    return timed(loop)

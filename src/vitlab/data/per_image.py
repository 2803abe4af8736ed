"""Transforms of single images, such as torchvision's, on a batch."""

import inspect
import random
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchvision.transforms import v2

from vitlab.data.counter_rng import CounterRNG
from vitlab.errors import UserError, first_line


class PerImage(nn.Module):
    """Call a transform on each image, uint8 `[3, H, W]`, with random numbers of its own.

    Those of torch, NumPy and Python depend only on seed, epoch, image, repetition and `op_index`. It takes longer than
    a transform of whole batches, and on a GPU the host waits once per batch.
    """

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        """uint8 `[B, 3, H, W]` -> the same, of any size; UserError if the transform fails or makes something else."""
        bits = (rng.uniform(op_index, 2) * 2**24).long()
        seeds = (bits[:, 0] << 24 | bits[:, 1]).tolist()
        with isolate_rng(include_cuda=images.is_cuda):
            results = [self._call(image, seed) for image, seed in zip(images, seeds, strict=True)]
        if len({result.shape for result in results}) > 1:
            raise UserError(f"augment: {self._name} makes images of different sizes: give it one size")
        return torch.stack(results)

    def _call(self, image: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            result = self.transform(image)
        except Exception as error:  # the user's code may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"augment: {self._name} fails on a uint8 image {list(image.shape)} ({reason})") from error
        if not isinstance(result, Tensor) or result.dtype != torch.uint8 or result.dim() != 3 or len(result) != 3:
            made = f"{result.dtype} {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise UserError(
                f"augment: {self._name} makes {made} of a uint8 image {list(image.shape)}: leave out what converts or "
                "normalises; vitlab does that itself"
            )
        return result

    @property
    def _name(self) -> str:
        return str(getattr(self.transform, "__name__", type(self.transform).__name__))


def as_batch_transform(transform: Any) -> nn.Module:
    """A module that takes a batch, `(images, rng, op_index)`, as it is; anything else for each image."""
    if isinstance(transform, v2.MixUp | v2.CutMix):
        raise UserError(f"augment: {type(transform).__name__} mixes batches: take augment.mixing.p, see augment=basic")
    if isinstance(transform, nn.Module) and not isinstance(transform, v2.Transform):  # those take any arguments
        try:
            inspect.signature(transform.forward).bind("images", "rng", "op_index")
            return transform
        except TypeError:
            pass
    return PerImage(transform)

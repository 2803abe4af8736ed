"""Batches from images that lie in memory: an order, and one gather a batch."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vitlab.data.arrays import ImageArrays


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: a permutation, int64 `[length]`, that is a function of (seed, epoch)."""
    # A stride keeps (seed, epoch) pairs apart: seed 0, epoch 1 is not seed 1, epoch 0.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(length, generator=generator)


class ResidentLoader:
    """Iterates over (uint8 images `[b, 3, H, W]`, labels int64 `[b]`, indices int64 `[b]`).

    The images and the batches lie on `device`. Each batch of `batch_size` images is divided among `world_size` ranks:
    this rank takes every `world_size`-th of it, so that the ranks together see what one process would see.

    Args:
        order: Asked at the start of each pass for the order of the images, int64 `[N]`.
        drop_last: Leave out the last batch of an epoch where it is not full.
    """

    def __init__(
        self,
        arrays: ImageArrays,
        order: Callable[[], Tensor],
        batch_size: int,
        *,
        drop_last: bool,
        device: torch.device,
        rank: int,
        world_size: int,
    ) -> None:
        self.images = arrays.images.to(device)
        self.labels = arrays.labels.to(device)
        self.order = order
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = self.order().to(self.labels.device)
        for number in range(len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            index = batch[self.rank :: self.world_size]
            yield self.images[index], self.labels[index], index

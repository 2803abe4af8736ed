"""Batches from images that lie in memory: an order, and one gather a batch."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vitlab.data.arrays import ImageArrays


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: a permutation, int64 `[length]`, that is a function of (seed, epoch)."""
    # A stride keeps (seed, epoch) pairs apart: seed 0, epoch 1 is not seed 1, epoch 0.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(length, generator=generator)


def repeated_order(order: Tensor, repeats: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """An epoch of as many images as before, of which the first of `order` come `repeats` times each.

    An image's repetitions stand in one batch, but for the last of it (Hoffer et al. 2020, "Augment Your Batch"), apart
    from each other: what mixes neighbours must not mix an image with itself.

    Returns:
        The images and how often each came before, both int64 `[N]` as `order` is.
    """
    slot = torch.arange(len(order))
    slot = slot[(slot // batch_size * repeats + slot % repeats).argsort(stable=True)]
    return order[slot // repeats], slot % repeats


class StoredBatch(NamedTuple):
    """A batch as it lies in memory.

    Attributes:
        images: uint8 `[b, 3, h, w]`.
        labels: int64 `[b]`.
        places: int64 `[b]`, of the images in their split.
        repetitions: int64 `[b]`, how often each image came before in its epoch; None: never.
        number: Of the batch in its epoch, from 0 on.
    """

    images: Tensor
    labels: Tensor
    places: Tensor
    repetitions: Tensor | None = None
    number: int = 0


class ResidentLoader:
    """Iterates over batches of uint8 images and their labels.

    The images and the batches lie on `device`. Each batch of `batch_size` images is divided among `world_size` ranks:
    this rank takes the `rank`-th stretch of it, so that the ranks one after another have what one process would have.

    Args:
        seed: The order of a pass is `epoch_order` of this seed ...
        epoch: ... and of the epoch that this gives at its start.
        drop_last: Leave out the last batch of an epoch where it is not full.
        repeats: How often an image comes in an epoch, see `repeated_order`.
        with_neighbour: Put in front of a rank's stretch the image before it, before the first one the batch's last: a
            batch that is mixed with itself, moved by one, needs these. The batches must divide among the ranks.
    """

    def __init__(
        self,
        arrays: ImageArrays,
        batch_size: int,
        *,
        seed: int,
        epoch: Callable[[], int],
        drop_last: bool,
        device: torch.device,
        rank: int,
        world_size: int,
        repeats: int = 1,
        with_neighbour: bool = False,
    ) -> None:
        on_host = device.type == "cpu"  # where the images stay as they are stored, for other processes too
        self.images = arrays.stored if on_host else arrays.pick(slice(None)).to(device)
        self.rows = arrays.rows if on_host else torch.arange(len(arrays), device=device)
        self.labels = arrays.labels.to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.repeats = repeats
        self.with_neighbour = with_neighbour
        self._place = {"epoch": 0, "batches": 0}  # how far the pass has come
        self._resumed: dict[str, int] | None = None

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def state_dict(self) -> dict[str, int]:
        return dict(self._place)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass, if it is of that epoch, goes on behind the batches that were given already."""
        self._resumed = state

    def __iter__(self) -> Iterator[StoredBatch]:
        epoch = self.epoch()
        order = epoch_order(len(self.labels), self.seed, epoch)
        order, repetitions = (t.to(self.labels.device) for t in repeated_order(order, self.repeats, self.batch_size))
        resumed, self._resumed = self._resumed, None
        first = resumed["batches"] if resumed is not None and resumed["epoch"] == epoch else 0
        for number in range(first, len(self)):
            batch = slice(number * self.batch_size, (number + 1) * self.batch_size)
            index, repetition = self._share(order[batch]), self._share(repetitions[batch])
            self._place = {"epoch": epoch, "batches": number + 1}
            yield StoredBatch(self.images[self.rows[index]], self.labels[index], index, repetition, number)

    def _share(self, batch: Tensor) -> Tensor:
        """This rank's stretch of a batch `[B]`."""
        if not self.with_neighbour:
            return batch.tensor_split(self.world_size)[self.rank]
        size = len(batch) // self.world_size
        return torch.cat([batch[-1:], batch])[self.rank * size : (self.rank + 1) * size + 1]

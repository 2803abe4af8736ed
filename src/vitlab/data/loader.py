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
    this rank takes the `rank`-th stretch of it, so that the ranks one after another have what one process would have.

    Args:
        seed: The order of a pass is `epoch_order` of this seed ...
        epoch: ... and of the epoch that this gives at its start.
        drop_last: Leave out the last batch of an epoch where it is not full.
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

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        epoch = self.epoch()
        order = epoch_order(len(self.labels), self.seed, epoch).to(self.labels.device)
        resumed, self._resumed = self._resumed, None
        first = resumed["batches"] if resumed is not None and resumed["epoch"] == epoch else 0
        for number in range(first, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            index = batch.tensor_split(self.world_size)[self.rank]
            self._place = {"epoch": epoch, "batches": number + 1}
            yield self.images[self.rows[index]], self.labels[index], index

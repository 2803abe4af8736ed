"""Shuffled batches of images in memory, one gather per batch."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitlab.data.arrays import ImageArrays


class StoredBatch(NamedTuple):
    """A batch as it is stored, before augmentation."""

    images: Tensor  # uint8 [b, 3, h, w]
    labels: Tensor  # int64 [b]
    indices: Tensor  # int64 [b], the images' indices in their split
    repetitions: Tensor | None = None  # int64 [b], how often each image has been used in this epoch; None means never
    number: int = 0  # of the batch in its epoch


@dataclass(eq=False, repr=False)
class ResidentLoader:
    """Iterate over batches of uint8 images that are resident on `device`.

    Each batch of `batch_size` images is divided among `world_size` ranks; the shards in order of rank are the batch of
    a single process.
    """

    arrays: ImageArrays
    batch_size: int
    seed: int  # decides, with the epoch, the order of the images (`epoch_order`)
    epoch: Callable[[], int]  # called at the start of each pass
    drop_last: bool  # the last batch of an epoch, if it is not full
    device: torch.device
    rank: int
    world_size: int
    balanced: bool = False  # draw all classes equally often, see `balanced_order`
    repeats: int = 1  # how often an image is used in an epoch, see `repeated_order`
    # Put in front of each shard the image before it in the batch (before the first image, the last one). Mixing, which
    # rolls a batch by one, needs it. The batches must divide evenly among the ranks.
    with_neighbour: bool = False
    prefetch: bool = False  # gather the next batch while one is used, see `prefetched`

    def __post_init__(self) -> None:
        if self.device.type != "cpu":  # else they stay where they are, in memory that other processes may share
            images, labels = self.arrays.pick(slice(None)).to(self.device), self.arrays.labels.to(self.device)
            self.arrays = ImageArrays.of(images, labels, self.arrays.names)
        self._progress = {"epoch": 0, "batches": 0}
        self._resumed: dict[str, int] | None = None

    def __len__(self) -> int:
        full, rest = divmod(len(self.arrays), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def state_dict(self) -> dict[str, int]:
        return dict(self._progress)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip, in the next pass, the batches that were already given in this epoch."""
        self._resumed = state

    def __iter__(self) -> Iterator[StoredBatch]:
        epoch = self.epoch()
        if self.balanced:
            order, used = balanced_order(self.arrays.labels.cpu(), self.seed, epoch)
        else:
            order, used = epoch_order(len(self.arrays), self.seed, epoch), torch.zeros(len(self.arrays)).long()
        device = self.arrays.labels.device
        places, repeated = repeated_order(torch.arange(len(order)), self.repeats, self.batch_size)
        order, repetitions = order[places].to(device), (used[places] * self.repeats + repeated).to(device)
        resumed, self._resumed = self._resumed, None
        first = resumed["batches"] if resumed is not None and resumed["epoch"] == epoch else 0

        def gather(number: int) -> StoredBatch:
            batch = slice(number * self.batch_size, (number + 1) * self.batch_size)
            indices, repetition = self._shard(order[batch]), self._shard(repetitions[batch])
            return StoredBatch(self.arrays.pick(indices), self.arrays.labels[indices], indices, repetition, number)

        numbers = range(first, len(self))
        for batch in prefetched(gather, numbers) if self.prefetch else map(gather, numbers):
            self._progress = {"epoch": epoch, "batches": batch.number + 1}
            yield batch

    def _shard(self, batch: Tensor) -> Tensor:
        """This rank's part of a batch `[B]`."""
        if not self.with_neighbour:
            return batch.tensor_split(self.world_size)[self.rank]
        size = len(batch) // self.world_size
        return torch.cat([batch[-1:], batch])[self.rank * size : (self.rank + 1) * size + 1]


def prefetched(gather: Callable[[int], StoredBatch], numbers: Iterable[int]) -> Iterator[StoredBatch]:
    """The batches `gather(number)`, each gathered in a thread while the one before is used, in pinned memory.

    From pinned memory, copying to a GPU lets the host go on; torch uses a piece of it again once it has been copied. An
    exception of the thread is raised here, in place of its batch.
    """

    def gather_pinned(number: int) -> StoredBatch:
        parts: Any = (part.pin_memory() if isinstance(part, Tensor) else part for part in gather(number))
        return StoredBatch(*parts)

    with ThreadPoolExecutor(max_workers=1) as thread:
        coming: Future[StoredBatch] | None = None
        for number in numbers:
            ready, coming = coming, thread.submit(gather_pinned, number)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: a permutation, int64 `[length]`, that depends only on (seed, epoch)."""
    # The factor keeps pairs distinct: (seed 0, epoch 1) is not (seed 1, epoch 0).
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(length, generator=generator)


def balanced_order(labels: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The order of an epoch in which all classes occur equally often, to within one image: the images' indices, and how
    often each has already been used, both int64 `[N]`, from labels, int64 `[N]`.

    The images of a small class are used several times, those of a large one in part; all images of a class equally
    often, to within one use. It depends only on labels, seed and epoch.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    classes = [(labels == label).nonzero().flatten() for label in labels.unique()]  # type: ignore[no-untyped-call]
    first = int(torch.randint(len(classes), (), generator=generator))  # these classes get the images that are left over
    order, used = [], []
    for number, members in enumerate(classes):
        slots = torch.arange((len(labels) - (number - first) % len(classes) - 1) // len(classes) + 1)
        shuffled = members[torch.randperm(len(members), generator=generator)]
        order.append(shuffled[slots % len(members)])
        used.append(slots // len(members))
    mixed = torch.randperm(len(labels), generator=generator)
    return torch.cat(order)[mixed], torch.cat(used)[mixed]


def repeated_order(order: Tensor, repeats: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """The order of an epoch that uses the first images of `order`, int64 `[N]`, `repeats` times each: the images'
    indices, and how often each has already been used, both int64 `[N]`.

    The repetitions of an image are in one batch (Hoffer et al. 2020, "Augment Your Batch"), except at a batch's end,
    and never adjacent: mixing adjacent images must not mix an image with itself.
    """
    slot = torch.arange(len(order))
    slot = slot[(slot // batch_size * repeats + slot % repeats).argsort(stable=True)]
    return order[slot // repeats], slot % repeats

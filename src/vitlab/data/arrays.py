"""Images of a split in memory; stratified splits and folds."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

CHUNK_BYTES = 2**25  # of the images processed at a time when a function goes through all of them


@dataclass(frozen=True)
class ImageArrays:
    """One split of a data set: a selection of the loaded images, without copying them."""

    stored: Tensor  # uint8 [M, 3, H, W], the images of this split or of all splits; may be memory-mapped
    rows: Tensor  # int64 [N], the split's images in `stored`
    labels: Tensor  # int64 [N]
    names: list[str]  # of each image: its file path, or the split and its number

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, names: list[str]) -> "ImageArrays":
        """A split of all these images, uint8 `[N, 3, H, W]`."""
        return cls(images, torch.arange(len(images), device=images.device), labels, names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Tensor:
        """One image, uint8 `[3, H, W]`."""
        return self.stored[self.rows[index]]

    @property
    def image_shape(self) -> torch.Size:
        return self.stored.shape[1:]

    def pick(self, indices: Tensor | slice) -> Tensor:
        """A copy of the images at `indices` (int64 `[B]`), in this order: uint8 `[B, 3, H, W]`."""
        return self.stored[self.rows[indices]]

    def chunks(self) -> Iterator[Tensor]:
        """All images, some at a time."""
        count = max(1, CHUNK_BYTES // self.image_shape.numel())
        return (self.stored[rows] for rows in torch.split(self.rows, count))

    def take(self, indices: Tensor) -> "ImageArrays":
        """The split with only the images at `indices` (int64 `[M]`), in this order."""
        names = [self.names[i] for i in indices.tolist()]
        return replace(self, rows=self.rows[indices], labels=self.labels[indices], names=names)

    def fingerprint(self) -> str:
        """SHA-256 of pixels and labels, in hexadecimal."""
        digest = hashlib.sha256(str((len(self), *self.image_shape)).encode())
        for images in self.chunks():
            digest.update(images.numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def of_classes(self, labels: Sequence[int]) -> "ImageArrays":
        """The images with these labels, which become 0, 1, 2 ... in this order."""
        is_label = self.labels == torch.tensor(labels).unsqueeze(1)  # [classes, N]
        chosen = is_label.any(dim=0).nonzero().flatten()
        return replace(self.take(chosen), labels=is_label[:, chosen].long().argmax(dim=0))


@dataclass(frozen=True)
class Dataset:
    """A loaded source: images to train on, images only to test on (may be empty), and the names of the classes."""

    train: ImageArrays  # also to validate on, if `val` is None
    test: ImageArrays
    classes: list[str]
    val: ImageArrays | None = None


def stratified_split(labels: Tensor, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split labels, int64 `[N]`, so that every class keeps its fraction; the split depends only on them and the seed.

    `held_out` is the fraction to hold out if below 1, else the number of images. Returns (kept, held out) indices,
    int64, ascending; raises a ValueError if no image would be left.
    """
    total = round(held_out * len(labels)) if held_out < 1 else int(held_out)
    if not 0 <= total < len(labels):
        raise ValueError(f"can't hold out {held_out:g} of {len(labels)} images: at least one must stay")
    members = [torch.nonzero(labels == c).flatten() for c in sorted(set(labels.tolist()))]
    # Largest remainders: each class gets the floor of its quota; the images left go to the largest fractions.
    quotas = [total * len(m) / len(labels) for m in members]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(members)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    generator = torch.Generator().manual_seed(seed)
    shuffled = [m[torch.randperm(len(m), generator=generator)] for m in members]
    parts = [m.tensor_split([count]) for m, count in zip(shuffled, counts, strict=True)]
    out, kept = (torch.cat(part).sort().values for part in zip(*parts, strict=True))
    return kept, out


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """The fold of each image, int64 `[N]`, from labels, int64 `[N]`: in each fold every class has its fraction, to
    within one image; depends only on labels, number of folds and seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    by_class = order[labels[order].argsort(stable=True)]
    fold = torch.empty_like(labels)
    fold[by_class] = torch.arange(len(labels)) % folds  # dealt class by class, so that the folds are equally large too
    return fold

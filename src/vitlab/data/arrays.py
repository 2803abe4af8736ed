"""Images in memory."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

CHUNK = 4096  # images that are looked at together, of all


@dataclass(frozen=True)
class ImageArrays:
    """One split of a data set: some rows of the images that were loaded, which are not copied.

    Attributes:
        stored: uint8 `[M, 3, H, W]`, of all splits perhaps; mapped from a file where there is one, so that several
            processes of a machine share the memory.
        rows: int64 `[N]`, the split's images among them.
        labels: int64 `[N]`.
        names: What a person calls each image: a file path, or the split and the number in it.
    """

    stored: Tensor
    rows: Tensor
    labels: Tensor
    names: list[str]

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, names: list[str]) -> "ImageArrays":
        """A split of all these images, uint8 `[N, 3, H, W]`."""
        return cls(images, torch.arange(len(images)), labels, names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> Tensor:
        """An image, uint8 `[3, H, W]`."""
        return self.stored[self.rows[place]]

    @property
    def image_shape(self) -> torch.Size:
        return self.stored.shape[1:]

    def pick(self, index: Tensor | slice) -> Tensor:
        """A copy of the images of `index` (int64 `[B]`), in its order: uint8 `[B, 3, H, W]`."""
        return self.stored[self.rows[index]]

    def chunks(self) -> Iterator[Tensor]:
        """All images, some thousand at a time."""
        for rows in torch.split(self.rows, CHUNK):
            yield self.stored[rows]

    def take(self, index: Tensor) -> "ImageArrays":
        """The images of `index` (int64 `[M]`), in its order."""
        return replace(
            self, rows=self.rows[index], labels=self.labels[index], names=[self.names[i] for i in index.tolist()]
        )

    def fingerprint(self) -> str:
        """SHA-256 of pixels and labels, in hexadecimal."""
        digest = hashlib.sha256(str((len(self), *self.image_shape)).encode())
        for images in self.chunks():
            digest.update(images.numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """What a source holds: the images that may be trained on, those that never are, and the classes' names."""

    train: ImageArrays
    test: ImageArrays
    classes: list[str]


def stratified_split(labels: Tensor, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits so that every class keeps its share: (indices that stay, indices held out), both int64 and ascending.

    Args:
        labels: int64 `[N]`.
        held_out: Below 1 the fraction to hold out, else a number of images.
        seed: The split depends on this and the labels alone.

    Raises:
        ValueError: more is held out than there is.
    """
    total = round(held_out * len(labels)) if held_out < 1 else int(held_out)
    if not 0 <= total < len(labels):
        raise ValueError(f"can't hold out {held_out:g} of {len(labels)} images: at least one must stay")
    members = [torch.nonzero(labels == c).flatten() for c in sorted(set(labels.tolist()))]
    # Largest remainders: each class gets the floor of its share, and the images left go to the largest fractions.
    shares = [total * len(m) / len(labels) for m in members]
    counts = [int(s) for s in shares]
    by_remainder = sorted(range(len(members)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    generator = torch.Generator().manual_seed(seed)
    shuffled = [m[torch.randperm(len(m), generator=generator)] for m in members]
    kept = torch.cat([m[count:] for m, count in zip(shuffled, counts, strict=True)])
    out = torch.cat([m[:count] for m, count in zip(shuffled, counts, strict=True)])
    return kept.sort().values, out.sort().values

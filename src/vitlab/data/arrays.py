"""Images in memory."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageArrays:
    """One split of a data set.

    Attributes:
        images: uint8 `[N, 3, H, W]`.
        labels: int64 `[N]`.
        names: What a person calls each image: a file path, or the split and the number in it.
    """

    images: Tensor
    labels: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "ImageArrays":
        """The images of `index` (int64 `[M]`), in its order."""
        return replace(
            self, images=self.images[index], labels=self.labels[index], names=[self.names[i] for i in index.tolist()]
        )

    def fingerprint(self) -> str:
        """SHA-256 of pixels and labels, in hexadecimal."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
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

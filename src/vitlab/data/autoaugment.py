"""AutoAugment for whole batches: each image with a sub-policy of its own."""

from functools import cache

import torch
from torch import Tensor, nn

from vitlab.data.counter_rng import CounterRNG
from vitlab.data.random_augment import OPERATIONS, apply, magnitudes, sign

BINS = 10
# Cubuk et al. 2019, "AutoAugment", table 7: found on CIFAR-10. Two operations in a row, each with the probability of
# its use and the step of its magnitude.
CIFAR10_POLICIES: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)


class AutoAugment(nn.Module):
    """One of the 25 sub-policies found for CIFAR-10, drawn for each image (Cubuk et al. 2019, "AutoAugment")."""

    def forward(self, images: Tensor, draws: CounterRNG, stream: int) -> Tensor:
        """uint8 `[B, 3, H, W]` -> the same."""
        operations, probabilities, strengths = _policies(images.shape[-1], images.device)
        uniform = draws.uniform(stream, 5)
        policy = (uniform[:, 0] * len(CIFAR10_POLICIES)).long()
        for place in range(2):
            used = uniform[:, 2 * place + 1] < probabilities[policy, place]
            operation = torch.where(used, operations[policy, place], 0)
            signs = sign(operation, uniform[:, 2 * place + 2])
            images = apply(images, operation, strengths[policy, place] * signs)
        return images


@cache  # once a device: what is copied to a GPU in a step waits for it
def _policies(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The operations (places in `OPERATIONS`), their probabilities and magnitudes, each `[policies, 2]`.

    Args:
        side: Of the images, in pixels.
        device: Where the tables lie.
    """
    table = magnitudes(
        shear=0.3, translate=150.0 / 331.0 * side, rotate=30.0, colour=0.9, posterize=4, bins=BINS, device=device
    )
    operations = torch.tensor([[OPERATIONS.index(name) for name, _, _ in p] for p in CIFAR10_POLICIES], device=device)
    probabilities = torch.tensor([[share for _, share, _ in policy] for policy in CIFAR10_POLICIES], device=device)
    steps = torch.tensor([[step for _, _, step in policy] for policy in CIFAR10_POLICIES], device=device)
    return operations, probabilities, table[operations, steps]

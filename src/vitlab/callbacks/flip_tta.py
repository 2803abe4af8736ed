"""What a network says of an image and its mirror image together."""

import math
from typing import Any

import torch
from torch import Tensor

from vitlab.callbacks.auxiliary_logits import AuxiliaryLogits


class FlipTTA(AuxiliaryLogits):
    """Logs `<split>/loss_flip` and `<split>/acc_flip`: of the mean of the probabilities that the network gives an image
    and its mirror image (two of the ten views of Krizhevsky et al. 2012, section 4.1)."""

    suffix = "flip"

    def logits(self, pl_module: Any, images: Tensor, own: Tensor) -> Tensor:
        views = [logits.float().log_softmax(dim=1) for logits in (own, pl_module(images.flip(-1)))]
        return torch.logaddexp(*views) - math.log(2)  # logarithms of the means: logits whose softmax they are

"""Learning-rate schedules as functions of the optimizer step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_with_warmup(optimizer: Optimizer, total_steps: int, warmup: float, min_lr_ratio: float) -> LambdaLR:
    """A linear rise to the optimizer's learning rate, then half a cosine down (Loshchilov and Hutter 2017, section 3).

    Step 0 has 1/warmup-steps of the learning rate, the first step after the warm-up all of it, and the last of
    `total_steps` comes to one step short of `min_lr_ratio` of it.

    Args:
        optimizer: Whose learning rates are scaled.
        total_steps: Optimizer steps of the whole run.
        warmup: Below 1 the fraction of `total_steps`, else a number of steps.
        min_lr_ratio: Learning rate at the end, as a fraction of the optimizer's.

    Raises:
        ValueError: the warm-up leaves no step for the cosine.
    """
    warmup_steps = round(warmup * total_steps) if warmup < 1 else int(warmup)
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"scheduler: warmup={warmup:g} takes {warmup_steps} of the run's {total_steps} steps")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
        return min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)

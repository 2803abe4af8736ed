"""Learning-rate schedules as functions of the optimizer step, or of the time."""

import math
from collections.abc import Callable

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
        return _cosine((step - warmup_steps) / (total_steps - warmup_steps), min_lr_ratio)

    return LambdaLR(optimizer, factor)


def cosine_over_time(
    optimizer: Optimizer, progress: Callable[[], float], warmup: float, min_lr_ratio: float
) -> LambdaLR:
    """The same curve over the time that training has taken.

    A slower machine takes fewer steps, and comes to the end of the schedule all the same (Li et al. 2020, "Budgeted
    training"; Geiping and Goldstein 2023, "Cramming", section 4.3).

    Args:
        optimizer: Whose learning rates are scaled.
        progress: Gives the share of the time that is over, from 0 to 1; asked at each step.
        warmup: Fraction of the time.
        min_lr_ratio: Learning rate at the end, as a fraction of the optimizer's.

    Raises:
        ValueError: the warm-up leaves no time for the cosine.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"scheduler: warmup={warmup:g} must be a fraction of the time, below 1")

    def factor(_: int) -> float:
        over = progress()
        return over / warmup if over < warmup else _cosine((over - warmup) / (1 - warmup), min_lr_ratio)

    return LambdaLR(optimizer, factor)


def _cosine(progress: float, end: float) -> float:
    """From 1 to `end`."""
    return end + (1 - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

"""Learning-rate schedules over optimizer steps or over time."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Curve = Callable[[float], float]  # falls from 1 to 0 as the progress of the decay goes from 0 to 1


def cosine_with_warmup(optimizer: Optimizer, total_steps: int, warmup: float, min_lr_ratio: float) -> LambdaLR:
    """Warm up linearly, then decay along half a cosine (Loshchilov and Hutter 2017, section 3).

    The learning rate starts at 1 / (steps of the warm-up) of its full value and reaches it in the warm-up's last step.

    Args:
        optimizer: Its learning rates are scaled.
        total_steps: Optimizer steps of the whole run.
        warmup: A fraction of `total_steps` if below 1, else a number of steps; must leave a step for the decay.
        min_lr_ratio: Learning rate one step after the last, as a fraction of the optimizer's.
    """
    return _over_steps(optimizer, total_steps, warmup, min_lr_ratio, _cosine)


def linear_with_warmup(optimizer: Optimizer, total_steps: int, warmup: float, min_lr_ratio: float) -> LambdaLR:
    """Warm up linearly, then decay linearly (Li et al. 2020, "Budgeted training").

    The arguments are those of `cosine_with_warmup`.
    """
    return _over_steps(optimizer, total_steps, warmup, min_lr_ratio, _linear)


def cosine_over_time(
    optimizer: Optimizer, progress: Callable[[], float], warmup: float, min_lr_ratio: float
) -> LambdaLR:
    """Follow the curve of `cosine_with_warmup` over training time.

    A slower machine takes fewer steps and still reaches the end of the schedule (Li et al. 2020, "Budgeted training";
    Geiping and Goldstein 2023, "Cramming", section 4.3).

    Args:
        optimizer: Its learning rates are scaled.
        progress: Returns the fraction of the time that has passed, from 0 to 1; called at each step.
        warmup: A fraction of the time, below 1.
        min_lr_ratio: Final learning rate as a fraction of the optimizer's.
    """
    return _over_time(optimizer, progress, warmup, min_lr_ratio, _cosine)


def linear_over_time(
    optimizer: Optimizer, progress: Callable[[], float], warmup: float, min_lr_ratio: float
) -> LambdaLR:
    """Follow the curve of `linear_with_warmup` over training time. The arguments are those of `cosine_over_time`."""
    return _over_time(optimizer, progress, warmup, min_lr_ratio, _linear)


def _over_steps(optimizer: Optimizer, total_steps: int, warmup: float, min_lr_ratio: float, curve: Curve) -> LambdaLR:
    warmup_steps = round(warmup * total_steps) if warmup < 1 else int(warmup)
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"scheduler: warmup={warmup:g} takes {warmup_steps} of the run's {total_steps} steps")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return _decay((step - warmup_steps) / (total_steps - warmup_steps), min_lr_ratio, curve)

    return LambdaLR(optimizer, factor)


def _over_time(
    optimizer: Optimizer, progress: Callable[[], float], warmup: float, min_lr_ratio: float, curve: Curve
) -> LambdaLR:
    if not 0 <= warmup < 1:
        raise ValueError(f"scheduler: warmup={warmup:g} must be a fraction of the time, below 1")

    def factor(_: int) -> float:
        passed = progress()
        return passed / warmup if passed < warmup else _decay((passed - warmup) / (1 - warmup), min_lr_ratio, curve)

    return LambdaLR(optimizer, factor)


def _decay(progress: float, min_lr_ratio: float, curve: Curve) -> float:
    """Fall from 1 to `min_lr_ratio` along a curve, and stay there."""
    return min_lr_ratio + (1 - min_lr_ratio) * curve(min(progress, 1.0))


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _linear(progress: float) -> float:
    return 1 - progress

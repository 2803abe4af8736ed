import math
from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, LinearLR

from vitlab.optim import cosine_over_time, cosine_with_warmup, linear_over_time, linear_with_warmup


def rates(
    total_steps: int, warmup: float, min_lr_ratio: float = 0.0, schedule: Callable[..., LambdaLR] = cosine_with_warmup
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule(optimizer, total_steps, warmup, min_lr_ratio)
    seen = []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_the_rate_rises_linearly_and_falls_like_a_cosine() -> None:
    seen = rates(100, warmup=10)
    assert seen[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert seen[10:] == pytest.approx([1 + math.cos(math.pi * i / 90) for i in range(90)])


def test_the_rate_falls_along_a_line() -> None:
    seen = rates(100, warmup=10, min_lr_ratio=0.1, schedule=linear_with_warmup)
    assert seen[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    torch_line = LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=90)
    for rate in seen[10:]:
        assert rate == pytest.approx(torch_line.get_last_lr()[0])
        optimizer.step()
        torch_line.step()


@pytest.mark.parametrize(
    ("over_time", "over_steps"), [(cosine_over_time, cosine_with_warmup), (linear_over_time, linear_with_warmup)]
)
def test_the_curve_over_time_is_that_over_steps(
    over_time: Callable[..., LambdaLR], over_steps: Callable[..., LambdaLR]
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    passed = iter(range(101))
    scheduler = over_time(optimizer, lambda: next(passed) / 100, 0.0, 0.2)
    for rate in rates(100, 0, 0.2, over_steps):
        assert scheduler.get_last_lr() == pytest.approx([rate])
        optimizer.step()
        scheduler.step()


def test_warmup_is_a_fraction_or_a_number_of_steps() -> None:
    assert rates(200, warmup=0.05) == rates(200, warmup=10)
    assert rates(50, warmup=0)[0] == 2.0


def test_the_rate_ends_at_its_floor() -> None:
    assert rates(1000, warmup=0, min_lr_ratio=0.1)[-1] == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("warmup", [20, 50, -1])
def test_a_warmup_as_long_as_the_run_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match="of the run's 20 steps"):
        rates(20, warmup)


@pytest.mark.parametrize("schedule", [cosine_over_time, linear_over_time])
def test_a_warmup_over_time_is_a_fraction(schedule: Callable[..., LambdaLR]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    with pytest.raises(ValueError, match="warmup=5 must be a fraction of the time, below 1"):
        schedule(optimizer, lambda: 0.0, 5, 0.0)
    assert schedule(optimizer, lambda: 0.05, 0.1, 0.25).get_last_lr() == [1.0]  # half of the warm-up


@pytest.mark.parametrize("schedule", [cosine_over_time, linear_over_time])
def test_the_rate_stays_at_its_floor_after_the_time(schedule: Callable[..., LambdaLR]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    assert schedule(optimizer, lambda: 2.0, 0.0, 0.25).get_last_lr() == [0.5]

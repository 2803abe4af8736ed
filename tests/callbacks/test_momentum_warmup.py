from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_classifier import Constant, batches, make, trainer

from vitlab.callbacks import MomentumWarmup
from vitlab.errors import UserError


class Momenta(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["momentum"])


def fit(optimizer: Any, **options: Any) -> list[float]:
    momenta = Momenta()
    run = trainer(callbacks=[momenta, MomentumWarmup(start=0.5, end=0.9, ramp_steps=4)], **options)
    run.fit(make(Constant(), optimizer=optimizer), batches([0] * 6, [1] * 6), batches([0], [1]))
    return momenta.seen


@pytest.mark.parametrize(("accumulate", "steps"), [(1, [0.5, 0.6, 0.7, 0.8, 0.9, 0.9]), (2, [0.5, 0.6, 0.7])])
def test_the_momentum_rises_by_optimizer_steps(accumulate: int, steps: list[float]) -> None:
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    assert fit(sgd, accumulate_grad_batches=accumulate) == pytest.approx(steps)


def test_an_optimizer_without_momentum_is_refused() -> None:
    with pytest.raises(UserError, match="this optimizer has no momentum"):
        fit(partial(torch.optim.AdamW, lr=0.1))

from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_classifier import Constant, batches, make, trainer

from vitlab.callbacks import FinalValidation


@pytest.mark.parametrize(
    ("length", "every", "validated"),
    [
        ({"max_epochs": 5}, {"check_val_every_n_epoch": 3}, [9, 15]),
        ({"max_epochs": 6}, {"check_val_every_n_epoch": 3}, [9, 18]),
        ({"max_epochs": -1, "max_steps": 8}, {}, [3, 6, 8]),
        ({"max_epochs": -1, "max_steps": 9}, {}, [3, 6, 9]),
        ({"max_epochs": -1, "max_steps": 8}, {"check_val_every_n_epoch": 2}, [6, 8]),
        ({"max_epochs": -1, "max_steps": 2}, {}, [2]),
        ({"max_epochs": -1, "max_steps": 8}, {"check_val_every_n_epoch": None, "val_check_interval": 5}, [5, 8]),
        ({"max_epochs": -1, "max_steps": 10}, {"check_val_every_n_epoch": None, "val_check_interval": 5}, [5, 10]),
        ({"max_epochs": 2, "max_steps": 100}, {}, [3, 6]),
        ({"max_epochs": 2}, {"val_check_interval": 2}, [2, 5, 6]),
        ({"max_epochs": 2}, {"val_check_interval": 0.4}, [1, 2, 3, 4, 5, 6]),
        ({"max_epochs": 3}, {"check_val_every_n_epoch": None, "val_check_interval": 5}, [5, 9]),
        ({"max_epochs": 3}, {"check_val_every_n_epoch": None, "val_check_interval": 3}, [3, 6, 9]),
        ({"max_epochs": -1, "max_steps": 2}, {"accumulate_grad_batches": 2}, [2]),
        ({"max_epochs": -1, "max_steps": 5}, {"limit_val_batches": 0}, []),
    ],
)
def test_the_final_weights_are_validated_once(
    length: dict[str, Any], every: dict[str, Any], validated: list[int]
) -> None:
    model = make(Constant(), optimizer=partial(torch.optim.SGD, lr=0.1), max_steps=length.get("max_steps", -1))
    at: list[int] = []
    model.on_validation_epoch_end = lambda: at.append(model.global_step)  # type: ignore[method-assign]
    loader = batches([0, 1, 2], [1, 1, 1])
    options = {"num_sanity_val_steps": 0, "callbacks": [FinalValidation()], **length, "max_steps": -1, **every}
    run: pl.Trainer = trainer(**options)
    run.fit(model, loader, loader)
    assert at == validated

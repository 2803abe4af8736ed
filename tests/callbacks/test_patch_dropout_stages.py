from functools import partial
from typing import Any

import pytest
import torch
from models.test_vision_transformer import make as make_vit
from test_classifier import make, trainer
from torch import nn
from torch.utils.data import DataLoader

from vitlab.callbacks import PatchDropoutStages
from vitlab.data import Batch
from vitlab.errors import UserError
from vitlab.models import timm_model


def patches_seen(network: nn.Module, *, epochs: int) -> list[int]:
    """Patches that each training step's first block gets; two steps an epoch."""
    seen: list[int] = []

    def note(block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if block.training:
            seen.append(inputs[0].shape[1] - network.num_prefix_tokens)  # type: ignore[operator]

    blocks: Any = network.train().blocks
    blocks[0].register_forward_pre_hook(note)
    batch = Batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), torch.arange(2))
    loader: Any = DataLoader([batch, batch], batch_size=None)  # type: ignore[arg-type]
    run = trainer(callbacks=[PatchDropoutStages([0.75, 0.5, 0.0])], max_epochs=epochs, num_sanity_val_steps=0)
    run.fit(make(network, num_classes=10, optimizer=partial(torch.optim.SGD, lr=0.1)), loader, loader)
    return seen


def test_each_fraction_lasts_an_equal_part_of_the_run() -> None:
    ours = make_vit(patch_dropout=0.5, registers=1)  # of 16 patches
    timms = timm_model("test_vit", num_classes=10, image_size=32, kwargs={"patch_drop_rate": 0.5, "patch_size": 8})
    for network in (ours, timms):
        assert patches_seen(network, epochs=3) == [4, 4, 8, 8, 16, 16]


def test_a_model_that_drops_no_patches_is_refused() -> None:
    with pytest.raises(UserError, match="the model drops no patches"):
        patches_seen(make_vit(), epochs=1)

"""Gradient clipping and label smoothing in a training step."""

from functools import partial
from typing import Any

import pytest
import torch
from test_classifier import Constant, batches, make, trainer
from torch import nn

LABELS = [0, 2, 2, 1]


def step(**settings: Any) -> torch.Tensor:
    """The weights' change in one SGD step with learning rate 1."""
    network = Constant()
    before = network.logits.detach().clone()
    run = trainer(**settings)
    run.fit(make(network, optimizer=partial(torch.optim.SGD, lr=1.0)), batches(LABELS, [4]))
    return before - network.logits.detach()


def smoothed_gradient() -> torch.Tensor:
    """By definition: probabilities minus targets (Szegedy et al. 2016, section 7), of make()'s smoothing of 0.1."""
    targets = 0.9 * nn.functional.one_hot(torch.tensor(LABELS), 3) + 0.1 / 3
    return (Constant().logits.detach().softmax(0) - targets).mean(dim=0)


def test_a_step_is_the_smoothed_gradient_clipped_by_norm_or_value() -> None:
    gradient = smoothed_gradient()
    assert torch.allclose(step(), gradient, atol=1e-6)
    assert torch.allclose(step(gradient_clip_val=100.0), gradient, atol=1e-6)
    clipped = step(gradient_clip_val=0.01)
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert torch.allclose(clipped / 0.01, gradient / gradient.norm(), atol=1e-3)
    by_value = step(gradient_clip_val=0.01, gradient_clip_algorithm="value")
    assert torch.allclose(by_value, gradient.clamp(-0.01, 0.01), atol=1e-6)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_optimizer_is_clipped_too_in_bfloat16(algorithm: str) -> None:
    # Lightning 2.6.6 refuses it in the first step.
    def change(*, fused: bool) -> torch.Tensor:
        network = Constant()
        before = network.logits.detach().clone()
        run = trainer(precision="bf16-mixed", gradient_clip_val=0.01, gradient_clip_algorithm=algorithm)
        run.fit(make(network, optimizer=partial(torch.optim.SGD, lr=1.0, fused=fused)), batches(LABELS, [4]))
        return before - network.logits.detach()

    assert torch.allclose(change(fused=True), change(fused=False), rtol=1e-5)

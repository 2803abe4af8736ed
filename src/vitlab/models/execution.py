"""Choose how a model is computed: attention kernel, checkpointing, compilation."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from vitlab.config.resolve import has_gpu
from vitlab.errors import UserError
from vitlab.models import fuse_timm_attention, fused_is_faster


def choose_execution(config: DictConfig, model: nn.Module) -> None:
    """Applies gradient checkpointing, the choice of attention kernel and torch.compile to a model, in place.

    Raises:
        UserError: the model does not support gradient checkpointing.
    """
    if config.gradient_checkpointing:
        enable: Any = getattr(model, "set_grad_checkpointing", None)
        try:
            enable(True)
        except (TypeError, AssertionError):  # no such method, or timm's way to refuse
            raise UserError(
                f"gradient_checkpointing=true: {type(model).__name__} does not support it; give it timm's method "
                "set_grad_checkpointing(enable)"
            ) from None
    choose_attention(config, model)
    if config.compile:
        model.compile()  # in place: unlike torch.compile(model), it does not rename the weights


def choose_attention(config: DictConfig, network: nn.Module) -> None:
    """Give timm's attention layers the faster kernel, in place, if the config leaves it open; vitlab's own layers
    choose for themselves.

    Args:
        config: Without `auto`.
        network: timm's or another.
    """
    place = "gpu" if has_gpu(str(config.trainer.accelerator)) else "cpu"
    dtype = torch.bfloat16 if str(config.trainer.precision).startswith("bf16") else torch.float32
    if config.model.get("fused_attention") is None and not fused_is_faster(place, dtype):
        fuse_timm_attention(network, False)

"""Choose how a model is computed, and count its operations."""

import copy
from typing import Any

import torch
from omegaconf import DictConfig
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitlab.errors import UserError
from vitlab.models import fuse_timm_attention, fused_is_faster
from vitlab.models.hardware import has_gpu


def choose_execution(config: DictConfig, model: nn.Module) -> None:
    """Apply gradient checkpointing (a UserError without support), attention kernel and torch.compile, in place."""
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
    """Give timm's attention layers the faster kernel, in place, if the config leaves it open; ours choose it."""
    place = "gpu" if has_gpu(config.trainer.accelerator) else "cpu"
    dtype = torch.bfloat16 if str(config.trainer.precision).startswith("bf16") else torch.float32
    if config.model.get("fused_attention") is None and not fused_is_faster(place, dtype):
        fuse_timm_attention(network, False)


def forward_flops(network: nn.Module, images: Tensor, *, training: bool = False) -> int:
    """Count the FLOPs of a forward pass of all images, `[B, 3, H, W]` on the model's device; a multiply-add is two.

    These are matrix products, convolutions and attention, with `training` without the patches that patch dropout
    leaves out. The model is copied, not changed.
    """
    network = copy.deepcopy(network).float().eval()
    for module in network.modules():
        if isinstance(module, PatchDropout):
            module.train(training)
    patch_choice = torch.random.fork_rng(devices=[images.device] if images.is_cuda else [])
    # The counter knows the fused attention of GPUs only, and not nn.TransformerEncoderLayer's fast path, which runs
    # without gradients. It needs network.forward, because torch.compile replaces network(images).
    plain_attention = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.enable_grad(), plain_attention, patch_choice:
        network.forward(images.float())
    return counter.get_total_flops()

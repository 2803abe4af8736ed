"""What a forward pass costs."""

import copy
from typing import Any

import torch
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _fused_on_a_cpu(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    count: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return count


# torch's counter knows the fused attention of GPUs alone.
FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused_on_a_cpu}


def forward_flops(network: nn.Module, images: Tensor, *, training: bool = False) -> int:
    """Floating-point operations, two a multiply-add, of the matrix products, convolutions and attentions with which
    `images`, float32 `[B, 3, H, W]` on the network's device, give their logits.

    `training` counts those of a training step, in which patch dropout leaves patches out.
    """
    network = copy.deepcopy(network).float().eval()
    for module in network.modules():
        if isinstance(module, PatchDropout):
            module.train(training)
    # With gradients: without them nn.TransformerEncoderLayer takes a fused path that the counter does not know.
    # Not network(images), which is what torch.compile has replaced.
    chance = torch.random.fork_rng(devices=[images.device] if images.is_cuda else [])  # which patches
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter, torch.enable_grad(), chance:
        network.forward(images.float())
    return counter.get_total_flops()

"""What a forward pass costs."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(network: nn.Module, images: Tensor) -> int:
    """Floating-point operations, two a multiply-add, of the matrix products, convolutions and attentions with which
    `images`, float32 `[B, 3, H, W]` on the network's device, give their logits."""
    network = copy.deepcopy(network).float().eval()
    # With gradients: without them nn.TransformerEncoderLayer takes a fused path that the counter does not know.
    # Not network(images), which is what torch.compile has replaced.
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        network.forward(images.float())
    return counter.get_total_flops()

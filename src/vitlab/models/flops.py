"""Count the operations of a forward pass, and look up the peak speed of a GPU."""

import copy

import torch
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# TFLOP/s of dense (not sparse) bfloat16 or float16 matrix products that accumulate in float32, from NVIDIA's data
# sheets. The first key that the device's name contains counts. Lightning's own table gives the H200's with sparsity.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": 989.4,
    "A100": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "T4": 65.0,
    "V100": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def forward_flops(network: nn.Module, images: Tensor, *, training: bool = False) -> int:
    """Count the floating-point operations of a forward pass: matrix products, convolutions and attention.

    Args:
        network: Is copied, not changed.
        images: float32 `[B, 3, H, W]`, on the model's device.
        training: Count those of a training step, in which patch dropout leaves patches out.

    Returns:
        FLOPs of all B images; a multiply-add counts as two.
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


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Look up a device's FLOP/s for matrix products in a precision of the Trainer's.

    Returns:
        None unless the precision is a 16-bit one and the device a GPU in the table.
    """
    if device.type != "cuda" or not precision.startswith(("bf16", "16")):
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> float | None:
    """Look up the 16-bit FLOP/s of a GPU by its name."""
    return next((tera * 1e12 for chip, tera in PEAK_TFLOPS.items() if chip in name), None)

"""Training steps with torch's fused attention kernel beside plain matrix products, at several lengths."""

import torch
from torch import nn

from vitlab.benchmarks.loops import one_batch, this_device, training
from vitlab.benchmarks.variant import Sections, Variant, Work
from vitlab.config.instantiate import build, build_network
from vitlab.config.resolve import best_precision

# Sides of the images in pixels and sizes of the batch: 64, 256 and 1,024 patches of 4 px, in memory for 24 GiB.
SIZES = ((32, 128), (64, 16), (128, 2))


def attention_kernels(work: Work) -> Sections:
    """float32, and bfloat16 where the machine has instructions for it."""
    dtypes = [torch.float32]
    if best_precision("auto") == "bf16-mixed":
        dtypes.append(torch.bfloat16)
    sections: dict[str, dict[str, Variant]] = {}
    for dtype in dtypes:
        for side, batch in SIZES:
            name = f"{str(dtype).removeprefix('torch.')}, {side} px, batches of {batch}, images/s"
            sections[name] = {kind: _steps(work, side, batch, dtype, kind == "fused") for kind in ("plain", "fused")}
    return sections


def _steps(work: Work, side: int, batch: int, dtype: torch.dtype, fused: bool) -> Variant:
    device = this_device()
    node = work.config.model.copy()
    node.image_size, node.num_classes, node.fused_attention = side, 10, fused
    network: nn.Module = build_network(node).to(device)
    batches = one_batch(batch, side, 10, device)
    return training(network, batches, build(work.config.optimizer, "optimizer"), device=device, dtype=dtype)

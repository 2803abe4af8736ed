"""Facts about this machine: the fastest precision, and a GPU's peak speed."""

import re

import torch

from vitlab.compat import cpu_has_bfloat16

# TFLOP/s of dense (not sparse) bfloat16 or float16 matrix products that accumulate in float32, from NVIDIA's data
# sheets. The first key that is a whole word of the device's name counts. Lightning's own table gives the H200's speed
# with sparsity.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "GH200": 989.4,
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
    "V100-PCIE": 112.0,
    "V100": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def best_precision(accelerator: object) -> str:
    """Lightning's name of the fastest precision that trains well on this machine.

    bfloat16 if there are instructions for it: CUDA from Ampere on, and CPUs with AMX or AVX512-BF16 (a training step
    of vit_scratch on two cores of the latter: 152 images a second, and 87 in float32). float16 on older GPUs.
    """
    if has_cuda(accelerator):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "32-true" if has_gpu(accelerator) or not cpu_has_bfloat16() else "bf16-mixed"


def has_cuda(accelerator: object) -> bool:
    return accelerator in ("auto", "gpu") and torch.cuda.is_available()


def has_gpu(accelerator: object) -> bool:
    return accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())


def peak_flops(device: torch.device, precision: str) -> float | None:
    """A device's FLOP/s for matrix products; None unless the precision is a 16-bit one and the device in the table."""
    if device.type != "cuda" or not precision.startswith(("bf16", "16")):
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> float | None:
    """Look up the 16-bit FLOP/s of a GPU by its name; None for the slower "... Laptop" and "... D" chips."""
    found = (tera for chip, tera in PEAK_TFLOPS.items() if re.search(rf"\b{chip}\b(?! (Laptop|D)\b)", name))
    return next((tera * 1e12 for tera in found), None)

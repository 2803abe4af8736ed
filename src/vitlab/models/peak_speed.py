"""What a GPU could do at the most."""

import torch

# TFLOP/s of dense (not sparse) bfloat16 or float16 matrix products that accumulate in float32, from NVIDIA's data
# sheets; the first name that the device's name contains counts. Lightning's own table gives the H200's with sparsity.
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


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of a device's matrix products in a precision of the Trainer's; None where they are not known: not a half
    precision, not a GPU of the table."""
    if device.type != "cuda" or not precision.startswith(("bf16", "16")):
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> float | None:
    """FLOP/s in half precision of the GPU of that name."""
    return next((tera * 1e12 for chip, tera in PEAK_TFLOPS.items() if chip in name), None)

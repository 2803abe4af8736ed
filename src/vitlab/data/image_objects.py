"""Convert Pillow images, NumPy arrays and tensors to RGB images."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vitlab.data.decoding import describe_failure, to_rgb
from vitlab.errors import UserError

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def split_images(value: Any) -> list[Any]:
    """The images of a Pillow image, array or tensor; empty for anything else. Four dimensions are a batch."""
    if isinstance(value, Image.Image):
        return [value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return list(value) if value.ndim == 4 else [value]
    return []


def as_rgb_image(value: Any) -> Image.Image:
    """One image as upright RGB, as `vitlab.data.decoding.read_image` reads it from a file.

    Takes a Pillow image of any mode; an array `[H, W]` or `[H, W, C]`, or a tensor `[H, W]` or `[C, H, W]`, uint8, or
    floating point in [0, 1], of 1, 3 or 4 channels (grey, RGB, RGBA). Raises UserError for others.
    """
    if isinstance(value, Image.Image) and 0 in value.size:
        raise UserError(f"an image of {value.width} x {value.height} pixels is empty")
    try:
        return to_rgb(value if isinstance(value, Image.Image) else Image.fromarray(_pixels(value)))
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise anything
        raise UserError(f"the image can't be read: {describe_failure(error)}") from error


def _pixels(value: Any) -> NDArray[np.uint8]:
    """An array or tensor as uint8 `[H, W]`, or `[H, W, C]` of 3 or 4 channels."""
    is_tensor = isinstance(value, torch.Tensor)
    if is_tensor:
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()  # NumPy has no bfloat16
    kind = "tensor" if is_tensor else "array"
    layout = "[channels, height, width]" if is_tensor else "[height, width, channels]"
    if value.ndim == 3 and is_tensor:
        value = value.transpose(1, 2, 0)
    if value.ndim not in (2, 3) or (value.ndim == 3 and value.shape[2] not in CHANNELS) or not value.size:
        shape = value.transpose(2, 0, 1).shape if value.ndim == 3 and is_tensor else value.shape
        raise UserError(f"an image {kind} of shape {list(shape)}: expected {layout} with 1, 3 or 4 channels")
    if value.dtype != np.uint8 and not np.issubdtype(value.dtype, np.floating):
        raise UserError(f"an image {kind} of {value.dtype}: expected uint8, or floating point from 0 to 1")
    if value.dtype != np.uint8:
        low, high = value.min(), value.max()
        if not (low >= 0 and high <= 1):  # also NaN
            raise UserError(
                f"a floating point image {kind} with values from {low:.3g} to {high:.3g}: expected 0 to 1 (the model "
                "normalises images itself)"
            )
        value = np.rint(value * np.float64(255)).astype(np.uint8)
    return value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value

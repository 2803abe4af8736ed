"""Image files to pixels."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


def read_image(path: Path) -> Image.Image:
    """Any image Pillow reads as an upright RGB picture: EXIF rotation applied, transparency laid on white.

    Raises:
        Exception: of any kind: Pillow's decoders raise, beside OSError, what their parsers stumble on (SyntaxError,
            struct.error, RuntimeError, NotImplementedError ...). `describe_failure` puts it into words.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):
            # Pillow clips 16-bit grey at 255 when it converts; these files mean 0 to 65535.
            image = Image.fromarray(np.rint(np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            backdrop = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(backdrop, image)
        return image.convert("RGB")


def picture_suffixes() -> set[str]:
    """Endings of the files that Pillow can read, in lower case: `.jpg`, `.png` ..."""
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return readable | {".mpo"}  # read as JPEG, registered for writing alone


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """uint8 `[3, size, size]`: the shorter side resized to `size` (bicubic, antialiased), the centre cut out."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def describe_failure(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    return str(error) or type(error).__name__

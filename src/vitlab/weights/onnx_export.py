"""Export a model to ONNX, and check the file with onnxruntime."""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.files import replacing

TOLERANCE = 1e-3  # largest difference of a logit, float32, where the largest is 1 or less; else in proportion


def onnx_packages() -> tuple[Any, Any]:
    """Import onnx and onnxruntime.

    Raises:
        UserError: one of them, or onnxscript, is missing.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise UserError(
            f"formats=[onnx] needs the package {error.name}: pip install -e '.[onnx]' (formats=[timm] does not)"
        ) from error
    return onnx, onnxruntime


def save_onnx(network: nn.Module, data: Mapping[str, Any], images: Tensor, file: Path) -> float | None:
    """Write `model.onnx`: `images` float32 `[batch, 3, H, W]`, normalised -> `logits` float32 `[batch, classes]`.

    The batch size is free. The file's metadata describe the preprocessing as JSON: `image_size`, `interpolation`,
    `scale` (pixels are multiplied by it), `mean`, `std`, and `classes`.

    Args:
        network: On the CPU, in eval mode.
        data: The `data` group of its run's config, as plain data.
        images: float32 `[B, 3, H, W]`, normalised, for comparing onnxruntime's logits with torch's; B may be 0.
        file: The file to write.

    Returns:
        The largest difference between torch's logits and onnxruntime's; None without images.

    Raises:
        UserError: a package is missing.
        RuntimeError: the logits differ; nothing is written.
    """
    onnx, onnxruntime = onnx_packages()
    size = data["image_size"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own versions and torch's
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto  # type: ignore[union-attr]
    facts = {"image_size": size, "scale": 1 / 255}
    facts |= {key: data[key] for key in ("interpolation", "mean", "std", "classes")}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    with replacing(file) as temporary:
        onnx.save(model, temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        return _difference(network, session, images)


def _difference(network: nn.Module, session: Any, images: Tensor) -> float | None:
    if not len(images):
        return None
    with torch.inference_mode():
        expected = network(images).numpy()
    given = session.run(["logits"], {"images": images.numpy()})[0]
    alone = session.run(["logits"], {"images": images[:1].numpy()})[0]  # another batch size
    difference = max(np.abs(given - expected).max().item(), np.abs(alone - expected[:1]).max().item())
    if not difference <= TOLERANCE * max(1.0, np.abs(expected).max().item()):
        raise RuntimeError(f"onnxruntime's logits differ by {difference:.2g} from torch's: the file was not written")
    return difference

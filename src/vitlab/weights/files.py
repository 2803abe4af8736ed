"""Weights from a file: timm's formats, vitlab's checkpoints, and bare state_dicts. Reading one runs nothing in it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import load_state_dict
from torch import Tensor

from vitlab.errors import UserError
from vitlab.runs.checkpoint import CONFIG_KEY, WEIGHTS_PREFIX, network_weights, read_checkpoint

INPUT_FACTS = ("image_size", "mean", "std", "interpolation")


@dataclass(frozen=True)
class Weights:
    """Weights before they meet a network.

    Args:
        origin: Where they come from, for people.
        state: Tensors by name; empty leaves a network as it was drawn.
        input: What the images were like that they were trained with, as far as it is known: `image_size` in pixels,
            `mean` and `std` per channel on the scale [0, 1], `interpolation`.
        classes: The head's, where their names are known.
    """

    origin: str
    state: dict[str, Tensor] = field(repr=False)
    input: dict[str, Any] = field(default_factory=dict)
    classes: list[str] | None = None

    def fingerprint(self) -> str:
        """SHA-256 over names and values."""
        digest = sha256()
        for name, tensor in sorted(self.state.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def read_file(path: Path) -> Weights:
    """Weights from `.safetensors` (and the `config.json` beside it), from a checkpoint of vitlab's, or from any other
    file of torch's that holds a state_dict, bare or where timm's own training puts it.

    Raises:
        UserError: there is no such file, it is damaged, it holds more than tensors and plain data, or no tensors.
    """
    if not path.is_file():
        what = "is a folder: name the file in it" if path.is_dir() else "does not exist"
        raise UserError(f"model.weights={path} {what}")
    try:
        content: Any = load_state_dict(str(path), weights_only=True)
        state = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # whatever the readers of these formats stumble on
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"model.weights={path} can't be read as weights ({reason}); "
            "torch.save(network.state_dict(), file) writes what can"
        ) from error
    if any(name.startswith(WEIGHTS_PREFIX) for name in state):
        return _from_checkpoint(path)
    if not state:
        raise UserError(f"model.weights={path} holds no tensors by name")
    return Weights(str(path), state, *_beside(path))


def _from_checkpoint(path: Path) -> Weights:
    checkpoint = read_checkpoint(path)
    data = checkpoint[CONFIG_KEY]["data"]
    return Weights(
        str(path), network_weights(checkpoint), {key: data[key] for key in INPUT_FACTS}, list(data["classes"])
    )


def _beside(path: Path) -> tuple[dict[str, Any], list[str] | None]:
    """Input and classes from a `config.json` in timm's layout beside a file; nothing where there is none."""
    file = path.with_name("config.json")
    if path.suffix != ".safetensors" or not file.exists():
        return {}, None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}, beside the weights, is no JSON ({error})") from error
    if not isinstance(config, dict) or "pretrained_cfg" not in config:
        return {}, None  # another library's
    return input_of(config["pretrained_cfg"]), config.get("label_names")


def input_of(pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's pretrained_cfg says of the images, as in `Weights.input`.

    Raises:
        UserError: the images are not square.
    """
    known = resolve_data_config(pretrained_cfg=pretrained_cfg)  # type: ignore[no-untyped-call]
    _, height, width = known["input_size"]
    if height != width:
        raise UserError(f"the weights take images of {height} x {width} px: here images are square")
    mean, std = ([float(value) for value in known[key]] for key in ("mean", "std"))
    return {"image_size": height, "mean": mean, "std": std, "interpolation": known["interpolation"]}

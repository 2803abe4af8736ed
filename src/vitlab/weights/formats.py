"""Weights from a file: timm's formats, vitlab's checkpoints, and bare state_dicts. Reading one runs nothing in it."""

import json
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from timm.data import resolve_data_config
from timm.models import clean_state_dict
from torch import Tensor

from vitlab.errors import UserError
from vitlab.runs.checkpoint import (
    CONFIG_KEY,
    EMA_KEY,
    WEIGHTS_PREFIX,
    check_sums,
    choose_weights,
    is_whole,
    network_weights,
)

INPUT_FACTS = ("image_size", "mean", "std", "interpolation")
STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")  # in timm's order: the average before the last


@dataclass(frozen=True)
class Weights:
    """Weights before they meet a network.

    Args:
        origin: Where they come from, for people.
        state: Tensors by name; empty leaves a network as it was drawn.
        input: What the images were like that they were trained with, as far as it is known: `image_size` in pixels,
            `mean` and `std` per channel on the scale [0, 1], `interpolation`.
        input_origin: Who knows that, for people.
        classes: The head's, where their names are known.
    """

    origin: str
    state: dict[str, Tensor] = field(repr=False)
    input: dict[str, Any] = field(default_factory=dict)
    input_origin: str = ""
    classes: list[str] | None = None

    def fingerprint(self) -> str:
        """SHA-256 over names and values."""
        digest = sha256()
        for name, tensor in sorted(self.state.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def read_file(path: Path, which: str | None = None) -> Weights:
    """Weights from `.safetensors` (and the `config.json` beside it), from a checkpoint of vitlab's, or from any other
    file of torch's that holds a state_dict, bare or where timm's own training puts it.

    Args:
        path: The file.
        which: Of the weights of a checkpoint of vitlab's, "raw" or "ema"; None: those that its run selected epochs by.

    Raises:
        UserError: there is no such file, it is damaged, it holds more than tensors and plain data, or no tensors.
    """
    if not path.is_file():
        what = "is a folder: name the file in it" if path.is_dir() else "does not exist"
        raise UserError(f"model.weights={path} {what}")
    content = _read(path)
    origin = str(path)
    for key in STATE_KEYS:
        if isinstance(content.get(key), Mapping) and content[key]:
            origin = f"{path} (its {key})"
            state = content[key]
            break
    else:
        state = content
    state = {name: t for name, t in state.items() if isinstance(name, str) and isinstance(t, Tensor)}
    state = dict(clean_state_dict(state))
    if not state:
        raise UserError(f"model.weights={path} holds no tensors by name")
    if CONFIG_KEY in content:
        return _of_a_run(path, content, which)
    for prefix in (WEIGHTS_PREFIX, "model.", "net."):  # attributes that hold the network in people's LightningModules
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    known, classes = _beside(path)
    return Weights(origin, state, known, str(path), classes)


def _of_a_run(path: Path, checkpoint: Mapping[str, Any], which: str | None) -> Weights:
    data = checkpoint[CONFIG_KEY]["data"] if is_whole(checkpoint) else {}
    if not {*INPUT_FACTS, "classes"} <= set(data):
        raise UserError(f"{path} lacks its run's config, which says what images its weights are for: it was altered")
    known = {key: data[key] for key in INPUT_FACTS}
    which = choose_weights(checkpoint, which, path)
    origin = f"{path} (its {which} weights)" if EMA_KEY in checkpoint else str(path)
    return Weights(origin, network_weights(checkpoint, which), known, str(path), list(data["classes"] or []))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            check_sums(path)
        with torch.serialization.safe_globals([Namespace]):  # the arguments of timm's own training
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers of these formats stumble on
        raise UserError(
            f"model.weights={path} can't be read as weights ({_reason(path, error)}); "
            "torch.save(network.state_dict(), file) writes what can"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"model.weights={path} holds no tensors by name")
    return content


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnpicklingError) and zipfile.is_zipfile(path):
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        if objects:
            return f"it holds {', '.join(objects[:3])}: objects could run code, and are never loaded"
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


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

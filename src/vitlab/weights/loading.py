"""Load weights from a file, from timm's cache or from the Hugging Face hub.

Files may be in timm's formats, vitlab's checkpoints or bare state_dicts. Loading one never runs code in it.
"""

import json
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
from omegaconf import DictConfig
from safetensors.torch import load_file
from timm.data import resolve_data_config
from timm.models import PretrainedCfg, clean_state_dict
from torch import Tensor

from vitlab.config.instantiate import weight_keys
from vitlab.distributed.sharded_checkpoint import is_sharded
from vitlab.errors import UserError, first_line
from vitlab.files import expand_home
from vitlab.models import timm_facts
from vitlab.runs.checkpoint import (
    CONFIG_KEY,
    EMA_KEY,
    WEIGHTS_PREFIX,
    check_sums,
    choose_weights,
    describe_damage,
    is_whole,
    network_weights,
    read_checkpoint,
)
from vitlab.runs.directory import RunDirectory, checkpoint_named
from vitlab.weights.hub import CONFIG_FILE, PREFIX, WEIGHTS_FILE, download
from vitlab.weights.translation import read_npz

INPUT_FACTS = ("image_size", "mean", "std", "interpolation")
# In timm's order, averaged weights first; then those of DINO, iBOT, I-JEPA and others.
STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "teacher", "target_encoder")
# Attribute names in people's LightningModules, and of the ViT among the parts of self-supervised methods.
PREFIXES, PART_PREFIXES = (WEIGHTS_PREFIX, "model.", "net."), ("backbone.", "base_encoder.")
HUB_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True)
class Weights:
    """Weights that are not yet in a model."""

    origin: str  # for people
    state: dict[str, Tensor] = field(repr=False)  # empty: a model keeps its random weights
    # Of the images they were trained with, as far as known: image_size in pixels, mean and std (per channel, on the
    # scale [0, 1]), interpolation.
    input: dict[str, Any] = field(default_factory=dict)
    input_origin: str = ""  # the source of that knowledge, for people
    classes: list[str] | None = None  # of the head, if their names are known
    model: dict[str, Any] = field(
        default_factory=dict
    )  # timm's name and kwargs of the model that they are of, if known

    def fingerprint(self) -> str:
        """Compute SHA-256 over names and values."""
        digest = sha256()
        for name, tensor in sorted(self.state.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def weights_to_start_from(config: DictConfig) -> Weights | None:
    """Reads or downloads the weights that `init_from`, `model.weights` or `model.pretrained` names; None without.

    A model of timm's always has the input that its weights were made for; with `pretrained: false` and no file the
    state is empty. UserError if there are no such weights, they can't be read, or the download failed.
    """
    keys = weight_keys(config.model)
    file = config.model.get("weights") if "weights" in keys else None
    if config.init_from is not None:
        if config.model.get("weights") is not None:
            raise UserError("init_from and model.weights both name weights to start from: give only one")
        file = config.init_from
        if not (str(file).startswith(PREFIX) or Path(file).is_file()):
            named = checkpoint_named(str(file), "outputs", "")
            file = named or RunDirectory.open(str(file), "outputs", key="init_from").checkpoint("best")
    known, known_by = dict[str, Any](), ""
    if "pretrained" in keys and str(config.model.name).startswith(PREFIX):
        if file is not None:
            key = "model.weights" if config.init_from is None else "init_from"
            raise UserError(
                f"model.name={config.model.name} and {key}={file} both name weights to start from: give only one, or "
                "with a file timm's name of its model"
            )
        weights = _read_hub(config.model.name)
        if not weights.model:
            raise UserError(f"model.name={config.model.name} names a model that is not timm's")
        return weights if config.model.get("pretrained") else replace(weights, state={})
    if "pretrained" in keys:
        try:
            facts = timm_facts(config.model.name)
        except ValueError as error:
            raise UserError(f"model.name: {error}") from error
        known, known_by = _input_of(asdict(facts)), f"timm's {_full_name(facts)}"
        if file is None:
            return Weights(known_by, load_pretrained(facts) if config.model.get("pretrained") else {}, known, known_by)
    if file is None:
        return None
    if str(file).startswith(PREFIX):
        return _read_hub(str(file))
    weights = read_file(Path(expand_home(str(file))), config.init_weights)
    return weights if weights.input else replace(weights, input=known, input_origin=known_by)


def _read_hub(name: str) -> Weights:
    weights = read_file(download(name) / WEIGHTS_FILE)
    return replace(weights, origin=name, input_origin=name)


def load_pretrained(facts: PretrainedCfg) -> dict[str, Tensor]:
    """Load timm's pretrained weights from its cache without asking the hub, or download them; UserError if it fails."""
    name = _full_name(facts)
    if not facts.has_weights:
        raise UserError(
            f"timm has no weights of {name}: choose another model.name, pass a file with model.weights=..., "
            "or start from random weights with model.pretrained=false"
        )
    file = facts.hf_hub_filename or "model.safetensors"
    cached = try_to_load_from_cache(facts.hf_hub_id, file) if facts.hf_hub_id else None
    from_cache = isinstance(cached, str) and str(facts.custom_load) != "hf"
    try:
        if facts.hf_hub_id and not isinstance(cached, str):
            # One request of our own: the hub's client retries for most of a minute before it gives up.
            get_session().head(hf_hub_url(facts.hf_hub_id, file), timeout=HUB_TIMEOUT)
        # With custom_load, timm would read the cached file in one of the formats that its authors published it in.
        overlay = {"file": cached, "custom_load": False} if from_cache else {}
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    except Exception as error:  # from the hub's client, from either HTTP library, from the readers of files
        if from_cache:
            reason = describe_damage(Path(str(cached)), error)
            raise UserError(f"Cannot read {cached}, the cached weights of {name}: delete it ({reason})") from None
        url = hf_hub_url(facts.hf_hub_id, file) if facts.hf_hub_id else facts.url
        raise UserError(
            f"Could not download the weights of {name} ({first_line(error)}). "
            f"Download {url} on a machine with a connection, copy the file here, and pass model.weights=<file>"
        ) from error


def read_file(path: Path, which: str | None = None) -> Weights:
    """Read `.safetensors` (with the `config.json` next to it), a checkpoint of vitlab's, a file or a folder, Google's
    `.npz`, or a file of torch's with a state_dict, bare or where others' training scripts put it.

    `which` weights of a checkpoint of vitlab's: "raw", "ema", or None for those that its run selected epochs by.
    UserError if the file is missing or damaged, holds more than tensors and plain data, or no tensors.
    """
    sharded = is_sharded(path)
    if not (sharded or path.is_file()):
        problem = "is a folder: pass the file in it" if path.is_dir() else "does not exist"
        raise UserError(f"model.weights={path} {problem}")
    content = read_checkpoint(path) if sharded else _read_content(path)
    key = next((key for key in STATE_KEYS if isinstance(content.get(key), Mapping) and content[key]), None)
    entries = (content if key is None else content[key]).items()
    state = clean_state_dict({name: t for name, t in entries if isinstance(name, str) and isinstance(t, Tensor)})
    if not state:
        raise UserError(f"model.weights={path} holds no tensors by name")
    if CONFIG_KEY in content:
        data = content[CONFIG_KEY]["data"] if is_whole(content) else {}
        if not {*INPUT_FACTS, "classes"} <= set(data):
            raise UserError(f"{path} lacks its run's config, which describes the images of its weights: it was altered")
        which = choose_weights(content, which, path)
        origin = f"{path} (its {which} weights)" if EMA_KEY in content else str(path)
        known = {fact: data[fact] for fact in INPUT_FACTS}
        return Weights(origin, network_weights(content, which), known, str(path), list(data["classes"] or []))
    for prefix in (*PREFIXES, *PART_PREFIXES):
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        state = own if own and (prefix in PART_PREFIXES or len(own) == len(state)) else state
    origin = str(path) if key is None else f"{path} (its {key})"
    return Weights(origin, state, input_origin=str(path), **_read_timm_config(path))


def _read_content(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            return read_npz(path)
        if zipfile.is_zipfile(path):
            check_sums(path)
        with torch.serialization.safe_globals([Namespace]):  # the arguments that timm's training script saves
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers of these formats raise many kinds
        raise UserError(
            f"Cannot read model.weights={path} ({describe_damage(path, error)}); vitlab reads .safetensors, Google's "
            ".npz and files of torch.save(model.state_dict(), file)"
        ) from None
    if not isinstance(content, Mapping):
        raise UserError(f"model.weights={path} holds no tensors by name")
    return content


def _read_timm_config(path: Path) -> dict[str, Any]:
    """`input`, `classes` and `model` of `Weights` from timm's `config.json` next to a file; nothing without one."""
    file = path.with_name(CONFIG_FILE)
    if path.suffix != ".safetensors" or not file.exists():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}, next to the weights, is not valid JSON ({error})") from error
    if not isinstance(config, dict) or "pretrained_cfg" not in config:
        return {}  # another library's
    # The size is that of the images, which may be others now.
    arguments = {key: value for key, value in (config.get("model_args") or {}).items() if key != "img_size"}
    model = {"name": config.get("architecture"), "kwargs": arguments}
    return {"input": _input_of(config["pretrained_cfg"]), "classes": config.get("label_names"), "model": model}


def _input_of(pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The images that timm's pretrained_cfg describes, as in `Weights.input`."""
    known = resolve_data_config(pretrained_cfg=pretrained_cfg)  # type: ignore[no-untyped-call]
    _, height, width = known["input_size"]
    if height != width:
        raise UserError(f"the weights take images of {height} x {width} px, but vitlab's images are square")
    mean, std = ([float(value) for value in known[key]] for key in ("mean", "std"))
    return {"image_size": height, "mean": mean, "std": std, "interpolation": known["interpolation"]}


def _full_name(facts: PretrainedCfg) -> str:
    return ".".join(filter(None, [facts.architecture, facts.tag]))

"""Checkpoints that several processes write together, each its share: a folder, by torch.distributed.checkpoint.

`last.ckpt` is a link to the folder `last.ckpt.<number>`, so that it changes in one step. The folder has the tensors of
weights and optimizer as torch writes them (`.metadata`, `*.distcp`), and the rest in `rest.pt`.
"""

import pickle
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from vitlab.files import replacing

REST = "rest.pt"
GROUPS = "optimizer_groups"
# What the index of a folder is made of.
PLAIN = {
    **dict.fromkeys(("Metadata", "TensorStorageMetadata", "TensorProperties"), "torch.distributed.checkpoint.metadata"),
    **dict.fromkeys(("ChunkStorageMetadata", "MetadataIndex"), "torch.distributed.checkpoint.metadata"),
    **dict.fromkeys(("_MEM_FORMAT_ENCODING", "StorageMeta"), "torch.distributed.checkpoint.metadata"),
    "_StorageInfo": "torch.distributed.checkpoint.filesystem",
    "_get_layout": "torch.serialization",
    "Size": "torch",
    "PosixPath": "pathlib",
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if PLAIN.get(name) == module or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise ValueError(f"its index holds {module}.{name}, which is no data")


class ShardReader(dcp.FileSystemReader):
    """Reads a folder that somebody else may have written: torch's own reader would run what its index holds."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _PlainUnpickler(file).load()
        others = [n for n, kind in metadata.state_dict_metadata.items() if not isinstance(kind, TensorStorageMetadata)]
        if others:
            raise ValueError(f"its index holds {others[0]}, which is no tensor")
        return metadata


def names(folder: Path) -> set[str]:
    """Of the tensors in a folder."""
    return set(ShardReader(folder).read_metadata().state_dict_metadata)


def write_shards(tensors: dict[str, Any], folder: Path) -> None:
    """Writes this process's share of a nested dict of tensors; all processes must call it."""
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder))


def read_shards(tensors: dict[str, Any], folder: Path, *, alone: bool = False) -> None:
    """Fills the tensors of a nested dict, sharded or whole, in place; unless `alone`, all processes must call it.

    Raises:
        ValueError: the shards are damaged, or hold what is no data.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant
        try:
            dcp.load(tensors, storage_reader=ShardReader(folder), no_dist=alone)
        except CheckpointException as error:  # no Exception
            reason = next(iter(error.failures.values()))[0]
            raise ValueError(f"its shards are damaged, or others: {type(reason).__name__} {reason}") from error


def put_in_place(rest: dict[str, Any], folder: Path, path: Path) -> None:
    """Completes a folder of shards, and lets `path` be a link to it; an earlier one is removed."""
    with replacing(folder / REST) as temporary, temporary.open("wb") as file:
        torch.save(rest, file)
    link = path.with_name(f".{path.name}.link.tmp")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name, target_is_directory=True)
    if path.is_dir() and not path.is_symlink():  # copied by something that knows no links
        path.rename(path.with_name(f"{path.name}.0"))
    link.replace(path)
    for earlier in path.parent.glob(f"{path.name}.*"):
        if earlier.name != folder.name and earlier.is_dir():
            shutil.rmtree(earlier)


def read_rest(folder: Path) -> dict[str, Any]:
    """All but weights and optimizer state."""
    rest: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    return rest


def about(folder: Path) -> dict[str, Any]:
    """As `read_rest`, of a folder whose index can be read."""
    names(folder)
    return read_rest(folder)


def consolidated(folder: Path) -> dict[str, Any]:
    """The checkpoint as one process would have written it, on the CPU.

    Raises:
        ValueError: the folder holds what is no data.
    """
    rest = read_rest(folder)
    known: Mapping[str, Any] = ShardReader(folder).read_metadata().state_dict_metadata
    flat = {name: torch.empty(kind.size, dtype=kind.properties.dtype) for name, kind in known.items()}
    read_shards(flat, folder, alone=True)
    rest["state_dict"] = _below(flat, "state_dict")
    rest["optimizer_states"] = [
        _by_number(_below(flat, f"optimizer_{number}"), groups) for number, groups in enumerate(rest.pop(GROUPS))
    ]
    return rest


def _below(flat: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in flat.items() if key.startswith(f"{name}.")}


def _by_number(state: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """An optimizer's state by the number of each parameter, as torch's optimizers have it, of one by its name."""
    names = [name for group in groups for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {
            numbers[name]: {key.removeprefix(f"{name}."): state[key] for key in state if key.rpartition(".")[0] == name}
            for name in names
        },
        "param_groups": [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups],
    }
